"""EventBroker: which subscriber follows which task, and who is called at a commit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from agentsrv.errors import OverloadedError
from agentsrv.models.events import is_terminal
from agentsrv.store.base import Commit, Store


class Receiver(Protocol):
    """A subscriber, as the broker sees it. The calls must not wait."""

    principal: str

    def notice(self, commit: Commit) -> None:
        """Take a commit of a task that is followed."""

    def notice_life_cycle(self, commit: Commit) -> None:
        """Take a commit of one of the principal's tasks."""

    def resume(self) -> None:
        """Try again to read from the store."""


class EventBroker:
    """Passes each commit to the subscribers of its task.

    Args:
        store: Its commits are passed to ``publish``, and ``revive`` is called when it can be read
            again.
        limit: How many tasks the subscribers of one principal may follow; ``None``: any number.
    """

    def __init__(self, store: Store, limit: int | None = None) -> None:
        self.store = store
        self._limit = limit
        self._by_task: dict[str, list[Receiver]] = {}
        self._counts: dict[str, int] = {}
        self.elsewhere: Mapping[str, int] = {}
        """How many tasks the subscribers of each principal follow at other nodes, as far as they
        have said."""
        self._by_owner: dict[str, set[Receiver]] = {}
        self._bound: dict[str, Receiver] = {}
        """By task, the subscriber with which it is to end."""
        self._stalled: set[Receiver] = set()

    def follow(self, task_id: str, receiver: Receiver) -> None:
        """Pass the task's commits to ``receiver`` from now on; it must not follow it already.

        Raises:
            OverloadedError: Its principal follows as many tasks as it may.
        """
        count = self._counts.get(receiver.principal, 0)
        total = count + self.elsewhere.get(receiver.principal, 0)
        if self._limit is not None and total >= self._limit:
            raise OverloadedError(
                f"you follow {total} tasks, which is the limit; unsubscribe from some, or send "
                "subscribe: false"
            )
        self._counts[receiver.principal] = count + 1
        self._by_task.setdefault(task_id, []).append(receiver)

    def leave(self, task_id: str, receiver: Receiver) -> None:
        """Take ``follow`` back."""
        followers = self._by_task[task_id]
        followers.remove(receiver)
        if not followers:
            del self._by_task[task_id]
        self._counts[receiver.principal] -= 1
        if not self._counts[receiver.principal]:
            del self._counts[receiver.principal]

    def follow_all(self, owner: str, receiver: Receiver) -> None:
        """Pass the commits of all tasks of ``owner`` to ``receiver`` from now on."""
        self._by_owner.setdefault(owner, set()).add(receiver)

    def leave_all(self, owner: str, receiver: Receiver) -> None:
        """Take ``follow_all`` back."""
        followers = self._by_owner.get(owner, set())
        followers.discard(receiver)
        if not followers:
            self._by_owner.pop(owner, None)

    def bind(self, task_id: str, receiver: Receiver) -> None:
        """Have ``release`` return the task, unless it ends before that; the last call counts."""
        self._bound[task_id] = receiver

    def release(self, receiver: Receiver) -> list[str]:
        """Forget a subscriber that closes; return the tasks that are to end with it."""
        self._stalled.discard(receiver)
        released = [task_id for task_id, bound in self._bound.items() if bound is receiver]
        for task_id in released:
            del self._bound[task_id]
        return released

    @property
    def counts(self) -> Mapping[str, int]:
        """How many tasks the subscribers of each principal follow together."""
        return self._counts

    @property
    def followed(self) -> Iterable[str]:
        """The tasks that have a follower."""
        return self._by_task.keys()

    @property
    def owners(self) -> Iterable[str]:
        """The principals all of whose tasks have a follower."""
        return self._by_owner.keys()

    def follows(self, task_id: str) -> bool:
        """Whether the task has a follower."""
        return task_id in self._by_task

    def follows_all(self, owner: str) -> bool:
        """Whether all tasks of ``owner`` have a follower."""
        return owner in self._by_owner

    def stall(self, receiver: Receiver) -> None:
        """Call ``resume`` of a subscriber that could not read when the store can be read again."""
        self._stalled.add(receiver)

    def revive(self) -> None:
        """The store can be read: let the subscribers that could not read it try again."""
        stalled, self._stalled = self._stalled, set()
        for receiver in stalled:
            receiver.resume()

    def publish(self, commit: Commit) -> None:
        """Pass a commit on; those of one task must come in their order."""
        if self._bound and commit.events and is_terminal(commit.events[-1]):
            self._bound.pop(commit.task_id, None)
        followers = list(self._by_task.get(commit.task_id, ()))
        for receiver in followers:
            receiver.notice(commit)
        for receiver in list(self._by_owner.get(commit.owner, ())):
            if receiver not in followers:  # a follower of the task has got the events already
                receiver.notice_life_cycle(commit)
