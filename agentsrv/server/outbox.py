"""OutboxConnection: a WebSocket connection that is written to without waiting.

One ``await send()`` per frame costs a coroutine, a drain and a system call each. Here frames
gather in a list, and one ``transport.write`` at the end of the event loop's turn sends them
all: measured at eight times the frames per second. Nobody awaits a send, so no cancellation can
land inside one. What this leans on in ``websockets`` is pinned by a test.

Whether there is room is the transport's to say: it pauses when the kernel's buffer and its own
are full, and nothing but answers is posted until the client has taken some of it.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, Final

from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.protocol import OPEN

from agentsrv.errors import Overloaded
from agentsrv.server.gate import Gate, Share
from agentsrv.server.identity import Identity
from agentsrv.telemetry.measures import Measures

FULL: Final = 64 << 10  # bytes in the outbox; with so many it does not wait for the turn's end
SEND_BUFFER: Final = 64 << 10  # bytes in the kernel; its own default grows to megabytes
RECEIVE_BUFFER: Final = 64 << 10  # bytes there of a client that is not read; its own grows too
SHORT_FRAME: Final = 125  # bytes whose length fits the header's second byte
MEDIUM_FRAME: Final = 0xFFFF  # bytes whose length fits two more
SHORT: Final = 4096  # lengths whose headers are made once; most events are shorter
STALLED: Final = 4408  # close code: the client took nothing for the stall time-out
PING_JITTER: Final = 0.1  # of the interval, either way: thousands of pings must not meet


_NO_HEADERS: Final = Headers()


class OutboxConnection(ServerConnection):
    """A connection with an outbox; see ``connection_class``."""

    # The library's attributes just fit the dictionary that CPython shares between instances;
    # with these among them, each connection would have one of its own, of 1.6 KB.
    __slots__ = (
        *("_bytes", "_outbox", "_timer", "_waiters", "_written"),
        *("identity", "on_room", "share"),
    )

    stall_timeout: float = 10.0
    """Seconds without progress after which a client that does not read is dropped."""
    gate: Gate
    """Who may come in, and how often."""
    measures: Measures
    """What traffic is counted in."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.ping_interval is not None:
            self.ping_interval *= random.uniform(1 - PING_JITTER, 1 + PING_JITTER)  # noqa: S311
        self._outbox: list[bytes] = []
        self._bytes = 0
        self._written = 0
        self._timer: asyncio.TimerHandle | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self.identity: Identity | None = None
        """Who it is, where the handshake said so."""
        self.share: Share
        """Whose part of the server it uses; missing where it was turned away."""
        self.on_room: Callable[[], None] = _nothing
        """Called when there is room again after there was none."""

    def locate(self, address: str) -> None:
        """Use the share of the strangers at ``address``, until it says who it is.

        Raises:
            Overloaded: There are as many of them as there may be.
        """
        self.share = self.gate.from_address(self.share, address)

    def identify(self, identity: Identity) -> None:
        """Use the share of who it is from now on.

        Raises:
            Overloaded: The principal has as many connections as it may have.
        """
        self.share = self.gate.of_principal(self.share, identity.principal)

    def forget_handshake(self) -> None:
        """Drop the headers of the request and the response, which nobody reads again: 3 KB."""
        self.response = None
        if self.request is not None:
            self.request.headers = _NO_HEADERS

    @property
    def about(self) -> Mapping[str, object]:
        """What lines of the log name; see ``logs.about``."""
        fields = {"connection_id": self.id}
        return fields if self.identity is None else fields | {"principal": self.identity.principal}

    @property
    def has_room(self) -> bool:
        """Whether more than answers may be posted."""
        return not self.paused and self.protocol.state is OPEN

    async def room(self) -> None:
        """Wait until there is or was room, or the connection is over.

        That there was room is enough: events may have taken it again, and whoever waits here
        must get a turn beside them.
        """
        if not self.has_room and self.protocol.state is OPEN:
            waiter: asyncio.Future[None] = self.loop.create_future()
            self._waiters.append(waiter)
            await waiter

    def post(self, frames: Sequence[bytes]) -> None:
        """Send JSON texts at the end of this turn; dropped where the connection is closing."""
        if not self._outbox:
            self.loop.call_soon(self._flush)
        headers = map(_HEADERS.__getitem__, map(len, frames))
        self._outbox.extend(chain.from_iterable(zip(headers, frames, strict=True)))
        self._bytes += sum(map(len, frames))
        if self._bytes > FULL:
            self._flush()

    def flush(self) -> None:
        """Send what waits now, ahead of a close frame."""
        self._flush()

    def _flush(self) -> None:
        waiting, self._outbox = self._outbox, []
        self._bytes = 0
        if waiting and self.protocol.state is OPEN:
            data = b"".join(waiting)
            self._written += len(data)
            self.measures.sent += len(data)
            self.transport.write(data)

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def connection_made(self, transport: Any) -> None:
        """Turn away who is one too many; bound what the kernel keeps of the others."""
        try:
            self.share = self.gate.open(transport.get_extra_info("peername"))
        except Overloaded as refusal:
            self.logger.info("turned away: %s", refusal)
            transport.abort()
            return
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        super().connection_made(transport)
        # The library resumes when its queue of messages is empty, whether we write or not.
        self.recv_messages.resume = self._resume_reading

    def data_received(self, data: bytes) -> None:
        """Count what comes."""
        self.measures.received += len(data)
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everybody who waits for room."""
        if not hasattr(self, "share"):
            return  # nothing was begun
        self.gate.close(self.share)
        super().connection_lost(exc)
        self._stop_timer()
        self._wake()

    def pause_writing(self) -> None:
        """Read nothing more from a client that does not read: its pings want answers too."""
        super().pause_writing()
        self.transport.pause_reading()
        self._watch()

    def resume_writing(self) -> None:
        """Go on where the client has taken what was sent."""
        super().resume_writing()
        self._stop_timer()
        if not self.recv_messages.paused:
            self.transport.resume_reading()
        self._wake()
        self.on_room()

    def _resume_reading(self) -> None:
        if not self.paused:
            self.transport.resume_reading()

    @property
    def _taken(self) -> int:
        """Bytes that the client's side has taken so far."""
        return self._written - self.transport.get_write_buffer_size()

    def _watch(self) -> None:
        self._timer = self.loop.call_later(self.stall_timeout, self._check_progress, self._taken)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check_progress(self, taken: int) -> None:
        if self.transport.is_closing():
            return
        if self._taken > taken:
            self._watch()
            return
        self.measures.stalled += 1
        self.logger.warning("client took nothing for %s s; dropped", self.stall_timeout)
        self.protocol.fail(STALLED, "stalled: nothing was taken")
        self.transport.abort()


def connection_class(
    gate: Gate, measures: Measures, stall_timeout: float
) -> type[OutboxConnection]:
    """The class of a listener's connections, which the library makes by itself."""
    given = {"gate": gate, "measures": measures, "stall_timeout": stall_timeout}
    return type("Connection", (OutboxConnection,), {"__slots__": (), **given})


def text_header(length: int) -> bytes:
    """The header of a whole, unmasked text frame (RFC 6455, section 5.2)."""
    if length <= SHORT_FRAME:
        return bytes((0x81, length))
    if length <= MEDIUM_FRAME:
        return b"\x81\x7e" + length.to_bytes(2)
    return b"\x81\x7f" + length.to_bytes(8)


class _Headers(dict[int, bytes]):
    """Headers by the frame's length."""

    def __missing__(self, length: int) -> bytes:
        return text_header(length)


_HEADERS: Final = _Headers({length: text_header(length) for length in range(SHORT)})


def _nothing() -> None:
    """Before anybody waits for room."""
