"""A TCP proxy that cuts connections: in the midst of a frame, by a reset, or by silence."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Final

CHUNK: Final = 1 << 14  # bytes
LINGER_NOT: Final = struct.pack("ii", 1, 0)  # closing resets the connection


class Kind(Enum):
    """How a connection ends."""

    CLOSE = "closes"  # both ends are told in order
    RESET = "resets"  # both ends are told that it broke
    SILENCE = "silences"  # half-open: neither end is told


@dataclass(frozen=True)
class Cut:
    """Where a connection is cut: after so many bytes to the client, or to the server."""

    after: int
    kind: Kind
    upstream: bool = False


class CuttingProxy:
    """Passes bytes on to the server, and cuts each connection as ``next_cut`` says.

    ``next_cut`` is asked once for each connection; ``None`` lets it live. Owns the tasks that
    pass the bytes.
    """

    def __init__(self, server_port: int, next_cut: Callable[[], Cut | None]) -> None:
        self._server_port = server_port
        self._next_cut = next_cut
        self._tasks: set[asyncio.Task[None]] = set()
        self._sides: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.connections = 0
        self.cuts = dict.fromkeys(Kind, 0)

    @property
    def url(self) -> str:
        """Where a WebSocket goes through it."""
        return f"ws://127.0.0.1:{self.port}"

    def abort(self) -> None:
        """Cut every connection now."""
        for side in self._sides:
            side.transport.abort()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[CuttingProxy]:
        """Listen within the block; what is half-open stays so until it is left."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = int(server.sockets[0].getsockname()[1])
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        cut = self._next_cut()
        sides = [writer]
        pumps: list[asyncio.Task[bool]] = []
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
            sides.append(far_writer)
            self._sides.update(sides)
            up, down = (cut.after if cut and cut.upstream is way else None for way in (True, False))
            pumps.append(asyncio.create_task(_pump(reader, far_writer, up)))
            pumps.append(asyncio.create_task(_pump(far_reader, writer, down)))
            done, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            if cut is not None and any(pump.result() for pump in done):
                await self._cut(cut.kind, sides, pumps)
        except (OSError, asyncio.CancelledError):
            pass  # the server is not there now, or the proxy ends
        finally:
            self._sides.difference_update(sides)
            for pump in pumps:
                pump.cancel()
            for side in sides:
                side.transport.abort()

    async def _cut(
        self, kind: Kind, sides: list[asyncio.StreamWriter], pumps: list[asyncio.Task[bool]]
    ) -> None:
        self.cuts[kind] += 1
        if kind is Kind.RESET:
            for side in sides:
                sock = side.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
        elif kind is Kind.SILENCE:
            for pump in pumps:
                pump.cancel()
            await asyncio.Event().wait()
        else:
            for side in sides:
                side.close()
            await asyncio.wait([asyncio.ensure_future(side.wait_closed()) for side in sides])


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, budget: int | None
) -> bool:
    """Pass bytes on; return whether the budget ran out."""
    try:
        while data := await reader.read(CHUNK):
            if budget is not None and len(data) >= budget:
                writer.write(data[:budget])
                await writer.drain()
                return True
            writer.write(data)
            await writer.drain()
            if budget is not None:
                budget -= len(data)
    except ConnectionError:
        pass
    return False
