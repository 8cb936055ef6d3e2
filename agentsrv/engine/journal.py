"""Journal: the only writer of a running task's log.

Theory of operation
===================

``append`` and ``write`` work at once and never wait: they number an event, fold it into ``state``
and put it into the list of *pending* events. So a caller decides on a state that is always current,
without an ``await``. The pending events go to the store at the end of the turn of the event loop,
or at the next call of ``commit``, as one append (*single-flight commit*). While that append is in
flight, further events gather for the next one. A task never has two appends in flight, so the
number that the log must have before each append is certain.

Coalescing of text. A step may write thousands of small pieces while one append is in flight.
``write`` therefore keeps the text of a step *open*: the first piece is numbered, folded and put
into the pending list as a placeholder, a tuple of the event, its timestamp and the list of its
pieces. Later pieces of the same step are added to that list instead of becoming events. The text is
sealed, so that the next piece becomes an event of its own, when another event of the step is
appended, when ``seal`` is called, and when the pending events are submitted. The submission encodes
the event with all its pieces joined, so all readers see the same pieces.

Back-pressure. ``is_full`` is true when more than ``MAX_PENDING_CHARACTERS`` or
``MAX_PENDING_EVENTS`` are pending. A step that finds the journal full awaits ``wait_for_capacity``:
a commit, and one turn for the other tasks of the event loop. So a task that writes faster than the
disk produces larger pieces instead of more of them, and is held up by its own commits.

Steps that work while a question is open. A store that several nodes share has no attempt marks;
from the log alone, a step with an open question waits and loses nothing in a crash. But another
asyncio task of the same step may work in the meantime. ``set_working`` and ``clear_working`` record
this. Each append repeats the current set (``Append.working``). If the set changes while no events
are pending, an append without events is due (``is_report_due``).

The journal is in one of three states:

========= =========== ========== ==================================================================
state     is_closed   is_lost    meaning
========= =========== ========== ==================================================================
open      false       false      events are accepted
closed    true        false      the terminal event is pending or committed; others are refused and
                                 counted, which cuts code that does not stop off from the log
lost      true        true       an append was refused or failed, or the task was abandoned;
                                 ``commit`` raises the error. ``is_taken_over``: another worker
                                 writes
========= =========== ========== ==================================================================

A journal becomes lost at most once. ``on_lost`` is called then, in the same turn.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

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

# A step that has more pending than this waits for the commit. The limit also bounds how long an
# agent that never awaits can hold the event loop: 100 such agents take 10 to 20 ms per turn.
MAX_PENDING_CHARACTERS: Final = 16 << 10  # of output
MAX_PENDING_EVENTS: Final = 32

MAX_PIECE: Final = 64_000  # characters of one ``partial_output``: its frame stays below 1 MiB

_OpenText = tuple[PartialOutput, str, list[str]]
"""An event whose text other pieces may still join, its timestamp, and its pieces."""

_log = logging.getLogger("agentsrv.journal")


class Journal:
    """Folds, numbers, encodes and commits the events of one task; see the head of this module.

    Args:
        store: Where the log is.
        lease: The right to write it.
        state: The state of the task at the end of its log; the journal changes it.
        now: Returns seconds since the epoch.
        on_lost: Called once, when the journal becomes lost.
        measures: Metrics of the server.
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
        self.is_closed = False
        """Whether events are refused: the terminal event was appended, or the journal is lost."""
        self.fault: str | None = None
        """Why an append was refused, if a repetition would be refused too: because of its content,
        or because of a fault of the store."""
        self.characters_written = 0
        """Characters of output of all steps and attempts."""
        for step in state.steps.values():
            self.characters_written += step.discarded + len(step.output)
        self._store = store
        self._lease = lease
        self._now = now
        self._on_lost: Callable[[AgentsrvError], None] | None = on_lost
        self._measures = measures
        self._has_refused = False  # an event, and logged it
        self._millisecond, self._timestamp = -1, ""  # of the last event: the next ones may share it
        self._submitted_seq = state.seq  # the number of the last event given to the store
        self._pending: list[bytes | _OpenText] = []  # the events after it
        self._open: dict[str, list[str]] = {}  # by step id: pieces of its open text
        self._pending_characters = 0
        self._replies: list[tuple[int, bytes]] = []  # to messages of other nodes
        self._working: set[str] = set()  # step ids
        self._reported_working: list[str] = []  # as the last append reported
        self.is_report_due = False
        """Whether an append must report anew which steps work, with events or without."""
        self._loop = asyncio.get_running_loop()
        self._is_flush_scheduled = False
        self._in_flight: asyncio.Future[None] | None = None
        self._in_flight_waiters: list[asyncio.Future[None]] = []
        self._next_waiters: list[asyncio.Future[None]] = []  # for the append after it
        self._lost: AgentsrvError | None = None  # why

    def append(self, event: Event) -> None:
        """Add an event; it is durable after the next ``commit``.

        A closed journal drops the event and counts it.

        Raises:
            InvalidStateError: The status of the task or of the step does not permit the event.
            TypeError: The event contains a value that is not JSON; nothing was added.
        """
        if self.is_closed:
            self._refuse(event)
            return
        if self._open:
            self._open.pop(getattr(event, "step_id", ""), None)
        at, state = self._now(), self.state
        if (millisecond := int(at * 1000)) != self._millisecond:
            self._millisecond, self._timestamp = millisecond, format_timestamp(at)
        timestamp = self._timestamp
        body = encode(event, state.task_id, state.seq + 1, timestamp)
        state.apply(event, timestamp)
        self._pending.append(body)
        if type(event) in TERMINAL_EVENTS:
            self.is_closed = True
        if not self._is_flush_scheduled and self._in_flight is None:
            self._schedule_flush()

    def write(self, step_id: str, attempt: int, offset: int, text: str) -> None:
        """Add a piece of a step's output; pieces that wait for the same commit become one event.

        A closed journal drops the text and counts it.

        Args:
            step_id: The step.
            attempt: The attempt that wrote the text.
            offset: Characters that the attempt has written before.
            text: At most ``MAX_PIECE`` characters.
        """
        if self.is_closed:
            self._measures.refused += 1
            return
        state, pieces = self.state, self._open.get(step_id)
        if pieces is not None:
            pieces.append(text)
            step = state.steps[step_id]
            step.pieces.append(text)
            if not step.progressed and offset + len(text) > step.furthest:  # as the fold does
                step.record_progress()
        else:
            event = PartialOutput(step_id, attempt, offset, text)
            at = self._now()
            if (millisecond := int(at * 1000)) != self._millisecond:
                self._millisecond, self._timestamp = millisecond, format_timestamp(at)
            timestamp = self._timestamp
            state.apply(event, timestamp)
            self._open[step_id] = pieces = [text]
            self._pending.append((event, timestamp, pieces))
            if not self._is_flush_scheduled and self._in_flight is None:
                self._schedule_flush()
        self._pending_characters += len(text)
        self.characters_written += len(text)

    def reply(self, number: int, body: bytes) -> None:
        """Answer a message of the task's inbox in the append that contains the last event so far.

        Call it in the turn of the event loop in which that event was added, before any ``await``.
        """
        self._replies.append((number, body))

    def set_working(self, step_id: str) -> None:
        """Record that code of the step runs: a crash is a loss of it even if a question is open."""
        if self._store.commits_starts and step_id not in self._working:
            self._working.add(step_id)
            self._update_report()

    def clear_working(self, step_id: str) -> None:
        """Record that no code of the step runs: it has ended, or only waits for answers."""
        if step_id in self._working:
            self._working.remove(step_id)
            self._update_report()

    def seal(self) -> int:
        """Let later text join no event so far; return the number of the last event."""
        self._open.clear()
        return self.state.seq

    async def commit(self) -> None:
        """Wait until everything added so far is durable.

        Cancelling the call ends the waiting only; the events are committed all the same.

        Raises:
            FencedError: Another worker writes the task; nothing more of this one is written.
            UnavailableError: The store cannot commit; the outcome is unknown.
        """
        if self._lost is not None:
            raise self._lost
        needs_append = self._pending or self.is_report_due
        if not needs_append and self._in_flight is None:
            return
        waiter: asyncio.Future[None] = self._loop.create_future()
        if needs_append:
            self._next_waiters.append(waiter)
            self._flush()
        else:
            self._in_flight_waiters.append(waiter)
        await waiter

    async def wait_for_capacity(self) -> None:
        """Commit, and let the other tasks of the event loop run, for a writer of a full journal.

        Raises:
            FencedError, UnavailableError: As ``commit``.
        """
        await self.commit()
        await asyncio.sleep(0)  # a store in memory commits without suspending the writer

    @property
    def is_taken_over(self) -> bool:
        """Whether the journal is lost because another worker writes the task, or may do so."""
        return isinstance(self._lost, FencedError)

    @property
    def is_lost(self) -> bool:
        """Whether this worker cannot write the task any more; see the head of this module."""
        return self._lost is not None

    @property
    def is_full(self) -> bool:
        """Whether so much is pending that writers should await ``wait_for_capacity``."""
        return (
            self._pending_characters > MAX_PENDING_CHARACTERS
            or len(self._pending) > MAX_PENDING_EVENTS
        )

    def abandon(self) -> None:
        """Drop everything that is pending and write nothing more; the log is where recovery starts.

        An append in flight may still be committed; calls of ``commit`` that wait for it return.
        """
        self.is_closed = True
        self._pending.clear()
        self._open.clear()
        self._replies.clear()
        abandoned = FencedError(f"this worker has stopped running task {self._lease.task_id}")
        self._lose(self._lost or abandoned)

    def break_reference_cycle(self) -> None:
        """Drop ``on_lost``: it would keep a finished runner alive until the garbage collection."""
        self._on_lost = None

    def _update_report(self) -> None:
        """Let the next append report the steps that work, if they have changed."""
        self.is_report_due = (
            not self.is_closed and self._working_with_question() != self._reported_working
        )
        if self.is_report_due and not self._is_flush_scheduled and self._in_flight is None:
            self._schedule_flush()

    def _working_with_question(self) -> list[str]:
        """The steps that work although a question of theirs is open, in a fixed order."""
        if self.state.status is not TaskStatus.INPUT_REQUIRED:
            return []
        steps = self.state.steps
        return [
            step_id
            for step_id in sorted(self._working)
            if steps[step_id].status is StepStatus.INPUT_REQUIRED
        ]

    def _schedule_flush(self) -> None:
        # At the end of the turn, so that the events of the rest of the turn are included.
        self._is_flush_scheduled = True
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Submit everything that is pending, unless an append is in flight."""
        self._is_flush_scheduled = False
        if self._in_flight is not None:
            return
        if not (self._pending or self.is_report_due or self._next_waiters):
            return
        try:
            done = self._in_flight = self._submit()
        except Exception as error:  # noqa: BLE001 - every error must reach the waiters
            self._handle_failure(error)
            return
        if done.done():
            self._handle_commit(done)
        else:
            done.add_done_callback(self._handle_commit)

    def _submit(self) -> asyncio.Future[None]:
        """Give all pending events and replies to the store as one append."""
        state, pending = self.state, self._pending
        expected, self._submitted_seq = self._submitted_seq, state.seq
        self._pending, self._pending_characters = [], 0
        self._open.clear()
        bodies: list[bytes] = []
        for seq, entry in enumerate(pending, expected + 1):
            if isinstance(entry, tuple):
                event, timestamp, pieces = entry
                event.output = "".join(pieces)
                bodies.append(encode(event, state.task_id, seq, timestamp))
            else:
                bodies.append(entry)
        replies, self._replies = self._replies, []
        self._in_flight_waiters, self._next_waiters = self._next_waiters, []
        has_question = state.status is TaskStatus.INPUT_REQUIRED
        self._reported_working = self._working_with_question() if has_question else []
        self.is_report_due = False
        append = Append(
            task_id=state.task_id,
            owner=self._lease.owner,
            epoch=self._lease.epoch,
            expected=expected,
            events=bodies,
            status=state.status,
            at=self._now(),
            state=kept_snapshot(state),
            replies=replies,
            working=self._reported_working,
        )
        return self._store.append(append)

    def _handle_commit(self, done: asyncio.Future[None]) -> None:
        """Resolve the waiters of the append that has ended, and schedule the next one."""
        self._in_flight = None
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        if error is not None:
            self._handle_failure(error)
            return
        if self._measures.store_faults.tasks:
            self._measures.store_faults.tasks.clear()
        if self.is_closed and self._lost is None and not self._pending:  # the terminal event
            self._measures.end(self.state.agent, self.state.status)
        waiters, self._in_flight_waiters = self._in_flight_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        if self._pending or self.is_report_due or self._next_waiters:
            self._schedule_flush()

    def _handle_failure(self, error: BaseException) -> None:
        """Lose the journal because an append failed.

        An error that is not an ``AgentsrvError`` is a fault of the store itself.
        """
        if isinstance(error, (FencedError, UnavailableError)):
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
        """Close the journal, and raise ``error`` in every call that waits for a commit.

        The waiters of an append in flight are left to its outcome.
        """
        is_first = self._lost is None
        if is_first:
            self._lost = error
            self.is_closed, self.is_report_due = True, False
        waiters, self._next_waiters = self._next_waiters, []
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
                "the log of task %s is closed to this worker; %s and later events are refused",
                self._lease.task_id,
                event.event_type,
            )
