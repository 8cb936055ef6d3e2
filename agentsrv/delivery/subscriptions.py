"""Subscriptions: positions in task logs, and the delivery of what follows them.

Theory of operation. A subscription is a cursor: the number of the last event that was delivered
(``seq``) and of the last one that is known to be committed (``head``). There are two ways to move
it, and both keep the order of the log:

- *live*: a commit that begins at ``seq`` is delivered at once, as the bytes that were stored;
- *lagging*: the subscriber's reader reads pages from the store, of all cursors in turn, until they
  have reached their heads.

A cursor lags if a commit came while the sink had no room, or did not begin at ``seq``. While it
lags, only the reader delivers. Resuming and replaying are a cursor that begins before the head; a
slow client costs one integer.

A command that begins a subscription must not miss a commit between the moment at which the store
reads the task's head and the moment at which the subscription begins. So its caller opens a
``Hold`` before, which notes the commits of the task. A hold has a second purpose: while one is
open, no event of its task is delivered, so that a reply is sent before the events that the command
caused. Several commands on a task may be under way at the same time; then the task has several
holds, and its events are delivered when the last one is left.

============================== ====================================================================
``task in _cursors``           the task is followed
``task in _holds``             commands on it are under way; nothing of it is delivered
``hold.cursor is not None``    the command is to begin this subscription; it notes commits
``cursor in _lagging``         the reader delivers it; ``seq < head`` or ``seq == target``
``cursor.target is not None``  `caught_up` is to be sent behind this event
``cursor.ended``               the event ``head`` is the task's end: then the subscription ends
============================== ====================================================================

The broker calls a subscriber for a task as long as it is in ``_cursors`` or a hold has a cursor.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import uuid
from collections.abc import Collection, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Final, Protocol, Self

from agentsrv.delivery.broker import EventBroker
from agentsrv.errors import AgentsrvError, InternalError, NotFoundError
from agentsrv.models.events import is_life_cycle, is_terminal
from agentsrv.models.outcome import CommandOutcome, Follow
from agentsrv.store.base import Commit, Span, damaged
from agentsrv.store.replay import forgotten

PAGE = 256  # events read from the store at once, of as many tasks as it takes: some 64 KiB
UNKNOWN_HEAD: Final = sys.maxsize  # the reader reads until there is nothing more

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
    """The last event that was delivered, or is not wanted."""
    head: int
    """The last event that is known to be committed."""
    target: int | None = None
    """Send `caught_up` after this event; ``None`` if it was sent or is not requested."""
    life_cycle: bool = False
    """Whether only the task's life-cycle events are delivered."""
    ended: bool = False
    """Whether ``head`` is known to be the task's last event."""
    kept: Sequence[bytes] = ()
    """The events after ``seq``, if they were committed while the task was held: they need not be
    read."""
    order: int = 0
    """Commands may be completed in another order than that in which they came: of the
    subscriptions to a task, the one with the highest number counts."""

    @property
    def waits(self) -> bool:
        """Whether there is something to deliver or to tell."""
        return self.seq < self.head or self.seq == self.target


Turn = list[tuple[_Cursor, int]]
"""Cursors, and how many events to read for each."""


class Hold:
    """Keeps a task's events back while a command on it is carried out and its reply is sent.

    Enter it before the store is asked for anything; leave it after the reply is sent. If the
    block raises, no subscription begins, and an earlier one continues.

    Args:
        subscriber: The connection's.
        task_id: The task; empty for a command that concerns no task.
        after: If the command is to begin a subscription, the event after which it delivers.
    """

    __slots__ = ("_subscriber", "cursor", "task_id")

    def __init__(self, subscriber: Subscriber, task_id: str = "", after: int | None = None) -> None:
        self._subscriber = subscriber
        self.task_id = task_id
        self.cursor = None if after is None else _Cursor(task_id, after, 0)
        """The subscription to begin; ``None`` if there is none, or not any more."""

    def __enter__(self) -> Self:
        """Hold the task.

        Raises:
            OverloadedError: The principal follows as many tasks as it may.
        """
        if self.task_id:
            self._subscriber.hold(self)
        return self

    def accept(self, outcome: CommandOutcome) -> None:
        """Begin the subscription of a command that was carried out, and bind its task.

        A command may turn out to be about another task than the one that is held: that of its
        idempotency key. Then that one is held and followed from now on.

        Raises:
            OverloadedError: As on entering, for another task.
        """
        if outcome.follow is not None and self.cursor is not None:
            self._subscriber.begin(self, self.cursor, outcome.follow)
        if outcome.bind is not None:
            self._subscriber.bind(outcome.bind)

    def __exit__(self, *_: object) -> None:
        if self.task_id:
            self._subscriber.let_go(self)


class Subscriber:
    """All subscriptions of one connection; ``close`` ends them."""

    def __init__(self, broker: EventBroker, sink: Sink, principal: str) -> None:
        self._broker = broker
        self._sink = sink
        self.principal = principal
        self._cursors: dict[str, _Cursor] = {}
        self._life_cycles: dict[str, _Cursor] = {}
        """For ``subscribe_all``: the tasks whose events could not be delivered at once."""
        self._lagging: dict[_Cursor, None] = {}
        """The cursors that the reader serves, in the order of their turns."""
        self._holds: dict[str, list[Hold]] = {}
        self._orders = 0
        self._reader: asyncio.Task[None] | None = None
        self._all = False

    def __len__(self) -> int:
        """How many tasks are followed."""
        return len(self._cursors)

    def follows(self, task_id: str) -> bool:
        """Whether the task is followed."""
        return task_id in self._cursors

    def hold(self, hold: Hold) -> None:
        """See ``Hold.__enter__``."""
        task_id, cursor = hold.task_id, hold.cursor
        holds = self._holds.get(task_id)
        if cursor is not None:
            if task_id not in self._cursors and (not holds or not self._is_registered(task_id)):
                self._broker.follow(task_id, self)
            self._orders += 1
            cursor.order = self._orders
        if holds is None:
            self._holds[task_id] = [hold]
        else:
            holds.append(hold)

    def begin(self, hold: Hold, cursor: _Cursor, follow: Follow) -> None:
        """See ``Hold.accept``."""
        hold.cursor = None
        task_id, head = follow.task_id, follow.head
        if task_id != hold.task_id:
            self._move(hold, task_id)
            # The task's commits were not noted since its head was read.
            cursor = _Cursor(task_id, follow.after, UNKNOWN_HEAD, order=cursor.order)
        current = self._cursors.get(task_id)
        if current is not None:
            if current.order > cursor.order:
                return  # of a command that came later and was completed earlier
            self._lagging.pop(current, None)
        cursor.head = max(cursor.head, head)
        cursor.target = head
        if follow.ended:
            cursor.head, cursor.ended = head, True
        self._cursors[task_id] = cursor

    def _move(self, hold: Hold, task_id: str) -> None:
        """Let ``hold`` hold another task, and follow that."""
        self._drop_hold(hold)
        self._leave_unless_used(hold.task_id)
        hold.task_id = task_id
        self._holds.setdefault(task_id, []).append(hold)
        if not self._is_registered(task_id):
            self._broker.follow(task_id, self)

    def let_go(self, hold: Hold) -> None:
        """See ``Hold.__exit__``: deliver what was kept back, if no other command holds the task."""
        task_id = hold.task_id
        self._drop_hold(hold)
        if hold.cursor is not None:
            self._leave_unless_used(task_id)
        cursor = self._cursors.get(task_id)
        if cursor is not None and task_id not in self._holds:
            if cursor.kept and self._may_deliver(cursor):
                kept, cursor.kept = cursor.kept, ()
                if cursor.seq == cursor.target:
                    self._tell(cursor)
                self._deliver(cursor, kept)
            if cursor.waits:
                self._lagging[cursor] = None
        if self._lagging:
            self.resume()

    def _drop_hold(self, hold: Hold) -> None:
        holds = self._holds[hold.task_id]
        holds.remove(hold)
        if not holds:
            del self._holds[hold.task_id]

    def _is_registered(self, task_id: str) -> bool:
        """Whether the broker passes the task's commits on to this subscriber."""
        if task_id in self._cursors:
            return True
        holds = self._holds.get(task_id)
        return holds is not None and any(hold.cursor is not None for hold in holds)

    def _leave_unless_used(self, task_id: str) -> None:
        """Call it after one of the reasons to be registered is gone."""
        if not self._is_registered(task_id):
            self._broker.leave(task_id, self)

    def unsubscribe(self, task_id: str) -> bool:
        """Follow a task no more, also if a command is about to; return whether it was followed."""
        pending = [hold for hold in self._holds.get(task_id, ()) if hold.cursor is not None]
        for hold in pending:
            hold.cursor = None
        cursor = self._cursors.get(task_id)
        if cursor is not None:
            self._end(cursor)
        elif pending:
            self._broker.leave(task_id, self)
        return cursor is not None or bool(pending)

    def _end(self, cursor: _Cursor) -> None:
        del self._cursors[cursor.task_id]
        self._lagging.pop(cursor, None)
        self._leave_unless_used(cursor.task_id)

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
        """Have ``close`` return the task, if it has not ended by then."""
        self._broker.bind(task_id, self)

    def close(self) -> Sequence[str]:
        """End everything; nothing is delivered after this.

        Returns:
            The tasks that are to be cancelled with the connection.
        """
        for task_id in [*self._cursors, *self._holds]:
            self.unsubscribe(task_id)
        self.unsubscribe_all()
        if self._reader is not None:
            self._reader.cancel()
        return self._broker.release(self)

    def resume(self) -> None:
        """Start the reader if there is room and a cursor lags."""
        if self._lagging and self._reader is None and self._sink.has_room:
            # An empty context: a commit may be published while a step runs, and the reader is no
            # part of that step.
            self._reader = asyncio.create_task(self._read(), context=Context())

    def notice(self, commit: Commit) -> None:
        """See ``Receiver.notice``."""
        task_id, _, after, events = commit
        head = after + len(events)
        holds = self._holds.get(task_id, ())
        for hold in holds:
            if (pending := hold.cursor) is not None:
                pending.head = max(pending.head, head)
                if pending.seq == after:
                    pending.kept = events
        cursor = self._cursors.get(task_id)
        if cursor is None or head <= cursor.seq:
            return  # the latter: another node's commit, which the reader has found before
        if head > cursor.head:  # noqa: PLR1730 - for each commit: a call less
            cursor.head = head
        if cursor.seq != after:
            self._lagging[cursor] = None
            self.resume()
        elif self._may_deliver(cursor):
            self._deliver(cursor, events)
        elif holds:
            cursor.kept = events
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
        cursor = _Cursor(commit.task_id, commit.after, head, life_cycle=True)
        if self._may_deliver(cursor):
            self._deliver(cursor, commit.events)
        else:
            self._life_cycles[commit.task_id] = cursor
            self._lagging[cursor] = None
            self.resume()

    async def _read(self) -> None:
        """Read and deliver pages of the lagging cursors in turn, while there is room."""
        try:
            while self._sink.has_room and (turn := self._turn()):
                spans = [Span(cursor.task_id, cursor.seq, limit) for cursor, limit in turn]
                pages = await self._broker.store.read_each(spans)
                self._serve(turn, pages, await self._gone(turn, pages))
                await asyncio.sleep(0)  # others have a turn beside a client that is quick
        except AgentsrvError:
            self._broker.stall(self)  # `resume` is called when the store can be read again
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
            cursor.task_id not in self._holds
            and cursor not in self._lagging  # the reader keeps the order
            and self._sink.has_room
        )

    def _turn(self) -> Turn:
        """Return the next cursors to read, and how many events for each.

        They are moved to the end of the line.
        """
        turn: Turn = []
        room = PAGE
        for cursor in self._lagging:
            if not room:
                break
            if cursor.task_id not in self._holds:
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
        """Return the cursors of deleted tasks: their pages are empty although there were events."""
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
            if cursor in self._lagging and cursor.task_id not in self._holds:
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
        if cursor in self._lagging and not cursor.waits:
            del self._lagging[cursor]
        if cursor.life_cycle and cursor.seq >= cursor.head:
            self._life_cycles.pop(cursor.task_id, None)
        elif cursor.ended and cursor.seq >= cursor.head and not cursor.life_cycle:
            self._end(cursor)

    def _drop(self, cursor: _Cursor, refusal: AgentsrvError) -> None:
        """Give up a task whose log cannot be read; the others are delivered."""
        if not cursor.life_cycle:
            self._end(cursor)
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
