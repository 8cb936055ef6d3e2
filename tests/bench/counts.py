"""Work that is counted, not timed: the same on every machine, or nearly.

``python -m tests.bench.counts`` counts, and accepts what it found as what is expected: it writes
``counts.json``. The test beside this module fails where a count was raised by more than a tenth.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from agentsrv.bench import capacity, load
from agentsrv.bench.app import EVENTS
from agentsrv.bench.load import Runner
from agentsrv.bench.target import LISTENS, Target
from agentsrv.bench.wire import create
from tests.bench import counted

EXPECTED: Final = Path(__file__).with_name("counts.json")
TOLERANCE: Final = 0.1
ACCEPT: Final = "make counts"
RUNS: Final = 3  # the least counts: a turn of the loop more or less is chance
WARM: Final = 20  # tasks before: caches fill
TASKS: Final = 50
FEW, MANY = 1000, 3000  # events of one task
CONNECTIONS: Final = 200

Counts = Mapping[str, float]


class Counted:
    """A server that counts; see ``counted.py``."""

    def __init__(self, target: Target, process: asyncio.subprocess.Process) -> None:
        self.target = target
        self._process = process

    async def counts(self) -> dict[str, int]:
        """What it has counted so far."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        found: dict[str, int] = json.loads(await self._process.stdout.readline())
        return found

    async def run(self, width: int, total: int, command: bytes | None = None) -> dict[str, int]:
        """What is counted in a load."""
        before = await self.counts()
        if command is None:
            await load.run(self.target, width, total)
        else:
            await load.run(self.target, width, total, make=lambda w, t: Runner(w, t, command))
        after = await self.counts()
        return {name: after[name] - before[name] for name in before}


@asynccontextmanager
async def counting(store: str) -> AsyncIterator[Counted]:
    """A server that counts, within the block."""
    # Coverage would be counted too.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, counted.__file__, store),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=clean,
    )
    assert process.stdin is not None
    assert process.stderr is not None
    try:
        line = await process.stderr.readline()
        yield Counted(Target(line.removeprefix(LISTENS).decode().strip(), process.pid), process)
    finally:
        process.stdin.close()
        await process.wait()


async def memory_counts() -> dict[str, float]:
    """Calls and bytes, with the memory store: nothing waits for a disk."""
    async with counting("memory:") as server:
        await server.run(1, WARM)
        await server.run(1, 1, create("ticker", events=FEW))
        task, event, connection = [], [], []
        for _ in range(RUNS):
            task.append((await server.run(1, TASKS))["calls"] / TASKS)
            few = (await server.run(1, 1, create("ticker", events=FEW)))["calls"]
            many = (await server.run(1, 1, create("ticker", events=MANY)))["calls"]
            event.append((many - few) / (MANY - FEW))
        async with capacity.crowd(server.target, CONNECTIONS):
            await asyncio.sleep(capacity.SETTLE)
        for _ in range(RUNS):
            await asyncio.sleep(capacity.SETTLE)
            before = (await server.counts())["allocated"]
            async with capacity.crowd(server.target, CONNECTIONS):
                await asyncio.sleep(capacity.SETTLE)
                connection.append(((await server.counts())["allocated"] - before) / CONNECTIONS)
    return {
        "calls_per_task": min(task),
        "calls_per_event": min(event),
        "bytes_per_idle_connection": min(connection),
    }


async def sqlite_counts(folder: Path) -> dict[str, float]:
    """Calls of a task, statements and commits of a thousand events, of tasks that run alone."""
    async with counting(f"sqlite:///{folder / 'counts.db'}") as server:
        await server.run(1, WARM)
        found = [await server.run(1, TASKS) for _ in range(RUNS)]
    thousands = TASKS * EVENTS / 1000
    return {
        "calls_per_task_sqlite": min(run["calls"] for run in found) / TASKS,
        "statements_per_1000_events": min(run["statements"] for run in found) / thousands,
        "commits_per_1000_events": min(run["commits"] for run in found) / thousands,
    }


async def count() -> dict[str, float]:
    """All that is counted, by its name, to one digit."""
    with TemporaryDirectory() as folder:
        found = {**await memory_counts(), **await sqlite_counts(Path(folder))}
    return {name: round(value, 1) for name, value in found.items()}


def complaints(found: Counts, expected: Counts) -> list[str]:
    """What was raised by more than the tolerance, with how to accept it."""
    return [
        f"{name} is {found[name]:g}; expected at most {value:g} and a tenth. "
        f"If that is the price of something worth it: {ACCEPT}, and say so in the commit"
        for name, value in expected.items()
        if found[name] > value * (1 + TOLERANCE)
    ]


def expected() -> dict[str, float]:
    """What was accepted last."""
    values: dict[str, float] = json.loads(EXPECTED.read_text())
    return values


def main() -> None:
    """Count, and accept what was found."""
    before = expected() if EXPECTED.exists() else {}
    found = asyncio.run(count())
    for name, value in found.items():
        was = f" (was {before[name]:g})" if name in before else ""
        print(f"{name:30} {value:g}{was}")
    EXPECTED.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
