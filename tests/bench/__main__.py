"""``python -m tests.bench``: what the server costs, as ratios to a bare ``websockets`` server.

The servers take turns (A B A B …), so that a machine whose speed drifts does not favour one;
the medians of the rounds stand in the table, with the lowest and the highest beside them.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.bench import load
from tests.bench.servers import AGENT_SLEEPS, PLANNER_SLEEP

ROUNDS = 5
SERVERS = ("bare", "corked", "memory", "sqlite")
WIDTHS = {1: 200, 50: 2000, 500: 2000}  # tasks at a time: tasks in a run
SLEEPY_TASKS = 5  # in a round


@contextmanager
def server(name: str, folder: Path) -> Iterator[int]:
    """A server process; yields its port."""
    command = [sys.executable, "-m", "tests.bench.servers", name, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()


def spread(values: list[float], form: str) -> str:
    """The median, and the lowest and highest in brackets."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:{form}} [{low:{form}} .. {high:{form}}]"


def throughput(folder: Path) -> None:
    """Tasks per second of three instant steps (14 events), and the ratio to the bare server."""
    print(f"{'server':8} {'at a time':>9}  {'tasks/s':32} {'over bare':28} p50 ms")
    with ExitStack() as stack:
        ports = {name: stack.enter_context(server(name, folder)) for name in SERVERS}
        for width, total in WIDTHS.items():
            runs: dict[str, list[load.Outcome]] = {name: [] for name in SERVERS}
            for _ in range(ROUNDS):
                for name, port in ports.items():
                    runs[name].append(asyncio.run(load.run(port, width=width, total=total)))
            bare = [run.rate for run in runs["bare"]]
            for name, outcomes in runs.items():
                rates = [run.rate for run in outcomes]
                ratios = [rate / other for rate, other in zip(rates, bare, strict=True)]
                middle = statistics.median(run.median * 1000 for run in outcomes)
                print(
                    f"{name:8} {width:9}  {spread(rates, '.0f'):32} "
                    f"{spread(ratios, '.2f'):28} {middle:.2f}"
                )


def overhead(folder: Path) -> None:
    """What a task takes beyond the sleeps of its planner and agents, with SQLite."""
    sleeps = PLANNER_SLEEP + sum(AGENT_SLEEPS)
    with server("sleepy", folder) as port:
        asyncio.run(load.run(port, width=1, total=1))
        runs = [asyncio.run(load.run(port, width=1, total=SLEEPY_TASKS)) for _ in range(ROUNDS)]
    beyond = [(latency - sleeps) * 1000 for run in runs for latency in run.latencies]
    print(f"\nthree sleeping agents ({sleeps * 1000:.0f} ms in all), sqlite: ", end="")
    print(f"{spread(beyond, '.1f')} ms beyond the sleeps")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        throughput(Path(scratch))
        overhead(Path(scratch))
