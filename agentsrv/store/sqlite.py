"""SqliteStore: one file, one connection, one commit at a time.

The statements of all who wait are executed in the event loop, some microseconds each, into one
transaction; a thread then does what takes long, its COMMIT with the ``fsync``. Alone, a write is
committed at once; under load, the next batch gathers while the disk works. Statements in the
thread would be slower by far: each lets go of the interpreter lock and must wait for a busy
loop to give it back, up to 5 ms, before the next.

There is a single connection because SQLite before 3.51.3 can corrupt a write-ahead log that two
connections checkpoint, and ``synchronous=FULL`` because ``NORMAL`` forgets commits at a power
cut.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

from agentsrv.errors import AgentsrvError, Unavailable
from agentsrv.models.states import TaskStatus
from agentsrv.store import base
from agentsrv.store.base import Append, Commit, Created, Head, Lease, NewTask, Page, Span
from agentsrv.store.queue import QueueLimits
from agentsrv.store.sqlite_log import SqliteLog

T = TypeVar("T")
Work = Callable[[SqliteLog], T]

MAX_ROWS = 2000  # events written in one turn of the loop: some 5 ms

_log = logging.getLogger("agentsrv.store")


@dataclass(slots=True, eq=False)
class _Operation:
    work: Work[Any]
    done: asyncio.Future[Any]
    commit: Commit | None = None
    is_long: bool = False
    """Whether it may take milliseconds, and so runs in the thread."""
    is_early: bool = False
    """Whether its result may be told before the commit."""


Outcome = tuple[_Operation, Any, Exception | None]
"""An operation with its result or its refusal."""
Outcomes = list[Outcome]


class SqliteStore:
    """The default store: durable, embedded, for one server at a time.

    The thread is born in ``open`` and ends in ``close``; while it works, the loop leaves the
    connection alone. After an error of the disk or of SQLite nothing more is written or
    acknowledged: what a failed ``fsync`` left behind can only be known by opening the file anew.
    """

    def __init__(self, path: Path, limits: QueueLimits | None = None) -> None:
        self.path = path
        self._file = SqliteLog(path, limits or QueueLimits())
        self._waiting: list[_Operation] = []
        self._busy = False
        self._scheduled = False
        self._broken: BaseException | None = None
        self._since: float | None = None
        """When the transaction that is under way was begun, of the monotonic clock."""
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="agentsrv-sqlite", daemon=True)
        self.on_commit = base.ignore_commit
        self.on_ready = base.ignore_ready
        self.on_durable = base.ignore_durable
        self.on_broken = base.ignore_broken

    async def open(self) -> None:
        """See ``Store.open``."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._file.open)
        self._thread.start()

    async def close(self) -> None:
        """See ``Store.close``."""
        if self._thread.is_alive():
            with suppress(Unavailable):  # broken before: there is nothing to finish
                await self._submit(SqliteLog.commit, is_long=True)
            self._broken = self._broken or Unavailable("the store is closed")
            closed: asyncio.Future[None] = self._loop.create_future()
            # In our own thread: agents that block may have taken all of the loop's.
            self._jobs.put(lambda: self._close_file(closed))
            self._jobs.put(None)
            await closed
            self._thread.join()

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

    async def read_each(self, spans: Sequence[Span]) -> Sequence[Sequence[bytes]]:
        """See ``Store.read_each``."""
        return await self._submit(lambda log: [log.read(*span) for span in spans])

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
        return await self._submit(lambda log: log.list(owner, status, limit, before), is_long=True)

    def append(self, append: Append) -> asyncio.Future[None]:
        """See ``Store.append``."""
        commit = Commit(append.task_id, append.owner, append.expected, append.events)
        return self._submit(lambda log: log.append(append), commit)

    async def claim(self, node: str, limit: int) -> Sequence[Lease]:
        """See ``Store.claim``.

        The claim becomes durable with the first append that it allows; if that never happens,
        the next process finds the task as it was.
        """
        return await self._submit(lambda log: log.claim(node, limit), is_early=True)

    async def release(self, task_id: str, epoch: int) -> None:
        """See ``Store.release``."""
        await self._submit(lambda log: log.release(task_id, epoch))

    async def purge(self, before: float, limit: int) -> int:
        """See ``Store.purge``."""
        return await self._submit(lambda log: log.purge(before, limit), is_long=True)

    @property
    def queued(self) -> int:
        """See ``Store.queued``."""
        return len(self._file.queue)

    def queued_by(self, owner: str) -> int:
        """See ``Store.queued_by``."""
        return self._file.queue.waiting(owner)

    def _submit(
        self,
        work: Work[T],
        commit: Commit | None = None,
        *,
        is_long: bool = False,
        is_early: bool = False,
    ) -> asyncio.Future[T]:
        done: asyncio.Future[T] = self._loop.create_future()
        if self._broken is not None:
            done.set_exception(self._unavailable())
            return done
        self._waiting.append(_Operation(work, done, commit, is_long, is_early))
        if not self._scheduled and not self._busy:
            self._scheduled = True
            # At the end of the turn: whatever else the turn asks for goes along.
            self._loop.call_soon(self._turn)
        return done

    def _turn(self) -> None:
        """Execute what waits; hand the commit, and what takes long, to the thread."""
        self._scheduled = False
        if self._broken is not None:
            self._break(self._broken, [])
            return
        outcomes: Outcomes = []
        since = monotonic()
        try:
            long = self._execute(outcomes)
            self._file.flush()
        except Exception as error:  # noqa: BLE001 - whatever it was, nothing is acknowledged
            self._break(error, outcomes)
            return
        if long is None and not self._file.has_changes:
            self._settle(outcomes)
            return
        self._busy = True
        self._since = since if self._file.has_changes else None
        early = [outcome for outcome in outcomes if outcome[0].is_early]
        later = [outcome for outcome in outcomes if not outcome[0].is_early]
        self._jobs.put(lambda: self._finish(later, long))
        self._settle(early)

    def _execute(self, outcomes: Outcomes) -> _Operation | None:
        """Execute operations up to one that takes long, which is returned."""
        waiting, rows = self._waiting, 0
        for place, operation in enumerate(waiting):
            if operation.is_long or rows > MAX_ROWS:
                self._waiting = waiting[place + operation.is_long :]
                return operation if operation.is_long else None
            outcomes.append(_outcome(operation, self._file))
            if operation.commit is not None:
                rows += len(operation.commit.events)
        self._waiting = []
        return None

    def _settle(self, outcomes: Sequence[Outcome]) -> None:
        """Tell everybody what has become of their operations."""
        for operation, result, refusal in outcomes:
            if refusal is None:
                if not operation.done.cancelled():
                    operation.done.set_result(result)
                if operation.commit is not None and not _is_replay(result):
                    self._tell(operation.commit)
            elif not operation.done.cancelled():
                operation.done.set_exception(refusal)
        if not self._busy and self._file.take_ready_changed():
            self.on_ready()
        if self._waiting and not self._scheduled and not self._busy:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _tell(self, commit: Commit) -> None:
        try:
            self.on_commit(commit)
        except Exception:  # noqa: BLE001 - one listener's fault must not keep the others waiting
            extra = {"about": {"task_id": commit.task_id}}
            _log.exception("a listener failed at a commit", extra=extra)

    def _committed(self, outcomes: Outcomes, error: BaseException | None) -> None:
        self._busy = False
        if error is not None:
            self._break(error, outcomes)
        else:
            if self._since is not None:
                self.on_durable(monotonic() - self._since)
            self._settle(outcomes)

    def _break(self, error: BaseException, outcomes: Sequence[Outcome]) -> None:
        """Acknowledge nothing, and never write again."""
        first = self._broken is None
        self._broken = error
        operations = [operation for operation, _, _ in outcomes] + self._waiting
        self._waiting = []
        for operation in operations:
            if not operation.done.done():
                operation.done.set_exception(self._unavailable())
        if first:
            _log.error(
                "the store %s takes no more writes",
                self.path,
                exc_info=error,
                extra={"about": {}},  # no task's fault, whosever turn it was
            )
            self.on_broken(error)

    def _unavailable(self) -> Unavailable:
        return Unavailable(f"the store cannot write: {self._broken}; the outcome is unknown")

    # In the thread.

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _close_file(self, closed: asyncio.Future[None]) -> None:
        self._file.close()
        self._loop.call_soon_threadsafe(closed.set_result, None)

    def _finish(self, outcomes: Outcomes, long: _Operation | None) -> None:
        broken: BaseException | None = None
        try:
            if long is not None:
                outcomes = [*outcomes, _outcome(long, self._file)]
            self._file.commit()
        except Exception as error:  # noqa: BLE001 - told to everybody who waits
            broken = error
            if long is not None:
                outcomes = [*outcomes, (long, None, None)]
        self._loop.call_soon_threadsafe(self._committed, outcomes, broken)


def _outcome(operation: _Operation, log: SqliteLog) -> Outcome:
    try:
        return operation, operation.work(log), None
    except (AgentsrvError, ValueError, TypeError) as refusal:
        # Values that SQLite cannot take are refused before anything is written.
        return operation, None, refusal


def _is_replay(result: object) -> bool:
    """Whether a ``create`` found its task and wrote nothing."""
    return isinstance(result, Created) and result.replayed
