"""Transaction: statements that are written together, and written again where that fails.

Theory of operation of a transaction that fails.

Each statement that writes is kept with its values until the commit (``redo``). SQLite rolls a
transaction back by itself when the disk is full or a page cannot be read; the store also does so
when an operation has met a damaged page. The next statement that writes, or ``commit``, then
begins a new transaction and executes the kept statements again. As one server has the file, they
find what they found the first time. So the tasks that were claimed and queued meanwhile stay
what the queue in memory says, and nothing has to be decided again.

Each kept statement names the task that it is about. Where a page is damaged, all statements of the
tasks that cannot be written are taken out, so that a task's row is never written without its
events, and those of the other tasks are written. This happens wherever kept statements are written,
so an operation never meets the damage of another task. ``dropped`` names the tasks, and the store
refuses their operations, also those that had succeeded before. The statements of a purge are about
many tasks; one that meets damage is taken out whole, because the next purge finds the same tasks.

SQLite is told not to wait for locks: a statement that meets one raises at once, and the caller
(``SqliteStore``) decides when to try again. ``undo`` takes back the statements of the one operation
that failed. It knows them by the number of their *unit*, and not by their place among the kept
statements, which changes when those of a damaged task are taken out.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from agentsrv.store.sqlite.faults import Fault, IndexDamageError, fault_of
from agentsrv.store.sqlite.schema import SEQ_BITS

INSERT: Final = "INSERT INTO event VALUES (?, ?)"


class Statement(NamedTuple):
    """A statement that has been executed and waits for the commit."""

    sql: str
    values: Sequence[Any]
    """Those of one row; a list has those of many rows."""
    task_id: str | None
    """The task that it is about, if it is about one."""
    unit: int = 0
    """The number of what is taken back together; 0 for events, which are never taken back."""


class Transaction:
    """One transaction at a time on one connection; see the module."""

    def __init__(self) -> None:
        self._db: sqlite3.Connection
        self._rows: list[tuple[int, bytes]] = []
        self._names: dict[int, str] = {}
        """The ids of the tasks, by number, that have events in the transaction."""
        self.redo: list[Statement] = []
        """The statements of the transaction."""
        self.dropped: dict[str, sqlite3.Error] = {}
        """Tasks that were taken out because of a damaged page, and why; see ``take_dropped``."""
        self.has_changes = False
        """Whether somebody waits for the next commit."""
        self.unit = 0
        """The unit of the statements that come; add 1 before what may be taken back."""

    def begin(self) -> None:
        """Open the transaction if it is not open, and write what it had written before.

        Raises:
            sqlite3.Error: It cannot be opened; what is kept for it stays kept.
        """
        if not self._db.in_transaction:
            self._begin()

    def replay(self) -> None:
        """Write what is kept if the transaction was rolled back.

        Raises:
            sqlite3.Error: It cannot be written now; it stays kept.
        """
        if self.redo and not self._db.in_transaction:
            self._begin()

    def flush(self) -> None:
        """Write what was gathered for the transaction; quick, because nothing is synced yet."""
        if self._rows:
            rows, self._rows = self._rows, []
            self.redo.append(Statement(INSERT, rows, None))
            if not self._db.in_transaction:
                self._begin()
                return
            try:
                self._db.executemany(INSERT, rows)
            except sqlite3.Error as error:
                self._recover(error)

    def commit(self) -> None:
        """Make everything since the last commit durable; this waits for the disk.

        Raises:
            sqlite3.Error: Nothing was committed as far as this process can know.
        """
        self.flush()
        self.replay()
        if self._db.in_transaction:
            try:
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                self._recover(error)
                self._commit_once()
            self.redo.clear()
            self._names.clear()
        self.has_changes = False

    def check_lock(self) -> None:
        """Return if the file could be written now; nothing is.

        Raises:
            sqlite3.Error: It could not.
        """
        if not self._db.in_transaction:
            self._begin()
            if not self.redo:
                self._db.execute("ROLLBACK")

    def roll_back(self) -> None:
        """Let no half of the transaction stay open; SQLite may have rolled back by itself."""
        if self._db.in_transaction:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")

    def undo(self, unit: int) -> None:
        """Take back the statements of ``unit`` and of later ones, also half of one that failed."""
        self.redo = [statement for statement in self.redo if statement.unit < unit]
        self.roll_back()

    def take_dropped(self) -> dict[str, sqlite3.Error]:
        """The tasks that were taken out since this was called last, and why."""
        dropped, self.dropped = self.dropped, {}
        return dropped

    def _recover(self, error: sqlite3.Error) -> None:
        """Roll back. After damage, leave the transaction open without the damaged tasks.

        Raises:
            sqlite3.Error: It is no damage, or cannot be put down to a task.
        """
        self.roll_back()
        if fault_of(error) is not Fault.DAMAGED:
            raise error
        self._drop_damaged()

    def _commit_once(self) -> None:
        try:
            self._db.execute("COMMIT")
        except sqlite3.Error:
            self.roll_back()
            raise

    def _drop_damaged(self) -> None:
        """Take out of the transaction all tasks of which a damaged page keeps something out.

        An event goes to the page on which its neighbours are, and a row to several indexes. A task
        of which anything cannot be written loses all that it has in the transaction. The
        transaction is left open, with the statements of the others in their order.

        Raises:
            sqlite3.Error: Something else fails.
        """
        while True:
            self.roll_back()
            self._db.execute("BEGIN IMMEDIATE")
            for statement in self._singly():
                try:
                    self._replay(statement)
                except sqlite3.Error as error:
                    self.roll_back()
                    if fault_of(error) is not Fault.DAMAGED:
                        raise
                    self._take_out(statement, error)
                    break
            else:
                return

    def _singly(self) -> Iterator[Statement]:
        """The kept statements, each event in one of its own, which names its task."""
        for statement in self.redo:
            if statement.sql != INSERT:
                yield statement
                continue
            for row in statement.values:
                yield Statement(INSERT, row, self._names[row[0] >> SEQ_BITS])

    def _take_out(self, damaged: Statement, error: sqlite3.Error) -> None:
        """Keep nothing of the task, or of the purge, of which a statement meets damage."""
        task_id, unit = damaged.task_id, damaged.unit
        if task_id is None:
            self.redo = [each for each in self.redo if each.unit != unit]
            return
        self.dropped[task_id] = error
        kept: list[Statement] = []
        for each in self.redo:
            if each.sql != INSERT:
                if each.task_id != task_id:
                    kept.append(each)
                continue
            rows = [row for row in each.values if self._names[row[0] >> SEQ_BITS] != task_id]
            if rows:
                kept.append(Statement(INSERT, rows, None))
        self.redo = kept

    def _write(
        self, sql: str, values: Sequence[Any], task_id: str | None, *, durable: bool = True
    ) -> sqlite3.Cursor:
        """Execute a statement in the transaction; unless ``durable``, nobody waits for its commit.

        ``values`` that are a list are rows.
        """
        if not self._db.in_transaction:
            self._begin()
        self.has_changes |= durable
        statement = Statement(sql, values, task_id, self.unit)
        cursor = self._execute(statement)
        self.redo.append(statement)
        return cursor

    def _write_row(
        self, sql: str, values: Sequence[Any], task_id: str, *, durable: bool = True
    ) -> Any:
        """Write one row; ``None`` if the statement, which has a RETURNING clause, found none."""
        row = self._write(sql, values, task_id, durable=durable).fetchone()
        if row is None:
            self.redo.pop()
        return row

    def _gather(self, number: int, task_id: str, seq: int, events: Sequence[bytes]) -> None:
        """Let the next ``flush`` write events of which ``seq`` is the last one's number."""
        if events:
            self._rows.append((number << SEQ_BITS | seq, b"\n".join(events)))
            self._names[number] = task_id

    def _begin(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for statement in self.redo:
                self._replay(statement)
        except sqlite3.Error as error:
            self._recover(error)

    def _replay(self, statement: Statement) -> None:
        """Execute a statement again.

        Raises:
            sqlite3.Error: It fails, or does not find the row that it found the first time.
        """
        cursor = self._execute(statement)
        if "RETURNING" in statement.sql and cursor.fetchone() is None:
            raise IndexDamageError(f"the row of task {statement.task_id} is not found any more")

    def _execute(self, statement: Statement) -> sqlite3.Cursor:
        if isinstance(statement.values, list):
            return self._db.executemany(statement.sql, statement.values)
        return self._db.execute(statement.sql, statement.values)
