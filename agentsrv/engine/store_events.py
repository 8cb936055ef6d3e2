"""Passes what happens in the store to the parts of a node that it concerns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agentsrv.delivery.broker import EventBroker
from agentsrv.engine.cluster.follower import CommitFollower
from agentsrv.engine.cluster.remote_commands import RemoteCommands
from agentsrv.engine.worker import Worker
from agentsrv.store.base import SILENT, Commit, LogHead


class StoreEvents:
    """The ``StoreListener`` of a node.

    The attributes are the parts' own methods, so passing a commit on costs no call.

    Args:
        broker: Publishes commits to subscribers.
        worker: Claims and runs tasks.
        broken: Called when the store cannot be trusted any more.
        remote_commands: Carries out commands of other nodes, where the store is shared.
        follower: Publishes the commits of all nodes in order, where the store is shared.
    """

    def __init__(
        self,
        broker: EventBroker,
        worker: Worker,
        broken: Callable[[BaseException], None] = SILENT.broken,
        remote_commands: RemoteCommands | None = None,
        follower: CommitFollower | None = None,
    ) -> None:
        self.committed: Callable[[Commit], None] = (
            broker.publish if follower is None else follower.publish
        )
        self.ready: Callable[[], None] = worker.wake
        self.durable: Callable[[float], None] = worker.measures.commits.observe
        self.resumed: Callable[[], None] = broker.revive
        self.broken = broken
        self.news: Callable[[Sequence[LogHead]], None] = (
            SILENT.news if follower is None else follower.notice
        )
        self.inbox: Callable[[], None] = (
            SILENT.inbox if remote_commands is None else remote_commands.wake
        )
        self.leases_lost: Callable[[], None] = worker.abandon
