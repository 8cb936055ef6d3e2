"""CommitFollower: publishes the commits of all nodes to the subscribers of this node.

Theory of operation
===================

Subscribers of this node must receive each task's events in order, without a gap and once, whichever
node commits them. Three sources report commits:

=============== ==================================== ===============================================
source          contains                             may be
=============== ==================================== ===============================================
``publish``     a commit of this node, with its      nothing: the store calls it for every commit
                events
``notice``      the heads of logs on other nodes     lost, repeated, late, out of order
poll            the same, read from the store every  late by ``SWEEP_INTERVAL`` seconds
                ``SWEEP_INTERVAL`` seconds
=============== ==================================== ===============================================

For each task that this node follows, a *position* (``_positions``) is the number of the last event
that was published here. The decision about a commit of events ``after + 1 … end`` at position
``seq`` is:

=============== ==================================================================================
``after > seq`` events between them are missing: the head goes to ``_unread``, and the log is read
                from ``seq``
``end > seq``   the part after ``seq`` is published, and the position advances
otherwise       everything was published before: nothing happens
=============== ==================================================================================

Heads in ``_unread`` are ahead of their positions. One query reads the next part of all of these
logs, at most ``MAX_EVENTS_PER_READ`` events together, until ``_unread`` is empty. If it fails, the
heads stay.

Followed are: tasks with a subscriber on this node; and all tasks of *owners* with a subscriber to
all of their tasks. The two differ in where a position starts:

- A subscriber of one task reads the history itself. A new position starts at the commit or head
  that created it.
- A subscriber of all tasks of an owner cannot: it has no list of them. A new position starts at 0
  with ``newer_than`` set to a time at which the owner's tasks were known (``_known_since``), and
  older events are skipped.

A position is dropped if no subscriber follows the task itself, and it has not moved for
``POSITION_TTL`` seconds or no subscriber follows all tasks of the owner.

If polls fail for so long that ``SharedStore.news`` would not look back far enough, the poll lists
the owner's newest tasks instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

from agentsrv.delivery.broker import EventBroker
from agentsrv.errors import AgentsrvError
from agentsrv.models.events import decode, format_timestamp
from agentsrv.models.usage import MAX_LIST
from agentsrv.store.base import Commit, LogHead, Span
from agentsrv.store.shared import NEWS_WINDOW, SWEEP_INTERVAL, SharedStore

MAX_EVENTS_PER_READ: Final = 5000  # of one query, of all tasks together
OVERLAP: Final = 2 * NEWS_WINDOW  # seconds of an owner's past that are looked at again
POSITION_TTL: Final = 3 * NEWS_WINDOW  # seconds that the position of an idle task is kept


@dataclass(slots=True)
class _LogPosition:
    """How far a task's log was published to the subscribers of this node."""

    owner: str
    seq: int
    """The number of the last event published."""
    moved_at: float
    """When it was published, by the event loop's clock."""
    newer_than: str = ""
    """Publish only events from this timestamp on. Empty if all events after ``seq`` are new."""


class CommitFollower:
    """Publishes each task's commits in order, without a gap, once; see the head of this module.

    Args:
        store: The store whose commits are published. Its listener calls ``publish`` and ``notice``.
        broker: Receives the commits.
        runs_here: Whether this node runs a task; then no other node commits to it.
        now: Returns seconds since the epoch.
    """

    def __init__(
        self,
        store: SharedStore,
        broker: EventBroker,
        runs_here: Callable[[str], bool],
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._broker = broker
        self._runs_here = runs_here
        self._now = now
        self._positions: dict[str, _LogPosition] = {}
        self._known_since: dict[str, float] = {}
        """By owner: the time (since the epoch) up to which all of their events were published."""
        self._unread: dict[str, LogHead] = {}
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Poll and read until cancelled; failures of the store are repeated at the next poll."""
        loop = asyncio.get_running_loop()
        next_poll = loop.time()
        while True:
            due = max(next_poll, loop.time())
            with suppress(TimeoutError):
                async with asyncio.timeout_at(next_poll):
                    await self._wake.wait()
            self._wake.clear()
            is_due = loop.time() >= next_poll
            with suppress(AgentsrvError):  # the next poll finds what could not be read
                if is_due:
                    self._store.lag = max(0.0, loop.time() - due)
                    next_poll = loop.time() + SWEEP_INTERVAL
                    await self._poll()
                await self._read_unread()

    def notice(self, heads: Sequence[LogHead]) -> None:
        """Record logs that have grown on other nodes; the store calls it."""
        for head in heads:
            if not self._is_followed(head.task_id, head.owner):
                continue
            position, unread = self._positions.get(head.task_id), self._unread.get(head.task_id)
            known = max(
                -1 if position is None else position.seq, -1 if unread is None else unread.seq
            )
            if head.seq > known:
                self._unread[head.task_id] = head
                self._wake.set()

    def publish(self, commit: Commit) -> None:
        """Publish the new events of a commit, or have missing ones read; the store calls it."""
        task_id, owner, after, events = commit
        if not self._is_followed(task_id, owner):
            self._broker.publish(commit)
            return
        position, end = self._positions.get(task_id), after + len(events)
        if position is not None:
            published = position.seq
        else:  # a subscriber of one task reads the history itself
            published = 0 if self._broker.follows_all(owner) else after
        if after > published:
            self.notice([LogHead(task_id, owner, end)])
        elif position is None or end > published:
            self._advance(Commit(task_id, owner, published, events[published - after :]))

    def _advance(self, commit: Commit) -> None:
        """Publish a commit, and move the position of its task to the end of it."""
        seq = commit.after + len(commit.events)
        at = asyncio.get_running_loop().time()
        self._positions[commit.task_id] = _LogPosition(commit.owner, seq, at)
        self._broker.publish(commit)

    def _is_followed(self, task_id: str, owner: str) -> bool:
        return self._broker.follows(task_id) or self._broker.follows_all(owner)

    async def _poll(self) -> None:
        """Read the heads of all followed logs, and then the events that were missed."""
        broker, now = self._broker, self._now()
        owners = list(broker.owners)
        self._known_since = {
            owner: self._known_since.get(owner, now - SWEEP_INTERVAL) for owner in owners
        }
        followed = {*broker.followed, *self._positions}
        task_ids = {task_id for task_id in followed if not self._runs_here(task_id)}
        for owner, known in self._known_since.items():
            if now - known > OVERLAP + NEWS_WINDOW / 2:  # ``news`` does not look back so far
                page = await self._store.list(owner, None, MAX_LIST, None)
                task_ids.update(row.task_id for row in page.rows)
        if task_ids or owners:
            self.notice(await self._store.news(list(task_ids), owners))
        await self._read_unread()
        for owner, known in self._known_since.items():
            self._known_since[owner] = max(known, now - OVERLAP)
        self._drop_idle_positions()
        broker.revive()

    def _drop_idle_positions(self) -> None:
        """Drop positions that no subscriber needs; see the head of this module."""
        before = asyncio.get_running_loop().time() - POSITION_TTL
        for task_id, position in list(self._positions.items()):
            is_idle = position.moved_at < before or not self._broker.follows_all(position.owner)
            if is_idle and not self._broker.follows(task_id):
                del self._positions[task_id]

    async def _read_unread(self) -> None:
        while self._unread:
            await self._read_once()

    async def _read_once(self) -> None:
        """Read a part of each log in ``_unread``, and publish it."""
        unread, self._unread = self._unread, {}
        behind: list[tuple[LogHead, _LogPosition]] = []
        for head in unread.values():
            position = self._positions.get(head.task_id) or self._start_position(head)
            if position.seq < head.seq:
                behind.append((head, position))
        if not behind:
            return
        limit = max(1, MAX_EVENTS_PER_READ // len(behind))
        spans = [Span(head.task_id, position.seq, limit) for head, position in behind]
        try:
            parts = await self._store.read_each(spans)
        except AgentsrvError:
            self._unread = unread | self._unread
            raise
        for (head, position), span, events in zip(behind, spans, parts, strict=True):
            if events:  # a damaged log gives none; it is read again when it has grown
                commit = Commit(head.task_id, head.owner, span.after, events)
                self._publish_part(head, position, commit)

    def _start_position(self, head: LogHead) -> _LogPosition:
        """Create the position of a task that has none; see the head of this module."""
        at = asyncio.get_running_loop().time()
        if not self._broker.follows_all(head.owner):
            self._advance(Commit(head.task_id, head.owner, head.seq, ()))
            return self._positions[head.task_id]
        since = self._known_since.get(head.owner, self._now()) - SWEEP_INTERVAL
        position = _LogPosition(head.owner, 0, at, format_timestamp(since))
        self._positions[head.task_id] = position
        return position

    def _publish_part(self, head: LogHead, position: _LogPosition, commit: Commit) -> None:
        """Publish a part of a log, without events before ``position.newer_than``."""
        if position.newer_than and self._positions.get(head.task_id) is position:
            since, events = position.newer_than, commit.events
            old = sum(1 for _ in takewhile(lambda body: decode(body).timestamp < since, events))
            position.seq = commit.after + old
            if old < len(events) or position.seq >= head.seq:
                position.newer_than = ""
            commit = Commit(head.task_id, head.owner, position.seq, events[old:])
            if not position.newer_than and not commit.events:
                self._advance(commit)  # a subscriber of the task itself reads these events
        self.publish(commit)
        if commit.after + len(commit.events) < head.seq:
            self.notice([head])
