"""Servers that send back what comes: ``python -m tests.e2e.interop.echo_server KIND``.

Each prints the port that it listens on, and serves until its standard input ends.

agentsrv    the real listener with its own settings, but for the size of a frame
websockets  the library's own server, to tell its faults from ours
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from agentsrv.delivery.broker import EventBroker
from agentsrv.server.auth.authenticator import Authenticator
from agentsrv.server.batching import BatchedConnection
from agentsrv.server.listener import Listener
from agentsrv.settings import Settings
from agentsrv.store.memory import MemoryStore
from agentsrv.telemetry.server_metrics import ServerMetrics

MAX_FRAME = 1 << 25  # bytes; the suite sends messages of 16 MiB


class EchoListener(Listener):
    """The listener as it is, with another handler behind it."""

    def __init__(self) -> None:
        settings = Settings(port=0, max_frame=MAX_FRAME)
        anybody = Authenticator(None, None, time.time)
        nobody: Any = None  # there are no commands to be carried out
        super().__init__(
            nobody, EventBroker(MemoryStore()), settings, anybody, ServerMetrics(), version="0"
        )

    async def _handle(self, socket: ServerConnection) -> None:
        """Send text by way of the outbox, as events are sent."""
        assert isinstance(socket, BatchedConnection)
        try:
            while True:
                message = await socket.recv()
                if isinstance(message, str):
                    socket.post([message.encode()])
                else:
                    await socket.send(message)
        except ConnectionClosed:
            pass


async def echo(socket: ServerConnection) -> None:
    """Send everything back."""
    async for message in socket:
        await socket.send(message)


async def main(kind: str) -> None:
    """Serve until standard input ends."""
    if kind == "websockets":
        server = await serve(echo, "127.0.0.1", 0, compression=None, max_size=MAX_FRAME)
        port = server.sockets[0].getsockname()[1]
    else:
        listener = EchoListener()
        await listener.start()
        port = listener.port
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    logging.disable()  # the suite breaks the protocol hundreds of times
    asyncio.run(main(sys.argv[1]))
