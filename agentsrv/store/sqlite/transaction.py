"""Transaction: statements that are committed together, and repeated after a rollback.

Theory of operation
===================
*Redo.* Each statement that writes is kept with its values until the commit (``redo``). SQLite rolls
a transaction back if the disk is full or a page cannot be read, and the store rolls it back if an
operation meets a damaged page. Then the next statement that writes, or ``commit``, begins a new
transaction and executes the kept statements again. They have the same effect as before, because no
other process writes to the file. So the queue in memory stays valid, and no operation has to decide
again.

*Undo.* ``undo`` removes the statements of one failed operation. They are identified by the number
of their *unit*; their positions in ``redo`` change when other statements are removed.

*Damage.* Each kept statement names its task. If a statement meets a damaged page, all kept
statements of its task are removed, so that a task's row is never written without its events, and
the others are executed again. This happens whenever kept statements are executed, so the damage of
one task does not fail the operation of another. ``dropped`` names the tasks; the store refuses
their operations, including those that had succeeded before. A purge concerns many tasks: if it
meets damage, all its statements are removed, and the next purge finds the same tasks.

*Locks.* SQLite does not wait for locks: a statement raises at once, and `SqliteStore` decides when
to try again.
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
    """The values of one row; a list contains several rows."""
    task_id: str | None
    """The task that it concerns, if it concerns one."""
    unit: int = 0
    """The number of statements that are undone together; 0 for events: they are never undone."""


class Transaction:
    """One transaction at a time on one connection; see the module."""

    def __init__(self) -> None:
        self._db: sqlite3.Connection
        self._rows: list[tuple[int, bytes]] = []
        self._names: dict[int, str] = {}
        """Ids of the tasks that have events in the transaction, by number."""
        self.redo: list[Statement] = []
        """The statements of the transaction."""
        self.dropped: dict[str, sqlite3.Error] = {}
        """Tasks that were removed because of damage, with the errors; see ``take_dropped``."""
        self.has_changes = False
        """Whether a caller waits for the next commit."""
        self.unit = 0
        """The unit of the next statements; add 1 before statements that may be undone."""

    def begin(self) -> None:
        """Begin a transaction if none is open, and execute the kept statements.

        Raises:
            sqlite3.Error: It cannot begin; the statements stay kept.
        """
        if not self._db.in_transaction:
            self._begin()

    def replay(self) -> None:
        """Execute the kept statements if the transaction was rolled back.

        Raises:
            sqlite3.Error: They cannot be executed now; they stay kept.
        """
        if self.redo and not self._db.in_transaction:
            self._begin()

    def flush(self) -> None:
        """Insert the gathered events. This does not wait for the disk."""
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
            sqlite3.Error: Nothing was committed, as far as this process can know.
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
        """Return if the file can be written now. Nothing is written.

        Raises:
            sqlite3.Error: It cannot be written.
        """
        if not self._db.in_transaction:
            self._begin()
            if not self.redo:
                self._db.execute("ROLLBACK")

    def roll_back(self) -> None:
        """Roll back, unless SQLite has done so already."""
        if self._db.in_transaction:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")

    def undo(self, unit: int) -> None:
        """Remove the statements of ``unit`` and of later units, and roll back."""
        self.redo = [statement for statement in self.redo if statement.unit < unit]
        self.roll_back()

    def take_dropped(self) -> dict[str, sqlite3.Error]:
        """The tasks that were removed since the last call, with the errors."""
        dropped, self.dropped = self.dropped, {}
        return dropped

    def _recover(self, error: sqlite3.Error) -> None:
        """Roll back. After damage, execute the kept statements without the damaged tasks.

        Raises:
            sqlite3.Error: The error is not damage, or cannot be attributed to a task.
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
        """Remove every task of which a statement meets damage, and execute the other statements.

        An event is written to the page of its neighbours, and a row to several indexes, so each
        attempt may find another damaged task. The transaction is open afterwards.

        Raises:
            sqlite3.Error: Another error than damage.
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
                    self._remove(statement, error)
                    break
            else:
                return

    def _singly(self) -> Iterator[Statement]:
        """The kept statements, with each row of events as a statement that names its task."""
        for statement in self.redo:
            if statement.sql != INSERT:
                yield statement
                continue
            for row in statement.values:
                yield Statement(INSERT, row, self._names[row[0] >> SEQ_BITS])

    def _remove(self, damaged: Statement, error: sqlite3.Error) -> None:
        """Remove all kept statements of the task, or of the purge, of a damaged statement."""
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
        """Execute a statement in the transaction, and keep it.

        Args:
            sql: The statement.
            values: Those of one row, or a list of rows.
            task_id: The task that it concerns, if it concerns one.
            durable: Whether a caller waits for the commit.
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
        """Execute a statement with RETURNING; ``None``, and not kept, if it found no row."""
        row = self._write(sql, values, task_id, durable=durable).fetchone()
        if row is None:
            self.redo.pop()
        return row

    def _gather(self, number: int, task_id: str, seq: int, events: Sequence[bytes]) -> None:
        """Let the next ``flush`` insert events; ``seq`` is the number of the last one."""
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
            sqlite3.Error: It fails, or does not find the row that it found before.
        """
        cursor = self._execute(statement)
        if "RETURNING" in statement.sql and cursor.fetchone() is None:
            raise IndexDamageError(f"the row of task {statement.task_id} cannot be found any more")

    def _execute(self, statement: Statement) -> sqlite3.Cursor:
        if isinstance(statement.values, list):
            return self._db.executemany(statement.sql, statement.values)
        return self._db.execute(statement.sql, statement.values)
