"""SharedStore: additional operations of a store that several nodes share.

Nodes communicate only through the store.

*Leases.* A task's lease belongs to a node, and all leases of a node expire together. The node
renews them every few seconds; if it does not, other nodes may take its tasks after the expiry time,
by the store's clock.

*Messages.* A command for a task that another node runs is a message in the task's inbox. The node
that holds the lease answers it, in the same transaction as the events that the message caused:

    post       stores a message; returns its number
    inbox      the open messages of this node's tasks; one may be returned again while it is handled
    append     with ``replies``: writes events and answers messages, or raises ``FencedError`` if
               one of the messages is no longer open
    reply      answers a message without writing events
    replies    the replies that have been stored
    withdraw   closes a message; afterwards no node will act on it

*Notifications* tell other nodes at once about commits, tasks to claim, messages and replies. They
may be lost, so each node also asks the store every ``SWEEP_INTERVAL`` seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, Protocol, runtime_checkable

from agentsrv.models.usage import Use
from agentsrv.store.base import LogHead, Store

SWEEP_INTERVAL: Final = 1.0  # seconds between queries for changes whose notification was lost
USAGE_TTL: Final = 3.0  # seconds for which usage that a node published with ``share`` is valid
NEWS_WINDOW: Final = 10.0  # seconds for which ``news`` returns changes of an owner's tasks


class Message(NamedTuple):
    """A message to the holder of a task's lease."""

    number: int
    """Ascending over the messages of all tasks."""
    task_id: str
    body: bytes


class Node(NamedTuple):
    """A server that shares the store."""

    name: str
    role: str
    started_at: float
    """Seconds since the epoch."""
    expires_in: float
    """Seconds until its leases expire; negative if they have expired."""
    running: int
    """The number of tasks that it holds the lease of."""
    lag: float
    """Delay of its event loop in seconds, at the last renewal of its lease."""


@runtime_checkable
class SharedStore(Store, Protocol):
    """A ``Store`` for several nodes. One object is one node's access to it.

    Differences from ``Store``: ``open`` ends no leases. ``claim`` also returns tasks of lost nodes.
    ``Head.node`` names the holder of the lease. The listener's ``committed`` is called
    for this node's commits only, ``ready`` and ``inbox`` at least every ``SWEEP_INTERVAL`` seconds.

    The database may be away for a while. Writes are then repeated until the node would lose its
    lease, after checking whether an earlier attempt was committed, so that nothing is written
    twice. After that they raise ``UnavailableError``, and the next call tries again.
    """

    node: str
    """The name of this node."""

    lag: float
    """Recent delay of the event loop in seconds; set by the server, listed by ``nodes``."""

    async def news(self, task_ids: Sequence[str], owners: Sequence[str]) -> Sequence[LogHead]:
        """The log heads of these tasks, and of the owners' tasks that changed recently.

        Recently is within ``NEWS_WINDOW`` seconds. Tasks that do not exist are left out.
        """

    async def post(self, task_id: str, body: bytes) -> int:
        """Put a message into a task's inbox; it is durable when its number is returned.

        Raises:
            NotFoundError: There is no such task.
        """

    async def withdraw(self, number: int) -> bytes | None:
        """Close a message; return its reply if it was answered before.

        ``None``: no node has acted on it, and no node will.
        """

    async def replies(self, numbers: Sequence[int]) -> Mapping[int, bytes]:
        """The replies to these messages, by number; unanswered ones are left out."""

    async def inbox(self) -> Sequence[Message]:
        """The open messages to tasks whose lease this node holds, in ascending order."""

    async def reply(self, number: int, body: bytes) -> None:
        """Answer a message that caused no event; the others are answered by ``append``.

        If another node holds the task's lease by now, the message stays open for that node.
        """

    async def share(self, uses: Mapping[str, Use]) -> Sequence[Mapping[str, Use]]:
        """Publish the usage of principals at this node; return that of each other node.

        It replaces this node's previous usage, and is valid for ``USAGE_TTL`` seconds by the
        store's clock, or until the node closes the store.
        """

    async def nodes(self) -> Sequence[Node]:
        """The live nodes, and those that were lost in the last day, sorted by name."""
