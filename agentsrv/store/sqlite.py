"""SqliteStore: one file, one connection, one writer thread, group commit.

Whatever waits when the thread is free goes into one transaction and one ``fsync``: alone, a
write is committed at once; under load, the batch grows while the disk works. There is a single
connection because SQLite before 3.51.3 can corrupt a write-ahead log that two connections
checkpoint, and ``synchronous=FULL`` because ``NORMAL`` forgets commits at a power cut.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from agentsrv.errors import AgentsrvError, Unavailable
from agentsrv.models.task import TaskStatus
from agentsrv.store import base
from agentsrv.store.base import Append, Commit, Created, Head, Lease, NewTask, Page
from agentsrv.store.sqlite_log import SqliteLog

T = TypeVar("T")
Work = Callable[[SqliteLog], T]

MAX_BATCH = 1000  # operations in one transaction; some 10 ms of work, so that none waits long

_log = logging.getLogger("agentsrv.store")


@dataclass(slots=True, eq=False)
class _Operation:
    work: Work[Any]
    done: asyncio.Future[Any]
    commit: Commit | None = None


Outcomes = list[tuple[_Operation, Any, AgentsrvError | None]]
"""Operations of a batch, each with its result or its refusal."""


class SqliteStore:
    """The default store: durable, embedded, for one server at a time.

    The thread is born in ``open`` and ends in ``close``. After an error of the disk or of
    SQLite nothing more is written or acknowledged: what a failed ``fsync`` left behind can only
    be known by opening the file anew.
    """

    def __init__(self, path: Path, queue_limit: int = 100) -> None:
        self.path = path
        self._file = SqliteLog(path, queue_limit)
        self._operations: queue.SimpleQueue[_Operation | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="agentsrv-sqlite", daemon=True)
        self._broken: BaseException | None = None  # set: nothing more is taken
        self._failure: BaseException | None = None  # set in the thread: nothing more is written
        self._queued = 0
        self.on_commit = base.ignore_commit
        self.on_ready = base.ignore_ready
        self.on_broken = base.ignore_broken

    async def open(self) -> None:
        """See ``Store.open``."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._file.open)
        self._queued = self._file.queued
        self._thread.start()

    async def close(self) -> None:
        """See ``Store.close``."""
        if self._thread.is_alive():
            self._broken = Unavailable("the store is closed")
            self._operations.put(None)
            await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self._file.close)

    async def create(self, task: NewTask) -> Created:
        """See ``Store.create``."""
        commit = Commit(task.task_id, task.owner, 0, task.events)
        return await self._submit(lambda log: log.create(task), commit)

    async def head(self, task_id: str) -> Head | None:
        """See ``Store.head``."""
        return await self._submit(lambda log: log.head(task_id))

    async def find(self, owner: str, prefix: str) -> Sequence[str]:
        """See ``Store.find``."""
        return await self._submit(lambda log: log.find(owner, prefix))

    async def find_key(self, owner: str, idempotency_key: str) -> str | None:
        """See ``Store.find_key``."""
        return await self._submit(lambda log: log.find_key(owner, idempotency_key))

    async def read(self, task_id: str, after: int, limit: int) -> Sequence[bytes]:
        """See ``Store.read``."""
        return await self._submit(lambda log: log.read(task_id, after, limit))

    async def spec(self, task_id: str) -> bytes | None:
        """See ``Store.spec``."""
        return await self._submit(lambda log: log.spec(task_id))

    async def state(self, task_id: str) -> bytes | None:
        """See ``Store.state``."""
        return await self._submit(lambda log: log.state(task_id))

    async def list(
        self, owner: str, status: TaskStatus | None, limit: int, cursor: str | None
    ) -> Page:
        """See ``Store.list``."""
        before = base.parse_cursor(cursor)
        return await self._submit(lambda log: log.list(owner, status, limit, before))

    def append(self, append: Append) -> asyncio.Future[None]:
        """See ``Store.append``."""
        commit = Commit(append.task_id, append.owner, append.expected, append.events)
        return self._submit(lambda log: log.append(append), commit)

    async def claim(self, node: str, limit: int) -> Sequence[Lease]:
        """See ``Store.claim``."""
        return await self._submit(lambda log: log.claim(node, limit))

    async def release(self, task_id: str, epoch: int) -> None:
        """See ``Store.release``."""
        await self._submit(lambda log: log.release(task_id, epoch))

    async def purge(self, before: float, limit: int) -> int:
        """See ``Store.purge``."""
        return await self._submit(lambda log: log.purge(before, limit))

    @property
    def queued(self) -> int:
        """See ``Store.queued``."""
        return self._queued

    def _submit(self, work: Work[T], commit: Commit | None = None) -> asyncio.Future[T]:
        done: asyncio.Future[T] = self._loop.create_future()
        if self._broken is None:
            self._operations.put(_Operation(work, done, commit))
        else:
            done.set_exception(self._unavailable())
        return done

    # In the writer thread.

    def _run(self) -> None:
        while (first := self._operations.get()) is not None:
            batch = [first]
            stopping = False
            while len(batch) < MAX_BATCH and not self._operations.empty():
                operation = self._operations.get()
                if operation is None:
                    stopping = True
                    break
                batch.append(operation)
            self._transact(batch)
            if stopping:
                return

    def _transact(self, batch: Sequence[_Operation]) -> None:
        outcomes: Outcomes = []
        broken: BaseException | None = self._failure
        if broken is None:
            try:
                with self._file.transaction():
                    for operation in batch:
                        try:
                            outcomes.append((operation, operation.work(self._file), None))
                        except AgentsrvError as refusal:
                            outcomes.append((operation, None, refusal))
            except Exception as error:  # noqa: BLE001 - whatever it was, nothing is acknowledged
                broken = error
                _log.exception("the store %s is broken and takes no more writes", self.path)
        if broken is not None:
            self._failure = self._broken = broken
            outcomes = [(operation, None, self._unavailable()) for operation in batch]
        queued, ready = self._file.queued, self._file.take_ready_changed()
        self._loop.call_soon_threadsafe(self._settle, outcomes, queued, ready, broken)

    # In the event loop.

    def _settle(
        self,
        outcomes: Outcomes,
        queued: int,
        ready: bool,  # noqa: FBT001 - call_soon_threadsafe passes no keywords
        broken: BaseException | None,
    ) -> None:
        self._queued = queued
        for operation, result, refusal in outcomes:
            if refusal is None:
                if not operation.done.cancelled():
                    operation.done.set_result(result)
                if operation.commit is not None and not _is_replay(result):
                    self.on_commit(operation.commit)
            elif not operation.done.cancelled():
                operation.done.set_exception(refusal)
        if ready:
            self.on_ready()
        if broken is not None:
            self.on_broken(broken)

    def _unavailable(self) -> Unavailable:
        return Unavailable(f"the store cannot write: {self._broken}; the outcome is unknown")


def _is_replay(result: object) -> bool:
    """Whether a ``create`` found its task and wrote nothing."""
    return isinstance(result, Created) and result.replayed
