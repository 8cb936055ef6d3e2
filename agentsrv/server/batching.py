"""BatchedConnection: a WebSocket connection with batched writes and reads in limited portions.

Theory of operation
===================
**Writing.** One ``await send()`` per frame costs a coroutine, a drain and a system call. Here
frames are collected in a list, and one ``transport.write`` at the end of the event loop's turn
sends them all, at eight times the frames per second. No caller awaits a send, so no cancellation
can interrupt one. The transport limits the amount: it pauses writing when its buffer and the
kernel's are full, and then only answers are posted until the client has read.

**Reading.** ``data_received`` parses up to ``FREE_BYTES`` at once. More bytes are kept in
``_unread`` and parsed in slices in this connection's turns (see ``loop_scheduler``); meanwhile the
transport is paused, so there is never more than one chunk. A text frame that is a whole message
goes to ``recv_messages`` and is charged when the handler receives it. All other frames (ping, pong,
close, fragments) are charged to the client's quota when they are parsed; if its rate is used up,
the connection is not read for a while.

An incomplete message occupies memory without being a command. A principal may therefore have only a
few large incomplete messages, on all its connections together; further ones wait until one of those
is complete.

The transport is read unless one of these conditions prevents it (``_continue_reading``):

| condition | set by | cleared by |
|---|---|---|
| ``paused``: the client does not read | ``pause_writing`` | ``resume_writing`` |
| ``recv_messages.paused``: messages wait | the assembler above 16 frames, | the assembler |
|  for the handler | ``_parse_slice`` above ``MAX_QUEUED`` bytes | when it is empty |
| ``_pause``: the rate is used up | ``pause_reading`` | its timer |
| ``_may_be_large`` is false: the principal | ``_measure_message`` | ``_continue_large`` |
|  has ``MAX_LARGE_MESSAGES`` others | | |
| ``_unread``: bytes wait for their turn | ``data_received`` | ``_parse_slice`` |

A test checks the attributes and methods of ``websockets`` that this module depends on.
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
from agentsrv.server.loop_scheduler import FRAMES_PER_UNIT, FREE_BYTES, SLICE_BYTES, LoopScheduler
from agentsrv.telemetry.server_metrics import ServerMetrics

FLUSH_BYTES: Final = 64 << 10  # bytes in the outbox above which it is written before the turn's end
SEND_BUFFER: Final = 64 << 10  # bytes in the kernel, whose default grows to megabytes
RECEIVE_BUFFER: Final = 64 << 10  # bytes in the kernel while the connection is not read
STRANGER_FRAME: Final = 16 << 10  # bytes of a message from an unauthenticated client
QUEUE: Final = (16, 0)  # messages for the handler at which reading pauses and continues
LARGE_MESSAGE: Final = 64 << 10  # bytes of an incomplete message from which it counts as large
MAX_READ_PAUSE: Final = 5.0  # seconds without reading; longer would delay pongs too much
MAX_QUEUED: Final = 256 << 10  # bytes of messages for the handler above which parsing pauses
SHORT_FRAME: Final = 125  # largest length in the header's second byte
MEDIUM_FRAME: Final = 0xFFFF  # largest length in two further bytes
CACHED_HEADERS: Final = 4096  # lengths whose headers are built in advance; most events are shorter
STALLED: Final = 4408  # close code: the client read nothing for the stall time-out
PING_JITTER: Final = 0.1  # of the interval, so that thousands of pings do not coincide


_NO_HEADERS: Final = Headers()
_NOTHING: Final = memoryview(b"")


class BatchedConnection(ServerConnection):
    """A connection with an outbox; see ``connection_class``."""

    # The library's attributes just fit the dictionary that CPython shares between instances. With
    # these in addition, each connection would need a dictionary of 1.6 KB.
    __slots__ = (
        *("_bytes", "_outbox", "_pause", "_timer", "_waiters", "_written"),
        *("_is_queued", "_is_large", "_may_be_large", "_unread"),
        *("identity", "on_room", "quota"),
    )

    stall_timeout: float = 10.0
    """Seconds without progress after which a client that does not read is disconnected."""
    limiter: ConnectionLimiter
    """The quotas that sockets are counted in."""
    measures: ServerMetrics
    """The counters of traffic."""
    loop_scheduler: LoopScheduler
    """Schedules the traffic that is not ordinary."""
    max_frame: int
    """Maximum size of a message from an authenticated client, in bytes."""

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
        self._pause: asyncio.TimerHandle | None = None
        self.identity: Identity | None = None
        """The client's identity, if the handshake contained a token."""
        self.quota: Quota
        """The quota that the socket is counted in; missing if it was refused."""
        self.on_room: Callable[[], None] = _nothing
        """Called when writing is possible again."""

    def locate(self, address: str) -> None:
        """Move to the quota of unauthenticated clients at ``address``.

        Raises:
            OverloadedError: The quota's connections are used up.
        """
        self.quota = self.limiter.assign_address(self.quota, address)

    def identify(self, identity: Identity) -> None:
        """Move to the quota of the principal, and allow messages of full size.

        Raises:
            OverloadedError: The connections of the principal are used up.
        """
        self.quota = self.limiter.assign_principal(self.quota, identity.principal)
        self.protocol.max_message_size = self.max_frame

    def forget_handshake(self) -> None:
        """Drop the headers of the request and the response, which are not needed any more: 3 KB."""
        self.response = None
        if self.request is not None:
            self.request.headers = _NO_HEADERS

    @property
    def about(self) -> Mapping[str, object]:
        """The fields of log lines; see ``logs.about``."""
        fields = {"connection_id": self.id}
        return fields if self.identity is None else fields | {"principal": self.identity.principal}

    @property
    def has_room(self) -> bool:
        """Whether frames other than answers may be posted."""
        return not self.paused and self.protocol.state is OPEN

    async def wait_for_room(self) -> None:
        """Return when there is or was room, or when the connection is over.

        Room in the past is enough: events may have used it again, but a waiting command must get
        its turn as well.
        """
        if not self.has_room and self.protocol.state is OPEN:
            waiter: asyncio.Future[None] = self.loop.create_future()
            self._waiters.append(waiter)
            await waiter

    @property
    def has_more(self) -> bool:
        """Whether the next message has been received."""
        return bool(self.recv_messages.frames.queue)

    async def wait_for_turn(self, units: float) -> None:
        """Wait until a message of so many units may be executed."""
        if not self.loop_scheduler.take(units):
            await self.loop_scheduler.wait(units)

    def post(self, frames: Sequence[bytes]) -> None:
        """Send JSON texts at the end of this turn; they are dropped if the connection closes."""
        if not self._outbox:
            self.loop.call_soon(self.flush)
        headers = map(_HEADERS.__getitem__, map(len, frames))
        self._outbox.extend(chain.from_iterable(zip(headers, frames, strict=True)))
        self._bytes += sum(map(len, frames))
        if self._bytes > FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Send the posted frames now."""
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
        """Abort a socket over the limits; limit the kernel's buffers of the others."""
        try:
            self.quota = self.limiter.accept(transport.get_extra_info("peername"))
        except OverloadedError as refusal:
            self.logger.info("connection refused: %s", refusal)
            transport.abort()
            return
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        super().connection_made(transport)
        # The library would resume when its queue of messages is empty, whatever else prevents it.
        self.recv_messages.resume = self._continue_reading

    def data_received(self, data: bytes) -> None:
        """Parse ordinary traffic now, and the rest in turns."""
        self.measures.received += len(data)
        if self.request is None and not self.protocol.reader.buffer:
            data = data.lstrip(b"\r\n")  # RFC 9112, section 2.2: empty lines before a request
        if len(data) <= FREE_BYTES and not self._unread:
            self._parse(data)
            return
        self._unread = memoryview(bytes(self._unread) + data if self._unread else data)
        while self._may_parse() and self.loop_scheduler.take(0.0):
            self.loop_scheduler.count(self._parse_slice())
        if self._unread:
            self.transport.pause_reading()
            self._continue_reading()

    def _parse(self, data: bytes) -> int:
        """Parse bytes; return the number of frames in them.

        Does the same as the library's ``data_received``, with one write for all answers.
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
        """Check whether the incomplete message has become large, or is complete."""
        size = len(self.protocol.reader.buffer) + (self.protocol.current_size or 0)
        if (size > LARGE_MESSAGE) is self._is_large:
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
        self._continue_reading()

    def _answer(self) -> None:
        """Write the pongs, the close frame or the end of the stream that the parser produced."""
        writes = self.protocol.writes
        if b"" not in writes:  # the library's mark for the end of the stream
            writes[:] = [b"".join(writes)]
            self._written += len(writes[0])
        self.send_data()

    def charge(self, units: float) -> None:
        """Charge the quota for work beyond a command; pause if its rate is used up."""
        seconds = self.quota.charge(units)
        if seconds:
            self.measures.limited += 1
            self.pause_reading(seconds)

    def pause_reading(self, seconds: float) -> None:
        """Read nothing for ``seconds``, at most ``MAX_READ_PAUSE``; TCP slows the client down."""
        if self._pause is None and not self.transport.is_closing():
            self.transport.pause_reading()
            self._pause = self.loop.call_later(min(seconds, MAX_READ_PAUSE), self._end_pause)

    def _end_pause(self) -> None:
        self._pause = None
        self._continue_reading()

    def _may_parse(self) -> bool:
        return bool(
            self._unread
            and not self.paused
            and not self.recv_messages.paused
            and self._pause is None
            and self._may_be_large
            and not self.transport.is_closing()
        )

    def _parse_slice(self) -> float:
        """Parse a slice of the unread bytes; return the units of work."""
        # An empty slice of a memoryview would keep the whole chunk in memory.
        data = bytes(self._unread[:SLICE_BYTES])
        self._unread = self._unread[SLICE_BYTES:] or _NOTHING
        frames = self._parse(data)
        waiting = self.recv_messages
        if frames and sum(len(frame.data) for frame in waiting.frames.queue) > MAX_QUEUED:
            waiting.paused = True
        return (frames + len(data) / SLICE_BYTES) / FRAMES_PER_UNIT

    def _take_turn(self) -> float:
        self._is_queued = False
        if not self._may_parse():
            return 0.0
        units = self._parse_slice()
        self._continue_reading()
        return units

    def _continue_reading(self) -> None:
        """Read from the transport, or queue unread bytes for parsing, if nothing prevents it."""
        if self._may_parse():
            if not self._is_queued:
                self._is_queued = True
                self.loop_scheduler.queue(self._take_turn)
        elif not (
            self._unread
            or self.paused
            or self.recv_messages.paused
            or self._pause
            or not self._may_be_large
            or self.transport.is_closing()
        ):
            self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Release the quota, and wake the tasks that wait for room."""
        if not hasattr(self, "quota"):
            return  # `connection_made` refused it
        try:
            self.limiter.release(self.quota)
            if self._is_large:
                self.quota.end_large(self._continue_large)
            self._unread = _NOTHING
            if self._pause is not None:
                self._pause.cancel()
            super().connection_lost(exc)
        finally:
            self._stop_timer()
            self._wake()

    def pause_writing(self) -> None:
        """Stop reading from a client that does not read, because its pings need answers too."""
        super().pause_writing()
        self.transport.pause_reading()
        self._watch()

    def resume_writing(self) -> None:
        """Continue after the client has read."""
        super().resume_writing()
        self._stop_timer()
        self._continue_reading()
        self._wake()
        self.on_room()

    @property
    def _taken(self) -> int:
        """Bytes that have left this process so far."""
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
        self.logger.warning("client read nothing for %s s; disconnected", self.stall_timeout)
        self.protocol.fail(STALLED, "stalled: the client read nothing")
        self.transport.abort()


def connection_class(
    limiter: ConnectionLimiter,
    measures: ServerMetrics,
    loop_scheduler: LoopScheduler,
    *,
    stall_timeout: float,
    max_frame: int,
) -> type[BatchedConnection]:
    """Return the class of a listener's connections, for the library to instantiate."""
    attributes = {
        "limiter": limiter,
        "measures": measures,
        "loop_scheduler": loop_scheduler,
        "stall_timeout": stall_timeout,
        "max_frame": max_frame,
    }
    return type("Connection", (BatchedConnection,), {"__slots__": (), **attributes})


def text_header(length: int) -> bytes:
    """Return the header of a whole, unmasked text frame (RFC 6455, section 5.2)."""
    if length <= SHORT_FRAME:
        return bytes((0x81, length))
    if length <= MEDIUM_FRAME:
        return b"\x81\x7e" + length.to_bytes(2)
    return b"\x81\x7f" + length.to_bytes(8)


class _Headers(dict[int, bytes]):
    """Headers by the frame's length."""

    def __missing__(self, length: int) -> bytes:
        return text_header(length)


_HEADERS: Final = _Headers({length: text_header(length) for length in range(CACHED_HEADERS)})


def _nothing() -> None:
    """The default of ``on_room``."""
