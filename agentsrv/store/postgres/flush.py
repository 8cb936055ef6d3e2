"""Flusher: gathers what callers want written, and has one flush under way at a time.

At once when idle, whatever has gathered when busy. It survives the server's being away: a flush
is tried again, after a look at whether it came through, until the node would have lost its
leases; after that everybody is told ``UnavailableError``, and the next request tries again.
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
from agentsrv.errors import AgentsrvError, UnavailableError
from agentsrv.store.base import Append, NewTask, damaged
from agentsrv.store.postgres import connections
from agentsrv.store.postgres.statements import statements
from agentsrv.store.postgres.writer import (
    Claim,
    Flush,
    Mark,
    Outcome,
    Release,
    Request,
    VersionConflict,
    may_change_queue,
)
from agentsrv.store.queue import QueueLimits

MAX_EVENTS: Final = 5000  # events of one flush: some 100 ms
MAX_REQUESTS: Final = 2000  # of one flush; what one step of the sequence ``ready`` has room for

_log = logging.getLogger("agentsrv.store")


class LeaseHolder(Protocol):
    """What the flusher needs to know of the node's lease."""

    id: int | None
    """The lease that claimed tasks hang on, while there is one."""

    until: float
    """When it would be lost, by the clock."""


@dataclass(slots=True, eq=False)
class Operation:
    """A request, and who waits for it."""

    request: Request
    done: asyncio.Future[Any]


NoteDamage = Callable[[str | None, BaseException], None]
"""Takes note of a task that cannot be read or written, and why; ``None`` if it is unknown which."""
Settled = Callable[[Sequence[tuple[Operation, Any]], Outcome], None]
"""Is told of each flush: the operations with their results, an exception where refused."""


class Flusher:
    """The only one that writes events; owns the connection that it does so by.

    ``run`` is the task in which everything happens; whoever starts it cancels it.
    """

    def __init__(
        self,
        dsn: str,
        holding: LeaseHolder,
        limits: QueueLimits,
        clock: Callable[[], float],
        settled: Settled,
        *,
        note_damage: NoteDamage,
    ) -> None:
        self._dsn = dsn
        self._holding = holding
        self._limits = limits
        self._clock = clock
        self._settled = settled
        self._note_damage = note_damage
        self.statements = statements()
        """Those that look for tasks; others where damaged tasks are to be left out."""
        self._singly = 0
        """Flushes that take one request each: one of those that wait cannot be written."""
        self._waiting: list[Operation] = []
        self._writing: Sequence[Operation] = ()
        self._wake = asyncio.Event()
        self._flushed = asyncio.Event()
        self._connection: asyncpg.Connection | None = None
        self._writer = 0
        self._last = 0  # the flush that the writer's row tells of
        self._number = 0
        self.closed = False
        self.trouble: str | None = None
        """Why the last try of a flush failed; ``None`` after one that did not."""

    async def open(self, connection: asyncpg.Connection) -> int:
        """Make the writer's row, and return its number."""
        self._writer = await connection.fetchval("INSERT INTO writer DEFAULT VALUES RETURNING id")
        return self._writer

    def submit(self, request: Request) -> asyncio.Future[Any]:
        """Hand a request over; the awaitable is done when it is durable."""
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.closed:
            done.set_exception(UnavailableError("the store is closed"))
        else:
            self._waiting.append(Operation(request, done))
            self._wake.set()
        return done

    async def settled(self, task_id: str) -> None:
        """Wait until nothing is under way for the task whose caller no longer waits."""
        while any(
            operation.done.cancelled() and getattr(operation.request, "task_id", None) == task_id
            for operation in (*self._writing, *self._waiting)
        ):
            self._flushed.clear()
            await self._flushed.wait()

    async def close(self) -> None:
        """Take nothing more, and wait until everything was written or given up."""
        self.closed = True
        while self._waiting or self._writing:
            self._flushed.clear()
            await self._flushed.wait()

    async def run(self) -> None:
        """Flush whatever waits, until cancelled."""
        try:
            while True:
                self._wake.clear()
                if not self._waiting:
                    await self._wake.wait()
                # A turn for who was told of the last flush, or of what is asked for now.
                await asyncio.sleep(0)
                most = 1 if self._singly else MAX_REQUESTS
                self._writing, self._waiting = take(self._waiting, most)
                self._singly -= bool(self._singly)
                await self._flush(self._writing)
        finally:
            self._drop()
            self.closed = True
            self._give_up("the store is closed")

    async def _flush(self, operations: Sequence[Operation]) -> None:
        """Write the operations, and tell those who wait."""
        self._number += 1
        started, pauses = self._clock(), connections.pauses()
        requests = [operation.request for operation in operations]
        node, is_away = self._holding.id, False
        while True:
            flush = Flush(requests, node, self._limits, self.statements)
            try:
                outcome = await self._attempt(flush)
            except VersionConflict:
                self._drop()
            except (*connections.AWAY, *connections.SHUT_OUT) as error:
                self._drop()
                if isinstance(error, ValueError):  # asyncpg's, of a value that it cannot encode
                    self._set_aside(operations, error)
                    return
                self.trouble = describe(error)
                if self._clock() > max(started + connections.PATIENCE, self._holding.until):
                    self._give_up(error)
                    return
                if not is_away:
                    told = "PostgreSQL at %s cannot be used now; trying again: %s"
                    _log.warning(told, connections.address_of(self._dsn), self.trouble)
                is_away = True
                await asyncio.sleep(next(pauses))
            except Exception as error:  # noqa: BLE001 - damage, or a fault of ours; flushing continues
                self._drop()
                if flush.statements is not self.statements:  # which leave the page out by now
                    continue
                self._set_aside(operations, error)
                return
            else:
                if node != self._holding.id:  # lost meanwhile, and all that it ran was told to stop
                    outcome.forget_claims(requests)
                outcome.seconds = self._clock() - started
                if self.trouble is not None:
                    _log.info("PostgreSQL can be used again")
                    self.trouble = None
                self._tell(operations, outcome)
                return

    async def _attempt(self, flush: Flush) -> Outcome:
        is_new = self._connection is None
        connection = self._connection or await connections.connect(self._dsn, connections.WRITER)
        self._connection = connection
        with connections.deadline(connection):
            if is_new:
                self._last = await self._find_last(connection)
            mark = Mark(self._writer, self._last, self._number)
            if self._last == self._number:
                return await flush.recall(connection, mark)
            outcome = await flush.write(connection, mark)
            self._last = self._number
            return outcome

    async def _find_last(self, connection: asyncpg.Connection) -> int:
        """The flush that the server has; one that it is still writing is waited for."""
        last: int | None = await connection.fetchval(
            "SELECT flush FROM writer WHERE id = $1 FOR UPDATE", self._writer
        )
        if last is None:  # away for so long that this process was forgotten
            await self.open(connection)
            return 0
        return last

    def _drop(self) -> None:
        """Let go of the connection; what it may still be doing is found out by the next."""
        if self._connection is not None:
            with suppress(Exception):
                self._connection.terminate()
            self._connection = None

    def _tell(self, operations: Sequence[Operation], outcome: Outcome) -> None:
        again = set(outcome.again)
        settled = [
            (operation, outcome.refusals.get(place, outcome.results.get(place)))
            for place, operation in enumerate(operations)
            if place not in again
        ]
        self._waiting[:0] = [operations[place] for place in sorted(again)]
        self._settled(settled, outcome)
        self._writing = ()
        self._flushed.set()

    def _set_aside(self, operations: Sequence[Operation], error: Exception) -> None:
        """Refuse the request that cannot be written; of many, find it by one flush each.

        It has met a damaged page, or PostgreSQL does not take what it holds.
        """
        self._writing = ()
        if len(operations) > 1:
            self._waiting[:0] = operations
            self._singly = len(operations)
            return
        (operation,) = operations
        request, is_damage = operation.request, isinstance(error, connections.DAMAGED)
        task_id = None if isinstance(request, NewTask) else getattr(request, "task_id", None)
        refusal: Exception
        if not is_damage:
            _log.error("PostgreSQL refused a request (%s)", type(request).__name__, exc_info=error)
            refusal = error if isinstance(request, Append) else connections.unavailable(error)
        elif task_id is None or may_change_queue(request):  # perhaps the page of another task
            self._note_damage(None, error)
            refusal = connections.damage(error)
        else:
            self._note_damage(task_id, error)
            refusal = damaged(task_id)
        if not operation.done.done():
            operation.done.set_exception(refusal)
        self._flushed.set()

    def _give_up(self, error: object) -> None:
        """Tell everybody; those who came later would only wait as long."""
        refusal = connections.unavailable(error)
        operations = [*self._writing, *self._waiting]
        self._writing, self._waiting = (), []
        for operation in operations:
            if not operation.done.done():
                operation.done.set_exception(_copy(refusal))
        self._flushed.set()


def _copy(refusal: AgentsrvError) -> AgentsrvError:
    """An exception of everybody's own: each is raised, and given a traceback, elsewhere."""
    return type(refusal)(f"{refusal.message}; the outcome is unknown")


def take(
    waiting: list[Operation], most: int = MAX_REQUESTS
) -> tuple[list[Operation], list[Operation]]:
    """What can go in one flush, in the order it was asked for, and what must wait for the next.

    Of one task, one idempotency key and of claims there is one in a flush.
    """
    taken: list[Operation] = []
    left: list[Operation] = []
    seen: set[object] = set()
    events = 0
    for place, operation in enumerate(waiting):
        if events > MAX_EVENTS or len(taken) >= most:
            return taken, left + waiting[place:]
        subjects = set(_subjects(operation.request))
        if seen.isdisjoint(subjects):
            taken.append(operation)
            events += len(getattr(operation.request, "events", ()))
        else:
            left.append(operation)
        seen |= subjects
    return taken, left


def _subjects(request: Request) -> Iterator[object]:
    """What no two requests of a flush may have in common."""
    match request:
        case NewTask():
            yield request.task_id
            if request.idempotency_key is not None:
                yield request.owner, request.idempotency_key
        case Append() | Release():
            yield request.task_id
        case Claim():
            yield Claim
        case _:  # answers to messages: one each
            return
