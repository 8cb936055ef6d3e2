"""SqliteLog: the file itself and its statements; synchronous, one call at a time.

Methods write into an open transaction and return at once; ``commit`` makes it durable. Those
that raise an ``AgentsrvError`` have written nothing; the transaction continues.

Theory of operation of a transaction that fails.

Each statement that writes is kept with its values until the commit (``_redo``). SQLite rolls a
transaction back by itself when the disk is full or a page cannot be read; the store also does so
when an operation has met a damaged page. The next statement that writes, or ``commit``, then
begins a new transaction and executes the kept statements again. As one server has the file, they
find what they found the first time. So the tasks that were claimed and queued meanwhile stay
what the queue in memory says, and nothing has to be decided again.

SQLite is told not to wait for locks: a statement that meets one raises at once, and the caller
(``SqliteStore``) decides when to try again. ``undo`` takes back the statements of the one operation
that failed.
"""

# ruff: noqa: S608 - statements are put together from constants of this file only

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from agentsrv.error_text import describe
from agentsrv.errors import ConfigurationError, Unavailable
from agentsrv.models.states import TaskStatus
from agentsrv.store import base, sqlite_schema
from agentsrv.store.base import Append, Created, Head, Lease, NewTask, Page, Row
from agentsrv.store.marks import Marks
from agentsrv.store.queue import QueueLimits, TaskQueue
from agentsrv.store.sqlite_faults import Fault, HoleError, MovedError, fault_of, hint_for, is_damage
from agentsrv.store.sqlite_file import DatabaseFile, beside
from agentsrv.store.sqlite_schema import SEQ_BITS

WAL_LIMIT: Final = 64 << 20  # bytes that the write-ahead log is cut back to after a checkpoint
HEAD: Final = "task_id, owner, status, seq, epoch"
ROW: Final = "id, task_id, status, user_input, created_at"
LOG: Final = (
    f"(SELECT id << {SEQ_BITS} AS first, (id + 1 << {SEQ_BITS}) - 1 AS last"
    " FROM task WHERE task_id = ?)"
)
"""The places between which a task's log is."""
Rows = list[tuple[int]]
"""Numbers of tasks, as statements take them: the method ``list`` hides the type in the class."""
INSERT: Final = "INSERT INTO event VALUES (?, ?)"

_log = logging.getLogger("agentsrv.store")


class SqliteLog:
    """Tasks and events in one file; see ``Store`` for what each method means."""

    def __init__(self, path: Path, limits: QueueLimits) -> None:
        self._path = path
        self.queue = TaskQueue(limits)
        """What stands in the column ``ready``; the file's own order of it is for the opening."""
        self._place = 0  # the last in the queue
        self._rows: list[tuple[int, bytes]] = []
        self.redo: list[tuple[str, Sequence[Any]]] = []
        """The statements of the transaction with their values; a list of values is many rows."""
        self._ready_changed = False
        self._file = DatabaseFile(path)
        self._overwritten: str | None = None
        self.marks = Marks()
        self._db: sqlite3.Connection
        self._kept: set[tuple[int]] = set()  # damaged tasks that are too old to be kept
        self.damaged: dict[str, str] = {}
        """Tasks that cannot be read, and why, as far as they were met."""
        self.has_changes = False
        """Whether somebody waits for the next commit."""

    def open(self) -> None:
        """Lock and open the file; make the schema where there is none; free all leases.

        Raises:
            ConfigurationError: The path or the file cannot be that of a store of this version.
            StoreInUseError: Another server has the file.
            Unavailable: The file cannot be opened now: locked, disk full.
        """
        self._file.lock()
        self.queue = TaskQueue(self.queue.limits)
        self.damaged.clear()
        try:
            self._connect()
            self._take_marks()
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
            raise Unavailable(reason) from error

    def close(self) -> None:
        """Close the file and let another server have it.

        SQLite moves its log into the database when it closes it. Where another file was copied
        over the database that would damage the copy: there the connection stays open.
        """
        self.marks.close()
        if hasattr(self, "_db"):
            if self._overwritten is None:
                self._db.close()
            else:
                _keep_open(self._db)
        self._file.close()

    def _connect(self) -> None:
        self._db = self._connection()
        found = sqlite_schema.version_of(self._db)
        self._set_up()
        sqlite_schema.bring_up(self._db, found)
        if found is None or not self._file.has_header():  # a crash may have come before
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._free_leases()
        self._read_queue()
        self._file.watch()

    def _connection(self) -> sqlite3.Connection:
        return sqlite3.connect(
            self._file.path, isolation_level=None, check_same_thread=False, timeout=0
        )

    def _set_up(self) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute(f"PRAGMA journal_size_limit={WAL_LIMIT}")

    def _free_leases(self) -> None:
        """Let every task that an earlier process had leased be claimed."""
        free = "UPDATE task SET node = NULL, ready = 0 WHERE"
        try:
            self._db.execute(f"{free} node IS NOT NULL")
        except sqlite3.Error as error:
            if fault_of(error) is not Fault.DAMAGED:
                raise
            for (row,) in self._db.execute("SELECT id FROM task WHERE node IS NOT NULL").fetchall():
                self._try_row(row, f"{free} id = ?")

    def _take_marks(self) -> None:
        """Store which attempts the end of the last process interrupted, then forget the marks.

        A crash in between finds the marks again, and stores the same.
        """
        interrupted: dict[str, list[tuple[str, int]]] = {}
        for mark in self.marks.open(beside(self._file.path, ".running")):
            interrupted.setdefault(mark.task_id, []).append((mark.step_id, mark.attempt))
        store = "UPDATE task SET interrupted = ? WHERE task_id = ? AND ended_at IS NULL"
        rows = [(json.dumps(attempts), task_id) for task_id, attempts in interrupted.items()]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(store, rows)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            self.roll_back()
            if fault_of(error) is not Fault.DAMAGED:
                raise
            for attempts, task_id in rows:
                try:
                    self._db.execute(store, (attempts, task_id))
                except sqlite3.Error as own:
                    if fault_of(own) is not Fault.DAMAGED:
                        raise
                    self.note_damage(task_id, own)
        self.marks.clear()

    def _read_queue(self) -> None:
        columns = "SELECT task_id, owner, ready FROM task WHERE"
        try:
            rows = self._db.execute(f"{columns} ready IS NOT NULL ORDER BY ready, id").fetchall()
        except sqlite3.Error as error:
            if fault_of(error) is not Fault.DAMAGED:
                raise
            ids = "SELECT id FROM task WHERE ready IS NOT NULL ORDER BY ready, id"
            rows = [
                found
                for (row,) in self._db.execute(ids).fetchall()
                if (found := self._try_row(row, f"{columns} id = ?"))
            ]
        for task_id, owner, ready in rows:
            if ready:
                self.queue.put(task_id, owner)
            else:
                self.queue.lose(task_id, owner)
            self._place = ready
        self.queue.settle()

    def _try_row(self, row: int, statement: str) -> Any:
        """Execute a statement about one task; one whose page is damaged is left alone."""
        try:
            return self._db.execute(statement, (row,)).fetchone()
        except sqlite3.Error as error:
            if fault_of(error) is not Fault.DAMAGED:
                raise
            self.note_damage(self._id_of(row), error)
        return None

    def _id_of(self, row: int) -> str:
        """The id of a task whose own page cannot be read: from the index of ids, all of it."""
        try:
            ids = dict(self._db.execute("SELECT id, task_id FROM task ORDER BY task_id"))
        except sqlite3.Error:
            ids = {}
        return str(ids.get(row, f"number {row}"))

    def note_damage(self, task_id: str, error: BaseException) -> None:
        """Remember that a task cannot be used, and log it once."""
        if task_id not in self.damaged:
            self.damaged[task_id] = str(error)
            _log.error(
                "task %s cannot be read from the store %s: %s; the other tasks run. "
                "`agentsrv doctor` lists what is damaged; restore a copy by `agentsrv backup`",
                task_id,
                self._path,
                error,
                extra={"about": {"task_id": task_id}},
            )

    def check_place(self) -> None:
        """Return if the file is where it was opened, so that what is committed can be found.

        Raises:
            MovedError: It was deleted, moved or replaced, or its log was.
        """
        complaint = self._file.complaint()
        if complaint is not None:
            raise MovedError(complaint)

    def check_content(self) -> None:
        """Return if the database is the one that was opened; once it is not, it stays so.

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
        """Where only the write-ahead log was deleted: move it into the database; begin another."""
        if not self._file.lacks_log_only:
            return
        self.roll_back()
        blocked, *_ = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if not blocked:
            self._db.close()
            self._db = self._connection()
            self._set_up()
            self._db.execute("BEGIN IMMEDIATE")  # SQLite makes the log only when it writes
            self._db.execute("ROLLBACK")
            self._file.watch()

    @property
    def log_size(self) -> int:
        """Bytes of the write-ahead log."""
        return self._file.log_size

    def flush(self) -> None:
        """Write what was gathered for the transaction; quick, because nothing is synced yet."""
        if self._rows:
            rows, self._rows = self._rows, []
            self.redo.append((INSERT, rows))
            if not self._db.in_transaction:
                self._begin()
            else:
                self._db.executemany(INSERT, rows)

    def drop_damaged(self) -> set[str]:
        """Take out of the transaction what a damaged page keeps from being written.

        An event goes to the page on which its neighbours are. Each is tried by itself; a task
        with one that fails loses all that it has in the transaction, and can be used no more.

        Returns:
            The ids of these tasks.

        Raises:
            sqlite3.Error: Something else fails.
        """
        self.roll_back()
        inserts = [values for sql, values in self.redo if sql == INSERT]
        self.redo = [entry for entry in self.redo if entry[0] != INSERT]
        rows = [row for values in inserts for row in values]
        self._begin()
        damaged: dict[int, sqlite3.Error] = {}
        for row in rows:
            try:
                self._db.execute(INSERT, row)
            except sqlite3.Error as error:
                if fault_of(error) is not Fault.DAMAGED:
                    raise
                damaged[row[0] >> SEQ_BITS] = error
        names = {number: self._id_of(number) for number in damaged}  # before they are rolled back
        self.roll_back()
        dropped = set(names.values())
        self.redo = [entry for entry in self.redo if dropped.isdisjoint(map(str, entry[1]))]
        self.redo.append((INSERT, [row for row in rows if row[0] >> SEQ_BITS not in damaged]))
        for number, reason in damaged.items():
            self.note_damage(names[number], reason)
        return dropped

    def commit(self) -> None:
        """Make everything since the last commit durable; this waits for the disk.

        Raises:
            sqlite3.Error: Nothing was committed as far as this process can know.
        """
        self.flush()
        if self.redo and not self._db.in_transaction:
            self._begin()
        if self._db.in_transaction:
            try:
                self._db.execute("COMMIT")
            except sqlite3.Error:
                self.roll_back()
                raise
            self.redo.clear()
        self.queue.settle()  # nobody works on what may not have been
        self.has_changes = False

    def begin(self) -> None:
        """Open the transaction if it is not open, and write what it had written before.

        Raises:
            sqlite3.Error: It cannot be opened; what is kept for it stays kept.
        """
        if not self._db.in_transaction:
            self._begin()

    def check_lock(self) -> None:
        """Return if the file could be written now; nothing is.

        Raises:
            sqlite3.Error: It could not.
        """
        if not self._db.in_transaction:
            self._begin()
            if not self.redo:
                self._db.execute("ROLLBACK")

    def _begin(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for sql, values in self.redo:
                if isinstance(values, list):
                    self._db.executemany(sql, values)
                else:
                    self._db.execute(sql, values)
        except sqlite3.Error:
            self.roll_back()
            raise

    def roll_back(self) -> None:
        """Let no half of the transaction stay open; SQLite may have rolled back by itself."""
        if self._db.in_transaction:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")

    def _write(self, sql: str, values: Sequence[Any], *, durable: bool = True) -> sqlite3.Cursor:
        """Execute a statement in the transaction; unless ``durable``, nobody waits for its commit.

        ``values`` that are a list are rows.
        """
        if not self._db.in_transaction:
            self._begin()
        self.has_changes |= durable
        if isinstance(values, list):
            cursor = self._db.executemany(sql, values)
        else:
            cursor = self._db.execute(sql, values)
        self.redo.append((sql, values))
        return cursor

    def undo(self, mark: int) -> None:
        """Take back the statements after ``mark``, and what one that failed may have left."""
        del self.redo[mark:]
        self.roll_back()

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
        row = self._write(
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
        ).fetchone()
        assert row is not None
        self._gather(row[0], seq, task.events)
        if ready is not None:
            self._put(task.task_id, task.owner)
        return Created(Head(task.task_id, task.owner, task.status, seq, 0), replayed=False)

    def head(self, task_id: str) -> Head | None:
        """See ``Store.head``."""
        sql = f"SELECT {HEAD} FROM task WHERE task_id = ?"
        return _to_head(self._db.execute(sql, (task_id,)).fetchone())

    def find(self, owner: str, prefix: str) -> Sequence[str]:
        """See ``Store.find``."""
        rows = self._db.execute(
            "SELECT task_id FROM task WHERE task_id >= ? AND task_id < ? AND owner = ? LIMIT 2",
            (prefix, prefix + "\U0010ffff", owner),
        )
        return [row[0] for row in rows]

    def find_key(self, owner: str, idempotency_key: str) -> str | None:
        """See ``Store.find_key``."""
        row = self._db.execute(
            "SELECT task_id FROM task WHERE owner = ? AND idempotency_key = ?",
            (owner, idempotency_key),
        ).fetchone()
        return None if row is None else str(row[0])

    def read(self, task_id: str, after: int, limit: int) -> Sequence[bytes]:
        """See ``Store.read``."""
        if self._rows and self._db.in_transaction:
            self.flush()
        rows = self._db.execute(
            f"SELECT place - first, body FROM event, {LOG}"
            " WHERE place > first + ? AND place <= last ORDER BY place",
            (task_id, after),
        )
        found: list[bytes] = []
        for last, body in rows:
            events = body.split(b"\n")
            known = after - (last - len(events))  # of these; more than 0 in the first row only
            if known + len(found) < 0:
                raise HoleError(f"event {after + len(found) + 1} is missing")
            found += events[max(known, 0) :]
            if len(found) >= limit:
                break
        rows.close()
        if len(found) < limit:
            seq = self._db.execute("SELECT seq FROM task WHERE task_id = ?", (task_id,)).fetchone()
            if seq is not None and seq[0] > after + len(found):
                raise HoleError(f"event {after + len(found) + 1} is missing")
        return found[:limit]

    def spec(self, task_id: str) -> bytes | None:
        """See ``Store.spec``."""
        sql = "SELECT spec FROM task WHERE task_id = ?"
        row = self._db.execute(sql, (task_id,)).fetchone()
        return None if row is None else row[0]

    def state(self, task_id: str) -> bytes | None:
        """See ``Store.state``."""
        sql = "SELECT state FROM task WHERE task_id = ?"
        row = self._db.execute(sql, (task_id,)).fetchone()
        return None if row is None else row[0]

    def list(self, owner: str, status: TaskStatus | None, limit: int, before: int | None) -> Page:
        """See ``Store.list``; ``before`` is the number of the last task listed."""
        values: tuple[str | int, ...] = (owner,)
        where = "owner = ?"
        if status is not None:
            where, values = "owner = ? AND status = ?", (owner, status.value)
        total = self._db.execute(f"SELECT count(*) FROM task WHERE {where}", values).fetchone()[0]
        where, values = f"{where} AND id < ?", (*values, (1 << 62) if before is None else before)
        rows: Sequence[Any]
        try:
            rows = self._db.execute(
                f"SELECT {ROW} FROM task WHERE {where} ORDER BY id DESC LIMIT ?",
                (*values, limit + 1),
            ).fetchall()
        except sqlite3.Error as error:
            if fault_of(error) is not Fault.DAMAGED:
                raise
            rows = self._list_whole(where, values, limit + 1)
        found = [(row[0], Row(row[1], TaskStatus(row[2]), row[3], row[4])) for row in rows]
        return base.page_of(found, limit, total)

    def _list_whole(self, where: str, values: Sequence[Any], limit: int) -> Sequence[Any]:
        """Rows of a list one by one, without those that cannot be read."""
        ids = self._db.execute(f"SELECT id FROM task WHERE {where} ORDER BY id DESC", values)
        rows: list[Any] = []
        for (row,) in ids.fetchall():
            found = self._try_row(row, f"SELECT {ROW} FROM task WHERE id = ?")
            if found is not None:
                rows.append(found)
            if len(rows) == limit:
                break
        return rows

    def append(self, append: Append) -> None:
        """See ``Store.append``."""
        seq = append.expected + len(append.events)
        where = "WHERE task_id = ? AND epoch = ? AND seq = ? RETURNING id"
        key = (append.task_id, append.epoch, append.expected)
        ready = self._next_place(append.owner, append.status)
        if append.status.is_terminal:
            row = self._write(
                "UPDATE task SET seq = ?, status = ?, node = NULL, ready = NULL, ended_at = ?,"
                f" interrupted = NULL, state = ? {where}",
                (seq, append.status.value, append.at, append.state, *key),
            ).fetchone()
        elif ready is not None:
            row = self._write(
                f"UPDATE task SET seq = ?, status = ?, ready = ? {where}",
                (seq, append.status.value, ready, *key),
            ).fetchone()
        else:
            row = self._write(
                "UPDATE task SET seq = ?, status = ?,"
                f" interrupted = CASE WHEN node IS NULL THEN interrupted END {where}",
                (seq, append.status.value, *key),
            ).fetchone()
        if row is None:
            raise base.fenced(append, self.head(append.task_id))
        self._gather(row[0], seq, append.events)
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
        for task_id in claimed:
            mark = len(self.redo)
            try:
                leases.append(self._lease(task_id, node))
            except sqlite3.Error as error:
                self.undo(mark)
                if fault_of(error) is not Fault.DAMAGED:
                    self.undo(mark - len(leases))
                    self.queue.unclaim(claimed)
                    raise
                self.note_damage(task_id, error)  # it stays claimed: nobody can have it
        return leases

    def _lease(self, task_id: str, node: str) -> Lease:
        epoch, seq, spec, owner, found = self._write(
            "UPDATE task SET epoch = epoch + 1, node = ?, ready = NULL WHERE task_id = ?"
            " RETURNING epoch, seq, spec, owner, interrupted",
            (node, task_id),
            durable=False,
        ).fetchone()
        try:
            interrupted = [(name, attempt) for name, attempt in json.loads(found)] if found else ()
        except (ValueError, TypeError) as error:
            raise HoleError(f"the interrupted attempts cannot be read: {error}") from error
        return Lease(task_id, epoch, seq, spec, owner, interrupted)

    def release(self, task_id: str, epoch: int) -> None:
        """See ``Store.release``."""
        row = self._write(
            "UPDATE task SET node = NULL, ready = 0"
            " WHERE task_id = ? AND epoch = ? AND node IS NOT NULL RETURNING owner",
            (task_id, epoch),
        ).fetchone()
        if row is not None:
            self.queue.lose(task_id, row[0])
            self._ready_changed = True

    def purge(self, before: float, limit: int) -> int:
        """See ``Store.purge``; freed pages are used again, so the file stops growing."""
        found = self._db.execute(
            "SELECT id FROM task WHERE ended_at < ? ORDER BY ended_at LIMIT ?",
            (before, limit + len(self._kept)),
        )
        rows = [row for row in found if row not in self._kept][:limit]
        if not self._forget(rows):
            rows = [row for row in rows if self._forget([row])]
        return len(rows)

    def _forget(self, rows: Rows) -> bool:
        """Delete tasks; ``False``: one is damaged, and none was deleted."""
        mark = len(self.redo)
        try:
            self._write(
                f"DELETE FROM event WHERE place BETWEEN ?1 << {SEQ_BITS}"
                f" AND (?1 + 1 << {SEQ_BITS}) - 1",
                rows,
            )
            self._write("DELETE FROM task WHERE id = ?", rows)
        except sqlite3.Error as error:
            if fault_of(error) is not Fault.DAMAGED:
                raise
            self.undo(mark)
            if len(rows) == 1:
                self._kept.add(rows[0])
                self.note_damage(self._id_of(*rows[0]), error)
            return False
        return True

    def take_ready_changed(self) -> bool:
        """Whether tasks became ready to be claimed since this was asked last."""
        changed, self._ready_changed = self._ready_changed, False
        return changed

    def _gather(self, task: int, seq: int, events: Sequence[bytes]) -> None:
        """Let the next ``flush`` write events of which ``seq`` is the last one's number."""
        if events:
            self._rows.append((task << SEQ_BITS | seq, b"\n".join(events)))

    def _replayed(self, task: NewTask) -> Head | None:
        """The task that the idempotency key stands for."""
        if task.idempotency_key is None:
            return None
        row = self._db.execute(
            f"SELECT {HEAD}, spec FROM task"
            " WHERE owner = ? AND idempotency_key = ? AND created_at > ?",
            (task.owner, task.idempotency_key, task.created_at - base.IDEMPOTENCY_TTL),
        ).fetchone()
        if row is not None and row[-1] != task.spec:
            raise base.key_conflict(task.idempotency_key)
        return None if row is None else _to_head(row[:-1])

    def _expire_key(self, task: NewTask) -> None:
        """Take the key from the task that it stood for too long."""
        if task.idempotency_key is not None:
            self._write(
                "UPDATE task SET idempotency_key = NULL WHERE owner = ? AND idempotency_key = ?",
                (task.owner, task.idempotency_key),
            )

    def _next_place(self, owner: str, status: TaskStatus) -> int | None:
        """The place in the queue of a task that takes ``status``."""
        if status is not TaskStatus.QUEUED:
            return None
        self.queue.check(owner)
        return self._place + 1

    def _put(self, task_id: str, owner: str) -> None:
        """Queue a task that was written in the next place."""
        self._place += 1
        self.queue.put(task_id, owner)
        self._ready_changed = True


def _keep_open(connection: sqlite3.Connection) -> None:
    """Keep a connection until the process ends; the interpreter would close it at its end."""
    wait = threading.Event().wait
    threading.Thread(target=lambda _: wait(), args=(connection,), daemon=True).start()


def _to_head(row: tuple[str, str, str, int, int] | None) -> Head | None:
    if row is None:
        return None
    task_id, owner, status, seq, epoch = row
    return Head(task_id, owner, TaskStatus(status), seq, epoch)
