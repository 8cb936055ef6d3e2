"""SqliteLog: the file itself and its statements; synchronous, one call at a time.

Methods write into an open transaction and return at once; ``commit`` makes it durable. Those
that raise an ``AgentsrvError`` have written nothing; the transaction goes on.
"""

# ruff: noqa: S608 - statements are put together from constants of this file only

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

from agentsrv.errors import ConfigurationError
from agentsrv.models.states import TaskStatus
from agentsrv.store import base, sqlite_schema
from agentsrv.store.base import Append, Created, Head, Lease, NewTask, Page, Row
from agentsrv.store.queue import QueueLimits, TaskQueue
from agentsrv.store.sqlite_schema import SEQ_BITS

WAL_LIMIT: Final = 64 << 20  # bytes that the write-ahead log is cut back to after a checkpoint
HEAD: Final = "task_id, owner, status, seq, epoch"
LOG: Final = (
    f"(SELECT id << {SEQ_BITS} AS first, (id + 1 << {SEQ_BITS}) - 1 AS last"
    " FROM task WHERE task_id = ?)"
)
"""The places between which a task's log is."""


class SqliteLog:
    """Tasks and events in one file; see ``Store`` for what each method means."""

    def __init__(self, path: Path, limits: QueueLimits) -> None:
        self._path = path
        self.queue = TaskQueue(limits)
        """What stands in the column ``ready``; the file's own order of it is for the opening."""
        self._place = 0  # the last in the queue
        self._rows: list[tuple[int, bytes]] = []
        self._ready_changed = False
        self._lock: IO[bytes] | None = None
        self._db: sqlite3.Connection
        self.has_changes = False
        """Whether somebody waits for the next commit."""

    def open(self) -> None:
        """Lock and open the file; make the schema where there is none; free all leases.

        Raises:
            ConfigurationError: The folder is missing, another server has the file, or it is
                no store of this version.
        """
        if not self._path.parent.is_dir():
            raise ConfigurationError(f"the store's folder {self._path.parent} does not exist")
        try:
            self._lock = self._path.with_name(self._path.name + ".lock").open("ab")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise ConfigurationError(f"another server uses the store {self._path}") from None
        except OSError as error:
            self.close()
            raise ConfigurationError(f"cannot lock the store {self._path}: {error}") from error
        try:
            self._connect()
        except (sqlite3.Error, ConfigurationError) as error:
            self.close()
            raise ConfigurationError(f"cannot open the store {self._path}: {error}") from error

    def close(self) -> None:
        """Close the file and let another server have it."""
        if hasattr(self, "_db"):
            self._db.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _connect(self) -> None:
        self._db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        found = sqlite_schema.version_of(self._db)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute(f"PRAGMA journal_size_limit={WAL_LIMIT}")
        sqlite_schema.bring_up(self._db, found)
        self._db.execute(
            "UPDATE task SET node = NULL, ready = 0, losses = losses + 1 WHERE node IS NOT NULL"
        )
        self._read_queue()

    def _read_queue(self) -> None:
        for task_id, owner, ready in self._db.execute(
            "SELECT task_id, owner, ready FROM task WHERE ready IS NOT NULL ORDER BY ready, id"
        ):
            if ready:
                self.queue.put(task_id, owner)
            else:
                self.queue.lose(task_id, owner)
            self._place = ready
        self.queue.settle()

    def flush(self) -> None:
        """Write what was gathered for the transaction; quick, because nothing is synced yet."""
        if self._rows:
            self._db.executemany("INSERT INTO event VALUES (?, ?)", self._rows)
            self._rows.clear()

    def commit(self) -> None:
        """Make everything since the last commit durable; this waits for the disk.

        Raises:
            sqlite3.Error: Nothing was committed as far as this process can know.
        """
        if self._db.in_transaction:
            self.flush()
            self._db.execute("COMMIT")
        self.queue.settle()  # nobody works on what may not have been
        self.has_changes = False

    def _begin(self, *, durable: bool = True) -> None:
        """Open the transaction; unless ``durable``, nobody waits for its commit."""
        if not self._db.in_transaction:
            self._db.execute("BEGIN IMMEDIATE")
        self.has_changes |= durable

    def create(self, task: NewTask) -> Created:
        """See ``Store.create``."""
        first = self._replayed(task)
        if first is not None:
            return Created(first, replayed=True)
        if self.head(task.task_id) is not None:
            raise base.id_taken(task.task_id)
        ready = self._next_place(task.owner, task.status)
        self._begin()
        self._expire_key(task)
        seq = len(task.events)
        row = self._db.execute(
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
            found += events[max(known, 0) :]
            if len(found) >= limit:
                break
        rows.close()
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
        where, values = "owner = ?", [owner]
        if status is not None:
            where, values = "owner = ? AND status = ?", [owner, status.value]
        total = self._db.execute(f"SELECT count(*) FROM task WHERE {where}", values).fetchone()[0]
        rows = self._db.execute(
            f"SELECT id, task_id, status, user_input, created_at FROM task"
            f" WHERE {where} AND id < ? ORDER BY id DESC LIMIT ?",
            (*values, (1 << 62) if before is None else before, limit + 1),
        ).fetchall()
        page = [Row(row[1], TaskStatus(row[2]), row[3], row[4]) for row in rows[:limit]]
        more = len(rows) > limit
        return Page(page, total, str(rows[limit - 1][0]) if more else None)

    def append(self, append: Append) -> None:
        """See ``Store.append``."""
        seq = append.expected + len(append.events)
        where = "WHERE task_id = ? AND epoch = ? AND seq = ? RETURNING id"
        key = (append.task_id, append.epoch, append.expected)
        ready = self._next_place(append.owner, append.status)
        self._begin()
        if append.status.is_terminal:
            row = self._db.execute(
                "UPDATE task SET seq = ?, status = ?, node = NULL, ready = NULL, ended_at = ?,"
                f" state = ? {where}",
                (seq, append.status.value, append.at, append.state, *key),
            ).fetchone()
        elif ready is not None:
            row = self._db.execute(
                f"UPDATE task SET seq = ?, status = ?, ready = ? {where}",
                (seq, append.status.value, ready, *key),
            ).fetchone()
        else:
            row = self._db.execute(
                f"UPDATE task SET seq = ?, status = ? {where}", (seq, append.status.value, *key)
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
        self._begin(durable=False)
        return [self._lease(task_id, node) for task_id in claimed]

    def _lease(self, task_id: str, node: str) -> Lease:
        epoch, seq, spec, owner, losses = self._db.execute(
            "UPDATE task SET epoch = epoch + 1, node = ?, ready = NULL WHERE task_id = ?"
            " RETURNING epoch, seq, spec, owner, losses",
            (node, task_id),
        ).fetchone()
        return Lease(task_id=task_id, epoch=epoch, seq=seq, spec=spec, owner=owner, losses=losses)

    def release(self, task_id: str, epoch: int) -> None:
        """See ``Store.release``."""
        self._begin()
        row = self._db.execute(
            "UPDATE task SET node = NULL, ready = 0"
            " WHERE task_id = ? AND epoch = ? AND node IS NOT NULL RETURNING owner",
            (task_id, epoch),
        ).fetchone()
        if row is not None:
            self.queue.lose(task_id, row[0])
            self._ready_changed = True

    def purge(self, before: float, limit: int) -> int:
        """See ``Store.purge``; freed pages are used again, so the file stops growing."""
        rows = self._db.execute(
            "SELECT id FROM task WHERE ended_at < ? ORDER BY ended_at LIMIT ?", (before, limit)
        ).fetchall()
        self._begin()
        self._db.executemany(
            f"DELETE FROM event WHERE place BETWEEN ?1 << {SEQ_BITS}"
            f" AND (?1 + 1 << {SEQ_BITS}) - 1",
            rows,
        )
        self._db.executemany("DELETE FROM task WHERE id = ?", rows)
        return len(rows)

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
            self._db.execute(
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


def _to_head(row: tuple[str, str, str, int, int] | None) -> Head | None:
    if row is None:
        return None
    task_id, owner, status, seq, epoch = row
    return Head(task_id, owner, TaskStatus(status), seq, epoch)
