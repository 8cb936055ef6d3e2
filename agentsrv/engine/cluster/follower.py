"""Tails: what other nodes commit, for the subscribers of this one."""

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

BUDGET: Final = 5000  # events read by one query, of all tasks together
OVERLAP: Final = 2 * NEWS_WINDOW  # seconds that are looked back over what is not remembered
REMEMBERED: Final = 3 * NEWS_WINDOW  # seconds for which a task is remembered that stands still


@dataclass(slots=True)
class _LogPosition:
    """How much of a task's log the subscribers of this node were told."""

    owner: str
    seq: int
    moved_at: float
    """When that was, by the loop's clock."""
    since: str = ""
    """Where it is not known what they were told: from which time on they are to be."""


class CommitFollower:
    """Publishes the commits of all nodes in the hub: each task's in order, without a hole, once.

    What this node commits is published at once. What others commit is told by hints, which may be
    lost, doubled and late, and found by asking every ``SWEEP_INTERVAL`` seconds; one query reads
    the logs of all tasks of which there is news. Only followed tasks are read, and those of
    principals who follow all of theirs.

    Args:
        store: Whose commits are published. Its listener passes them to ``publish``, and what
            other nodes say of theirs to ``notice``.
        broker: Where they are published.
        runs_here: Whether this node runs a task: then nobody else commits to it.
        now: Seconds since the epoch.
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
        self._tails: dict[str, _LogPosition] = {}
        self._owners: dict[str, float] = {}
        """Since when (seconds since the epoch) all is known that their tasks did."""
        self._news: dict[str, LogHead] = {}
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Follow until cancelled; while the store is away, it is asked again and again."""
        loop = asyncio.get_running_loop()
        next_sweep = loop.time()
        while True:
            awaited = max(next_sweep, loop.time())
            with suppress(TimeoutError):
                async with asyncio.timeout_at(next_sweep):
                    await self._wake.wait()
            self._wake.clear()
            is_due = loop.time() >= next_sweep
            with suppress(AgentsrvError):  # what was told of is found by the next sweep
                if is_due:
                    self._store.lag = max(0.0, loop.time() - awaited)
                    next_sweep = loop.time() + SWEEP_INTERVAL
                    await self._sweep()
                await self._read_on()

    def notice(self, told: Sequence[LogHead]) -> None:
        """Take note of where logs end, as other nodes say; called by the store."""
        for news in told:
            if not self._is_wanted(news.task_id, news.owner):
                continue
            tail, before = self._tails.get(news.task_id), self._news.get(news.task_id)
            known = max(-1 if tail is None else tail.seq, -1 if before is None else before.seq)
            if news.seq > known:
                self._news[news.task_id] = news
                self._wake.set()

    def publish(self, commit: Commit) -> None:
        """Publish the events of a commit that were not published yet; called by the store.

        Where events before it are missing, they are read first.
        """
        task_id, owner, after, events = commit
        if not self._is_wanted(task_id, owner):
            self._broker.publish(commit)
            return
        tail, end = self._tails.get(task_id), after + len(events)
        # Whoever follows one task reads for himself what was before.
        first = 0 if self._broker.follows_all(owner) else after
        told = first if tail is None else tail.seq
        if after > told:
            self.notice([LogHead(task_id, owner, end)])
        elif tail is None or end > told:
            self._publish(Commit(task_id, owner, told, events[told - after :]))

    def _publish(self, commit: Commit) -> None:
        seq = commit.after + len(commit.events)
        at = asyncio.get_running_loop().time()
        self._tails[commit.task_id] = _LogPosition(commit.owner, seq, at)
        self._broker.publish(commit)

    def _is_wanted(self, task_id: str, owner: str) -> bool:
        return self._broker.follows(task_id) or self._broker.follows_all(owner)

    async def _sweep(self) -> None:
        """Ask where the logs end: nothing depends on a hint."""
        broker, now = self._broker, self._now()
        owners = list(broker.owners)
        self._owners = {owner: self._owners.get(owner, now - SWEEP_INTERVAL) for owner in owners}
        wanted = {*broker.followed, *self._tails}
        ids = {task_id for task_id in wanted if not self._runs_here(task_id)}
        for owner, known in self._owners.items():
            if now - known > OVERLAP + NEWS_WINDOW / 2:  # longer ago than ``news`` looks back
                page = await self._store.list(owner, None, MAX_LIST, None)
                ids.update(row.task_id for row in page.rows)
        if ids or owners:
            self.notice(await self._store.news(list(ids), owners))
        await self._read_on()
        for owner, known in self._owners.items():
            self._owners[owner] = max(known, now - OVERLAP)
        self._forget()
        broker.revive()

    def _forget(self) -> None:
        """Forget the tasks that nobody wants to know of, and those that stand still."""
        before = asyncio.get_running_loop().time() - REMEMBERED
        for task_id, tail in list(self._tails.items()):
            is_due = tail.moved_at < before or not self._broker.follows_all(tail.owner)
            if is_due and not self._broker.follows(task_id):
                del self._tails[task_id]

    async def _read_on(self) -> None:
        while self._news:
            await self._read()

    async def _read(self) -> None:
        """Read a page of each log of which there is news, and publish what is found."""
        told, self._news = self._news, {}
        turn: list[tuple[LogHead, _LogPosition]] = []
        for news in told.values():
            tail = self._tails.get(news.task_id) or self._begin(news)
            if tail.seq < news.seq:
                turn.append((news, tail))
        if not turn:
            return
        limit = max(1, BUDGET // len(turn))
        spans = [Span(news.task_id, tail.seq, limit) for news, tail in turn]
        try:
            pages = await self._store.read_each(spans)
        except AgentsrvError:
            self._news = told | self._news
            raise
        for (news, tail), span, events in zip(turn, spans, pages, strict=True):
            if (
                events
            ):  # not where the log is damaged: it is not asked for again until there is news
                self._continue(news, tail, Commit(news.task_id, news.owner, span.after, events))

    def _begin(self, news: LogHead) -> _LogPosition:
        """The tail of a task that is seen for the first time, or again after a long time."""
        at = asyncio.get_running_loop().time()
        if not self._broker.follows_all(news.owner):
            self._publish(Commit(news.task_id, news.owner, news.seq, ()))  # followers read on
            return self._tails[news.task_id]
        since = format_timestamp(self._owners.get(news.owner, self._now()) - SWEEP_INTERVAL)
        tail = self._tails[news.task_id] = _LogPosition(news.owner, 0, at, since)
        return tail

    def _continue(self, news: LogHead, tail: _LogPosition, commit: Commit) -> None:
        """Publish a page, but for what is too old for those who follow all tasks."""
        if tail.since and self._tails.get(news.task_id) is tail:
            since, events = tail.since, commit.events
            old = sum(1 for _ in takewhile(lambda body: decode(body).timestamp < since, events))
            tail.seq = commit.after + old
            if old < len(events) or tail.seq >= news.seq:
                tail.since = ""
            commit = Commit(news.task_id, news.owner, tail.seq, events[old:])
            if not tail.since and not commit.events:
                self._publish(commit)  # whoever follows the task reads it for himself
        self.publish(commit)
        if commit.after + len(commit.events) < news.seq:
            self.notice([news])
