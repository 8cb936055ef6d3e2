"""Load: so many tasks at a time over some connections, and what the client sees of them."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Final

from agentsrv.bench.machine import cpu_seconds
from agentsrv.bench.target import Target
from agentsrv.bench.wire import EVENT, FrameStream, Refused, create, patience

INSTANT: Final = create()
MARK: Final = EVENT + b"task_"
ENOUGH: Final = 64  # bytes behind a mark's beginning that hold the rest of the name and the id


@dataclass(frozen=True, slots=True)
class Load:
    """What a run measured; times in seconds."""

    tasks: int
    events: int
    seconds: float
    first: list[float]
    """From each task's command to its first event."""
    last: list[float]
    """From each task's command to its last event."""
    client_share: float
    """Of one core, that the client took; near 1 it is the client that was measured."""
    server_seconds: float | None
    """That the servers' processes computed, where that can be seen."""

    @property
    def tasks_per_second(self) -> float:
        """Tasks that ended in a second."""
        return self.tasks / self.seconds

    @property
    def events_per_second(self) -> float:
        """Events that arrived in a second."""
        return self.events / self.seconds


class Runner(FrameStream):
    """One connection that keeps ``width`` tasks going until it has finished ``total``."""

    def __init__(self, width: int, total: int, command: bytes = INSTANT) -> None:
        super().__init__()
        self.events = 0
        self.first: list[float] = []
        self.last: list[float] = []
        self._width = width
        self._total = total
        self._command = command
        self._left = total
        self._sent: deque[float] = deque()
        # A bare server has one id for all of its tasks; there they end in the order of commands.
        self._started: dict[bytes, deque[float]] = defaultdict(deque)

    async def run(self) -> None:
        """Run the tasks.

        Raises:
            Refused: A task failed or was refused, or the server went away.
        """
        self._start(min(self._width, self._total))
        async with patience(f"the end of {self._total} tasks"):
            await self.wait()

    def received(self, data: bytes) -> None:
        """Count the events; note when tasks begin and end, and start as many anew."""
        now = time.perf_counter()
        data = self._buffer + data
        ended = position = 0
        while (start := data.find(MARK, position)) >= 0 and start + ENOUGH <= len(data):
            position = start + ENOUGH
            name, _, rest = data[start + len(EVENT) : position].partition(b'","task_id":"')
            ended += self._note(name, rest[:16], now)
        # What may be the beginning of a mark is looked at again with what follows it.
        keep = start if start >= 0 else max(position, len(data) - len(MARK) + 1)
        self.events += data.count(EVENT, 0, keep + len(EVENT) - 1)  # those that begin before it
        self._buffer = data[keep:]
        if ended:
            self._start(min(ended, self._left))
        if len(self.last) == self._total:
            self.events += self._buffer.count(EVENT)
            self.wake()

    def _note(self, name: bytes, task_id: bytes, now: float) -> bool:
        """Take a task's event; whether the task ended with it."""
        if name == b"task_created":
            started = self._sent.popleft()
            self.first.append(now - started)
            self._started[task_id].append(started)
        elif name == b"task_completed":
            waiting = self._started[task_id]
            self.last.append(now - waiting.popleft())
            if not waiting:
                del self._started[task_id]
            return True
        elif name in (b"task_failed", b"task_cancelled"):
            self.fail(Refused(f"a task of the load ended with {name.decode()}"))
        return False

    def _start(self, count: int) -> None:
        if count:
            self._left -= count
            self._sent.extend([time.perf_counter()] * count)
            self.send(*[self._command] * count)


MakeRunner = Callable[[int, int], Runner]
"""Makes a runner of a width and a total; a peer's speaks another protocol."""


async def run(
    target: Target,
    width: int,
    total: int,
    *,
    connections: int = 1,
    make: MakeRunner = Runner,
    beside: Sequence[Target] = (),
) -> Load:
    """Run ``total`` tasks, ``width`` at a time, over so many connections.

    The connections take turns with the target and the servers ``beside`` it.

    Raises:
        ServerUnavailableError: Nobody is there.
        Refused: A task failed or was refused, or the server went away.
    """
    runners = [make(-(-width // connections), -(-total // connections)) for _ in range(connections)]
    try:
        servers = (target, *beside)
        pids = [server.pid for server in servers if server.pid]
        opening = zip(runners, cycle(servers), strict=False)
        await asyncio.gather(*(runner.open(server) for runner, server in opening))
        before = sum(map(cpu_seconds, pids))
        client, started = time.process_time(), time.perf_counter()
        await asyncio.gather(*(runner.run() for runner in runners))
        seconds = time.perf_counter() - started
        return Load(
            tasks=sum(len(runner.last) for runner in runners),
            events=sum(runner.events for runner in runners),
            seconds=seconds,
            first=[value for runner in runners for value in runner.first],
            last=[value for runner in runners for value in runner.last],
            client_share=(time.process_time() - client) / seconds,
            server_seconds=sum(map(cpu_seconds, pids)) - before if pids else None,
        )
    finally:
        for runner in runners:
            runner.close()
