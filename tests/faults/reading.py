"""A program that follows tasks over many connections: ``python -m tests.faults.reading PORT N``.

It connects and prints a line; is told on one line of its standard input which tasks to follow;
prints a line when it follows them; and when they have ended on every connection, one with what it
has seen. A connection that is lost is made again, and goes on behind the last event.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import suppress
from typing import Any

from agentsrv.bench.figures import percentile
from tests.support.wire import (
    HEADER_END,
    PING,
    PONG,
    TEXT,
    Parser,
    command,
    framed,
    handshake,
)

AGAIN = 0.05  # seconds before a lost connection is made again
STAMP = b'"output":"'  # what stands before the time at which a piece was written
STAMP_LENGTH = 17  # bytes


class Reader(asyncio.Protocol):
    """One client: a task's events are numbered from 1, and each must come once."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.last: dict[str, int] = {}
        self.open: set[str] = set()
        self.latencies: list[float] = []
        self.events = self.bytes = self.wrong = self.lost = 0
        self.ready = asyncio.Event()
        self.following = asyncio.Event()
        self.done = asyncio.Event()
        self.gone = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        """Ask for a WebSocket."""
        self.transport = transport
        self.parser = Parser()
        self.head = bytearray()
        self.shaken = False
        self.replies = 0
        transport.write(handshake(self.port))

    def follow(self, tasks: list[str]) -> None:
        """Follow these, or those of them that have not ended, behind what has come."""
        for task in tasks:
            self.last.setdefault(task, 0)
        self.replies = len(tasks)
        for task in tasks:
            after = self.last[task]
            wanted = {"command": "subscribe", "task_id": task, "after_seq": after}
            self.transport.write(command(wanted))

    def data_received(self, data: bytes) -> None:
        """Count events; answer pings."""
        if not self.shaken:
            self.head += data
            if HEADER_END not in self.head:
                return
            self.shaken = True
            data = bytes(self.head).partition(HEADER_END)[2]
        now = time.time()
        for opcode, body in self.parser.feed(data):
            if opcode == TEXT:
                self._take(body, now)
            elif opcode == PING:
                self.transport.write(framed(PONG, body))

    def connection_lost(self, error: Exception | None) -> None:
        """Let ``live`` connect again."""
        self.gone.set()

    def _take(self, body: bytes, now: float) -> None:
        at = body.find(STAMP)
        if at >= 0 and b'"partial_output"' in body[:200]:
            start = at + len(STAMP)
            with suppress(ValueError):  # a piece of the last step
                self.latencies.append(now - float(body[start : start + STAMP_LENGTH]))
        frame = json.loads(body)
        match frame["type"]:
            case "hello":
                self.ready.set()
                if self.open:
                    self.follow(sorted(self.open))
            case "reply":
                self.replies -= 1
                if not self.replies:
                    self.following.set()
            case "event":
                task = frame["task_id"]
                self.events += 1
                self.bytes += len(body)
                self.wrong += frame["seq"] != self.last[task] + 1
                self.last[task] = frame["seq"]
                if frame["event_type"] == "task_completed":
                    self.open.discard(task)
                    if not self.open:
                        self.done.set()

    async def live(self) -> None:
        """Stay connected until everything has come."""
        loop = asyncio.get_running_loop()
        while not self.done.is_set():
            self.gone.clear()
            try:
                await loop.create_connection(lambda: self, "127.0.0.1", self.port)
            except OSError:
                await asyncio.sleep(AGAIN)
                continue
            gone = asyncio.create_task(self.gone.wait())
            done = asyncio.create_task(self.done.wait())
            await asyncio.wait({gone, done}, return_when=asyncio.FIRST_COMPLETED)
            gone.cancel()
            done.cancel()
            if not self.done.is_set():
                self.lost += 1
                await asyncio.sleep(AGAIN)
        self.transport.abort()


async def main(port: int, count: int) -> None:
    """Follow what standard input names, and print what was seen."""
    readers = [Reader(port) for _ in range(count)]
    async with asyncio.TaskGroup() as group:
        for reader in readers:
            group.create_task(reader.live())
        for reader in readers:
            await reader.ready.wait()
        client_ports = [reader.transport.get_extra_info("sockname")[1] for reader in readers]
        print(json.dumps(client_ports), flush=True)
        tasks = json.loads(await asyncio.to_thread(sys.stdin.readline))
        for reader in readers:
            reader.open = set(tasks)
            reader.follow(tasks)
        for reader in readers:
            await reader.following.wait()
        print("following", flush=True)
    latencies = [latency for reader in readers for latency in reader.latencies]
    seen = {
        "events": sum(reader.events for reader in readers),
        "bytes": sum(reader.bytes for reader in readers),
        "wrong": sum(reader.wrong for reader in readers),
        "lost": sum(reader.lost for reader in readers),
        "p50": percentile(latencies, 0.5) * 1000,
        "p99": percentile(latencies, 0.99) * 1000,
    }
    print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
