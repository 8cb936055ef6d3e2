"""Three nodes behind nginx, of which one after the other is killed or stopped, under load."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter

import pytest

from agentsrv.client import Client
from tests.faults.conftest import Ledger
from tests.faults.nodes import NAMES, Cluster, Load, wait

pytestmark = pytest.mark.faults
STOPPED = 13.0  # seconds: longer than a lease


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kills", "stops"), [(4, 1), pytest.param(100, 30, marks=pytest.mark.soak)]
)
@pytest.mark.timeout(3600)
async def test_random_nodes_are_killed_and_stopped(
    cluster: Cluster, url: str, ledger: Ledger, kills: int, stops: int
) -> None:
    """Who follows through the proxy is told each event once; each task ends, and ends once."""
    chance, harmed = random.Random(kills), Counter[str]()
    faults = ["kill -9"] * kills + ["SIGSTOP"] * stops
    chance.shuffle(faults)
    at: list[float] = []
    async with Client(url) as client:
        load = Load(client)
        async with load.running():
            for fault in faults:
                await asyncio.sleep(chance.uniform(0.5, 3))
                node = cluster.nodes[chance.choice(NAMES)]
                at.append(time.time())
                harmed[fault] += 1
                if fault == "kill -9":
                    await asyncio.to_thread(node.kill)
                    await asyncio.to_thread(node.start)
                else:
                    os.kill(node.pid, signal.SIGSTOP)
                    await asyncio.sleep(STOPPED)
                    os.kill(node.pid, signal.SIGCONT)
    waits = [wait(at, record) for record in load.recoveries()]
    assert waits
    ledger.record(
        "P1, P2, P3, P4, P5",
        faults=harmed,
        checked={
            "tasks": len(load.told),
            "events": load.events,
            "recoveries": len(waits),
            "s until a task runs again, at most": max(waits),
        },
        violations=load.violations,
    )
