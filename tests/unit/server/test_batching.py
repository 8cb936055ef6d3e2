"""What the outbox leans on in websockets, and what it sends."""

from __future__ import annotations

import asyncio
import inspect
import time

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.connection import Connection
from websockets.asyncio.messages import Assembler
from websockets.asyncio.server import ServerConnection, serve
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol

from agentsrv.server.batching import FLUSH_BYTES, BatchedConnection, connection_class, text_header
from agentsrv.server.limits import ConnectionLimiter
from agentsrv.server.loop_scheduler import LoopScheduler
from agentsrv.settings import Settings
from agentsrv.telemetry.server_metrics import ServerMetrics

GATE = ConnectionLimiter(Settings(), 100, time.monotonic)


def connections() -> type[BatchedConnection]:
    """The class of a listener's connections in the running loop."""
    turns = LoopScheduler(asyncio.get_running_loop().call_soon)
    return connection_class(GATE, ServerMetrics(), turns, stall_timeout=10.0, max_frame=1 << 20)


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 65_535, 65_536, 1_000_000])
def test_headers_are_those_of_the_library(length):
    """Whole, unmasked text frames, at each boundary of the length's encoding."""
    whole = Frame(Opcode.TEXT, b"x" * length).serialize(mask=False)
    assert text_header(length) + b"x" * length == whole


def test_the_library_still_has_what_is_leaned_on():
    """Attributes that are set or read from outside; a new release that moves one fails here."""
    source = inspect.getsource(Connection) + inspect.getsource(Assembler)
    source += inspect.getsource(Protocol)
    for piece in (
        "self.ping_interval = ping_interval",
        "self.paused: bool = False",
        "self.transport = transport",
        "def pause_writing(self)",
        "def resume_writing(self)",
        "self.loop = asyncio.get_running_loop()",
        "self.recv_messages = Assembler(",
        "self.frames: SimpleQueue[Frame] = SimpleQueue()",
        "if len(self.frames) <= self.low and self.paused:",
        "self.resume()",
        "self.writes: list[bytes] = []",
        "self.max_message_size",
        "self.reader = StreamReader()",
    ):
        assert piece in source


async def test_frames_posted_in_one_turn_are_one_write():
    """They arrive in order, with those of the library in between at frame boundaries."""
    writes = []

    async def handler(socket: ServerConnection) -> None:
        assert isinstance(socket, BatchedConnection)
        write = socket.transport.write
        socket.transport.write = lambda data: (writes.append(len(data)), write(data))  # type: ignore[method-assign,assignment,func-returns-value]
        socket.post([b'{"n":1}', b'{"n":2}'])
        socket.post([b'{"n":3}'])
        await asyncio.sleep(0)
        await socket.ping()
        socket.post([b"x" * 70_000])
        await socket.wait_closed()

    async with serve(
        handler, "127.0.0.1", 0, create_connection=connections(), compression=None
    ) as server:
        port = server.sockets[0].getsockname()[1]
        async with connect(f"ws://127.0.0.1:{port}") as client:
            texts = [await client.recv() for _ in range(4)]
    assert texts == ['{"n":1}', '{"n":2}', '{"n":3}', "x" * 70_000]
    assert writes[0] == 3 * (2 + 7)


async def test_what_has_grown_does_not_wait_for_the_end_of_the_turn():
    """Else a burst of thousands of frames would lie in memory as a whole."""
    written = []

    async def handler(socket: ServerConnection) -> None:
        assert isinstance(socket, BatchedConnection)
        write = socket.transport.write
        socket.transport.write = lambda data: (written.append(len(data)), write(data))  # type: ignore[method-assign,assignment,func-returns-value]
        socket.post([b"x" * (FLUSH_BYTES - 1)])
        written.append(0)
        socket.post([b"xx"])
        written.append(0)
        await socket.wait_closed()

    async with serve(
        handler, "127.0.0.1", 0, create_connection=connections(), compression=None
    ) as server:
        port = server.sockets[0].getsockname()[1]
        async with connect(f"ws://127.0.0.1:{port}") as client:
            texts = [await client.recv() for _ in range(2)]
    assert [len(text) for text in texts] == [FLUSH_BYTES - 1, 2]
    header = len(text_header(FLUSH_BYTES - 1)) + len(text_header(2))
    assert written[:3] == [0, FLUSH_BYTES + 1 + header, 0]


async def test_there_is_room_until_the_transport_pauses():
    """And again when the client has read, which is told."""
    told = []
    posted = 0

    async def handler(socket: ServerConnection) -> None:
        nonlocal posted
        assert isinstance(socket, BatchedConnection)
        socket.on_room = lambda: told.append(socket.has_room)
        while socket.has_room:
            socket.post([b"x" * 1000])
            posted += 1
        await socket.wait_for_room()
        told.append(socket.has_room)
        socket.post([b"end"])
        await socket.wait_closed()

    async with serve(
        handler, "127.0.0.1", 0, create_connection=connections(), compression=None
    ) as server:
        port = server.sockets[0].getsockname()[1]
        async with connect(f"ws://127.0.0.1:{port}") as client:
            texts = [await client.recv()]
            while texts[-1] != "end":
                texts.append(await client.recv())
    assert len(texts) == posted + 1
    assert told == [True, True]
    assert posted * 1000 < 16 * FLUSH_BYTES  # bounded by the buffers of both ends
