"""Three nodes behind nginx, of which one after the other is killed or stopped, under load."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from agentsrv.client import Client
from agentsrv.models.events import Record, parse_timestamp
from examples.cluster.local import nginx
from tests.faults.conftest import Ledger
from tests.faults.nodes import Cluster, chain, execute, made_cluster, told
from tests.orchestrator.world import check_log
from tests.postgres import QUICK, postgres

pytestmark = pytest.mark.faults
NAMES = ("a", "b", "c")
AT_ONCE = 6  # tasks
STOPPED = 13.0  # seconds: longer than a lease


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    """Three nodes above a database of their own."""
    with postgres(*QUICK) as server:
        async with made_cluster(server, tmp_path) as cluster:
            cluster.start(*NAMES)
            yield cluster


@pytest.mark.parametrize("faults", [6, pytest.param(100, marks=pytest.mark.soak)])
@pytest.mark.timeout(3600)
async def test_random_nodes_are_killed_and_stopped(
    cluster: Cluster, ledger: Ledger, tmp_path: Path, faults: int
) -> None:
    """Who follows through the proxy is told each event once; each task ends, and ends once."""
    chance, harmed, done = random.Random(faults), Counter[str](), asyncio.Event()
    at: list[float] = []
    ports = [cluster.nodes[name].port for name in NAMES]
    async with nginx(tmp_path, ports) as port, Client(f"ws://127.0.0.1:{port}") as client:
        logs: list[Sequence[Record]] = []
        violations = 0

        async def work() -> None:
            nonlocal violations
            while not done.is_set():
                task = await execute(client, plan=chain(3), words=25)
                seen = await told(client, task)
                violations += is_wrong(seen)
                logs.append(seen)

        working = [asyncio.create_task(work()) for _ in range(AT_ONCE)]
        for _ in range(faults):
            await asyncio.sleep(chance.uniform(0.5, 3))
            node = cluster.nodes[chance.choice(NAMES)]
            at.append(time.time())
            if chance.random() < 0.75:
                harmed["kill -9"] += 1
                await asyncio.to_thread(node.kill)
                await asyncio.to_thread(node.start)
            else:
                harmed["SIGSTOP"] += 1
                os.kill(node.pid, signal.SIGSTOP)
                await asyncio.sleep(STOPPED)
                os.kill(node.pid, signal.SIGCONT)
        done.set()
        await asyncio.gather(*working)
    waits = [wait(at, record) for log in logs for record in log if is_recovery(record)]
    assert waits
    ledger.record(
        "P1, P2, P3, P4, P5",
        faults=harmed,
        checked={
            "tasks": len(logs),
            "events": sum(map(len, logs)),
            "recoveries": len(waits),
            "s until a task runs again, at most": max(waits),
        },
        violations=violations,
    )


def is_recovery(record: Record) -> bool:
    """Whether a task goes on somewhere."""
    return record.event_type == "task_recovered"


def wait(at: Sequence[float], record: Record) -> float:
    """Seconds from the event's last fault on."""
    when = parse_timestamp(record.timestamp)
    return min(when - each for each in at if each < when)


def is_wrong(log: Sequence[Record]) -> bool:
    """Whether a task was not told as it should be."""
    try:
        check_log(log)
    except AssertionError:
        return True
    completed = Counter(r.data["step_id"] for r in log if r.event_type == "step_completed")
    return log[-1].event_type != "task_completed" or completed != Counter(["s0", "s1", "s2"])
