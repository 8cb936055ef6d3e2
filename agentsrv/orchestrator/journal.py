"""Journal: the one writer of one task's log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import orjson

from agentsrv.errors import AgentsrvError, Fenced
from agentsrv.models.events import Event, PartialOutput, encode, format_timestamp
from agentsrv.models.task import TaskState
from agentsrv.store.base import Append, Lease, Store

BACKLOG = 64 << 10  # characters of output that wait for a commit before a writer must wait
BACKLOG_EVENTS = 256  # events likewise

_log = logging.getLogger("agentsrv.journal")


@dataclass(slots=True)
class _Entry:
    """An event on its way to the log, and the pieces of text that joined it meanwhile."""

    event: Event
    timestamp: str
    pieces: list[str] | None = None


class Journal:
    """Folds, numbers, encodes and commits a task's events, one append at a time.

    ``append`` and ``write`` change ``state`` at once and never wait; what they add while an
    append is under way goes into the next one. After the terminal event, or when the lease is
    lost, the journal is closed: what comes later is refused and counted in ``refused``.
    """

    def __init__(
        self,
        store: Store,
        lease: Lease,
        state: TaskState,
        *,
        now: Callable[[], float],
        on_lost: Callable[[AgentsrvError], None],
    ) -> None:
        self.state = state
        self.closed = False
        self.refused = 0
        self.written = sum(len(step.output) for step in state.steps.values())
        """Characters of output, of all steps and attempts."""
        self._store = store
        self._lease = lease
        self._now = now
        self._on_lost: Callable[[AgentsrvError], None] | None = on_lost
        self._entries: list[_Entry] = []
        self._open_pieces: dict[str, _Entry] = {}
        self._characters = 0
        self._waiters: list[asyncio.Future[None]] = []
        self._in_flight: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        self._lost: AgentsrvError | None = None

    def append(self, *events: Event) -> None:
        """Add events, in this order; durable after the next ``commit``.

        Raises:
            InvalidState: The task's or the step's state does not take the event.
        """
        for event in events:
            if self.closed:
                self._refuse(event)
                continue
            timestamp = format_timestamp(self._now())
            self.state.apply(event, timestamp)
            self._entries.append(_Entry(event, timestamp))
            self._open_pieces.pop(getattr(event, "step_id", ""), None)
            self.closed = self.state.status.is_terminal
        self._schedule()

    def write(self, step_id: str, attempt: int, offset: int, text: str) -> None:
        """Add a piece of a step's output; pieces that wait for the same commit become one."""
        if self.closed:
            self.refused += 1
            return
        entry = self._open_pieces.get(step_id)
        if entry is not None and entry.pieces is not None:
            entry.pieces.append(text)
            self.state.steps[step_id].pieces.append(text)
        else:
            self.append(PartialOutput(step_id, attempt, offset, text))
            entry = self._entries[-1]
            entry.pieces = [text]
            self._open_pieces[step_id] = entry
        self._characters += len(text)
        self.written += len(text)

    def mark(self) -> int:
        """The number of the last event added so far; a later piece of text joins none of them."""
        self._open_pieces.clear()
        return self.state.seq + len(self._entries)

    async def commit(self) -> None:
        """Wait until everything added so far is durable.

        Cancelling the call cancels the waiting only.

        Raises:
            Fenced: The task has another writer; nothing more of this one will be written.
            Unavailable: The store cannot tell.
        """
        if self._lost is not None:
            raise self._lost
        if not self._entries and self._in_flight is None:
            return
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(waiter)
        self._schedule()
        await waiter

    @property
    def is_lost(self) -> bool:
        """Whether the task is in other hands, or given up."""
        return self._lost is not None

    @property
    def is_full(self) -> bool:
        """Whether so much waits for its commit that whoever writes should wait for it too."""
        return self._characters > BACKLOG or len(self._entries) > BACKLOG_EVENTS

    def abandon(self) -> None:
        """Write nothing more, not even what waits: the task goes on from its log elsewhere."""
        self.closed = True
        self._entries.clear()
        self._lose(Fenced(f"task {self._lease.task_id} was given up by this worker"))

    def retire(self) -> None:
        """Tell nobody any more: then a runner that is done can be freed without a search."""
        self._on_lost = None

    def _schedule(self) -> None:
        if not self._scheduled and self._in_flight is None and (self._entries or self._waiters):
            self._scheduled = True
            # At the end of the turn: what follows in the same turn goes along.
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        if self._lost is not None:
            return
        entries, self._entries = self._entries, []
        waiters, self._waiters = self._waiters, []
        self._open_pieces.clear()
        self._characters = 0
        try:
            append = self._encode(entries)
        except TypeError as error:
            # Results and texts are checked before they come here; this guards the log.
            _log.exception("task %s: an event cannot be encoded", self._lease.task_id)
            self._waiters = waiters
            self._lose(AgentsrvError(f"an event cannot be encoded: {error}"))
            return
        self._in_flight = self._store.append(append)
        self._in_flight.add_done_callback(partial(self._committed, waiters))

    def _encode(self, entries: Sequence[_Entry]) -> Append:
        state, expected = self.state, self.state.seq
        bodies = []
        for seq, entry in enumerate(entries, expected + 1):
            if entry.pieces is not None and isinstance(entry.event, PartialOutput):
                entry.event.output = "".join(entry.pieces)
            bodies.append(encode(entry.event, state.task_id, seq, entry.timestamp))
        state.seq = expected + len(bodies)
        final = state.status.is_terminal
        return Append(
            task_id=state.task_id,
            owner=self._lease.owner,
            epoch=self._lease.epoch,
            expected=expected,
            events=bodies,
            status=state.status,
            at=self._now(),
            state=orjson.dumps(state.snapshot()) if final else None,
        )

    def _committed(self, waiters: list[asyncio.Future[None]], done: asyncio.Future[None]) -> None:
        self._in_flight = None
        error = done.exception()
        if isinstance(error, AgentsrvError):
            self._waiters += waiters
            self._lose(error)
            return
        if error is not None:
            raise error
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._schedule()

    def _lose(self, error: AgentsrvError) -> None:
        if self._lost is None:
            self._lost = error
            self.closed = True
            if self._on_lost is not None:
                self._on_lost(error)
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(error)

    def _refuse(self, event: Event) -> None:
        self.refused += 1
        if self.refused == 1:
            _log.warning(
                "task %s is closed to this worker; %s and what follows is refused",
                self._lease.task_id,
                event.event_type,
            )
