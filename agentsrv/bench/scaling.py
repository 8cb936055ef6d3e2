"""Probes of servers that share a store: processes on one port, nodes, and tasks of other nodes."""

from __future__ import annotations

import asyncio
from itertools import repeat
from typing import Final

from agentsrv.bench import load
from agentsrv.bench.capacity import SETTLE
from agentsrv.bench.latency import FOREVER
from agentsrv.bench.load import Load
from agentsrv.bench.machine import cpu_seconds
from agentsrv.bench.sizes import Bench, Skipped
from agentsrv.bench.target import Cluster, LocalServer, Target
from agentsrv.bench.wire import PROGRESS, EventCounter, create
from agentsrv.settings import Role

CONNECTIONS: Final = 24  # of a load: so many that the kernel gives each process about its part
PROCESSES: Final = (1, 2)
ROLE: Final[Role] = "all"
ALONE: Final = "sqlite"  # the server that nodes are compared with


async def processes(bench: Bench) -> None:
    """Two processes on one port, compared with one."""
    own, report = bench.shared, bench.report
    runs: dict[int, list[Load]] = {count: [] for count in PROCESSES}
    for _ in range(bench.sizes.rounds):
        for count, found in runs.items():
            async with own.cluster(ROLE, processes=count) as cluster:
                await _warm(cluster)
                found.append(await _load(cluster, *bench.sizes.widest))
    for count, found in runs.items():
        key, label = f"processes.{count}", f"{count} on one port:"
        report.add(f"{key}.tasks", f"{label} tasks/s", [run.tasks_per_second for run in found])
        _report_shares(bench, key, label, found)
    one, two = ([run.tasks_per_second for run in runs[count]] for count in PROCESSES)
    ratios = [more / less for more, less in zip(two, one, strict=True)]
    report.add("processes.ratio", "tasks/s of two over one", ratios)


async def nodes(bench: Bench) -> None:
    """Nodes that share a store, compared with one server with SQLite."""
    own, report = bench.shared, bench.report
    alone = LocalServer(loop=own.loop)
    shapes = {ALONE: (alone, 1)} | {str(count): (own, count) for count in bench.sizes.nodes}
    runs: dict[str, list[Load]] = {name: [] for name in shapes}
    commits: dict[str, list[float]] = {name: [] for name in shapes}
    try:
        for _ in range(bench.sizes.rounds):
            for name, (place, count) in shapes.items():
                async with place.cluster(*repeat(ROLE, count)) as cluster:
                    await _warm(cluster)
                    before = await _flushes(cluster)
                    run = await _load(cluster, *bench.sizes.widest)
                    runs[name].append(run)
                    commits[name].append((await _flushes(cluster) - before) / run.seconds)
    finally:
        alone.close()
    for name, found in runs.items():
        key, label = f"nodes.{name}", f"{name}:" if name == ALONE else f"nodes: {name},"
        rates = [run.events_per_second for run in found]
        report.add(f"{key}.events", f"{label} events/s", rates)
        if name != ALONE:
            report.add(f"{key}.commits", f"{label} commits/s", commits[name])
            others = [run.events_per_second for run in runs[ALONE]]
            ratios = [rate / other for rate, other in zip(rates, others, strict=True)]
            report.add(f"{key}.ratio", f"{label} events/s over {ALONE}", ratios)
        _report_shares(bench, key, label, found)


async def tails(bench: Bench) -> None:
    """Following tasks of another node that write nothing, from a node without tasks."""
    sizes, costs = bench.sizes, []
    for _ in range(sizes.rounds):
        async with bench.shared.cluster("worker", "gateway") as cluster:
            gateway = cluster.targets[1]
            idle = await _share(gateway, sizes.watched)
            client = await EventCounter(PROGRESS).open(gateway)
            client.send(*[create("ticker", events=2, pause=FOREVER)] * sizes.tails)
            await client.until(sizes.tails)
            await asyncio.sleep(SETTLE)
            costs.append(await _share(gateway, sizes.watched) - idle)
            client.close()
    label = f"{sizes.tails} tails: what the node computes, ms for each second"
    bench.report.add(f"tails.{sizes.tails}", label, [cost * 1000 for cost in costs])


async def _warm(cluster: Cluster) -> None:
    """What is made once is made now."""
    await _load(cluster, CONNECTIONS, 2 * CONNECTIONS)


async def _load(cluster: Cluster, width: int, total: int) -> Load:
    target, *beside = cluster.targets
    return await load.run(target, width, total, connections=CONNECTIONS, beside=beside)


async def _flushes(cluster: Cluster) -> int:
    return 0 if cluster.schema is None else await cluster.schema.flushes()


async def _share(target: Target, seconds: float) -> float:
    """Of one core, that the server takes meanwhile."""
    if target.pid is None:
        raise Skipped("left out: this system does not tell what a process takes")
    before = cpu_seconds(target.pid)
    await asyncio.sleep(seconds)
    return (cpu_seconds(target.pid) - before) / seconds


def _report_shares(bench: Bench, key: str, label: str, runs: list[Load]) -> None:
    shares = [run.client_share * 100 for run in runs]
    bench.report.add(f"{key}.client", f"{label} the client's share of a core, %", shares)
    taken = [run.server_seconds / run.seconds for run in runs if run.server_seconds is not None]
    if taken:
        servers = [share * 100 for share in taken]
        bench.report.add(f"{key}.servers", f"{label} the servers' share of a core, %", servers)
