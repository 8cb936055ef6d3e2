"""Probes of size: connections, running and finished tasks, subscribers, streams."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from agentsrv.bench import load
from agentsrv.bench.latency import FOREVER
from agentsrv.bench.load import Load, Runner
from agentsrv.bench.machine import cpu_seconds, resident
from agentsrv.bench.sizes import Bench, Skipped
from agentsrv.bench.target import Target
from agentsrv.bench.wire import PROGRESS, EventCounter, EventScanner, FrameStream, command, create
from agentsrv.server.open_files import raise_open_file_limit

AT_ONCE: Final = 100  # handshakes under way
SETTLE: Final = 0.5  # seconds for what a server does behind the last answer
KIB: Final = 1024
MIB: Final = 1 << 20
ACTIVE: Final = 50  # tasks at a time beside idle connections
STREAM_CONNECTIONS: Final = 10
PART: Final = 0.7  # of the time that tasks stream, in which the loop's lag is looked at


async def connects(bench: Bench) -> None:
    """Connections that are opened and receive their hello."""
    wanted = raise_open_file_limit(bench.sizes.connects)
    rates = []
    async with bench.place.server() as target:
        for _ in range(bench.sizes.rounds):
            before = time.perf_counter()
            async with crowd(target, wanted):
                rates.append(wanted / (time.perf_counter() - before))
    bench.report.add("connects.rate", f"connects/s, {AT_ONCE} handshakes at a time", rates)


async def idle(bench: Bench) -> None:
    """Idle connections: the cost of each, and of all of them to active work."""
    for wanted in bench.sizes.connections:
        count = raise_open_file_limit(wanted)
        if count < wanted:
            bench.report.note(
                f"{count} connections instead of {wanted}: more open files are not permitted"
            )
        without: list[Load] = []
        beside: list[Load] = []
        total = bench.sizes.widths.get(ACTIVE, 500)
        async with bench.place.server() as target:
            await load.run(target, ACTIVE, total)
            for _ in range(bench.sizes.rounds):
                without.append(await load.run(target, ACTIVE, total))
                async with crowd(target, count):
                    beside.append(await load.run(target, ACTIVE, total))
        key = f"idle.{wanted}"
        if target.pid is not None:
            async with bench.place.server() as target:
                memory = await idle_memory(target, count)
            bench.report.add(f"{key}.memory", f"each of {count} connections, KiB", [memory])
        for name, runs in (("without", without), ("with", beside)):
            bench.report.add(
                f"{key}.{name}",
                f"events/s {name} {count} idle connections",
                [run.events_per_second for run in runs],
            )


async def idle_memory(target: Target, count: int) -> float:
    """KiB that the server's process grows by with each of ``count`` connections."""
    assert target.pid is not None
    async with crowd(target, AT_ONCE):  # what is made once is made now
        pass
    await asyncio.sleep(SETTLE)
    before = resident(target.pid)
    async with crowd(target, count):
        await asyncio.sleep(SETTLE)
        return (resident(target.pid) - before) / count / KIB


@asynccontextmanager
async def crowd(target: Target, count: int) -> AsyncIterator[None]:
    """So many idle connections within the block."""
    members: list[FrameStream] = []
    try:
        while len(members) < count:
            coming = min(AT_ONCE, count - len(members))
            members += await asyncio.gather(*(FrameStream.connect(target) for _ in range(coming)))
        yield
    finally:
        for member in members:
            member.close()


async def tasks(bench: Bench) -> None:
    """Growth of the server's memory with each task."""
    sizes = bench.sizes
    async with bench.own.server() as target:
        if target.pid is None:
            raise Skipped("left out: this system does not tell what a process takes")
        await load.run(target, ACTIVE, sizes.finished_tasks)  # what is made once is made now
        finished = []
        for _ in range(sizes.rounds):
            before = resident(target.pid)
            await load.run(target, ACTIVE, sizes.finished_tasks)
            finished.append((resident(target.pid) - before) / sizes.finished_tasks / KIB)
        client = EventCounter(PROGRESS)
        await client.open(target)
        before = resident(target.pid)
        client.send(*[create("ticker", events=2, pause=FOREVER)] * sizes.running_tasks)
        await client.until(sizes.running_tasks)
        await asyncio.sleep(SETTLE)
        running = (resident(target.pid) - before) / sizes.running_tasks / KIB
        client.close()
    bench.report.add(
        "tasks.running", f"each of {sizes.running_tasks} running tasks, KiB", [running]
    )
    bench.report.add("tasks.finished", "each finished task, KiB", finished)


async def subscribers(bench: Bench) -> None:
    """Several connections that follow one task, which writes as fast as it can."""
    sizes = bench.sizes
    costs: dict[int, list[float]] = {}
    async with bench.place.server() as target:
        for count in sizes.subscribers:
            rates, costs[count] = [], []
            for _ in range(sizes.rounds):
                seconds, computed = await followed(target, count, sizes.subscribed)
                rates.append(count * sizes.subscribed / seconds)
                costs[count].append(computed / sizes.subscribed)
            bench.report.add(
                f"subscribers.{count}.events", f"{count} subscribers: events delivered/s", rates
            )
    few, many = sizes.subscribers[0], sizes.subscribers[-1]
    if target.pid is not None:
        pairs = zip(costs[few], costs[many], strict=True)
        bench.report.add(
            "subscribers.cost",
            "server's µs for each event and further subscriber",
            [(more - less) / (many - few) * 1e6 for less, more in pairs],
        )


async def followed(target: Target, count: int, events: int) -> tuple[float, float]:
    """Seconds until ``count`` subscribers have a task's events, and those the server computed."""
    owner = await EventScanner.connect(target)
    fields = {"agent": "ticker", "params": {"events": events}}
    await owner.ask(command("create", task_description="measure", **fields))
    task_id = await owner.task_id()
    readers = [await EventCounter(PROGRESS).open(target) for _ in range(count)]
    for reader in readers:
        reader.send(command("subscribe", task_id=task_id))
    await asyncio.sleep(SETTLE)
    computed = cpu_seconds(target.pid) if target.pid else 0.0
    before = time.perf_counter()
    owner.send(command("execute", task_id=task_id, subscribe=False))
    await asyncio.gather(*(reader.until(events) for reader in readers))
    seconds = time.perf_counter() - before
    computed = cpu_seconds(target.pid) - computed if target.pid else 0.0
    for client in (owner, *readers):
        client.close()
    return seconds, computed


async def streams(bench: Bench) -> None:
    """Many tasks that write as fast as they can, and the lag of the server's loop meanwhile."""
    sizes = bench.sizes

    def pouring(width: int, total: int) -> Runner:
        return Runner(width, total, create("ticker", events=sizes.streamed))

    async def pour(target: Target) -> Load:
        connections = min(STREAM_CONNECTIONS, sizes.streams)
        return await load.run(
            target, sizes.streams, sizes.streams, connections=connections, make=pouring
        )

    rates, lags = [], []
    async with bench.place.server() as target:
        for _ in range(sizes.rounds):
            run = await pour(target)
            rates.append(run.events_per_second)
            _, lag = await asyncio.gather(pour(target), loop_lag(target, run.seconds * PART))
            lags.append(lag)
    bench.report.add("streams.events", f"{sizes.streams} tasks: events/s", rates)
    bench.report.add("streams.lag", "lag of the loop p99, ms", lags)


async def loop_lag(target: Target, seconds: float) -> float:
    """Milliseconds by which the server's loop is late in so many seconds (99th percentile)."""
    client = await EventScanner.connect(target)
    client.send(create("lag", seconds=seconds))
    mark = b'"final_output":"'
    found = (await client.find(mark, 12))[len(mark) :]
    client.close()
    return float(found.partition(b'"')[0])
