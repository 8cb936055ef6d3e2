"""What nodes tell each other of at once, and the bus that it goes over.

All of it is hints: a bus may lose any, and whoever did not hear of something finds it by asking,
``SWEEP`` seconds later. So a bus never makes anybody wait, and there is one message under way at
a time: what comes up meanwhile goes into the next.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol

import orjson

from agentsrv.store.base import LogHead

MAX_PAYLOAD: Final = 7900  # bytes; NOTIFY takes less than 8,000
PUBLISHING: Final = 5.0  # seconds until a message is given up for lost

_log = logging.getLogger("agentsrv.notifier")


class Notifier(Protocol):
    """Carries messages to all nodes that listen; it may lose them, and echoes the own ones."""

    async def listen(
        self, channel: str, heard: Callable[[bytes], None], missed: Callable[[], None]
    ) -> None:
        """Call ``heard`` with each message, until cancelled; connects again by itself.

        ``missed`` is called whenever there is a new connection: what was sent before it is lost.
        """

    async def publish(self, channel: str, payloads: Sequence[bytes]) -> None:
        """Send messages of up to ``MAX_PAYLOAD`` bytes. Any exception means that they are lost."""


class Notification(NamedTuple):
    """What a message says: logs that went on, and that there may be something to ask for."""

    sender: int
    news: Sequence[LogHead] = ()
    is_ready: bool = False
    inbox: Sequence[int] = ()
    """Leases of the nodes that have messages."""
    replies: Sequence[int] = ()
    """Leases of the nodes whose messages were answered."""


class Notifications:
    """Gathers hints for others, and takes apart those of others.

    ``run`` is the task in which both happen; whoever starts it cancels it.
    """

    def __init__(
        self,
        bus: Notifier,
        sender: int,
        channel: str,
        heard: Callable[[Notification], None],
        missed: Callable[[], None],
    ) -> None:
        self._notifier = bus
        self._sender = sender
        self._channel = channel
        self._heard = heard
        self._missed = missed
        self._wake = asyncio.Event()
        self._forget()

    def add(
        self,
        news: Iterable[LogHead] = (),
        *,
        is_ready: bool = False,
        inbox: Iterable[int] = (),
        replies: Iterable[int] = (),
    ) -> None:
        """Let the next message say this, too."""
        for each in news:
            self._news[each.task_id] = each
        self._is_ready |= is_ready
        self._inbox.update(inbox)
        self._replies.update(replies)
        if self._news or self._is_ready or self._inbox or self._replies:
            self._wake.set()

    async def run(self) -> None:
        """Send and hear, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._notifier.listen(self._channel, self._hear, self._missed))
            group.create_task(self._publish_forever())

    async def _publish_forever(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            hint = Notification(
                self._sender,
                list(self._news.values()),
                self._is_ready,
                list(self._inbox),
                list(self._replies),
            )
            self._forget()
            try:
                async with asyncio.timeout(PUBLISHING):
                    await self._notifier.publish(self._channel, list(encode(hint)))
            except Exception as error:  # noqa: BLE001 - a hint that is lost costs a second
                _log.info("hints were lost: %r", error)

    def _forget(self) -> None:
        self._news: dict[str, LogHead] = {}
        self._is_ready = False
        self._inbox: set[int] = set()
        self._replies: set[int] = set()

    def _hear(self, payload: bytes) -> None:
        try:
            hint = decode(payload)
        except (ValueError, TypeError, LookupError) as error:
            _log.warning("a message that is none of ours came over the bus: %r", error)
            return
        if hint.sender != self._sender:
            self._heard(hint)


def encode(hint: Notification) -> Iterator[bytes]:
    """The hint as JSON, in as many messages as it needs."""
    # Numbers of leases are few: one for each node. What fills a message is news.
    first: dict[str, Any] = {"sender": hint.sender}
    if hint.is_ready:
        first["ready"] = True
    if hint.inbox:
        first["inbox"] = hint.inbox
    if hint.replies:
        first["replies"] = hint.replies
    message = first
    rows: list[list[Any]] = []
    room = start = MAX_PAYLOAD - len(orjson.dumps({**first, "news": []}))
    for each in hint.news:
        row = list(each)
        size = len(orjson.dumps(row)) + 1
        if size > room and rows:
            yield orjson.dumps({**message, "news": rows})
            message, rows, room = {"sender": hint.sender}, [], start
        rows.append(row)
        room -= size
    yield orjson.dumps({**message, "news": rows})


def decode(payload: bytes) -> Notification:
    """What ``encode`` has made.

    Raises:
        ValueError, TypeError, LookupError: It has not.
    """
    message = orjson.loads(payload)
    return Notification(
        int(message["sender"]),
        [LogHead(str(task_id), str(owner), int(seq)) for task_id, owner, seq in message["news"]],
        bool(message.get("ready")),
        [int(lease) for lease in message.get("inbox", ())],
        [int(lease) for lease in message.get("replies", ())],
    )
