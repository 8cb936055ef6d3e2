"""Flusher: collects the requests of all callers, and writes them in one flush at a time.

Theory of operation
===================
*Queue.* ``submit`` appends a request to ``_waiting`` and returns a future. ``run`` is the only
task that writes events. When it is idle, it flushes in the next turn of the loop; requests that
arrive during a flush gather for the next one. There is no time window.

*Take.* A flush takes the waiting requests in order, at most ``MAX_REQUESTS`` and about
``MAX_EVENTS``. Two requests of one task, two creates with one idempotency key, and two claims
never share a flush: they are rows of one statement, so the second would not see the first.

*Write.* `writer.Flush` commits it all, or nothing. A conflict refuses its own request only.

*Report.* Each caller gets its result or its refusal. Requests that another node's writes
prevented (``FlushResult.again``) go to the front of the queue.

*A lost connection.* The flush may have been committed. Each flush of this process has a number,
which the transaction stores in the process's row of ``writer`` if the stored number is that of the
flush before. After reconnecting, ``last_flush`` locks and reads this row, which waits for a
transaction that the server is still executing for the old connection:

    stored number           meaning                        next
    this flush's            it was committed               rebuild the result (``Flush.recall``)
    that of the one before  it was not                     write it again
    none                    the row was deleted, after     insert a row, write it again
                            an outage of a day

A duplicate that arrives late finds another number and writes nothing. So a flush takes effect
once, however often it is sent.

*An outage.* The flush is repeated until the node's lease would be lost, at least
``connections.RETRY_PERIOD`` seconds. Then its callers get ``UnavailableError``: the outcome is
unknown. Requests that only waited stay in the queue, and the next flush tries again for them.

*A flush that PostgreSQL refuses* (a damaged page, a value that it does not accept). The
transaction is rolled back, and the error does not say which request caused it. All requests go back
to the front of the queue, and the next flushes take one request each (``_singly``). Only a request
that fails alone is refused.

*Cancelled callers.* Their requests are written nevertheless. ``wait_for_writes`` delays a read of
the task until then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

import asyncpg

from agentsrv.error_text import describe
from agentsrv.errors import UnavailableError
from agentsrv.store.base import Append, NewTask, damaged
from agentsrv.store.postgres import connections
from agentsrv.store.postgres.sql import queries
from agentsrv.store.postgres.writer import (
    Claim,
    Flush,
    FlushConflictError,
    FlushNumber,
    FlushResult,
    Release,
    Request,
    may_change_queue,
)
from agentsrv.store.queue import QueueLimits

MAX_EVENTS: Final = 5000  # events of one flush: about 100 ms
MAX_REQUESTS: Final = 2000  # of one flush; fewer than the places of one value of sequence `ready`
CLOSED: Final = "the store is closed"

_log = logging.getLogger("agentsrv.store")


class LeaseHolder(Protocol):
    """The part of `NodeLease` that the flusher reads."""

    id: int | None
    """The node's lease; ``None`` while it has none."""

    until: float
    """When the lease will be lost, by the node's clock."""


@dataclass(slots=True, eq=False)
class PendingRequest:
    """A request, and the future of its caller."""

    request: Request
    done: asyncio.Future[Any]


NoteDamage = Callable[[str | None, BaseException], None]
"""Records that a task cannot be read or written, and why; ``None``: an unknown task."""
OnFlushed = Callable[[Sequence[tuple[PendingRequest, Any]], FlushResult], None]
"""Receives the requests of each flush with their results, an exception if refused."""


class Flusher:
    """Writes all events of this process; see the module.

    ``run`` is the task that writes; the owner starts and cancels it. It has its own connection.
    """

    def __init__(
        self,
        dsn: str,
        lease: LeaseHolder,
        limits: QueueLimits,
        clock: Callable[[], float],
        on_flushed: OnFlushed,
        *,
        note_damage: NoteDamage,
    ) -> None:
        self._dsn = dsn
        self._lease = lease
        self._limits = limits
        self._clock = clock
        self._on_flushed = on_flushed
        self._note_damage = note_damage
        self.queries = queries()
        """The statements; replaced when damaged tasks are found."""
        self._singly = 0
        """The number of next flushes that take one request each."""
        self._waiting: list[PendingRequest] = []
        self._writing: Sequence[PendingRequest] = ()
        self._wake = asyncio.Event()
        self._flushed = asyncio.Event()
        self._connection: asyncpg.Connection | None = None
        self._writer = 0
        self._last = 0
        """The number in the writer's row, as far as this process knows."""
        self._number = 0
        """The number of the current flush."""
        self.closed = False
        self.trouble: str | None = None
        """Why the last attempt failed; ``None`` after one that succeeded."""

    async def open(self, connection: asyncpg.Connection) -> int:
        """Insert the writer's row, and return its id."""
        self._writer = await self.queries.insert_writer.fetch_value(connection)
        return self._writer

    def submit(self, request: Request) -> asyncio.Future[Any]:
        """Queue a request; the future is done when the request is durable."""
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.closed:
            done.set_exception(UnavailableError(CLOSED))
        else:
            self._waiting.append(PendingRequest(request, done))
            self._wake.set()
        return done

    async def wait_for_writes(self, task_id: str) -> None:
        """Wait until no request of the task is pending whose caller was cancelled."""
        while any(
            pending.done.cancelled() and getattr(pending.request, "task_id", None) == task_id
            for pending in (*self._writing, *self._waiting)
        ):
            self._flushed.clear()
            await self._flushed.wait()

    async def close(self) -> None:
        """Accept no more requests, and wait until all of them have a result."""
        self.closed = True
        while self._waiting or self._writing:
            self._flushed.clear()
            await self._flushed.wait()

    async def run(self) -> None:
        """Flush waiting requests, until cancelled."""
        try:
            while True:
                self._wake.clear()
                if not self._waiting:
                    await self._wake.wait()
                # One turn, so that callers that have just been answered can submit more.
                await asyncio.sleep(0)
                limit = 1 if self._singly else MAX_REQUESTS
                self._writing, self._waiting = take(self._waiting, limit)
                self._singly -= bool(self._singly)
                await self._flush(self._writing)
                self._writing = ()
                self._flushed.set()
        finally:
            self._drop_connection()
            self.closed = True
            _refuse([*self._writing, *self._waiting], CLOSED)
            self._writing, self._waiting = (), []
            self._flushed.set()

    async def _flush(self, pending: Sequence[PendingRequest]) -> None:
        """Write the requests, and report their results."""
        self._number += 1
        started, delays = self._clock(), connections.retry_delays()
        requests = [each.request for each in pending]
        node, is_away = self._lease.id, False
        while True:
            flush = Flush(requests, node, self._limits, self.queries)
            try:
                result = await self._attempt(flush)
            except FlushConflictError:
                self._drop_connection()
            except (*connections.AWAY, *connections.LOCKED_OUT) as error:
                self._drop_connection()
                if isinstance(error, ValueError):  # asyncpg cannot encode a value
                    self._set_aside(pending, error)
                    return
                self.trouble = describe(error)
                if self._clock() > max(started + connections.RETRY_PERIOD, self._lease.until):
                    _refuse(pending, error)
                    return
                if not is_away:
                    _log.warning(
                        "PostgreSQL at %s cannot be used now; trying again: %s",
                        connections.address_of(self._dsn),
                        self.trouble,
                    )
                is_away = True
                await asyncio.sleep(next(delays))
            except Exception as error:  # noqa: BLE001 - damage, or a bug; other requests continue
                self._drop_connection()
                if flush.queries is not self.queries:  # the damage has been found meanwhile
                    continue
                self._set_aside(pending, error)
                return
            else:
                if node != self._lease.id:  # lost meanwhile, and its tasks were told to stop
                    result.forget_claims(requests)
                result.seconds = self._clock() - started
                if self.trouble is not None:
                    _log.info("PostgreSQL can be used again")
                    self.trouble = None
                self._report(pending, result)
                return

    async def _attempt(self, flush: Flush) -> FlushResult:
        is_new = self._connection is None
        connection = self._connection or await connections.connect(
            self._dsn, connections.WRITER_SETTINGS
        )
        self._connection = connection
        with connections.deadline(connection):
            if is_new:
                self._last = await self._find_last(connection)
            number = FlushNumber(self._writer, self._last, self._number)
            if self._last == self._number:
                return await flush.recall(connection, number)
            result = await flush.write(connection, number)
            self._last = self._number
            return result

    async def _find_last(self, connection: asyncpg.Connection) -> int:
        """Read the number of the last flush; insert the writer's row if it was deleted."""
        last: int | None = await self.queries.last_flush.fetch_value(
            connection, writer=self._writer
        )
        if last is None:
            await self.open(connection)
            return 0
        return last

    def _drop_connection(self) -> None:
        if self._connection is not None:
            with suppress(Exception):
                self._connection.terminate()
            self._connection = None

    def _report(self, pending: Sequence[PendingRequest], result: FlushResult) -> None:
        again = set(result.again)
        flushed = [
            (each, result.refusals.get(position, result.results.get(position)))
            for position, each in enumerate(pending)
            if position not in again
        ]
        self._waiting[:0] = [pending[position] for position in sorted(again)]
        self._on_flushed(flushed, result)

    def _set_aside(self, pending: Sequence[PendingRequest], error: Exception) -> None:
        """Refuse a request that PostgreSQL refuses alone; of several, repeat each alone."""
        if len(pending) > 1:
            self._waiting[:0] = pending
            self._singly = len(pending)
            return
        (each,) = pending
        request, is_damage = each.request, isinstance(error, connections.DAMAGED)
        task_id = None if isinstance(request, NewTask) else getattr(request, "task_id", None)
        refusal: Exception
        if not is_damage:
            _log.error("PostgreSQL refused a request (%s)", type(request).__name__, exc_info=error)
            refusal = error if isinstance(request, Append) else connections.unavailable(error)
        elif task_id is None or may_change_queue(request):  # may be another task's page
            self._note_damage(None, error)
            refusal = connections.store_damaged(error)
        else:
            self._note_damage(task_id, error)
            refusal = damaged(task_id)
        if not each.done.done():
            each.done.set_exception(refusal)


def _refuse(pending: Sequence[PendingRequest], error: object) -> None:
    """Fail requests that may have been written. Each caller gets an exception of its own."""
    for each in pending:
        if not each.done.done():
            message = connections.unavailable(error).message
            each.done.set_exception(UnavailableError(f"{message}; the outcome is unknown"))


def take(
    waiting: list[PendingRequest], limit: int = MAX_REQUESTS
) -> tuple[list[PendingRequest], list[PendingRequest]]:
    """Split the waiting requests, in order, into those of the next flush and the rest."""
    taken: list[PendingRequest] = []
    left: list[PendingRequest] = []
    seen: set[object] = set()
    events = 0
    for position, pending in enumerate(waiting):
        if events > MAX_EVENTS or len(taken) >= limit:
            return taken, left + waiting[position:]
        subjects = set(_subjects(pending.request))
        if seen.isdisjoint(subjects):
            taken.append(pending)
            events += len(getattr(pending.request, "events", ()))
        else:
            left.append(pending)
        seen |= subjects
    return taken, left


def _subjects(request: Request) -> Iterator[object]:
    """Keys that no two requests of a flush may share."""
    match request:
        case NewTask():
            yield request.task_id
            if request.idempotency_key is not None:
                yield request.owner, request.idempotency_key
        case Append() | Release():
            yield request.task_id
        case Claim():
            yield Claim
        case _:  # a reply has no limit
            return
