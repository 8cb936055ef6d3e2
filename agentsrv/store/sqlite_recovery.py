"""Recovery: what the opening of a file does with the tasks that an earlier process left in it.

Each statement names the rows by an index and reads them from the table, which counts. A damaged
row concerns its own task: the statement is then executed for one row after the other.
"""

# ruff: noqa: S608 - statements are put together from constants of this file only

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from agentsrv.models.states import TaskStatus
from agentsrv.store.marks import Mark
from agentsrv.store.queue import TaskQueue
from agentsrv.store.sqlite_faults import Fault, fault_of

NoteDamage = Callable[[str, BaseException], None]
"""Takes note of a task that cannot be read, and why."""
LEASED: Final = "node IS NOT NULL"
READY: Final = "ready IS NOT NULL"
WAITING: Final = ", ".join(
    f"'{status.value}'"
    for status in TaskStatus
    if not status.is_terminal and status is not TaskStatus.PENDING
)
"""Statuses of tasks that are leased or ready."""
FORGOTTEN: Final = (
    f"SELECT id FROM task INDEXED BY task_owner WHERE status IN ({WAITING})"
    f" EXCEPT SELECT id FROM task INDEXED BY task_ready WHERE {READY}"
    f" EXCEPT SELECT id FROM task INDEXED BY task_node WHERE {LEASED}"
)
"""Tasks that would never be claimed: the indexes contradict each other about them."""
SUMS: Final = [
    f"SELECT count(*), total(id) FROM task INDEXED BY {index}"
    for index in ("sqlite_autoindex_task_1", "task_owner")
]
"""The same of each index that has all tasks."""
STORE_MARKS: Final = (
    "UPDATE task NOT INDEXED SET interrupted = ?1"
    " WHERE id = (SELECT id FROM task WHERE task_id = ?2) AND task_id = ?2 AND ended_at IS NULL"
)

_log = logging.getLogger("agentsrv.store")


class Recovery:
    """See the module.

    Args:
        db: The open file.
        note_damage: Called for each task that cannot be read.
    """

    def __init__(self, db: sqlite3.Connection, note_damage: NoteDamage) -> None:
        self._db = db
        self._note_damage = note_damage

    def repair_indexes(self, path: Path) -> None:
        """Make the indexes anew if they contradict each other.

        Only indexes are read, which takes about 0.2 s for a million tasks.
        """
        try:
            forgotten = self._db.execute(FORGOTTEN).fetchall()
            sums = {self._db.execute(each).fetchone() for each in SUMS}
            if not forgotten and len(sums) == 1:
                return
            reason = "they contradict each other"
        except sqlite3.Error as error:
            if fault_of(error) is not Fault.DAMAGED:
                raise
            reason = str(error)
        try:
            self._db.execute("REINDEX task")
        except sqlite3.Error as error:
            if fault_of(error) is Fault.PASSING:  # a lock, a full disk: the start waits for it
                raise
            told = "the indexes of the store %s are damaged (%s) and cannot be made anew: %s"
            _log.error(told, path, reason, error)
        else:
            _log.error("the indexes of the store %s were damaged (%s); made anew", path, reason)

    def free_leases(self) -> None:
        """Let every task that an earlier process had leased be claimed."""
        free = "UPDATE task NOT INDEXED SET node = NULL, ready = 0 WHERE"
        leased = f"SELECT id FROM task WHERE {LEASED}"
        try:
            self._db.execute(f"{free} id IN ({leased}) AND {LEASED}")
        except sqlite3.Error as error:
            if fault_of(error) is not Fault.DAMAGED:
                raise
            for (number,) in self._db.execute(leased).fetchall():
                self._try(number, f"{free} id = ? AND {LEASED}")

    def read_queue(self, queue: TaskQueue) -> int:
        """Put the tasks that are ready into ``queue``; return the last place in it."""
        columns = f"SELECT task_id, owner, ready FROM task NOT INDEXED WHERE {READY} AND"
        ids = f"SELECT id FROM task WHERE {READY} ORDER BY ready, id"
        try:
            rows = self._db.execute(f"{columns} id IN ({ids}) ORDER BY ready, id").fetchall()
        except sqlite3.Error as error:
            if fault_of(error) is not Fault.DAMAGED:
                raise
            rows = [
                found
                for (number,) in self._db.execute(ids).fetchall()
                if (found := self._try(number, f"{columns} id = ?"))
            ]
        place = 0
        for task_id, owner, place in rows:
            if place:
                queue.put(task_id, owner)
            else:
                queue.lose(task_id, owner)
        queue.settle()
        return place

    def store_marks(self, marks: Iterable[Mark]) -> None:
        """Store which attempts the end of the last process interrupted.

        A crash before the marks are cleared finds them again, and stores the same.
        """
        interrupted: dict[str, list[tuple[str, int]]] = {}
        for mark in marks:
            interrupted.setdefault(mark.task_id, []).append((mark.step_id, mark.attempt))
        rows = [(json.dumps(attempts), task_id) for task_id, attempts in interrupted.items()]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(STORE_MARKS, rows)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if fault_of(error) is not Fault.DAMAGED:
                raise
            for row in rows:
                try:
                    self._db.execute(STORE_MARKS, row)
                except sqlite3.Error as own:
                    if fault_of(own) is not Fault.DAMAGED:
                        raise
                    self._note_damage(row[1], own)

    def _try(self, number: int, statement: str) -> Any:
        return try_row(self._db, number, statement, self._note_damage)


def try_row(db: sqlite3.Connection, number: int, statement: str, note_damage: NoteDamage) -> Any:
    """Execute a statement about the task of that number; one whose page is damaged is left alone.

    Returns:
        The row that the statement gives, ``None`` without one.
    """
    try:
        return db.execute(statement, (number,)).fetchone()
    except sqlite3.Error as error:
        if fault_of(error) is not Fault.DAMAGED:
            raise
        note_damage(id_of(db, number), error)
    return None


def id_of(db: sqlite3.Connection, number: int) -> str:
    """The id of a task whose row cannot be read, from the index of ids; for messages only."""
    try:
        ids = dict(db.execute("SELECT id, task_id FROM task ORDER BY task_id"))
    except sqlite3.Error:
        ids = {}
    return str(ids.get(number, f"number {number}"))
