"""Journal: the one writer of one task's log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from agentsrv.error_text import describe
from agentsrv.errors import AgentsrvError, FencedError, UnavailableError
from agentsrv.models.events import (
    TERMINAL_EVENTS,
    Event,
    PartialOutput,
    encode,
    format_timestamp,
)
from agentsrv.models.states import StepStatus, TaskStatus
from agentsrv.models.task import TaskState
from agentsrv.store.base import Append, Lease, Store
from agentsrv.store.replay import kept_snapshot
from agentsrv.telemetry.server_metrics import ServerMetrics

# What may wait for a commit before a writer must wait too. It is also how long one that never waits
# of itself holds up the others: a hundred of them take a turn of 10 to 20 ms.
BACKLOG = 16 << 10  # characters of output
BACKLOG_EVENTS = 32

MAX_PIECE = 64_000  # characters of output that are appended at once: no frame exceeds 1 MiB

_log = logging.getLogger("agentsrv.journal")


@dataclass(slots=True)
class _Open:
    """A piece of output that others may still join: it is encoded when nothing can any more."""

    event: PartialOutput
    timestamp: str
    seq: int
    pieces: list[str]


class Journal:
    """Folds, numbers, encodes and commits a task's events, one append at a time.

    ``append`` and ``write`` change ``state`` at once and never wait; what they add while an
    append is under way goes into the next one. After the terminal event, or when the lease is
    lost, the journal is closed: what comes later is refused and counted.

    In a store that several nodes share, each append also says which steps work although a question
    of theirs is open (``works``): the log alone would have them wait for the answer. It goes along
    with the events, and has an append of its own only where it changes while none are waiting.
    """

    def __init__(
        self,
        store: Store,
        lease: Lease,
        state: TaskState,
        *,
        now: Callable[[], float],
        on_lost: Callable[[AgentsrvError], None],
        measures: ServerMetrics,
    ) -> None:
        self.state = state
        self.closed = False
        self.fault: str | None = None
        """Why an append was refused that will be refused again: because of what it holds, or by a
        fault of the store."""
        self.written = 0
        """Characters of output, of all steps and attempts."""
        for step in state.steps.values():
            self.written += step.discarded + len(step.output)
        self._store = store
        self._lease = lease
        self._now = now
        self._on_lost: Callable[[AgentsrvError], None] | None = on_lost
        self._measures = measures
        self._has_refused = False
        self._handed_over = state.seq
        self._bodies: list[bytes] = []
        """The encoded events behind ``_handed_over``; empty in the place of one in ``_open``."""
        self._open: dict[str, _Open] = {}
        self._replies: list[tuple[int, bytes]] = []
        self._works: set[str] = set()
        self._said: list[str] = []  # which of them the last append said to work beside a question
        self.is_due = False
        """Whether an append is due that says it anew, with events or without."""
        self._characters = 0
        self._waiters: list[asyncio.Future[None]] = []
        self._in_flight: asyncio.Future[None] | None = None
        self._in_flight_waiters: list[asyncio.Future[None]] = []
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        self._millis, self._timestamp = -1, ""  # of the last event: others often share them
        self._lost: AgentsrvError | None = None

    def append(self, event: Event) -> None:
        """Add an event; durable after the next ``commit``.

        Raises:
            InvalidStateError: The task's or the step's state does not take the event.
            TypeError: The event holds a value that is not JSON; nothing was added.
        """
        if self.closed:
            self._refuse(event)
            return
        if self._open:
            self._close(getattr(event, "step_id", ""))
        state, now = self.state, self._now()
        if self._millis != (millis := int(now * 1000)):
            self._millis, self._timestamp = millis, format_timestamp(now)
        timestamp = self._timestamp
        body = encode(event, state.task_id, state.seq + 1, timestamp)
        state.apply(event, timestamp)
        self._bodies.append(body)
        if type(event) in TERMINAL_EVENTS:
            self.closed = True
        if not self._scheduled and self._in_flight is None:
            self._schedule()

    def write(self, step_id: str, attempt: int, offset: int, text: str) -> None:
        """Add a piece of a step's output; pieces that wait for the same commit become one."""
        if self.closed:
            self._measures.refused += 1
            return
        state, piece = self.state, self._open.get(step_id)
        if piece is not None:
            piece.pieces.append(text)
            step = state.steps[step_id]
            step.pieces.append(text)
            if not step.progressed and offset + len(text) > step.furthest:  # as the fold has it
                step.record_progress()
        else:
            event, now = PartialOutput(step_id, attempt, offset, text), self._now()
            if self._millis != (millis := int(now * 1000)):
                self._millis, self._timestamp = millis, format_timestamp(now)
            timestamp = self._timestamp
            state.apply(event, timestamp)
            self._bodies.append(b"")
            self._open[step_id] = _Open(event, timestamp, state.seq, [text])
            if not self._scheduled and self._in_flight is None:
                self._schedule()
        self._characters += len(text)
        self.written += len(text)

    def reply(self, number: int, body: bytes) -> None:
        """Answer a message of the task's inbox, in the append that holds the last event so far.

        Call it in the turn in which that event was added, before anything is awaited.
        """
        self._replies.append((number, body))

    def works(self, step_id: str) -> None:
        """Take down that code of the step runs: a crash is a loss of it, whatever it has asked."""
        if self._store.commits_starts and step_id not in self._works:
            self._works.add(step_id)
            self._mention()

    def rests(self, step_id: str) -> None:
        """Take down that no code of the step runs: it has ended, or waits for answers."""
        if step_id in self._works:
            self._works.remove(step_id)
            self._mention()

    def _mention(self) -> None:
        """Have the next append, be it empty, say which steps work, if the last one did not."""
        self.is_due = not self.closed and self._working() != self._said
        if self.is_due and not self._scheduled and self._in_flight is None:
            self._schedule()

    def _working(self) -> list[str]:
        """The steps that work although a question of theirs is open."""
        if self.state.status is not TaskStatus.INPUT_REQUIRED:
            return []
        status = {step_id: self.state.steps[step_id].status for step_id in sorted(self._works)}
        return [step_id for step_id in status if status[step_id] is StepStatus.INPUT_REQUIRED]

    def mark(self) -> int:
        """The number of the last event added so far; a later piece of text joins none of them."""
        self._close_all()
        return self.state.seq

    async def commit(self) -> None:
        """Wait until everything added so far is durable.

        Cancelling the call cancels the waiting only.

        Raises:
            Fenced: The task has another writer; nothing more of this one will be written.
            Unavailable: The store cannot commit, for whatever reason; the outcome is unknown.
        """
        if self._lost is not None:
            raise self._lost
        has_news = self._bodies or self.is_due
        if not has_news and self._in_flight is None:
            return
        waiter: asyncio.Future[None] = self._loop.create_future()
        if has_news:
            self._waiters.append(waiter)
            self._flush()
        else:
            self._in_flight_waiters.append(waiter)
        await waiter

    async def wait_for_capacity(self) -> None:
        """Commit, and let others have a turn: for a writer that finds the journal full.

        Raises:
            Fenced, Unavailable: As ``commit`` does.
        """
        await self.commit()
        await asyncio.sleep(0)  # a store in memory commits at once, and the writer would go on

    @property
    def is_taken(self) -> bool:
        """Whether the task is lost because another worker writes to it, or may do so."""
        return isinstance(self._lost, FencedError)

    @property
    def is_lost(self) -> bool:
        """Whether another worker has the task, or this one has given it up."""
        return self._lost is not None

    @property
    def is_full(self) -> bool:
        """Whether so much waits for its commit that whoever writes should wait for it too."""
        return self._characters > BACKLOG or len(self._bodies) > BACKLOG_EVENTS

    def abandon(self) -> None:
        """Write nothing more, not even what waits: the task is recovered from its log.

        An append that is under way may still be committed; callers that wait for it are answered.
        """
        self.closed = True
        self._bodies.clear()
        self._open.clear()
        self._replies.clear()
        given_up = FencedError(f"task {self._lease.task_id} was given up by this worker")
        self._lose(self._lost or given_up)

    def break_reference_cycle(self) -> None:
        """Call nobody any more: then a runner that is done can be freed without a search."""
        self._on_lost = None

    def _close(self, step_id: str) -> None:
        piece = self._open.pop(step_id, None)
        if piece is not None:
            piece.event.output = "".join(piece.pieces)
            body = encode(piece.event, self.state.task_id, piece.seq, piece.timestamp)
            self._bodies[piece.seq - self._handed_over - 1] = body

    def _close_all(self) -> None:
        for step_id in list(self._open):
            self._close(step_id)

    def _schedule(self) -> None:
        # At the end of the turn: what follows in the same turn goes along.
        self._scheduled = True
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Hand what waits over to the store, unless an append is under way."""
        self._scheduled = False
        if self._in_flight is not None or not (self._bodies or self.is_due or self._waiters):
            return
        try:
            done = self._in_flight = self._hand_over()
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must get it
            self._fail(error)
            return
        if done.done():
            self._committed(done)
        else:
            done.add_done_callback(self._committed)

    def _hand_over(self) -> asyncio.Future[None]:
        """Append everything that waits."""
        self._close_all()
        self._characters = 0
        bodies, self._bodies = self._bodies, []
        replies, self._replies = self._replies, []
        self._in_flight_waiters, self._waiters = self._waiters, []
        expected, self._handed_over = self._handed_over, self.state.seq
        is_asking = self.state.status is TaskStatus.INPUT_REQUIRED
        self._said, self.is_due = self._working() if is_asking else [], False
        append = Append(
            task_id=self.state.task_id,
            owner=self._lease.owner,
            epoch=self._lease.epoch,
            expected=expected,
            events=bodies,
            status=self.state.status,
            at=self._now(),
            state=kept_snapshot(self.state),
            replies=replies,
            working=self._said,
        )
        return self._store.append(append)

    def _committed(self, done: asyncio.Future[None]) -> None:
        self._in_flight = None
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        if error is not None:
            self._fail(error)
            return
        if self._measures.store_faults.tasks:
            self._measures.store_faults.tasks.clear()
        if self.closed and self._lost is None and not self._bodies:  # it held the task's end
            self._measures.end(self.state.agent, self.state.status)
        waiters, self._in_flight_waiters = self._in_flight_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        if self._bodies or self.is_due or self._waiters:
            self._schedule()

    def _fail(self, error: BaseException) -> None:
        """Lose the task because an append failed. What is no AgentsrvError is the store's fault."""
        if isinstance(
            error, (FencedError, UnavailableError)
        ):  # another writer, or the store is away
            self._measures.fenced += isinstance(error, FencedError)
            self._lose(error)
            return
        self.fault = describe(error)
        if isinstance(error, AgentsrvError):
            self._lose(error)
            return
        self._measures.store_faults.note(self._lease.task_id, self.fault)
        _log.error(
            "task %s: the store failed to commit by a fault of its own; the task is run again from "
            "its log",
            self._lease.task_id,
            exc_info=error,
            extra={"about": {"task_id": self._lease.task_id}},
        )
        reason = f"the store failed to commit: {self.fault}; the outcome is unknown"
        self._lose(UnavailableError(reason))

    def _lose(self, error: AgentsrvError) -> None:
        """Close the journal, and raise ``error`` in every call that waits for a commit."""
        is_first = self._lost is None
        if is_first:
            self._lost = error
            self.closed, self.is_due = True, False
        waiters, self._waiters = self._waiters, []
        if self._in_flight is None:
            waiters += self._in_flight_waiters
            self._in_flight_waiters = []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(error)
        if is_first and self._on_lost is not None:
            self._on_lost(error)

    def _refuse(self, event: Event) -> None:
        self._measures.refused += 1
        if not self._has_refused:
            self._has_refused = True
            _log.warning(
                "task %s is closed to this worker; %s and what follows is refused",
                self._lease.task_id,
                event.event_type,
            )
