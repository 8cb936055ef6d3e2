"""Notifications between nodes, and the interface of the transports that carry them.

A notification saves the other nodes the wait for their next query of the store
(``SWEEP_INTERVAL``). Transports may lose it. So no operation waits for one, and a node has one
publication in progress: what is added meanwhile is combined into the next.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol

import orjson

from agentsrv.store.base import LogHead

MAX_PAYLOAD_BYTES: Final = 7900  # NOTIFY accepts less than 8,000
PUBLISH_TIMEOUT: Final = 5.0  # seconds

_log = logging.getLogger("agentsrv.notifier")


class Notifier(Protocol):
    """Carries messages to all listening nodes, including the sender; it may lose them."""

    async def listen(
        self, channel: str, heard: Callable[[bytes], None], missed: Callable[[], None]
    ) -> None:
        """Call ``heard`` with each message, until cancelled; reconnects as necessary.

        ``missed`` is called after each connect: earlier messages may have been lost.
        """

    async def publish(self, channel: str, payloads: Sequence[bytes]) -> None:
        """Send messages of up to ``MAX_PAYLOAD_BYTES``; after any exception they are lost."""


class Notification(NamedTuple):
    """The content of a message: changed logs, and which nodes should query the store."""

    sender: int
    news: Sequence[LogHead] = ()
    is_ready: bool = False
    """Whether there may be tasks to claim."""
    inbox: Sequence[int] = ()
    """The leases of the nodes that have messages."""
    replies: Sequence[int] = ()
    """The leases of the nodes whose messages were answered."""


class Notifications:
    """Combines and publishes this node's notifications, and receives those of other nodes.

    ``run`` is the task in which both happen; the owner starts and cancels it.
    """

    def __init__(
        self,
        notifier: Notifier,
        sender: int,
        channel: str,
        heard: Callable[[Notification], None],
        missed: Callable[[], None],
    ) -> None:
        self._notifier = notifier
        self._sender = sender
        self._channel = channel
        self._heard = heard
        self._missed = missed
        self._wake = asyncio.Event()
        self._reset()

    def add(
        self,
        news: Iterable[LogHead] = (),
        *,
        is_ready: bool = False,
        inbox: Iterable[int] = (),
        replies: Iterable[int] = (),
    ) -> None:
        """Add to the next message."""
        for head in news:
            self._news[head.task_id] = head
        self._is_ready |= is_ready
        self._inbox.update(inbox)
        self._replies.update(replies)
        if self._news or self._is_ready or self._inbox or self._replies:
            self._wake.set()

    async def run(self) -> None:
        """Publish and listen, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._notifier.listen(self._channel, self._receive, self._missed))
            group.create_task(self._publish_forever())

    async def _publish_forever(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            notification = Notification(
                self._sender,
                list(self._news.values()),
                self._is_ready,
                list(self._inbox),
                list(self._replies),
            )
            self._reset()
            try:
                async with asyncio.timeout(PUBLISH_TIMEOUT):
                    await self._notifier.publish(self._channel, list(encode(notification)))
            except Exception as error:  # noqa: BLE001 - a loss costs other nodes a second
                _log.info("notifications were lost: %r", error)

    def _reset(self) -> None:
        self._news: dict[str, LogHead] = {}
        self._is_ready = False
        self._inbox: set[int] = set()
        self._replies: set[int] = set()

    def _receive(self, payload: bytes) -> None:
        try:
            notification = decode(payload)
        except (ValueError, TypeError, LookupError) as error:
            _log.warning("received a message that is not a notification: %r", error)
            return
        if notification.sender != self._sender:
            self._heard(notification)


def encode(notification: Notification) -> Iterator[bytes]:
    """The notification as JSON, in as many messages as necessary."""
    # The leases are few, one for each node, so they fit the first message. Only news need more.
    first: dict[str, Any] = {"sender": notification.sender}
    if notification.is_ready:
        first["ready"] = True
    if notification.inbox:
        first["inbox"] = notification.inbox
    if notification.replies:
        first["replies"] = notification.replies
    message = first
    rows: list[list[Any]] = []
    room = start = MAX_PAYLOAD_BYTES - len(orjson.dumps({**first, "news": []}))
    for head in notification.news:
        row = list(head)
        size = len(orjson.dumps(row)) + 1
        if size > room and rows:
            yield orjson.dumps({**message, "news": rows})
            message, rows, room = {"sender": notification.sender}, [], start
        rows.append(row)
        room -= size
    yield orjson.dumps({**message, "news": rows})


def decode(payload: bytes) -> Notification:
    """Decode a message of ``encode``.

    Raises:
        ValueError, TypeError, LookupError: The payload is not such a message.
    """
    message = orjson.loads(payload)
    return Notification(
        int(message["sender"]),
        [LogHead(str(task_id), str(owner), int(seq)) for task_id, owner, seq in message["news"]],
        bool(message.get("ready")),
        [int(lease) for lease in message.get("inbox", ())],
        [int(lease) for lease in message.get("replies", ())],
    )
