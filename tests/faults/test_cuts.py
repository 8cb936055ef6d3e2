"""Three nodes of which one after the other is cut off from the database, without a word."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path

import pytest

from agentsrv.client import Client
from agentsrv.models.events import Record
from tests.faults.apart import network
from tests.faults.conftest import Ledger
from tests.faults.nodes import (
    NAMES,
    Load,
    chain,
    execute,
    first,
    made_cluster,
    measured,
    told,
    wait,
)
from tests.support.postgres import QUICK, postgres
from tests.support.world import check_log

pytestmark = [pytest.mark.faults, pytest.mark.alone]
SHORT = (1.0, 4.0)  # seconds: a lease can be renewed in time
LONG = (13.0, 15.0)  # seconds: it is over by everybody's clock, and others have taken the tasks
HELD = 600  # words: a step that runs still when its node has to give it up
REFUSED = "agentsrv_late_writes_refused_total"


@pytest.mark.parametrize("cuts", [1, pytest.param(20, marks=pytest.mark.soak)])
@pytest.mark.timeout(1800)
async def test_a_node_is_cut_off(ledger: Ledger, tmp_path: Path, cuts: int) -> None:
    """It gives its tasks up before others take them, by its own clock, and writes nothing late."""
    chance, harmed = random.Random(cuts), Counter[str]()
    at = list[float]()
    async with AsyncExitStack() as stack:
        apart = stack.enter_context(network())
        host = apart.place(len(NAMES))
        server = stack.enter_context(postgres(*QUICK, host=host, within=apart.within))
        cluster = await stack.enter_async_context(made_cluster(server, tmp_path))
        places = {name: apart.place(number) for number, name in enumerate(NAMES)}
        for name, place in places.items():
            cluster.launch(name, f"--store={cluster.dsn.replace(host, place)}")
        for name in NAMES:
            assert cluster.nodes[name].wait_until_ready()
        clients = [await stack.enter_async_context(Client(cluster.url(name))) for name in NAMES]
        greetings = [client.hello for client in clients]
        load = Load(*clients, agent="clinger")
        held = list[asyncio.Task[list[Record]]]()
        async with load.running():
            for number in range(cuts):
                await asyncio.sleep(chance.uniform(1, 3))
                if number % 2:
                    harmed["cuts shorter than a lease"] += 1
                    name, seconds = chance.choice(NAMES), chance.uniform(*SHORT)
                else:
                    harmed["cuts longer than a lease"] += 1
                    client = chance.choice(clients)
                    task = await execute(client, plan=chain(1, "clinger"), words=HELD)
                    held.append(asyncio.create_task(told(client, task)))
                    name = (await first(client, task, "task_started")).data["node"]
                    seconds = chance.uniform(*LONG)
                at.append(time.time())
                await asyncio.to_thread(apart.cut, places[name])
                await asyncio.sleep(seconds)
                await asyncio.to_thread(apart.heal, places[name])
        waits = [wait(at, record) for record in load.recoveries()]
        for log in await asyncio.gather(*held):
            check_log(log)
            assert log[-1].event_type == "task_completed"
            waits += [wait(at, record) for record in log if record.event_type == "task_recovered"]
        assert [client.hello for client in clients] == greetings
        changed = await load.differs(chance.choice(clients))
        refused = sum([await measured(cluster.url(name), REFUSED) for name in NAMES])
    logs = "".join(node.log.read_text() for node in cluster.nodes.values())
    assert logs.count("lost its lease: it could not be renewed") >= len(held)
    attempts = runs(cluster.trace)
    again = [pair for each in attempts.values() for pair in pairwise(each)]
    assert len(again) >= len(held)
    assert refused >= len(held)
    ledger.record(
        "P1, P2, P3, P4, P5",
        faults=harmed,
        checked={
            "tasks": len(load.told),
            "events": load.events,
            "attempts that another followed": len(again),
            "s from the end of one to the other, at least": min(b[0] - a[1] for a, b in again),
            "late writes refused": refused,
            "recoveries": len(waits),
            "s until a task runs again, at most": max(waits),
        },
        violations=load.violations + changed + sum(b[0] < a[1] for a, b in again),
    )


def runs(trace: Path) -> Mapping[str, Sequence[tuple[float, float]]]:
    """When each step ran, from when until when, in their order."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in trace.read_text().splitlines():
        key, begun, ended = line.split()
        found.setdefault(key, []).append((float(begun), float(ended)))
    return {key: sorted(each) for key, each in found.items()}
