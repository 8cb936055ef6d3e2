"""BatchedConnection: a WebSocket connection that is written to without waiting, and read in turns.

Theory of operation
===================
**Writing.** One ``await send()`` per frame costs a coroutine, a drain and a system call each. Here
frames are collected in a list, and one ``transport.write`` at the end of the event loop's turn
sends them all: measured at eight times the frames per second. No caller awaits a send, so no
cancellation can interrupt one. The transport decides whether there is room: it pauses when its
buffer and the kernel's are full, and nothing but answers is posted until the client has read some.

**Reading.** ``data_received`` parses up to ``FREE`` bytes at once. More than that is kept in
``_unread`` and parsed in slices when it is this connection's turn (see ``turns``); meanwhile the
transport is paused, so there is never more than one chunk. A text frame that is a whole message
goes to ``recv_messages`` and is charged when it is taken from there. All other frames (ping, pong,
close, fragments) are charged to the client's rate when they are parsed, and if that is used up, the
connection rests for a while.

A message that is not whole yet is memory without a command. So a principal may have only a few of
them that are large, whatever the number of its connections; the others wait until one of those is
whole.

The transport is read only if none of these prevents it (``_read_on``):

| what | set by | cleared by |
|---|---|---|
| ``paused``: the client does not read | ``pause_writing`` | ``resume_writing`` |
| ``recv_messages.paused``: messages wait | the assembler above 16 frames, | the assembler |
|  for the handler | ``_parse_slice`` above ``MAX_QUEUED`` bytes | when it is empty |
| ``_rest``: the rate is used up | ``rest`` | its timer |
| ``_may_be_large`` is false: the principal | ``_measure_message`` | ``_continue_large`` |
|  has ``LARGE_AT_ONCE`` other large messages | | |
| ``_unread``: bytes wait for their turn | ``data_received`` | ``_parse_slice`` |

The attributes and methods of ``websockets`` that this depends on are checked by a test.
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
from websockets.frames import TEXT, Frame
from websockets.protocol import OPEN

from agentsrv.errors import OverloadedError
from agentsrv.server.auth.identity import Identity
from agentsrv.server.limits import ConnectionLimiter, Quota
from agentsrv.server.loop_scheduler import FRAMES_PER_UNIT, FREE, SLICE, LoopScheduler
from agentsrv.telemetry.server_metrics import ServerMetrics

FULL: Final = 64 << 10  # bytes in the outbox; with so many it does not wait for the turn's end
SEND_BUFFER: Final = 64 << 10  # bytes in the kernel; its own default grows to megabytes
RECEIVE_BUFFER: Final = 64 << 10  # bytes there of a client that is not read; its own grows too
STRANGER_FRAME: Final = 16 << 10  # bytes of a message from a client that is not authenticated
QUEUE: Final = (16, 0)  # messages that wait for the handler: above, below; read in between
LARGE: Final = 64 << 10  # bytes of a message before it is whole, after which it counts as large
MAX_REST: Final = 5.0  # seconds without reading; above, pongs would come too late
MAX_QUEUED: Final = 256 << 10  # bytes of them, after which no more are parsed
SHORT_FRAME: Final = 125  # bytes whose length fits the header's second byte
MEDIUM_FRAME: Final = 0xFFFF  # bytes whose length fits two more
SHORT: Final = 4096  # lengths whose headers are made once; most events are shorter
STALLED: Final = 4408  # close code: the client took nothing for the stall time-out
PING_JITTER: Final = 0.1  # of the interval, either way: thousands of pings must not meet


_NO_HEADERS: Final = Headers()
_NOTHING: Final = memoryview(b"")


class BatchedConnection(ServerConnection):
    """A connection with an outbox; see ``connection_class``."""

    # The library's attributes just fit the dictionary that CPython shares between instances;
    # with these among them, each connection would have one of its own, of 1.6 KB.
    __slots__ = (
        *("_bytes", "_outbox", "_timer", "_waiters", "_written"),
        *("_is_queued", "_is_large", "_may_be_large", "_rest", "_unread"),
        *("identity", "on_room", "quota"),
    )

    stall_timeout: float = 10.0
    """Seconds without progress after which a client that does not read is dropped."""
    limiter: ConnectionLimiter
    """Who may come in, and how often."""
    measures: ServerMetrics
    """What traffic is counted in."""
    loop_scheduler: LoopScheduler
    """When more than ordinary traffic is read and carried out."""
    max_frame: int
    """Bytes of a message from an authenticated client."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.ping_interval is not None:
            self.ping_interval *= random.uniform(1 - PING_JITTER, 1 + PING_JITTER)  # noqa: S311
        self._outbox: list[bytes] = []
        self._bytes = 0
        self._written = 0
        self._timer: asyncio.TimerHandle | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._unread: memoryview = _NOTHING
        self._is_queued = False
        self._is_large = False
        self._may_be_large = True
        self._rest: asyncio.TimerHandle | None = None
        self.identity: Identity | None = None
        """Who it is, where the handshake said so."""
        self.quota: Quota
        """Whose part of the server it uses; missing where it was turned away."""
        self.on_room: Callable[[], None] = _nothing
        """Called when there is room again after there was none."""

    def locate(self, address: str) -> None:
        """Use the share of the strangers at ``address``, until it says who it is.

        Raises:
            Overloaded: There are as many of them as there may be.
        """
        self.quota = self.limiter.from_address(self.quota, address)

    def identify(self, identity: Identity) -> None:
        """Use the share of who it is from now on.

        Raises:
            Overloaded: The principal has as many connections as it may have.
        """
        self.quota = self.limiter.of_principal(self.quota, identity.principal)
        self.protocol.max_message_size = self.max_frame

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

    @property
    def has_more(self) -> bool:
        """Whether the next message is here already."""
        return bool(self.recv_messages.frames.queue)

    async def turn(self, units: float) -> None:
        """Wait until a message of so many units may be carried out."""
        if not self.loop_scheduler.take(units):
            await self.loop_scheduler.wait(units)

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
            self.quota = self.limiter.open(transport.get_extra_info("peername"))
        except OverloadedError as refusal:
            self.logger.info("turned away: %s", refusal)
            transport.abort()
            return
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        super().connection_made(transport)
        # The library resumes when its queue of messages is empty, whatever else there is.
        self.recv_messages.resume = self._read_on

    def data_received(self, data: bytes) -> None:
        """Parse what is ordinary now, and the rest in turns."""
        self.measures.received += len(data)
        if self.request is None and not self.protocol.reader.buffer:
            data = data.lstrip(b"\r\n")  # RFC 9112, section 2.2: empty lines before a request
        if len(data) <= FREE and not self._unread:
            self._parse(data)
            return
        self._unread = memoryview(bytes(self._unread) + data if self._unread else data)
        while self._may_parse() and self.loop_scheduler.take(0.0):
            self.loop_scheduler.count(self._parse_slice())
        if self._unread:
            self.transport.pause_reading()
            self._read_on()

    def _parse(self, data: bytes) -> int:
        """Parse bytes; returns the number of frames in them.

        The same as the library's ``data_received``, with one write for all answers.
        """
        protocol = self.protocol
        protocol.receive_data(data)
        events = protocol.events_received()
        if protocol.writes:
            self._answer()
        if protocol.state is not OPEN and self.close_deadline is None and protocol.close_expected():
            self.close_deadline = self.loop.time() + (self.close_timeout or 0.0)
        others = 0
        for event in events:
            if isinstance(event, Frame) and event.opcode is TEXT and event.fin:
                self.recv_messages.put(event)
            else:
                others += isinstance(event, Frame)
                self.process_event(event)
        if others:
            self.charge(others / FRAMES_PER_UNIT)
        if others or not events or self._is_large:
            self._measure_message()
        return len(events)

    def _measure_message(self) -> None:
        """Look at the message that is not whole yet: it may have become large, or be whole now."""
        size = len(self.protocol.reader.buffer) + (self.protocol.current_size or 0)
        if (size > LARGE) is self._is_large:
            return
        self._is_large = not self._is_large
        if self._is_large:
            self._may_be_large = self.quota.begin_large(self._continue_large)
            if not self._may_be_large:
                self.transport.pause_reading()
        else:
            self.quota.end_large(self._continue_large)

    def _continue_large(self) -> None:
        self._may_be_large = True
        self._read_on()

    def _answer(self) -> None:
        """Write pongs, a close frame or the end of the stream, which the parser made."""
        writes = self.protocol.writes
        if b"" not in writes:  # the library's sign for the end of the stream
            writes[:] = [b"".join(writes)]
            self._written += len(writes[0])
        self.send_data()

    def charge(self, units: float) -> None:
        """Charge for work that was done in addition to a command; rest if that is too much."""
        seconds = self.quota.charge(units)
        if seconds:
            self.measures.limited += 1
            self.rest(seconds)

    def rest(self, seconds: float) -> None:
        """Read nothing for so long, but at most for ``MAX_REST``; the client's bytes stay there."""
        if self._rest is None and not self.transport.is_closing():
            self.transport.pause_reading()
            self._rest = self.loop.call_later(min(seconds, MAX_REST), self._end_rest)

    def _end_rest(self) -> None:
        self._rest = None
        self._read_on()

    def _may_parse(self) -> bool:
        return bool(
            self._unread
            and not self.paused
            and not self.recv_messages.paused
            and self._rest is None
            and self._may_be_large
            and not self.transport.is_closing()
        )

    def _parse_slice(self) -> float:
        """Parse a slice of what waits; returns the units of work that it was."""
        # An empty part of a view would keep all of what it is a part of.
        data, self._unread = bytes(self._unread[:SLICE]), self._unread[SLICE:] or _NOTHING
        frames = self._parse(data)
        waiting = self.recv_messages
        if frames and sum(len(frame.data) for frame in waiting.frames.queue) > MAX_QUEUED:
            waiting.paused = True
        return (frames + len(data) / SLICE) / FRAMES_PER_UNIT

    def _take_turn(self) -> float:
        self._is_queued = False
        if not self._may_parse():
            return 0.0
        units = self._parse_slice()
        self._read_on()
        return units

    def _read_on(self) -> None:
        """Read, or parse what was read, if nothing prevents it."""
        if self._may_parse():
            if not self._is_queued:
                self._is_queued = True
                self.loop_scheduler.queue(self._take_turn)
        elif not (
            self._unread
            or self.paused
            or self.recv_messages.paused
            or self._rest
            or not self._may_be_large
            or self.transport.is_closing()
        ):
            self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Release everything that waits for room."""
        if not hasattr(self, "quota"):
            return  # nothing was begun
        try:
            self.limiter.close(self.quota)
            if self._is_large:
                self.quota.end_large(self._continue_large)
            self._unread = _NOTHING
            if self._rest is not None:
                self._rest.cancel()
            super().connection_lost(exc)
        finally:
            self._stop_timer()
            self._wake()

    def pause_writing(self) -> None:
        """Read nothing more from a client that does not read: its pings want answers too."""
        super().pause_writing()
        self.transport.pause_reading()
        self._watch()

    def resume_writing(self) -> None:
        """Continue when the client has read what was sent."""
        super().resume_writing()
        self._stop_timer()
        self._read_on()
        self._wake()
        self.on_room()

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
    limiter: ConnectionLimiter,
    measures: ServerMetrics,
    loop_scheduler: LoopScheduler,
    *,
    stall_timeout: float,
    max_frame: int,
) -> type[BatchedConnection]:
    """The class of a listener's connections, which the library makes by itself."""
    given = {
        "limiter": limiter,
        "measures": measures,
        "loop_scheduler": loop_scheduler,
        "stall_timeout": stall_timeout,
        "max_frame": max_frame,
    }
    return type("Connection", (BatchedConnection,), {"__slots__": (), **given})


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
