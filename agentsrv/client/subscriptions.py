"""Feeds: one subscription per task, handed on to any number of iterators. No I/O.

The server knows one subscription per connection and task, and a new one replaces it. So the
iterators of a task share a feed, which subscribes behind the one that has read the least, and
each iterator passes over what it has already.

Memory is bounded per iterator: one whose buffer is full takes nothing more until half of it is
read, and then asks again for what followed. When no iterator takes anything, the feed
unsubscribes; the log keeps the rest.
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

ENDED: Final = frozenset(status for status in TaskStatus if status.is_terminal)
TRY_AGAIN: Final = 1.0  # seconds until a server whose store is away is asked again

Answer = Mapping[str, Any] | AgentsrvError
"""The fields of a reply, or why the command was refused."""


class Send(Protocol):
    """How a feed asks the server; must not wait."""

    def __call__(self, fields: dict[str, Any], on_answer: Callable[[Answer], None]) -> None:
        """Send a command; ``on_answer`` is called before any later frame is looked at."""


class Cursor:
    """One iterator's place in a task's log: each event once, in order, without a hole."""

    def __init__(self, subscription: TaskSubscription, after: int, limit: int) -> None:
        self.subscription = subscription
        self.tail = after
        """The last event that is in the buffer, or was."""
        self._limit = limit
        self._buffer: deque[Record] = deque()
        self._full = False
        self._error: AgentsrvError | None = None
        self._wake = asyncio.Event()

    @property
    def wants(self) -> bool:
        """Whether events are to be sent for it."""
        return not self._full and self._error is None and self.tail != self.subscription.end

    def offer(self, record: Record) -> None:
        """Buffer the event, if it is the next one and there is room."""
        if record.seq == self.tail + 1 and len(self._buffer) < self._limit:
            self._buffer.append(record)
            self.tail = record.seq
            self._full = len(self._buffer) == self._limit
            self._wake.set()

    def fail(self, error: AgentsrvError) -> None:
        """Raise ``error`` behind what is buffered."""
        self._error = self._error or error
        self._wake.set()

    def look(self) -> None:
        """Look again at where the log ends."""
        self._wake.set()

    async def next(self) -> Record | None:
        """The next event; ``None`` behind the last one. Cancelling it loses nothing.

        Raises:
            AgentsrvError: Nothing more can come.
        """
        while not self._buffer:
            if self._error is not None:
                raise self._error
            if self.tail == self.subscription.end:
                return None
            self._wake.clear()
            await self._wake.wait()
        record = self._buffer.popleft()
        if self._full and len(self._buffer) <= self._limit // 2:
            self._full = False
            self.subscription.update()
        return record


class TaskSubscription:
    """The subscription to one task, and the cursors that share it."""

    def __init__(self, task_id: str, subscriptions: TaskSubscriptions) -> None:
        self.task_id = task_id
        self.cursors: list[Cursor] = []
        self.end: int | None = None
        """The number of the terminal event, once it is known."""
        self._subscriptions = subscriptions
        self._position: int | None = None
        """The last event that the subscription has brought; ``None`` without one."""
        self._head = 0
        """The last event that is known to be in the log."""
        self._changing = False
        """Whether a ``subscribe`` or ``unsubscribe`` is under way: they go one by one."""
        self._has_begun = False
        """Whether the task was ever followed: then a server that cannot now may be able later."""
        self._again: asyncio.TimerHandle | None = None

    def begin(self, position: int) -> None:
        """Take note that the server sends what follows event ``position``."""
        self._position = position
        self._has_begun = True

    def take(self, record: Record) -> None:
        """Hand an event on.

        A hole in the numbers fails every cursor with `SequenceGapError`.
        """
        if self._position is None:
            return  # the rest of a subscription that was given up
        if record.seq != self._position + 1:
            self.fail(
                SequenceGapError(
                    f"task {self.task_id}: after event {self._position} came {record.seq}; a hole"
                )
            )
            return
        self._position = record.seq
        self._head = max(self._head, record.seq)
        if record.is_terminal:
            self.end = record.seq
            self._position = None  # the server ends the subscription by itself
        for cursor in self.cursors:
            cursor.offer(record)
        self.update()

    def update(self) -> None:
        """Subscribe, unsubscribe or leave it, as the cursors want."""
        if self._changing or not self._subscriptions.is_up:
            return
        wanting = [cursor for cursor in self.cursors if cursor.wants]
        if not all(map(self._will_reach, wanting)):
            after = min(cursor.tail for cursor in wanting)
            fields = {"command": "subscribe", "task_id": self.task_id, "after_seq": after}
            self._changing = True
            self._subscriptions.send(fields, partial(self._subscribed, after))
        elif self._position is not None and not wanting:
            self._changing = True
            fields = {"command": "unsubscribe", "task_id": self.task_id}
            self._subscriptions.send(fields, self._unsubscribed)
        elif not self.cursors and self._position is None:
            self._subscriptions.forget(self)

    def lose(self) -> None:
        """Take note that the connection, and the subscription with it, is gone."""
        self._position = None
        self._changing = False
        if self._again is not None:
            self._again.cancel()

    def fail(self, error: AgentsrvError) -> None:
        """Fail every cursor."""
        for cursor in self.cursors:
            cursor.fail(error)
        self.update()

    def refused(self, error: AgentsrvError) -> None:
        """Fail every cursor that wants more: the server has ended the subscription."""
        self._position = None
        for cursor in self.cursors:
            if cursor.wants:
                cursor.fail(error)
        self.update()

    def _will_reach(self, cursor: Cursor) -> bool:
        """Whether the subscription as it is will bring the cursor's next event."""
        return self._position is not None and (
            self._position <= cursor.tail <= max(self._position, self._head)
        )

    def _subscribed(self, after: int, answer: Answer) -> None:
        if isinstance(answer, ReplyLostError):
            return
        if isinstance(answer, UnavailableError) and self._has_begun:
            self._again = asyncio.get_running_loop().call_later(TRY_AGAIN, self._try_again)
            return
        self._changing = False
        if isinstance(answer, AgentsrvError):
            for cursor in self.cursors:
                if cursor.wants:
                    cursor.fail(answer)
        else:
            self._has_begun = True
            self._head = max(self._head, answer["seq"])
            if answer["status"] in ENDED:
                self.end = answer["seq"]
            self._position = None if after == self.end else after
            for cursor in self.cursors:
                self._check_end(cursor)
        self.update()

    def _try_again(self) -> None:
        self._changing = False
        self.update()

    def _check_end(self, cursor: Cursor) -> None:
        if cursor.tail > self._head:
            cursor.fail(
                SeqAheadError(
                    f"task {self.task_id} has {self._head} events; found after_seq "
                    f"{cursor.tail}; expected at most {self._head}"
                )
            )
        cursor.look()

    def _unsubscribed(self, answer: Answer) -> None:
        if not isinstance(answer, ReplyLostError):
            self._changing = False
            self._position = None
            self.update()


class TaskSubscriptions:
    """All feeds of one client, by task."""

    def __init__(self, send: Send, limit: int) -> None:
        self.send = send
        self.is_up = False
        """Whether there is a connection."""
        self._limit = limit
        self._subscriptions: dict[str, TaskSubscription] = {}
        self._parked: dict[str, Cursor] = {}

    def __len__(self) -> int:
        """How many tasks are followed."""
        return len(self._subscriptions)

    def open(self, task_id: str, after: int) -> Cursor:
        """A cursor behind event ``after``; `close` it."""
        parked = self._parked.pop(task_id, None)
        if parked is not None and after == 0:
            return parked
        subscription = self._subscription(task_id)
        cursor = Cursor(subscription, after, self._limit)
        subscription.cursors.append(cursor)
        if parked is not None:
            self.close(parked)
        subscription.update()
        return cursor

    def close(self, cursor: Cursor) -> None:
        """Send nothing more for this cursor."""
        cursor.subscription.cursors.remove(cursor)
        cursor.subscription.update()

    def begun(self, task_id: str, *, wanted: bool) -> None:
        """Take note that the server sends a new task's events from the first one on.

        They are kept, as far as a buffer holds them, for the next `open` behind event 0;
        where they are not ``wanted`` any more, the feed unsubscribes.
        """
        subscription = self._subscription(task_id)
        subscription.begin(0)
        if wanted:
            cursor = self._parked[task_id] = Cursor(subscription, 0, self._limit)
            subscription.cursors.append(cursor)
        subscription.update()

    def take(self, record: Record) -> None:
        """Hand on an event that the server sent."""
        subscription = self._subscriptions.get(record.task_id)
        if subscription is not None:
            subscription.take(record)

    def refused(self, task_id: str, error: AgentsrvError) -> None:
        """Fail the cursors of a task that the server follows no more."""
        subscription = self._subscriptions.get(task_id)
        if subscription is not None:
            subscription.refused(error)

    def up(self) -> None:
        """Subscribe on a new connection, behind what was received on the old one."""
        self.is_up = True
        for subscription in list(self._subscriptions.values()):
            subscription.update()

    def down(self) -> None:
        """Take note that the connection is gone."""
        self.is_up = False
        for subscription in self._subscriptions.values():
            subscription.lose()

    def fail(self, error: AgentsrvError) -> None:
        """Fail every cursor: there will be no other connection."""
        for subscription in list(self._subscriptions.values()):
            subscription.fail(error)

    def forget(self, subscription: TaskSubscription) -> None:
        """Drop a feed that nobody uses."""
        self._subscriptions.pop(subscription.task_id, None)

    def _subscription(self, task_id: str) -> TaskSubscription:
        subscription = self._subscriptions.get(task_id)
        if subscription is None:
            subscription = self._subscriptions[task_id] = TaskSubscription(task_id, self)
        return subscription


__all__ = ["Answer", "Cursor", "Send", "TaskSubscription", "TaskSubscriptions"]
