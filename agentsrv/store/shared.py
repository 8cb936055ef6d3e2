"""SharedStore: what a store can do beside, whose tasks more than one node runs.

Nodes meet only here. A lease belongs to a node, and a node's leases end together: it says every
few seconds that it lives, and by the store's clock, which is the only one that counts, it has
that long until others may take its tasks. What a client wants of a task that another node runs
is a message in the task's inbox; whoever holds the lease answers it, in the same transaction as
the events that the message caused.

What nodes tell each other of at once are hints, and a hint may be lost: everything that is
learned by one is found again by asking, a second later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, Protocol, runtime_checkable

from agentsrv.models.usage import Use
from agentsrv.store.base import LogHead, Store

SWEEP: Final = 1.0  # seconds until what a lost hint would have told is found by asking
TOLD_WITHIN: Final = 3.0  # seconds that ``SharedStore.share`` believes what a node told last
NEWS_WITHIN: Final = 10.0  # seconds that ``SharedStore.news`` looks back over an owner's tasks


class Message(NamedTuple):
    """Something for the holder of a task's lease."""

    number: int
    """Rises from message to message, of all tasks."""
    task_id: str
    body: bytes


class Node(NamedTuple):
    """A server that shares the store."""

    name: str
    role: str
    started_at: float
    """Seconds since the epoch."""
    left: float
    """Seconds until its leases are others' to take; negative where they are already."""
    running: int
    """Tasks that it holds the lease of."""
    lag: float
    """Seconds that its event loop was late, when it last said that it lives."""


@runtime_checkable
class SharedStore(Store, Protocol):
    """A ``Store`` for several nodes; one object of it is one node's door to it.

    ``open`` frees nobody's leases. ``claim`` gives tasks whose node is gone, too, and ``Head.node``
    tells who holds the lease. The listener's ``committed`` is called for this node's own
    commits, ``ready`` and ``inbox`` at least once every ``SWEEP`` seconds.

    The place may be away for a while. What was handed over is then tried again until the node
    would have lost its leases; whether an earlier try came through is found out first, so that
    nothing is written twice. After that ``UnavailableError`` is raised, and the next call tries
    again.
    """

    node: str
    """The name under which this node claims."""

    lag: float
    """Seconds that the event loop was late lately; others see it in ``nodes``."""

    async def news(self, task_ids: Sequence[str], owners: Sequence[str]) -> Sequence[LogHead]:
        """Where those tasks' logs end, and those of the owners' tasks that went on lately.

        ``NEWS_WITHIN`` says how lately. Tasks that are not there are left out.
        """

    async def post(self, task_id: str, body: bytes) -> int:
        """Put a message into a task's inbox; durable when its number is returned."""

    async def withdraw(self, number: int) -> bytes | None:
        """Take a message back; return the reply where it was answered before that.

        ``None``: nobody has acted on it, and nobody will.
        """

    async def replies(self, numbers: Sequence[int]) -> Mapping[int, bytes]:
        """The replies to those of the messages that were answered."""

    async def inbox(self) -> Sequence[Message]:
        """The unanswered messages to the tasks whose lease this node holds, in their order."""

    async def settle(self, number: int, reply: bytes) -> None:
        """Answer a message that caused no event; those that did are answered by ``append``.

        One of a task that another node holds by now stays open: its holder knows better.
        """

    async def share(self, uses: Mapping[str, Use]) -> Sequence[Mapping[str, Use]]:
        """Tell what principals use at this node, and return what each other one has told last.

        It takes the place of what was told before, and holds for ``TOLD_WITHIN`` seconds by the
        store's clock, or until the node ends in order.
        """

    async def nodes(self) -> Sequence[Node]:
        """The nodes that live, and those that were lost in the last day, by name."""
