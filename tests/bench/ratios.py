"""The yardstick: agentsrv beside a bare ``websockets`` server, and beside its peers.

The servers take turns (A B A B …), so that a machine whose speed drifts does not favour one. All
run the same event loop.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from agentsrv.bench import capacity, latency, load
from agentsrv.bench.figures import Report, percentile
from agentsrv.bench.load import Load, Runner
from agentsrv.bench.sizes import Sizes
from agentsrv.bench.target import MEMORY, LocalServer, Target, started
from agentsrv.server.open_files import raise_open_file_limit
from agentsrv.settings import Loop
from tests.bench import peers, servers

T = TypeVar("T")

Stores = Mapping[str, str | None]

OWN: Stores = {
    "memory": MEMORY,
    "sqlite": None,
}  # agentsrv's stores, by what `LocalServer` is given
POSTGRES = "postgres"  # the store that needs a server of its own, so it has no address here
NAMES = ("bare", "corked", *OWN, POSTGRES, *peers.NEEDS)


@asynccontextmanager
async def server(name: str, loop: Loop = "auto", stores: Stores = OWN) -> AsyncIterator[Target]:
    """A server of ``NAMES``, or the bare one of ``tasks``."""
    if name in stores:
        place = LocalServer(stores[name], loop)
        try:
            async with place.server() as target:
                yield target
        finally:
            place.close()
        return
    script = peers.__file__ if name in peers.NEEDS else servers.__file__
    with TemporaryDirectory() as folder:
        async with started([sys.executable, script, name, loop], Path(folder)) as target:
            yield target


async def measure(report: Report, sizes: Sizes, loop: Loop = "auto", stores: Stores = OWN) -> None:
    """All rows in which another server stands beside agentsrv with each of its ``stores``."""
    present = ["bare", "corked", *stores]
    for name in peers.NEEDS:
        if lacking := peers.missing(name):
            report.note(f"{name} is left out: {', '.join(lacking)} are not installed")
        else:
            present.append(name)
    await throughput(report, sizes, present, loop, stores)
    await cancel(report, sizes, loop, stores)
    await idle(report, sizes, loop)


async def throughput(
    report: Report, sizes: Sizes, names: list[str], loop: Loop, stores: Stores
) -> None:
    """Tasks per second of 14 events, and the ratio to the bare server of the same round."""
    report.title("yardstick: tasks/s of three instant steps, 14 events of about 250 bytes")
    async with AsyncExitStack() as stack:
        targets = {
            name: await stack.enter_async_context(server(name, loop, stores)) for name in names
        }
        for name, target in targets.items():
            await _load(name, target, 10, 50)
        for width, total in sizes.widths.items():
            runs = await take_turns(
                sizes.rounds,
                {name: _loader(name, target, width, total) for name, target in targets.items()},
            )
            bare = [run.tasks_per_second for run in runs["bare"]]
            for name, found in runs.items():
                _report_load(report, f"{name}, {width} at a time:", f"{width}.{name}", found, bare)


async def cancel(report: Report, sizes: Sizes, loop: Loop, stores: Stores) -> None:
    """Cancels beside running tasks; the bare server cancels asyncio tasks, and stores nothing."""
    report.title("yardstick: cancel to the client's event")
    names = ("tasks", *stores)
    async with AsyncExitStack() as stack:
        targets = {
            name: await stack.enter_async_context(server(name, loop, stores)) for name in names
        }
        for running in sizes.running:
            rounds = await take_turns(
                sizes.rounds,
                {
                    name: _canceller(target, sizes.cancels, running)
                    for name, target in targets.items()
                },
            )
            for name, times in rounds.items():
                key, label = f"yardstick.cancel.{running}.{name}", f"{name}, {running} running:"
                report.add_spread(key, label, times)
                for share in (0.5, 0.99):
                    ratios = [
                        percentile(ours, share) / percentile(theirs, share)
                        for ours, theirs in zip(times, rounds["tasks"], strict=True)
                    ]
                    report.add(
                        f"{key}.ratio{share * 100:.0f}",
                        f"{label} p{share * 100:.0f} over tasks",
                        ratios,
                    )


async def idle(report: Report, sizes: Sizes, loop: Loop) -> None:
    """Memory of an idle connection."""
    report.title("yardstick: KiB of the server for each idle connection")
    for wanted in sizes.connections:
        count = raise_open_file_limit(wanted)
        for name in ("bare", "memory"):
            async with server(name, loop) as target:
                if target.pid is None:
                    report.note("left out: this system does not tell what a process takes")
                    return
                found = await capacity.idle_memory(target, count)
            report.add(f"yardstick.idle.{wanted}.{name}", f"{name}, {count} connections", [found])


async def take_turns(
    rounds: int, works: Mapping[str, Callable[[], Awaitable[T]]]
) -> dict[str, list[T]]:
    """Do each of the works, then each again, and so on; return what they found, by name."""
    found: dict[str, list[T]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            found[name].append(await work())
    return found


def _report_load(report: Report, label: str, key: str, runs: list[Load], bare: list[float]) -> None:
    rates = [run.tasks_per_second for run in runs]
    report.add(f"yardstick.tasks.{key}", f"{label} tasks/s", rates)
    ratios = [rate / other for rate, other in zip(rates, bare, strict=True)]
    report.add(f"yardstick.ratio.{key}", f"{label} over bare", ratios)
    report.add_spread(f"yardstick.last.{key}", f"{label} last event", [run.last for run in runs])
    shares = [run.client_share * 100 for run in runs]
    report.add(f"yardstick.client.{key}", f"{label} the client's share of a core, %", shares)
    costs = [run.server_seconds / run.tasks * 1e6 for run in runs if run.server_seconds is not None]
    if costs:
        report.add(f"yardstick.cost.{key}", f"{label} server's µs for each task", costs)


async def _load(name: str, target: Target, width: int, total: int) -> Load:
    # An HTTP connection carries one stream at a time.
    connections = width if name == "fastapi" else 1
    make = peers.RUNNERS.get(name, Runner)
    return await load.run(target, width, total, connections=connections, make=make)


def _loader(name: str, target: Target, width: int, total: int) -> Callable[[], Awaitable[Load]]:
    return lambda: _load(name, target, width, total)


def _canceller(target: Target, count: int, running: int) -> Callable[[], Awaitable[list[float]]]:
    return lambda: latency.cancels(target, count, running)
