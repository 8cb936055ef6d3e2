"""A TCP proxy that cuts connections after as many bytes as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit


class CuttingProxy:
    """Passes bytes both ways; aborts each connection after ``budget()`` bytes to the client.

    ``budget`` is asked once per connection; ``None`` lets it live.
    """

    def __init__(self, url: str, budget: Callable[[], int | None]) -> None:
        self._port = urlsplit(url).port
        self._budget = budget
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.url = ""
        self.connections = 0
        self.cuts = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[CuttingProxy]:
        """Listen within the block."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)

    async def cut(self) -> None:
        """Abort every connection now."""
        for writer in self._writers:
            writer.transport.abort()
        self.cuts += 1

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        budget = self._budget()
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, far_writer}
        self._writers |= pair
        up = asyncio.create_task(_pump(reader, far_writer, None))
        down = asyncio.create_task(_pump(far_reader, writer, budget))
        try:
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            self.cuts += down.done() and not down.cancelled() and down.result()
        finally:
            self._writers -= pair
            for pump in (up, down):
                pump.cancel()
            for side in pair:
                side.transport.abort()


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, budget: int | None
) -> bool:
    """Pass bytes on; return whether the budget ran out."""
    try:
        while data := await reader.read(1 << 16):
            if budget is not None and len(data) > budget:
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
