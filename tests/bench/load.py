"""A load client that is no bottleneck: frames are counted in the raw stream, not parsed."""

from __future__ import annotations

import asyncio
import base64
import os
import statistics
import time
from dataclasses import dataclass, field

COMMAND = b'{"command":"create","id":1,"task_description":"measure","execute":true}'
MARK = b'"event_type":"task_completed"'


@dataclass
class Outcome:
    """What a run measured; times in seconds."""

    tasks: int
    seconds: float
    latencies: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Seconds from a task's command to its last event."""
        return statistics.median(self.latencies)

    @property
    def rate(self) -> float:
        """Tasks per second."""
        return self.tasks / self.seconds


class Client(asyncio.Protocol):
    """One connection that keeps ``width`` tasks going until it has finished ``total``."""

    def __init__(self, width: int, total: int) -> None:
        self.done = asyncio.get_running_loop().create_future()
        self._width = width
        self._total = total
        self._sent = 0
        self._ended = 0
        self._open = False
        self._tail = b""
        self._frame = client_frame(COMMAND)
        self._started: list[float] = []
        self.latencies: list[float] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Shake hands."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        key = base64.b64encode(os.urandom(16)).decode()
        transport.write(
            f"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        """Count the ends of tasks, and start as many anew."""
        if not self._open:
            self._open = True
            self._send(min(self._width, self._total))
        data = self._tail + data
        ended = data.count(MARK)
        self._tail = data[-(len(MARK) - 1) :]
        if ended:
            now = time.perf_counter()
            for start in self._started[self._ended : self._ended + ended]:
                self.latencies.append(now - start)
            self._ended += ended
            if self._ended >= self._total:
                self._transport.close()
                if not self.done.done():
                    self.done.set_result(None)
            else:
                self._send(min(ended, self._total - self._sent))

    def connection_lost(self, exc: Exception | None) -> None:
        """A server that goes away is an error."""
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("closed by the server"))

    def _send(self, count: int) -> None:
        self._sent += count
        self._started += [time.perf_counter()] * count
        self._transport.write(self._frame * count)


def client_frame(payload: bytes) -> bytes:
    """A whole text frame with a mask of zeros: masking costs the client nothing."""
    if len(payload) < 126:
        return bytes((0x81, 0x80 | len(payload))) + b"\0\0\0\0" + payload
    return bytes((0x81, 0xFE)) + len(payload).to_bytes(2) + b"\0\0\0\0" + payload


async def run(port: int, *, width: int, total: int, connections: int = 1) -> Outcome:
    """Run ``total`` tasks, ``width`` at a time, over so many connections."""
    loop = asyncio.get_running_loop()
    clients = []
    started = time.perf_counter()
    for _ in range(connections):
        _, client = await loop.create_connection(
            lambda: Client(width // connections, total // connections), "127.0.0.1", port
        )
        clients.append(client)
    async with asyncio.timeout(300):
        await asyncio.gather(*(client.done for client in clients))
    latencies = [latency for client in clients for latency in client.latencies]
    return Outcome(total, time.perf_counter() - started, latencies)
