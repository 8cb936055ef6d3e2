"""Subscriptions: cursors into task logs; first what is logged, then what is live.

A cursor is a number, not a queue. While its reader keeps up, committed events go straight to
the reader; when the reader has no room, the cursor stays where it is and later reads on from
the store. So resuming, replaying and following are one thing, and a slow reader costs a number.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from agentsrv.delivery.broker import EventBroker
from agentsrv.errors import AgentsrvError, InternalError, NotFoundError
from agentsrv.models.events import is_life_cycle, is_terminal
from agentsrv.store.base import Commit, Span, damaged
from agentsrv.store.replay import forgotten

PAGE = 256  # events read from the store at once, of as many tasks as it takes: some 64 KiB

_log = logging.getLogger("agentsrv.subscriptions")


class Sink(Protocol):
    """Where a subscriber's events go: one connection."""

    @property
    def has_room(self) -> bool:
        """Whether events may be delivered now; if not, ``Subscriber.resume`` is called later."""

    def deliver(self, events: Sequence[bytes]) -> None:
        """Take encoded events; must not wait."""

    def caught_up(self, task_id: str, seq: int) -> None:
        """Take note that all was delivered that was logged when a subscription began."""

    def refused(self, task_id: str, refusal: AgentsrvError) -> None:
        """Take note that a task cannot be followed any more; the error says why."""


@dataclass(slots=True, eq=False)
class _Cursor:
    task_id: str
    seq: int
    """The last event that was delivered, or passed over."""
    head: int
    """The last event that is known to be committed."""
    target: int | None
    """Where the subscription has caught up; ``None`` once that was told, or is not to be."""
    life_cycle: bool = False
    """Whether only the task's own events are delivered."""
    ended: bool = False
    """Whether ``head`` is known to be the task's last event."""
    kept: Sequence[bytes] = ()
    """What was committed behind ``seq`` while an answer kept it back: it need not be read."""
    is_accepted: bool = False
    """Whether the command that asked for it was carried out."""
    replaced: _Cursor | None = None
    """The subscription that comes back if this one is refused; ``None`` once it is accepted."""

    @property
    def waits(self) -> bool:
        """Whether there is something to deliver or to tell."""
        return self.seq < self.head or self.seq == self.target


Turn = list[tuple[_Cursor, int]]
"""Cursors, and how many events to read for each."""


class Answer:
    """The bracket around one command: no event that it causes is delivered within.

    Leaving it by an exception takes back the subscriptions that were begun within; an earlier
    subscription to the same task goes on.
    """

    def __init__(self, subscriber: Subscriber) -> None:
        self._subscriber = subscriber
        self._kept: list[str] = []
        self._begun: dict[str, _Cursor] = {}
        """The subscriptions that were begun within, by task."""
        self._bound: list[str] = []

    def keep(self, task_id: str) -> None:
        """Keep the task's events back until the bracket is left."""
        held = self._subscriber.held
        held[task_id] = held.get(task_id, 0) + 1
        self._kept.append(task_id)

    def is_followed(self, task_id: str) -> bool:
        """Whether there is a subscription to the task that cannot be refused any more."""
        return self._subscriber.follows(task_id)

    def follow(self, task_id: str, after: int) -> None:
        """Follow a task behind event ``after``, in place of an earlier subscription.

        Call it before the log's head is read, and tell the head with ``found``: an append in
        between is then noticed.

        Raises:
            Overloaded: The principal follows as many tasks as it may.
        """
        self.keep(task_id)
        self._begun[task_id] = self._subscriber.install(task_id, after)

    def found(self, task_id: str, head: int, *, ended: bool) -> None:
        """Tell where the log of a task that is followed ends, and whether for good.

        Without effect on what another command has begun meanwhile.
        """
        cursor = self._begun[task_id]
        cursor.head = max(cursor.head, head)
        cursor.target = head
        cursor.ended = ended

    def bind(self, task_id: str) -> None:
        """Let the task be cancelled when the connection is gone."""
        self._subscriber.bind(task_id)
        self._bound.append(task_id)

    def undo(self) -> None:
        """Take back what was begun: subscriptions, and bonds."""
        for cursor in self._begun.values():
            self._subscriber.withdraw(cursor)
        self._begun.clear()
        for task_id in self._bound:
            self._subscriber.unbind(task_id)
        self._bound.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.undo()
        for cursor in self._begun.values():
            cursor.is_accepted, cursor.replaced = True, None
        held = self._subscriber.held
        for task_id in self._kept:
            held[task_id] -= 1
            if not held[task_id]:
                del held[task_id]
                self._subscriber.let_go(task_id)


class Subscriber:
    """All subscriptions of one connection; ``close`` ends them."""

    def __init__(self, broker: EventBroker, sink: Sink, principal: str) -> None:
        self._broker = broker
        self._sink = sink
        self.principal = principal
        self._cursors: dict[str, _Cursor] = {}
        self._life_cycles: dict[str, _Cursor] = {}
        """Of ``all``: the tasks whose life cycle could not be told at once."""
        self._lagging: dict[_Cursor, None] = {}
        """The cursors that the reader has to serve, in the order of their turns."""
        self.held: dict[str, int] = {}
        """How many answers under way keep a task's events back."""
        self._reader: asyncio.Task[None] | None = None
        self._all = False

    def __len__(self) -> int:
        """How many tasks are followed."""
        return len(self._cursors)

    def follows(self, task_id: str) -> bool:
        """Whether the task is followed by a subscription that was accepted."""
        cursor = self._cursors.get(task_id)
        return cursor is not None and cursor.is_accepted

    def answering(self) -> Answer:
        """Open the bracket around carrying out a command and sending its reply."""
        return Answer(self)

    def install(self, task_id: str, after: int) -> _Cursor:
        """Put a new cursor behind event ``after``, in place of an earlier one.

        Raises:
            Overloaded: It replaces none, and the principal follows as many tasks as it may.
        """
        before = self._cursors.get(task_id)
        if before is None:
            self._broker.follow(task_id, self)
        else:
            self._lagging.pop(before, None)
        cursor = self._cursors[task_id] = _Cursor(task_id, after, 0, None, replaced=before)
        return cursor

    def withdraw(self, cursor: _Cursor) -> None:
        """Take ``install`` back, and nothing that another command has installed since.

        Commands are carried out side by side, so a later one may have replaced the cursor. Then it
        is only left out of what comes back if that one is refused too.
        """
        current = self._cursors.get(cursor.task_id)
        if current is not cursor:
            while current is not None and current.replaced is not cursor:
                current = current.replaced
            if current is not None:
                current.replaced = cursor.replaced
        elif cursor.replaced is None:
            self.unsubscribe(cursor.task_id)
        else:
            self._lagging.pop(cursor, None)
            cursor.replaced.head = max(cursor.replaced.head, cursor.head)
            self._cursors[cursor.task_id] = cursor.replaced

    def unsubscribe(self, task_id: str) -> bool:
        """Follow a task no more; return whether it was followed."""
        cursor = self._cursors.pop(task_id, None)
        if cursor is None:
            return False
        self._lagging.pop(cursor, None)
        self._broker.leave(task_id, self)
        return True

    def subscribe_all(self) -> None:
        """Follow the life cycle of all tasks of the principal, from now on."""
        self._all = True
        self._broker.follow_all(self.principal, self)

    def unsubscribe_all(self) -> bool:
        """Follow them no more; return whether they were followed."""
        was, self._all = self._all, False
        self._broker.leave_all(self.principal, self)
        for cursor in self._life_cycles.values():
            self._lagging.pop(cursor, None)
        self._life_cycles.clear()
        return was

    def bind(self, task_id: str) -> None:
        """See ``Answer.bind``."""
        self._broker.bind(task_id, self)

    def unbind(self, task_id: str) -> None:
        """Take ``bind`` back."""
        self._broker.unbind(task_id, self)

    def close(self) -> Sequence[str]:
        """End everything; nothing is delivered after this.

        Returns:
            The tasks that are to be cancelled with the connection.
        """
        for task_id in list(self._cursors):
            self.unsubscribe(task_id)
        self.unsubscribe_all()
        if self._reader is not None:
            self._reader.cancel()
        return self._broker.release(self)

    def let_go(self, task_id: str) -> None:
        """Deliver what was kept back of a task."""
        cursor = self._cursors.get(task_id)
        if cursor is not None:
            if cursor.kept and self._may_deliver(cursor):
                kept, cursor.kept = cursor.kept, ()
                if cursor.seq == cursor.target:
                    self._tell(cursor)
                self._deliver(cursor, kept)
            if cursor.waits:
                self._lagging[cursor] = None
        self.resume()

    def resume(self) -> None:
        """Go on, because there is room again or something to read."""
        if self._lagging and self._reader is None and self._sink.has_room:
            self._reader = self._broker.read(self)

    def notice(self, commit: Commit) -> None:
        """Take a commit of a task that is followed."""
        cursor = self._cursors[commit.task_id]
        head = commit.after + len(commit.events)
        if head <= cursor.seq:
            return  # another node's, which the reader was quicker to find
        if head > cursor.head:  # noqa: PLR1730 - for each commit: a call less
            cursor.head = head
        if cursor.seq == commit.after and self._may_deliver(cursor):
            self._deliver(cursor, commit.events)
        elif cursor.seq == commit.after and cursor.task_id in self.held:
            cursor.kept = commit.events
        else:
            self._lagging[cursor] = None
            self.resume()

    def notice_life_cycle(self, commit: Commit) -> None:
        """Take a commit of one of the principal's tasks."""
        if not any(map(is_life_cycle, commit.events)):
            return
        head = commit.after + len(commit.events)
        cursor = self._life_cycles.get(commit.task_id)
        if cursor is not None:
            cursor.head = head
            return
        cursor = _Cursor(commit.task_id, commit.after, head, None, life_cycle=True)
        if self._may_deliver(cursor):
            self._deliver(cursor, commit.events)
        else:
            self._life_cycles[commit.task_id] = cursor
            self._lagging[cursor] = None
            self.resume()

    async def read(self) -> None:
        """Read what the cursors are behind with, a page of them in turn, while there is room."""
        try:
            while self._sink.has_room and (turn := self._turn()):
                spans = [Span(cursor.task_id, cursor.seq, limit) for cursor, limit in turn]
                pages = await self._broker.store.read_each(spans)
                self._serve(turn, pages, await self._gone(turn, pages))
                await asyncio.sleep(0)  # others have a turn beside a client that is quick
        except AgentsrvError:
            self._broker.stall(self)  # the log waits, and so does the client
        except Exception:  # noqa: BLE001 - it may not pass: the client gets it, and can try again
            incident = uuid.uuid4().hex[:12]
            _log.exception("incident %s: subscriptions cannot be read", incident)
            for cursor in list(self._lagging):
                told = f"task {cursor.task_id} cannot be read: internal error (incident {incident})"
                self._drop(cursor, InternalError(told))
        finally:
            self._reader = None

    def _may_deliver(self, cursor: _Cursor) -> bool:
        return (
            self._sink.has_room
            and cursor.task_id not in self.held
            and cursor not in self._lagging  # the reader keeps the order
        )

    def _turn(self) -> Turn:
        """The cursors whose turn it is, and how many events to read for each.

        They go behind the others: their next turn comes last.
        """
        turn: Turn = []
        room = PAGE
        for cursor in self._lagging:
            if not room:
                break
            if cursor.task_id not in self.held:
                end = cursor.head if cursor.target is None else cursor.target
                limit = min(room, end - cursor.seq)
                turn.append((cursor, limit))
                room -= limit
        for cursor, _ in turn:
            del self._lagging[cursor]
            self._lagging[cursor] = None
        return turn

    async def _gone(
        self, turn: Turn, pages: Sequence[Sequence[bytes] | None]
    ) -> Collection[_Cursor]:
        """The cursors that found nothing where there had been events: those of forgotten tasks."""
        store = self._broker.store
        empty = [
            cursor
            for (cursor, limit), events in zip(turn, pages, strict=True)
            if limit and events is not None and not events
        ]
        return {cursor for cursor in empty if await store.head(cursor.task_id) is None}

    def _serve(
        self, turn: Turn, pages: Sequence[Sequence[bytes] | None], gone: Collection[_Cursor]
    ) -> None:
        """Deliver what was read; what finds no room is read again."""
        for (cursor, limit), events in zip(turn, pages, strict=True):
            if not self._sink.has_room:
                return
            # It may have been given up or replaced meanwhile.
            if cursor in self._lagging and cursor.task_id not in self.held:
                if events is None:
                    self._drop(cursor, damaged(cursor.task_id))
                    continue
                if limit and not events:
                    if cursor in gone:
                        self._drop(cursor, forgotten(cursor.task_id))
                        continue
                    cursor.head = cursor.seq
                self._deliver(cursor, events)

    def _deliver(self, cursor: _Cursor, events: Sequence[bytes]) -> None:
        cursor.seq += len(events)
        cursor.kept = ()
        if events and is_terminal(events[-1]):
            cursor.ended = True
        chosen = list(filter(is_life_cycle, events)) if cursor.life_cycle else events
        if chosen:
            self._sink.deliver(chosen)
        if cursor.seq == cursor.target:
            self._tell(cursor)
        if not cursor.waits:
            self._lagging.pop(cursor, None)
        if cursor.life_cycle and cursor.seq >= cursor.head:
            self._life_cycles.pop(cursor.task_id, None)
        elif cursor.ended and cursor.seq >= cursor.head and not cursor.life_cycle:
            self.unsubscribe(cursor.task_id)

    def _drop(self, cursor: _Cursor, refusal: AgentsrvError) -> None:
        """Give up a task whose log cannot be read; the others are delivered."""
        if not cursor.life_cycle:
            self.unsubscribe(cursor.task_id)
            self._sink.refused(cursor.task_id, refusal)
            return
        self._lagging.pop(cursor, None)
        self._life_cycles.pop(cursor.task_id, None)
        if not isinstance(refusal, NotFoundError):  # of all tasks: one fewer is not a failure
            self._sink.refused(cursor.task_id, refusal)

    def _tell(self, cursor: _Cursor) -> None:
        assert cursor.target is not None
        self._sink.caught_up(cursor.task_id, cursor.target)
        cursor.target = None
