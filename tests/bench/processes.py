"""Processes of agents beside the standard library's: ``python -m tests.bench.processes``.

Each way calls a function that returns at once: the first call (with the start of whatever it
needs), later ones (the median of the last fifty of a hundred), and twenty at once. Only agentsrv's processes and those of multiprocessing
are fresh for each call; the workers of ``ProcessPoolExecutor`` keep the state of earlier calls.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

from agentsrv.agents.isolation.process_function import ProcessFunction, ProcessPool, ReturnLimits
from agentsrv.models.plan import Step
from tests.support.agent_contexts import make_context

Call = Callable[[], Awaitable[object]]
Way = Callable[[], AbstractAsyncContextManager[Call]]


def instant(step: object = None, ctx: object = None) -> str:
    """Return at once."""
    return "done"


def rest(step: object, ctx: object) -> str:
    """Live until killed."""
    time.sleep(977)
    return "never"


def reply(connection: Connection) -> None:
    """Call the function in a process of multiprocessing."""
    connection.send(instant())


@asynccontextmanager
async def own() -> AsyncIterator[Call]:
    """agentsrv: a fresh process for each call."""
    function, step = ProcessFunction(instant), Step(step_id="step", agent="instant")
    async with ProcessPool([function], ReturnLimits(1000, 1000)) as pool:
        yield lambda: pool.call(function, step, make_context("x"))


@asynccontextmanager
async def executor() -> AsyncIterator[Call]:
    """``ProcessPoolExecutor`` with spawn: the processes are used again."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(mp_context=context) as pool:
        yield lambda: asyncio.wrap_future(pool.submit(instant))


def per_call(method: str) -> Way:
    """``multiprocessing.Process``, a fresh one for each call."""

    @asynccontextmanager
    async def way() -> AsyncIterator[Call]:
        context = multiprocessing.get_context(method)
        if method == "forkserver":
            os.environ["PYTHONWARNINGS"] = "ignore::RuntimeWarning"  # of the main module, preloaded
            context.set_forkserver_preload(["tests.bench.processes"])

        def call() -> object:
            ours, theirs = context.Pipe()
            process = context.Process(target=reply, args=(theirs,))  # type: ignore[attr-defined]
            process.start()
            theirs.close()
            value: object = ours.recv()
            process.join()
            return value

        yield lambda: asyncio.to_thread(call)

    return way


WAYS: dict[str, Way] = {
    "agentsrv": own,
    "ProcessPoolExecutor, spawn": executor,
    "Process, forkserver": per_call("forkserver"),
    "Process, spawn": per_call("spawn"),
}
SLOW = {"Process, spawn": 4, "Process, forkserver": 4}  # calls; each imports the main module


async def times(way: Way, calls: int, at_once: int) -> Sequence[float]:
    """Milliseconds of the first call, of later ones, and of many at once."""
    async with way() as call:
        taken = []
        for _ in range(calls):
            started = time.perf_counter()
            await call()
            taken.append(time.perf_counter() - started)
        started = time.perf_counter()
        await asyncio.gather(*(call() for _ in range(at_once)))
        together = time.perf_counter() - started
        return [1000 * value for value in (taken[0], median(taken[calls // 2 :]), together)]


def kib(pid: int, name: str) -> int:
    """A line of ``smaps_rollup``, or the sum of those that begin so."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(name))


async def memory(workers: int) -> Sequence[float]:
    """MiB of the fork server, and of a worker with its supervisor that no other process shares."""
    function, step = ProcessFunction(rest), Step(step_id="step", agent="rest")
    before = below(os.getpid())
    async with ProcessPool([function], ReturnLimits(1000, 1000)) as pool:
        calls = [
            asyncio.create_task(pool.call(function, step, make_context("x")))
            for _ in range(workers)
        ]
        while not (servers := below(os.getpid()) - before):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        [server] = servers
        found: list[int] = []
        while len(found) < 2 * workers:
            await asyncio.sleep(0.2)  # the last has come to the function then
            found = [each for one in below(server) for each in (one, *below(one))]
        shared, private = kib(server, "Rss"), sum(kib(pid, "Private") for pid in found)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
    return [shared / 1024, private / workers / 1024]


def below(parent: int) -> set[int]:
    """The children of a process."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            if entry.read_text().rpartition(")")[2].split()[1] == str(parent):
                found.add(int(entry.parent.name))
        except OSError:
            continue
    return found


async def report(calls: int = 100, at_once: int = 20) -> None:
    """Print all figures."""
    print(f"{'':28}{'first ms':>10}{'later ms':>10}{f'{at_once} at once ms':>16}")
    for name, way in WAYS.items():
        figures = await times(way, min(calls, SLOW.get(name, calls)), at_once)
        print(f"{name:28}{figures[0]:10.1f}{figures[1]:10.1f}{figures[2]:16.1f}")
    if sys.platform == "linux":
        server, worker = await memory(at_once)
        print(f"fork server {server:.1f} MiB; each worker and its supervisor {worker:.1f} MiB more")


if __name__ == "__main__":
    asyncio.run(report())
