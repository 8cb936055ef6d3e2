"""Hub: who follows which task, and is told of its commits."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from contextvars import Context
from typing import TYPE_CHECKING

from agentsrv.errors import OverloadedError
from agentsrv.models.events import is_terminal
from agentsrv.store.base import Commit, Store

if TYPE_CHECKING:
    from agentsrv.delivery.subscriptions import Subscriber


class EventBroker:
    """Hands each commit to the subscribers of its task. Owns the tasks that read the store.

    Args:
        store: Where the commits are made.
        limit: How many tasks the subscribers of one principal may follow; ``None``: any number.
    """

    def __init__(self, store: Store, limit: int | None = None) -> None:
        self.store = store
        self._limit = limit
        self._by_task: dict[str, list[Subscriber]] = {}
        self._counts: Counter[str] = Counter()
        self.elsewhere: Mapping[str, int] = {}
        """How many tasks those of each principal follow at other nodes, as far as it is told."""
        self._by_owner: dict[str, set[Subscriber]] = {}
        self._readers: set[asyncio.Task[None]] = set()
        self._bound: dict[str, list[Subscriber]] = {}
        """Those with which a task is to end: with the last; the others count if it is refused."""
        self._stalled: set[Subscriber] = set()

    def follow(self, task_id: str, subscriber: Subscriber) -> None:
        """Tell ``subscriber`` of the task's commits.

        Raises:
            Overloaded: Its principal follows as many as it may.
        """
        count = self._counts[subscriber.principal]
        total = count + self.elsewhere.get(subscriber.principal, 0)
        if self._limit is not None and total >= self._limit:
            raise OverloadedError(
                f"you follow {total} tasks, which is the limit; unsubscribe from some, or send "
                "subscribe: false"
            )
        self._counts[subscriber.principal] = count + 1
        self._by_task.setdefault(task_id, []).append(subscriber)

    def leave(self, task_id: str, subscriber: Subscriber) -> None:
        """Tell it no more."""
        followers = self._by_task[task_id]
        followers.remove(subscriber)
        if not followers:
            del self._by_task[task_id]
        self._counts[subscriber.principal] -= 1
        if not self._counts[subscriber.principal]:
            del self._counts[subscriber.principal]

    def follow_all(self, owner: str, subscriber: Subscriber) -> None:
        """Tell ``subscriber`` of the commits of all tasks of ``owner``."""
        self._by_owner.setdefault(owner, set()).add(subscriber)

    def leave_all(self, owner: str, subscriber: Subscriber) -> None:
        """Tell it no more."""
        followers = self._by_owner.get(owner, set())
        followers.discard(subscriber)
        if not followers:
            self._by_owner.pop(owner, None)

    def bind(self, task_id: str, subscriber: Subscriber) -> None:
        """Let the task end with ``subscriber``, until it has ended by itself."""
        self._bound.setdefault(task_id, []).append(subscriber)

    def unbind(self, task_id: str, subscriber: Subscriber) -> None:
        """Take one ``bind`` of ``subscriber`` back; those of other commands stay."""
        bonds = self._bound.get(task_id, [])
        if subscriber in bonds:
            bonds.remove(subscriber)
            if not bonds:
                del self._bound[task_id]

    def release(self, subscriber: Subscriber) -> list[str]:
        """The tasks that were to end with ``subscriber``."""
        self._stalled.discard(subscriber)
        released = []
        for task_id, bonds in list(self._bound.items()):
            if bonds[-1] is subscriber:
                released.append(task_id)
                del self._bound[task_id]
            elif subscriber in bonds:
                self._bound[task_id] = [bond for bond in bonds if bond is not subscriber]
        return released

    def read(self, subscriber: Subscriber) -> asyncio.Task[None]:
        """Run the subscriber's reader."""
        # It may begin where a step commits, and is not part of that step.
        task = asyncio.create_task(subscriber.read(), context=Context())
        self._readers.add(task)
        task.add_done_callback(self._readers.discard)
        return task

    @property
    def counts(self) -> Mapping[str, int]:
        """How many tasks the subscribers of each principal follow together."""
        return self._counts

    @property
    def followed(self) -> Iterable[str]:
        """The tasks that somebody follows."""
        return self._by_task.keys()

    @property
    def owners(self) -> Iterable[str]:
        """Those of whom somebody follows all tasks."""
        return self._by_owner.keys()

    def follows(self, task_id: str) -> bool:
        """Whether somebody follows the task."""
        return task_id in self._by_task

    def follows_all(self, owner: str) -> bool:
        """Whether somebody follows all tasks of ``owner``."""
        return owner in self._by_owner

    def stall(self, subscriber: Subscriber) -> None:
        """Remember a subscriber that could not read, until ``revive``."""
        self._stalled.add(subscriber)

    def revive(self) -> None:
        """Let those that could not read try again: the store can be read."""
        stalled, self._stalled = self._stalled, set()
        for subscriber in stalled:
            subscriber.resume()

    def publish(self, commit: Commit) -> None:
        """Tell of a commit; those of one task come in their order."""
        if self._bound and commit.events and is_terminal(commit.events[-1]):
            self._bound.pop(commit.task_id, None)
        followers = list(self._by_task.get(commit.task_id, ()))
        for subscriber in followers:
            subscriber.notice(commit)
        for subscriber in list(self._by_owner.get(commit.owner, ())):
            if subscriber not in followers:  # who follows the task has been told already
                subscriber.notice_life_cycle(commit)
