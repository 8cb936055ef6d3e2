"""Probes of speed: tasks and events per second, and how long a client waits for what."""

from __future__ import annotations

import time
from typing import Final

from agentsrv.bench import load, machine
from agentsrv.bench.app import AGENT_SLEEPS, PLANNER_SLEEP, SLEEPY
from agentsrv.bench.load import Load, Runner
from agentsrv.bench.sizes import Bench
from agentsrv.bench.target import LocalServer, Target
from agentsrv.bench.wire import EVENT, PROGRESS, EventCounter, EventScanner, command, create

FOREVER: Final = 86_400.0  # seconds
TICK: Final = 1.0  # seconds between two events of a task that runs beside a cancel


async def throughput(bench: Bench) -> None:
    """Tasks of three instant steps, one after the other: 14 events."""
    report = bench.report
    async with bench.place.server() as target:
        await load.run(target, 10, 50)  # what is made once is made now
        for width, total in bench.sizes.widths.items():
            runs = [await load.run(target, width, total) for _ in range(bench.sizes.rounds)]
            key, label = f"throughput.{width}", f"{width} at a time:"
            report.add(f"{key}.tasks", f"{label} tasks/s", [r.tasks_per_second for r in runs])
            report.add(f"{key}.events", f"{label} events/s", [r.events_per_second for r in runs])
            report.add_spread(f"{key}.first", f"{label} first event", [r.first for r in runs])
            report.add_spread(f"{key}.last", f"{label} last event", [r.last for r in runs])
            report.add(
                f"{key}.client",
                f"{label} the client's share of a core, %",
                [r.client_share * 100 for r in runs],
            )


async def commit(bench: Bench) -> None:
    """From a create to its reply, compared with a sync of the same disk."""
    rounds, syncs = [], []
    async with bench.place.server() as target:
        for _ in range(bench.sizes.rounds):
            rounds.append(await commits(target, bench.sizes.commits))
            if isinstance(bench.place, LocalServer) and not bench.place.is_shared:
                folder = bench.place.file.parent if bench.place.file else bench.place.folder
                syncs.append(machine.sync_times(folder, bench.sizes.commits))
    bench.report.add_spread("commit.reply", "create to reply", rounds)
    if syncs:
        bench.report.add_spread("commit.sync", "fsync of 4 KiB on that disk", syncs)


async def commits(target: Target, count: int) -> list[float]:
    """Seconds from each of ``count`` creates to its reply; the tasks are cancelled behind."""
    client = await EventScanner.connect(target)
    times, tasks = [], []
    for _ in range(count):
        before = time.perf_counter()
        await client.ask(command("create", task_description="measure"))
        times.append(time.perf_counter() - before)
        tasks.append(await client.task_id())
    for task_id in tasks:
        await client.ask(command("cancel", task_id=task_id))
    client.close()
    return times


async def sleepers(bench: Bench) -> None:
    """A planner and three agents that sleep 550 ms in total: the time in addition to that."""
    slept = PLANNER_SLEEP + sum(AGENT_SLEEPS)

    def sleepy(width: int, total: int) -> Runner:
        return Runner(width, total, create(description=SLEEPY))

    async with bench.place.server() as target:
        await load.run(target, 1, 10)
        runs: list[Load] = [
            await load.run(target, 1, bench.sizes.sleepy, make=sleepy)
            for _ in range(bench.sizes.rounds)
        ]
    beyond = [value - slept for run in runs for value in run.last]
    bench.report.add("sleepers.beyond", "beyond the sleeps, ms", [v * 1000 for v in beyond])


async def cancel(bench: Bench) -> None:
    """From a cancel to the client's last event, while tasks run that write an event each second."""
    async with bench.place.server() as target:
        for running in bench.sizes.running:
            rounds = [
                await cancels(target, bench.sizes.cancels, running)
                for _ in range(bench.sizes.rounds)
            ]
            bench.report.add_spread(f"cancel.{running}", f"{running} running: cancel", rounds)


async def cancels(target: Target, count: int, running: int) -> list[float]:
    """Seconds from each of ``count`` cancels to ``task_cancelled``, with so many tasks running."""
    beside = EventCounter(PROGRESS)
    await beside.open(target)
    beside.send(*[create("ticker", bound=True, events=1_000_000, pause=TICK)] * (running - 1))
    await beside.until(running - 1)
    client = await EventScanner.connect(target)
    times = []
    for _ in range(count):
        client.send(create("ticker", events=2, pause=FOREVER))
        task_id = await client.task_id(PROGRESS + b'",')
        before = time.perf_counter()
        client.send(command("cancel", task_id=task_id))
        await client.find(EVENT + b"task_cancelled")
        times.append(time.perf_counter() - before)
    client.close()
    beside.close()
    return times
