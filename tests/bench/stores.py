"""What the stores do beside each other: ``python -m tests.bench.stores`` prints it.

Tasks stream, each with one append under way, as the journals of running tasks do; then one task
alone. PostgreSQL is a private one with its defaults, so with ``fsync``, on the same disk.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentsrv.models.states import TaskStatus
from agentsrv.store.base import Append, NewTask, Store
from agentsrv.store.postgres.store import PostgresStore
from agentsrv.store.sqlite.store import SqliteStore
from tests.support.postgres import postgres

EVENT: Final = b'{"type":"partial_output","seq":1234,"step_id":"s1","text":"%s"}' % (b"word " * 18)
SHAPES: Final = ((1, 1), (100, 1), (100, 4), (100, 16))  # tasks, and events of an append
SECONDS: Final = 3.0


@dataclass(frozen=True)
class Figures:
    """What was measured; times in seconds."""

    seconds: float
    events: int
    waits: Sequence[float]
    """Of each append, until it was durable."""

    def percentile(self, part: float) -> float:
        """The wait that ``part`` of the appends did not exceed."""
        return sorted(self.waits)[int(len(self.waits) * part)]


async def stream(store: Store, tasks: int, events: int) -> Figures:
    """Let tasks append for some seconds."""
    waits: list[float] = []
    begun = time.perf_counter()

    async def write(number: int) -> None:
        task_id = f"{time.time_ns()}-{number}"
        running = TaskStatus.RUNNING
        await store.create(NewTask(task_id, "bench", running, "", time.time(), b"{}", [EVENT]))
        seq = 1
        while time.perf_counter() < begun + SECONDS:
            append = Append(task_id, "bench", 0, seq, [EVENT] * events, running, time.time())
            handed = time.perf_counter()
            await store.append(append)
            waits.append(time.perf_counter() - handed)
            seq += events

    await asyncio.gather(*map(write, range(tasks)))
    return Figures(time.perf_counter() - begun, len(waits) * events, waits)


async def main(folder: Path, dsn: str) -> None:
    """Measure both stores in turn, shape by shape, and print what was found."""
    sqlite = SqliteStore(folder / "bench.db")
    shared = PostgresStore(dsn, node="bench")
    stores: dict[str, Store] = {"sqlite": sqlite, "postgres": shared}
    for store in stores.values():
        await store.open()
    for tasks, events in SHAPES:
        for name, store in stores.items():
            before = shared._flusher._number
            found = await stream(store, tasks, events)
            flushes = shared._flusher._number - before
            per_flush = f"{len(found.waits) / flushes:6.1f} appends/flush" if flushes else ""
            print(
                f"{name:9}{tasks:4} tasks, {events:2} events/append:"
                f" {found.events / found.seconds:9,.0f} events/s"
                f" {flushes / found.seconds:5.0f} flushes/s"
                f"  p50 {found.percentile(0.5) * 1e3:6.2f} ms"
                f"  p99 {found.percentile(0.99) * 1e3:6.2f} ms {per_flush}"
            )
    for store in stores.values():
        await store.close()


if __name__ == "__main__":
    with postgres() as server, tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(Path(folder), server.dsn()))
