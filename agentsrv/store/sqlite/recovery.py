"""Recovery: repairs indexes, ends old leases and rebuilds the queue when a file is opened.

Theory of operation
===================
*Damaged rows.* Each statement selects rows by an index and reads them from the table. If that meets
a damaged row, the statement is repeated for each row alone, so that only the task of the row is
lost.

*Damaged indexes.* An index contains nothing that is not in the table, so it can be rebuilt from the
rows. ``REINDEX`` does so, but it first frees the pages of the old tree, and has to read the tree to
find them: one unreadable page makes it fail. ``_replace`` does not read the old tree. In one
transaction it creates an index with another name, exchanges the root pages of the two in SQLite's
schema table, and deletes the other name there, together with the old tree. The pages of the old
tree stay in the file, unused, until a ``VACUUM``; `inspect` does not count them as damage. This
also works for the index of ids, which belongs to a UNIQUE constraint and cannot be dropped.

Both read every row, so they fail if a row of the table is damaged, too.
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
from agentsrv.store.attempt_marks import Mark
from agentsrv.store.queue import TaskQueue
from agentsrv.store.sqlite.faults import Fault, IndexDamageError, fault_of

NoteDamage = Callable[[str, BaseException], None]
"""Records that a task cannot be read, and why."""
LEASED: Final = "node IS NOT NULL"
READY: Final = "ready IS NOT NULL"
WAITING: Final = ", ".join(
    f"'{status.value}'"
    for status in TaskStatus
    if not status.is_terminal and status is not TaskStatus.PENDING
)
"""Statuses of tasks that are leased or ready."""
UNREACHABLE: Final = (
    f"SELECT id FROM task INDEXED BY task_owner WHERE status IN ({WAITING})"
    f" EXCEPT SELECT id FROM task INDEXED BY task_ready WHERE {READY}"
    f" EXCEPT SELECT id FROM task INDEXED BY task_node WHERE {LEASED}"
)
"""Tasks that would never be claimed, because the indexes contradict each other."""
ENDED: Final = ", ".join(f"'{status.value}'" for status in TaskStatus if status.is_terminal)
IDS: Final = "sqlite_autoindex_task_1"
"""The index of ids."""
SUMS: Final = [
    [(IDS, "TRUE"), ("task_owner", "TRUE")],
    [("task_owner", f"status IN ({ENDED})"), ("task_ended", "ended_at IS NOT NULL")],
    [("task_key", "idempotency_key IS NOT NULL")],
]
"""Groups of indexes with conditions by which they contain the same tasks."""
INDEXES: Final = (IDS, "task_ready", "task_node", "task_ended", "task_owner", "task_key")
STORE_MARKS: Final = (
    "UPDATE task NOT INDEXED SET interrupted = ?"
    " WHERE id = (SELECT id FROM task WHERE task_id = ?) AND task_id = ? AND ended_at IS NULL"
)

_log = logging.getLogger("agentsrv.store")


class Recovery:
    """Recovers an open file; see the module.

    Args:
        db: The open file.
        note_damage: Called for each task that cannot be read.
    """

    def __init__(self, db: sqlite3.Connection, note_damage: NoteDamage) -> None:
        self._db = db
        self._note_damage = note_damage

    def repair_indexes(self, path: Path) -> None:
        """Rebuild the indexes if one cannot be read, or if they contradict each other.

        The check reads indexes only; it takes about 0.5 s for a million tasks.

        Raises:
            IndexDamageError: The indexes cannot be rebuilt, and those of ready and leased tasks
                cannot be read.
        """
        try:
            if self._are_consistent():
                return
            reason = "they contradict each other"
        except sqlite3.Error as error:
            if fault_of(error) is not Fault.DAMAGED:
                raise
            reason = str(error)
        try:
            for index in INDEXES:
                self._rebuild(index)
        except sqlite3.Error as error:
            if fault_of(error) is Fault.PASSING:  # a lock or a full disk: `open` tries again
                raise
            damage = f"damaged ({reason}) and cannot be rebuilt from the rows: {error}"
            _log.error("the indexes of the store %s are %s", path, damage)
            if not self._can_be_read(LEASED) or not self._can_be_read(READY):
                raise IndexDamageError(
                    f"its indexes are {damage}; `agentsrv doctor` lists the damage"
                ) from error
        else:
            _log.error("the indexes of the store %s were damaged (%s) and rebuilt", path, reason)

    def _can_be_read(self, condition: str) -> bool:
        try:
            self._db.execute(f"SELECT id FROM task WHERE {condition}").fetchall()
        except sqlite3.Error as error:
            if fault_of(error) is not Fault.DAMAGED:
                raise
            return False
        return True

    def _are_consistent(self) -> bool:
        """Whether the indexes contain the same tasks, as far as they can be compared."""
        if self._db.execute(UNREACHABLE).fetchone() is not None:
            return False
        for indexes in SUMS:
            sums = {
                self._db.execute(
                    f"SELECT count(*), total(id) FROM task INDEXED BY {index} WHERE {condition}"
                ).fetchone()
                for index, condition in indexes
            }
            if len(sums) > 1:
                return False
        return True

    def _rebuild(self, index: str) -> None:
        try:
            self._db.execute(f"REINDEX {index}")
        except sqlite3.Error as error:
            if fault_of(error) is not Fault.DAMAGED:
                raise
            self._replace(index)

    def _replace(self, index: str) -> None:
        """Rebuild an index that has an unreadable page; see the module."""
        (create,) = self._db.execute(
            "SELECT sql FROM sqlite_master WHERE name = ?", (index,)
        ).fetchone()
        create = create or f"CREATE UNIQUE INDEX {index} ON task (task_id)"
        other = f"new_{index}"
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.execute(create.replace(f" {index} ", f" {other} ", 1))
            (version,) = self._db.execute("PRAGMA schema_version").fetchone()
            self._db.execute("PRAGMA writable_schema = ON")
            self._db.execute(
                "UPDATE sqlite_master SET rootpage ="
                " (SELECT rootpage FROM sqlite_master WHERE name = ?) WHERE name = ?",
                (other, index),
            )
            self._db.execute("DELETE FROM sqlite_master WHERE name = ?", (other,))
            self._db.execute(f"PRAGMA schema_version = {version + 1}")
            self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._db.execute("PRAGMA writable_schema = RESET")

    def free_leases(self) -> None:
        """End the leases of earlier processes."""
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
        """Put the ready tasks into ``queue``; return the last place that was assigned."""
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
        ready = 0
        for task_id, owner, ready in rows:
            if ready:
                queue.put(task_id, owner)
            else:
                queue.lose(task_id, owner)
        queue.commit_new()
        return ready

    def store_marks(self, marks: Iterable[Mark]) -> None:
        """Store the attempts that the end of the last process interrupted.

        After a crash before the marks are cleared, the next opening stores the same ones again.
        """
        interrupted: dict[str, list[tuple[str, int]]] = {}
        for mark in marks:
            interrupted.setdefault(mark.task_id, []).append((mark.step_id, mark.attempt))
        rows = [(json.dumps(attempts), task, task) for task, attempts in interrupted.items()]
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
    """Execute a statement on the task with this number; record the task if it is damaged.

    Returns:
        The row that the statement returns; ``None`` without one, or after damage.
    """
    try:
        return db.execute(statement, (number,)).fetchone()
    except sqlite3.Error as error:
        if fault_of(error) is not Fault.DAMAGED:
            raise
        note_damage(id_of(db, number), error)
    return None


def id_of(db: sqlite3.Connection, number: int) -> str:
    """The id of a task whose row cannot be read, from the index of ids; used in messages."""
    try:
        ids = dict(db.execute("SELECT id, task_id FROM task ORDER BY task_id"))
    except sqlite3.Error:
        ids = {}
    return str(ids.get(number, f"number {number}"))
