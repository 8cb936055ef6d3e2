"""SqliteLog: the statements on tasks and events in one file; synchronous, one call at a time.

Theory of operation
===================
*Layers.* `DatabaseFile` holds the lock and notices a moved or truncated file. `Transaction`
executes statements that write, and repeats them in a new transaction after a rollback. `SqliteLog`
has the methods of ``Store`` on top of both. `SqliteStore` calls it from the loop and from its
thread, never at the same time.

*Writes* go to the open transaction and return at once; ``commit`` makes them durable. A method that
raises an ``AgentsrvError`` has written nothing, and the transaction continues. The events of an
append are gathered, and ``flush`` inserts those of all appends with one statement.

*The queue* is in memory (`TaskQueue`); the columns ``ready`` and ``node`` are its durable form,
from which ``open`` rebuilds it. A new task can be claimed after the commit of its creation
(``commit_new``). A claim is not committed by itself (``durable=False``): if the process ends before
the first append, the next process finds the task as it was.

*One append is one row* of ``event``: a line for each event. The key ``place`` combines the number
of the task and that of the last event, so that a log is contiguous and in order.

*An index is not trusted.* A row is found by an index, and then read from the table by its number.
If it belongs to another task, or a task that must exist is not found, ``IndexDamageError`` is
raised, and nothing is read or written. ``NOT INDEXED`` keeps SQLite from reading columns from an
index.
"""

# ruff: noqa: S608 - statements are put together from constants of this file only

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from agentsrv.error_text import describe
from agentsrv.errors import ConfigurationError, UnavailableError
from agentsrv.models.states import TaskStatus
from agentsrv.store import base
from agentsrv.store.attempt_marks import AttemptMarks
from agentsrv.store.base import Append, Created, Head, Lease, NewTask, Page, Row
from agentsrv.store.queue import QueueLimits, TaskQueue
from agentsrv.store.sqlite import schema
from agentsrv.store.sqlite.faults import (
    REINDEX_HINT,
    CutOffError,
    Fault,
    HoleError,
    IndexDamageError,
    MovedError,
    UnopenedError,
    fault_of,
    hint_for,
    is_damage,
    may_pass,
)
from agentsrv.store.sqlite.file import DatabaseFile, companion
from agentsrv.store.sqlite.recovery import Recovery, id_of, try_row
from agentsrv.store.sqlite.schema import SEQ_BITS
from agentsrv.store.sqlite.transaction import Transaction

WAL_LIMIT: Final = 64 << 20  # bytes to which the write-ahead log is truncated after a checkpoint
HEAD: Final = "task_id, owner, status, seq, epoch"
ROW: Final = "task_id, status, user_input, created_at, owner"
BY_ID: Final = "(SELECT id AS number FROM task WHERE task_id = ?)"
"""The number of a task, from the index of ids."""
BY_KEY: Final = "(SELECT id AS number FROM task WHERE owner = ? AND idempotency_key = ?)"
"""The number of a task, from the index of idempotency keys."""
READ: Final = "LEFT JOIN task NOT INDEXED ON id = number"
"""The row from the table; NULLs if it is missing."""
LOG: Final = (
    f"(SELECT id << {SEQ_BITS} AS first, (id + 1 << {SEQ_BITS}) - 1 AS last"
    f" FROM {BY_ID} JOIN task NOT INDEXED ON id = number AND task_id = ?)"
)
"""The first and last place of a task's log; it has the task's id as a parameter twice."""
OLD: Final = "task NOT INDEXED WHERE id = ? AND ended_at < ?"
Numbers = list[int]
"""Numbers of tasks; a name for methods of a class that has a method ``list``."""

_log = logging.getLogger("agentsrv.store")


class SqliteLog(Transaction):
    """Tasks and events in one file; see ``Store`` for what each method means."""

    def __init__(self, path: Path, limits: QueueLimits) -> None:
        super().__init__()
        self._path = path
        self.queue = TaskQueue(limits)
        """The tasks that are ready or leased; rebuilt from the file by ``open``."""
        self._last_ready = 0
        """The last place in the queue that was assigned."""
        self._ready_changed = False
        self._file = DatabaseFile(path)
        self._overwritten: str | None = None
        self._is_cut_off = False
        self._is_disconnected = False
        """Whether ``put_back_log`` has closed the connection, and not opened another yet."""
        self._has_index_damage = False
        self.marks = AttemptMarks()
        self._undeletable: set[int] = set()
        """Numbers of damaged tasks that ``purge`` could not delete."""
        self.damaged: dict[str, str] = {}
        """Damaged tasks that were found, with the reasons."""

    def open(self) -> None:
        """Lock and open the file, create or migrate the schema, and end all leases.

        Raises:
            ConfigurationError: The path or the file cannot be that of a store of this version.
            StoreInUseError: Another server uses the file.
            UnavailableError: The file cannot be opened now, for example because it is locked or
                the disk is full.
        """
        self._file.lock()
        self.queue = TaskQueue(self.queue.limits)
        self.damaged.clear()
        try:
            self._connect()
        except (sqlite3.Error, OSError, ConfigurationError) as error:
            self.close()
            reason = f"cannot open the store {self._path}: {describe(error)}"
            if is_damage(error):
                advice = "restore a backup, or set store to another file"
                raise ConfigurationError(f"{reason}; {advice}") from error
            if isinstance(error, ConfigurationError):
                raise ConfigurationError(
                    f"cannot open the store {self._path}: {error.message}"
                ) from error
            if fault_of(error) is Fault.PASSING:
                reason += f"; {hint_for(error)}"
            raise UnavailableError(reason) from error

    def close(self) -> None:
        """Close the file and release its lock.

        SQLite moves its log into the database when it closes the connection. If another file was
        copied over the database, that would damage the copy; if one of the files was truncated, it
        would write the gap. Then the connection stays open until the process ends.
        """
        self.marks.close()
        if hasattr(self, "_db"):
            if self._overwritten is None and not self._is_cut_off:
                self._db.close()
            else:
                _keep_open(self._db)
        self._file.close()

    def _connect(self) -> None:
        self._db = self._connection()
        found = schema.version_of(self._db)
        _set_up(self._db)
        schema.migrate(self._db, found)
        if (
            found is None or not self._file.has_header()
        ):  # a crash may have come before the first checkpoint
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        recovery = Recovery(self._db, self.note_damage)
        recovery.repair_indexes(self._path)
        recovery.free_leases()
        self._last_ready = recovery.read_queue(self.queue)
        recovery.store_marks(self.marks.open(companion(self._file.path, ".running")))
        self.marks.clear()
        self._file.watch()

    def _connection(self) -> sqlite3.Connection:
        return sqlite3.connect(
            self._file.path, isolation_level=None, check_same_thread=False, timeout=0
        )

    def note_damage(self, task_id: str, error: BaseException) -> None:
        """Record and log a damaged task once."""
        if isinstance(error, IndexDamageError):
            self.note_index_damage(error)
        if task_id not in self.damaged:
            self.damaged[task_id] = str(error)
            _log.error(
                "task %s cannot be read from the store %s: %s; the other tasks run. "
                "`agentsrv doctor` lists the damage; restore a copy that `agentsrv backup` made",
                task_id,
                self._path,
                error,
                extra={"about": {"task_id": task_id}},
            )

    def note_index_damage(self, error: IndexDamageError) -> None:
        """Log once that the table of tasks or one of its indexes is damaged."""
        if not self._has_index_damage:
            self._has_index_damage = True
            _log.error(
                "an index of the store %s contradicts the table: %s. `agentsrv doctor` finds out "
                "which is damaged. If only an index is, %s",
                self._path,
                error,
                REINDEX_HINT,
            )

    def check_place(self) -> None:
        """Return if the path still leads to the open files, so that commits can be found.

        Raises:
            MovedError: The database or its log was deleted, moved or replaced.
            CutOffError: The database or its log is shorter than what was written.
        """
        complaint = self._file.complaint()
        if complaint is not None:
            raise MovedError(complaint)
        complaint = self._file.cut_off()
        if complaint is not None:
            self._is_cut_off = True
            raise CutOffError(complaint)

    def check_content(self) -> None:
        """Return if no other content was written over the database since it was opened.

        Raises:
            MovedError: Another file was copied over it.
        """
        if self._overwritten is None:
            self._overwritten = self._file.overwritten()
            if self._overwritten is not None:
                self._file.set_log_aside()
        if self._overwritten is not None:
            raise MovedError(self._overwritten)

    def put_back_log(self) -> None:
        """If only the write-ahead log was deleted: move it into the database, and begin another.

        SQLite still has the deleted log open. If the second part fails, the next call repeats it;
        until then there is no connection, and the statements of the transaction are kept.

        Raises:
            sqlite3.Error: It is not possible now.
            MovedError: The database was moved, too.
        """
        if not self._is_disconnected:
            if not self._file.lacks_log_only:
                return
            self.roll_back()
            blocked, *_ = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if blocked:
                return
            self._is_disconnected = True
            self._db.close()
        if not self._file.is_in_place:  # SQLite would create an empty database
            raise MovedError(f"{self._path} was moved or replaced")
        connection = self._connection()
        try:
            _set_up(connection)
            connection.execute("BEGIN IMMEDIATE")  # SQLite creates the log when it begins to write
            connection.execute("ROLLBACK")
            self._file.watch()
            self.check_place()
        except OSError as error:
            connection.close()
            if may_pass(error):
                raise UnopenedError(describe(error)) from error
            raise
        except BaseException:
            connection.close()
            raise
        self._db, self._is_disconnected = connection, False

    @property
    def log_size(self) -> int:
        """Bytes of the write-ahead log."""
        return self._file.log_size

    def commit(self) -> None:
        """See ``Transaction.commit``; new tasks can be claimed afterwards."""
        super().commit()
        self.queue.commit_new()

    def create(self, task: NewTask) -> Created:
        """See ``Store.create``."""
        base.check_texts(task)
        first = self._replayed(task)
        if first is not None:
            return Created(first, replayed=True)
        if self.head(task.task_id) is not None:
            raise base.id_taken(task.task_id)
        ready = self._next_place(task.owner, task.status)
        self._expire_key(task)
        seq = len(task.events)
        (number,) = self._write_row(
            "INSERT INTO task (task_id, owner, status, seq, ready, user_input, created_at,"
            " idempotency_key, spec) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
            (
                task.task_id,
                task.owner,
                task.status.value,
                seq,
                ready,
                task.user_input,
                task.created_at,
                task.idempotency_key,
                task.spec,
            ),
            task.task_id,
        )
        self._gather(number, task.task_id, seq, task.events)
        if ready is not None:
            self._put(task.task_id, task.owner)
        return Created(Head(task.task_id, task.owner, task.status, seq, 0), replayed=False)

    def head(self, task_id: str) -> Head | None:
        """See ``Store.head``."""
        row = self._row(HEAD, task_id)
        return None if row is None else _to_head(row)

    def _row(self, columns: str, task_id: str) -> Any:
        """Columns of a task's row; the first must be ``task_id``.

        Raises:
            IndexDamageError, HoleError: The index of ids leads to another task, or to none.
        """
        row = self._db.execute(f"SELECT {columns} FROM {BY_ID} {READ}", (task_id,)).fetchone()
        if row is not None and row[0] != task_id:
            raise _contradiction("ids", row[0])
        return row

    def _missed(self, task_id: str, *, is_known: bool) -> Head | None:
        """The head of a task of which a statement did not find the expected row.

        Raises:
            IndexDamageError: The task is in the queue, but the index does not lead to a row.
        """
        head = self.head(task_id)
        if head is None and is_known:
            raise IndexDamageError("the index of ids does not contain it")
        return head

    def find(self, owner: str, prefix: str) -> Sequence[str]:
        """See ``Store.find``."""
        rows = self._db.execute(
            "SELECT task_id FROM task WHERE task_id >= ? AND task_id < ? AND owner = ? LIMIT 2",
            (prefix, prefix + "\U0010ffff", owner),
        )
        return [row[0] for row in rows]

    def find_key(self, owner: str, idempotency_key: str) -> str | None:
        """See ``Store.find_key``."""
        row = self._keyed("task_id", owner, idempotency_key)
        return None if row is None else str(row[0])

    def _keyed(self, columns: str, owner: str, idempotency_key: str) -> Any:
        """Columns of the task with an idempotency key.

        Raises:
            IndexDamageError, HoleError: The index of keys leads to another task, or to none.
        """
        row = self._db.execute(
            f"SELECT {columns}, task_id, owner, idempotency_key FROM {BY_KEY} {READ}",
            (owner, idempotency_key),
        ).fetchone()
        if row is None:
            return None
        *found, task_id, found_owner, found_key = row
        if (found_owner, found_key) != (owner, idempotency_key):
            raise _contradiction("idempotency keys", task_id)
        return found

    def read(self, task_id: str, after: int, limit: int) -> Sequence[bytes]:
        """See ``Store.read``."""
        if self._rows and self._db.in_transaction:
            self.flush()
        rows = self._db.execute(
            f"SELECT place - first, body FROM event, {LOG}"
            " WHERE place > first + ? AND place <= last ORDER BY place",
            (task_id, task_id, after),
        )
        found: list[bytes] = []
        for last, body in rows:
            events = body.split(b"\n")
            before = after - (last - len(events))  # events up to `after`, in the first row only
            if before + len(found) < 0:
                raise HoleError(f"event {after + len(found) + 1} is missing")
            found += events[max(before, 0) :]
            if len(found) >= limit:
                break
        rows.close()
        if len(found) < limit:
            row = self._row("task_id, seq", task_id)
            if row is not None and row[1] > after + len(found):
                raise HoleError(f"event {after + len(found) + 1} is missing")
        return found[:limit]

    def spec(self, task_id: str) -> bytes | None:
        """See ``Store.spec``."""
        row = self._row("task_id, spec", task_id)
        return None if row is None else row[1]

    def state(self, task_id: str) -> bytes | None:
        """See ``Store.state``."""
        row = self._row("task_id, state", task_id)
        return None if row is None else row[1]

    def list(self, owner: str, status: TaskStatus | None, limit: int, before: int | None) -> Page:
        """See ``Store.list``; ``before`` is the number of the last listed task."""
        values: tuple[str | int, ...] = (owner,)
        where = "owner = ?"
        if status is not None:
            where, values = "owner = ? AND status = ?", (owner, status.value)
        total = self._db.execute(f"SELECT count(*) FROM task WHERE {where}", values).fetchone()[0]
        where, values = f"{where} AND id < ?", (*values, (1 << 62) if before is None else before)
        rows: Sequence[Any]
        try:
            rows = self._db.execute(
                f"SELECT number, {ROW} FROM (SELECT id AS number FROM task WHERE {where}"
                " ORDER BY id DESC LIMIT ?) LEFT JOIN task NOT INDEXED ON id = number"
                " ORDER BY number DESC",
                (*values, limit + 1),
            ).fetchall()
        except sqlite3.Error as error:
            if fault_of(error) is not Fault.DAMAGED:
                raise
            rows = self._list_whole(where, values, limit + 1)
        found = [
            (row[0], Row(row[1], TaskStatus(row[2]), row[3], row[4]))
            for row in rows
            if self._is_of(owner, row)
        ]
        page = base.page_of(found, limit, total)
        if page.next_cursor is None and len(rows) > limit:  # unreadable rows were left out
            return page._replace(next_cursor=str(rows[-1][0]))
        return page

    def _is_of(self, owner: str, row: Sequence[Any]) -> bool:
        """Whether a listed row belongs to the owner, as the index of owners claims."""
        number, task_id, *_, found = row
        if found == owner:
            return True
        error = IndexDamageError("the index of owners lists it for another owner")
        self.note_damage(task_id or f"number {number}", error)
        return False

    def _list_whole(self, where: str, values: Sequence[Any], limit: int) -> Sequence[Any]:
        """Rows of a list, read one by one, without those that cannot be read."""
        ids = self._db.execute(f"SELECT id FROM task WHERE {where} ORDER BY id DESC", values)
        rows: list[Any] = []
        for (row,) in ids.fetchall():
            sql = f"SELECT id, {ROW} FROM task WHERE id = ?"
            found = try_row(self._db, row, sql, self.note_damage)
            if found is not None:
                rows.append(found)
            if len(rows) == limit:
                break
        return rows

    def append(self, append: Append) -> None:
        """See ``Store.append``."""
        seq = append.expected + len(append.events)
        where = (
            "id = (SELECT id FROM task WHERE task_id = ?) AND task_id = ? AND epoch = ? AND seq = ?"
        )
        key = (append.task_id, append.task_id, append.epoch, append.expected)
        values: tuple[Any, ...]
        ready = self._next_place(append.owner, append.status)
        if append.status.is_terminal:
            change = (
                "seq = ?, status = ?, node = NULL, ready = NULL, ended_at = ?, interrupted = NULL,"
                " state = ?"
            )
            values = (seq, append.status.value, append.at, append.state)
        elif ready is not None:
            change, values = "seq = ?, status = ?, ready = ?", (seq, append.status.value, ready)
        else:
            change = (
                "seq = ?, status = ?, interrupted = CASE WHEN node IS NULL THEN interrupted END"
            )
            values = (seq, append.status.value)
        row = self._write_row(
            f"UPDATE task NOT INDEXED SET {change} WHERE {where} RETURNING id",
            (*values, *key),
            append.task_id,
        )
        if row is None:
            is_known = self.queue.has(append.task_id, append.owner)
            raise base.fenced(append, self._missed(append.task_id, is_known=is_known))
        self._gather(row[0], append.task_id, seq, append.events)
        if append.status.is_terminal:
            self._ready_changed |= self.queue.drop(append.task_id, append.owner)
        elif ready is not None:
            self._put(append.task_id, append.owner)

    def claim(self, node: str, limit: int) -> Sequence[Lease]:
        """See ``Store.claim``."""
        claimed = self.queue.claim(limit)
        if not claimed:
            return ()
        leases: list[Lease] = []
        first = self.unit + 1
        for task_id in claimed:
            self.unit += 1
            try:
                leases.append(self._lease(task_id, node))
            except sqlite3.Error as error:
                self.undo(self.unit)
                if fault_of(error) is not Fault.DAMAGED:
                    self.undo(first)
                    self.queue.unclaim(claimed)
                    raise
                self.note_damage(task_id, error)  # stays claimed, so that no worker gets it
        return leases

    def _lease(self, task_id: str, node: str) -> Lease:
        row = self._write_row(
            "UPDATE task NOT INDEXED SET epoch = epoch + 1, node = ?, ready = NULL"
            " WHERE id = (SELECT id FROM task WHERE task_id = ?) AND task_id = ?"
            " RETURNING epoch, seq, spec, owner, interrupted",
            (node, task_id, task_id),
            task_id,
            durable=False,
        )
        if row is None:
            self._missed(task_id, is_known=True)
            raise IndexDamageError("its row is missing")
        epoch, seq, spec, owner, found = row
        try:
            interrupted = [(name, attempt) for name, attempt in json.loads(found)] if found else ()
        except (ValueError, TypeError) as error:
            raise HoleError(f"the interrupted attempts cannot be read: {error}") from error
        return Lease(task_id, epoch, seq, spec, owner, interrupted)

    def release(self, task_id: str, epoch: int) -> None:
        """See ``Store.release``."""
        row = self._write_row(
            "UPDATE task NOT INDEXED SET node = NULL, ready = 0"
            " WHERE id = (SELECT id FROM task WHERE task_id = ?) AND task_id = ? AND epoch = ?"
            " AND node IS NOT NULL RETURNING owner",
            (task_id, task_id, epoch),
            task_id,
        )
        if row is None:
            self._missed(task_id, is_known=self.queue.is_leased(task_id))
            return
        self.queue.lose(task_id, row[0])
        self._ready_changed = True

    def purge(self, before: float, limit: int) -> int:
        """See ``Store.purge``. SQLite reuses the freed pages; the file does not shrink."""
        found = self._db.execute(
            "SELECT id FROM task WHERE ended_at < ? ORDER BY ended_at LIMIT ?",
            (before, limit + len(self._undeletable)),
        )
        numbers = [number for (number,) in found if number not in self._undeletable][:limit]
        if not self._delete(numbers, before):
            numbers = [number for number in numbers if self._delete([number], before)]
        return len(numbers)

    def _delete(self, numbers: Numbers, before: float) -> bool:
        """Delete tasks with their logs; ``False``: one is damaged, and none was deleted."""
        self.unit += 1
        rows = [(number, before) for number in numbers]
        try:
            self._write(
                f"DELETE FROM event WHERE place BETWEEN ? << {SEQ_BITS}"
                f" AND (? + 1 << {SEQ_BITS}) - 1"
                f" AND EXISTS (SELECT 1 FROM {OLD})",
                [(number, number, *row) for number, row in zip(numbers, rows, strict=True)],
                None,
            )
            deleted = self._write(f"DELETE FROM {OLD}", rows, None).rowcount
            if deleted != len(numbers) and numbers:
                raise IndexDamageError("the index of end times lists a task that has not ended")
        except sqlite3.Error as error:
            if fault_of(error) is not Fault.DAMAGED:
                raise
            self.undo(self.unit)
            if len(numbers) == 1:
                self._undeletable.add(numbers[0])
                self.note_damage(id_of(self._db, numbers[0]), error)
            return False
        return True

    def take_ready_changed(self) -> bool:
        """Whether tasks became ready to be claimed since the last call."""
        changed, self._ready_changed = self._ready_changed, False
        return changed

    def _replayed(self, task: NewTask) -> Head | None:
        """The head of the task that the idempotency key names.

        Raises:
            ConflictError: That task has another ``spec``.
        """
        if task.idempotency_key is None:
            return None
        row = self._keyed(f"{HEAD}, spec, created_at", task.owner, task.idempotency_key)
        if row is None or row[-1] <= task.created_at - base.IDEMPOTENCY_TTL:
            return None
        if row[-2] != task.spec:
            raise base.key_conflict(task.idempotency_key)
        return _to_head(row[:-2])

    def _expire_key(self, task: NewTask) -> None:
        """Take an expired key from its task."""
        if task.idempotency_key is not None:
            self._write(
                "UPDATE task NOT INDEXED SET idempotency_key = NULL"
                f" WHERE id = {BY_KEY} AND owner = ? AND idempotency_key = ?",
                (task.owner, task.idempotency_key) * 2,
                task.task_id,
            )

    def _next_place(self, owner: str, status: TaskStatus) -> int | None:
        """The next place in the queue if ``status`` is QUEUED.

        Raises:
            OverloadedError: See ``TaskQueue.check``.
        """
        if status is not TaskStatus.QUEUED:
            return None
        self.queue.check(owner)
        return self._last_ready + 1

    def _put(self, task_id: str, owner: str) -> None:
        """Queue a task that was written with the next place."""
        self._last_ready += 1
        self.queue.put(task_id, owner)
        self._ready_changed = True


def _set_up(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(f"PRAGMA journal_size_limit={WAL_LIMIT}")


def _keep_open(connection: sqlite3.Connection) -> None:
    """Keep a connection open until the process ends, even when the interpreter exits."""
    wait = threading.Event().wait
    threading.Thread(target=lambda _: wait(), args=(connection,), daemon=True).start()


def _contradiction(index: str, found: str | None) -> sqlite3.DatabaseError:
    """The error for an index that leads to a wrong or missing row."""
    if found is None:
        return HoleError("its row is missing in the table")
    return IndexDamageError(f"the index of {index} leads to the row of task {found[:40]!r}")


def _to_head(row: Sequence[Any]) -> Head:
    task_id, owner, status, seq, epoch = row
    return Head(task_id, owner, TaskStatus(status), seq, epoch)
