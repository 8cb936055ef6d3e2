"""Subscriptions: one for each task, shared by any number of event iterators. No I/O.

Theory of operation
-------------------
The server keeps at most one subscription for each connection and task; a new ``subscribe``
replaces it. So the iterators of a task share one `TaskSubscription`. It subscribes after the event
of the iterator that has received the least, and each iterator drops the events that it already has.

Positions are sequence numbers of events, which count from 1 without gaps:

=============  =====================================================================================
`last_seq`     of an iterator: the last event that entered its buffer
``_position``  of a subscription: the last event that the server has sent; ``None`` while there is
               no subscription
``_head``      of a subscription: the last event that is known to be in the log
``end``        of a subscription: the terminal event, once it is known
=============  =====================================================================================

`TaskSubscription.update` decides after every change which command to send. It compares what the
iterators want with what the subscription is going to send:

- An iterator *wants* events unless its buffer is full, it has failed, or it has reached ``end``.
- The subscription *will reach* an iterator if ``_position <= last_seq <= max(_position, _head)``:
  the next event that the iterator needs is among those that are still to come.
- If it will not reach some iterator that wants events: ``subscribe`` after the smallest
  ``last_seq`` of those that want events. Events are sent twice in that case, and dropped by the
  iterators that have them.
- If no iterator wants events: ``unsubscribe``. The log keeps the rest.
- If there are no iterators: forget the task.

Only one such command is under way at a time (``_changing``), so that ``_position`` is known when
its reply arrives. The connection calls back before it reads any later frame, so no event is taken
between the reply and the new ``_position``.

Flow control: a buffer holds at most ``limit`` events. An iterator whose buffer is full wants no
more until half of it has been read. Therefore a slow iterator costs a bounded buffer, and the
events that it missed are sent again later.

A lost connection ends all subscriptions: `TaskSubscriptions.down` clears ``_position`` and
``_changing``, and `TaskSubscriptions.up`, on the next connection, subscribes again after
``last_seq``. Commands that were under way are resolved with `ReplyLostError`, which is ignored.

Errors reach an iterator after the events in its buffer have been read. A refused ``subscribe``
fails the iterators that want events; a gap in the sequence fails all of them. While the server's
store is unavailable, a subscription that has worked before is retried every `RETRY_DELAY` seconds.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Protocol

from agentsrv.client.errors import ReplyLostError, SequenceGapError
from agentsrv.errors import AgentsrvError, SeqAheadError, UnavailableError
from agentsrv.models.events import Record
from agentsrv.models.states import TaskStatus

TERMINAL_STATUSES: Final = frozenset(status for status in TaskStatus if status.is_terminal)
RETRY_DELAY: Final = 1.0  # seconds until a server whose store is unavailable is asked again

Outcome = Mapping[str, Any] | AgentsrvError
"""The outcome of a command: the fields of its reply, or the error that it is refused with."""


class SendCommand(Protocol):
    """Sends a command, or queues it; returns at once."""

    def __call__(self, fields: dict[str, Any], on_outcome: Callable[[Outcome], None]) -> None:
        """Call ``on_outcome`` with the outcome before any later frame is read."""


class EventIterator:
    """One reader of a task's log: yields each event once, in order and without gaps."""

    def __init__(self, subscription: TaskSubscription, after_seq: int, limit: int) -> None:
        self.subscription = subscription
        self.last_seq = after_seq
        """The number of the last event that entered the buffer."""
        self._limit = limit
        self._buffer: deque[Record] = deque()
        self._is_full = False
        """Set when the buffer is full, and cleared when half of it has been read."""
        self._error: AgentsrvError | None = None
        self._changed = asyncio.Event()

    @property
    def wants_events(self) -> bool:
        """Whether the server should send it further events."""
        return not self._is_full and self._error is None and self.last_seq != self.subscription.end

    def offer(self, record: Record) -> None:
        """Buffer the event if it is the next one and there is room; drop it otherwise."""
        if record.seq == self.last_seq + 1 and len(self._buffer) < self._limit:
            self._buffer.append(record)
            self.last_seq = record.seq
            self._is_full = len(self._buffer) == self._limit
            self._changed.set()

    def fail(self, error: AgentsrvError) -> None:
        """Raise ``error`` from `next` after the buffered events; the first error counts."""
        self._error = self._error or error
        self._changed.set()

    def wake(self) -> None:
        """Let `next` compare ``last_seq`` with the end of the log again."""
        self._changed.set()

    async def next(self) -> Record | None:
        """Return the next event, or ``None`` after the terminal one. Cancelling it loses no event.

        Raises:
            AgentsrvError: No further event can be received.
        """
        while not self._buffer:
            if self._error is not None:
                raise self._error
            if self.last_seq == self.subscription.end:
                return None
            self._changed.clear()
            await self._changed.wait()
        record = self._buffer.popleft()
        if self._is_full and len(self._buffer) <= self._limit // 2:
            self._is_full = False
            self.subscription.update()
        return record


class TaskSubscription:
    """The subscription to one task, and the iterators that share it."""

    def __init__(self, task_id: str, subscriptions: TaskSubscriptions) -> None:
        self.task_id = task_id
        self.iterators: list[EventIterator] = []
        self.end: int | None = None
        self._subscriptions = subscriptions
        self._position: int | None = None
        self._head = 0
        self._changing = False
        self._has_begun = False
        """Whether a subscription to the task was ever accepted: then "unavailable" is retried."""
        self._retry: asyncio.TimerHandle | None = None

    def begin(self, position: int) -> None:
        """Record that the server sends the events after number ``position``."""
        self._position = position
        self._has_begun = True

    def take(self, record: Record) -> None:
        """Pass an event to the iterators; a gap in the numbers fails them."""
        if self._position is None:
            return  # sent before an unsubscribe took effect
        if record.seq != self._position + 1:
            self.fail(
                SequenceGapError(
                    f"task {self.task_id}: found event {record.seq} after event "
                    f"{self._position}; expected {self._position + 1}"
                )
            )
            return
        self._position = record.seq
        self._head = max(self._head, record.seq)
        if record.is_terminal:
            self.end = record.seq
            self._position = None  # the server ends the subscription by itself
        for iterator in self.iterators:
            iterator.offer(record)
        self.update()

    def update(self) -> None:
        """Send ``subscribe``, ``unsubscribe`` or nothing, as the iterators require."""
        if self._changing or not self._subscriptions.is_up:
            return
        wanting = [iterator for iterator in self.iterators if iterator.wants_events]
        if not all(map(self._will_reach, wanting)):
            after = min(iterator.last_seq for iterator in wanting)
            fields = {"command": "subscribe", "task_id": self.task_id, "after_seq": after}
            self._changing = True
            self._subscriptions.send(fields, partial(self._subscribed, after))
        elif self._position is not None and not wanting:
            self._changing = True
            fields = {"command": "unsubscribe", "task_id": self.task_id}
            self._subscriptions.send(fields, self._unsubscribed)
        elif not self.iterators and self._position is None:
            self._subscriptions.forget(self)

    def lose(self) -> None:
        """Record that the connection is lost, and the subscription with it."""
        self._position = None
        self._changing = False
        if self._retry is not None:
            self._retry.cancel()

    def fail(self, error: AgentsrvError) -> None:
        """Fail every iterator."""
        for iterator in self.iterators:
            iterator.fail(error)
        self.update()

    def end_by_server(self, error: AgentsrvError) -> None:
        """Fail the iterators that want events: the server has ended the subscription."""
        self._position = None
        for iterator in self.iterators:
            if iterator.wants_events:
                iterator.fail(error)
        self.update()

    def _will_reach(self, iterator: EventIterator) -> bool:
        return self._position is not None and (
            self._position <= iterator.last_seq <= max(self._position, self._head)
        )

    def _subscribed(self, after: int, outcome: Outcome) -> None:
        if isinstance(outcome, ReplyLostError):
            return
        if isinstance(outcome, UnavailableError) and self._has_begun:
            self._retry = asyncio.get_running_loop().call_later(RETRY_DELAY, self._try_again)
            return
        self._changing = False
        if isinstance(outcome, AgentsrvError):
            for iterator in self.iterators:
                if iterator.wants_events:
                    iterator.fail(outcome)
        else:
            self._has_begun = True
            self._head = max(self._head, outcome["seq"])
            if outcome["status"] in TERMINAL_STATUSES:
                self.end = outcome["seq"]
            self._position = None if after == self.end else after
            for iterator in self.iterators:
                self._check_end(iterator)
        self.update()

    def _try_again(self) -> None:
        self._changing = False
        self.update()

    def _check_end(self, iterator: EventIterator) -> None:
        if iterator.last_seq > self._head:
            iterator.fail(
                SeqAheadError(
                    f"task {self.task_id} has {self._head} events; found after_seq "
                    f"{iterator.last_seq}; expected at most {self._head}"
                )
            )
        iterator.wake()

    def _unsubscribed(self, outcome: Outcome) -> None:
        if not isinstance(outcome, ReplyLostError):
            self._changing = False
            self._position = None
            self.update()


class TaskSubscriptions:
    """The subscriptions of one client, by task.

    Args:
        send: Sends a command.
        limit: Events that the buffer of an iterator holds.
    """

    def __init__(self, send: SendCommand, limit: int) -> None:
        self.send = send
        self.is_up = False
        """Whether there is a connection."""
        self._limit = limit
        self._subscriptions: dict[str, TaskSubscription] = {}

    def __len__(self) -> int:
        """Return the number of tasks with a subscription or an iterator."""
        return len(self._subscriptions)

    def open(self, task_id: str, after_seq: int) -> EventIterator:
        """Return an iterator over the events after number ``after_seq``; `close` it."""
        iterator = self._add_iterator(task_id, after_seq)
        iterator.subscription.update()
        return iterator

    def open_new(self, task_id: str) -> EventIterator:
        """Return an iterator over all events of a task that was created with ``subscribe``.

        The server sends them without another command. Call it before any later frame is read.
        """
        iterator = self._add_iterator(task_id, 0)
        iterator.subscription.begin(0)
        return iterator

    def close(self, iterator: EventIterator) -> None:
        """Send no further events to this iterator."""
        iterator.subscription.iterators.remove(iterator)
        iterator.subscription.update()

    def take(self, record: Record) -> None:
        """Pass an event that the server sent to the iterators of its task."""
        subscription = self._subscriptions.get(record.task_id)
        if subscription is not None:
            subscription.take(record)

    def end_by_server(self, task_id: str, error: AgentsrvError) -> None:
        """Fail the iterators of a task whose subscription the server has ended."""
        subscription = self._subscriptions.get(task_id)
        if subscription is not None:
            subscription.end_by_server(error)

    def up(self) -> None:
        """Subscribe on a new connection, after the events that were received on earlier ones."""
        self.is_up = True
        for subscription in list(self._subscriptions.values()):
            subscription.update()

    def down(self) -> None:
        """Record that the connection is lost."""
        self.is_up = False
        for subscription in self._subscriptions.values():
            subscription.lose()

    def fail(self, error: AgentsrvError) -> None:
        """Fail every iterator: there will be no further connection."""
        for subscription in list(self._subscriptions.values()):
            subscription.fail(error)

    def forget(self, subscription: TaskSubscription) -> None:
        """Remove a subscription without iterators."""
        self._subscriptions.pop(subscription.task_id, None)

    def _add_iterator(self, task_id: str, after_seq: int) -> EventIterator:
        subscription = self._subscriptions.get(task_id)
        if subscription is None:
            subscription = self._subscriptions[task_id] = TaskSubscription(task_id, self)
        iterator = EventIterator(subscription, after_seq, self._limit)
        subscription.iterators.append(iterator)
        return iterator


__all__ = [
    "EventIterator",
    "Outcome",
    "SendCommand",
    "TaskSubscription",
    "TaskSubscriptions",
]
