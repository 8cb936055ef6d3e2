"""Floods, and what becomes of another client: ``python -m tests.integration.hostile.floods [NAME] [COUNT]``.

It prints a table: for each flood, by 1, 10 and 50 connections, the longest block of the server's
loop, the growth of its memory, and how long another client's pings take.
"""

from __future__ import annotations

import json
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, NamedTuple

from tests.integration.hostile import measured
from tests.integration.hostile.frames import CLIENT, FLOODS, Flood
from tests.support.principals import ADA_KEY, BOB_KEY, BOTH
from tests.support.wire import TEXT, ConnectionLost, Wire, framed

CONNECTIONS: Final = (1, 10, 50)
SECONDS: Final = 4.0
HELD: Final = 1 << 18  # bytes that one connection has ready to be sent
CHUNK: Final = 1 << 18
PAUSE: Final = 0.01  # seconds between two pings of the other client
PERCENTILES: Final = 100


class Found(NamedTuple):
    """What a flood did to the server (milliseconds, MiB) and to the other client (milliseconds)."""

    block: float
    memory: float
    median: float
    p99: float
    longest: float
    pings: int


class Measured:
    """The server of ``measured.py``, as a process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._in, self._out = process.stdin, process.stdout
        self.port = int(self._out.readline())

    def report(self) -> dict[str, float]:
        """What it has found since the last report."""
        self._in.write("\n")
        self._in.flush()
        found: dict[str, float] = json.loads(self._out.readline())
        return found


@contextmanager
def measuring(**settings: Any) -> Iterator[Measured]:
    """A server that measures, within the block; it knows the keys of two people."""
    given = json.dumps({"api_keys": BOTH} | settings)
    process = subprocess.Popen(
        [sys.executable, "-m", measured.__name__, given],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Measured(process)
    finally:
        process.kill()
        process.communicate()


class Flooder:
    """One connection that sends the same bytes without end; connects again when it is closed."""

    def __init__(self, port: int, flood: Flood, data: bytes, token: str | None) -> None:
        self._port = port
        self._token = token
        self._flood = flood
        self._data = data * max(1, HELD // len(data))
        self._at = 0
        self.sent = 0
        self.socket = self._connect()

    def _connect(self) -> socket.socket:
        connection = Wire(self._port, token=self._token).socket
        connection.setblocking(False)
        self._at = 0
        return connection

    def turn(self) -> bool:
        """Send what fits, and read; returns whether the connection is still open."""
        try:
            with suppress(BlockingIOError):
                count = self.socket.send(memoryview(self._data)[self._at :])
                self.sent += count
                self._at = (self._at + count) % len(self._data)
            while self._flood.reads:
                if not self.socket.recv(CHUNK):
                    return False
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True

    def again(self) -> None:
        """Connect again, if the server lets it."""
        self.socket.close()
        with suppress(ConnectionLost):
            self.socket = self._connect()


def flood(port: int, kind: Flood, connections: int, seconds: float, key: str) -> None:
    """Flood for so long; ``key`` is of those who are authenticated."""
    data = kind.make()
    token = key if kind.sender == CLIENT else None
    flooders = [Flooder(port, kind, data, token) for _ in range(connections)]
    print("flooding", flush=True)
    selector = selectors.DefaultSelector()
    for flooder in flooders:
        selector.register(flooder.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, flooder)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for ready, _ in selector.select(0.1):
            flooder = ready.data
            if not flooder.turn():
                selector.unregister(flooder.socket)
                flooder.again()
                if flooder.socket.fileno() >= 0:
                    events = selectors.EVENT_READ | selectors.EVENT_WRITE
                    selector.register(flooder.socket, events, flooder)
    print(sum(flooder.sent for flooder in flooders), flush=True)


@contextmanager
def flooding(port: int, kind: Flood, connections: int, seconds: float) -> Iterator[None]:
    """Flood from another process, which has begun when the block begins."""
    process = subprocess.Popen(
        [sys.executable, "-m", __spec__.name, "--flood", str(port), kind.name, kind.sender,
         str(connections), str(seconds), ADA_KEY],
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "flooding\n"
        yield
    finally:
        process.kill()
        process.communicate()


def pings(port: int, seconds: float) -> list[float]:
    """How long another client's pings take, in milliseconds."""
    found = []
    with Wire(port, token=BOB_KEY, timeout=60) as wire:
        bodies = wire.bodies()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.perf_counter()
            wire.socket.sendall(framed(TEXT, b"ping"))
            while json.loads(next(bodies))["type"] != "reply":
                pass
            found.append((time.perf_counter() - began) * 1000)
            time.sleep(PAUSE)
    return found


def measure(server: Measured, kind: Flood, connections: int, seconds: float = SECONDS) -> Found:
    """What one flood does."""
    with flooding(server.port, kind, connections, seconds + 30):
        server.report()
        times = pings(server.port, seconds)
        report = server.report()
    p99 = statistics.quantiles(times, n=PERCENTILES)[-1] if len(times) > 1 else times[0]
    return Found(
        report["block"], report["memory"], statistics.median(times), p99, max(times), len(times)
    )


def main(name: str = "", count: str = "") -> None:
    """Print the table."""
    print(f"{'sender':9}{'flood':22}{'conn.':>6}{'block ms':>10}{'MiB':>7}"
          f"{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}")  # fmt: skip
    for kind in FLOODS:
        if name not in kind.name:
            continue
        for connections in CONNECTIONS if not count else (int(count),):
            with measuring() as server:
                found = measure(server, kind, connections)
            print(
                f"{kind.sender:9}{kind.name:22}{connections:6}{found.block:10.1f}"
                f"{found.memory:7.1f}{found.median:9.2f}{found.p99:9.1f}{found.longest:9.1f}",
                flush=True,
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--flood"]:
        port, name, sender, count, seconds, key = sys.argv[2:]
        (wanted,) = (kind for kind in FLOODS if (kind.name, kind.sender) == (name, sender))
        flood(int(port), wanted, int(count), float(seconds), key)
    else:
        main(*sys.argv[1:])
