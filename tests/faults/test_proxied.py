"""Clients of three nodes behind nginx: the node that serves one goes, or the one that works for it."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack, suppress

import pytest

from agentsrv.client import Client
from tests.faults.conftest import Ledger
from tests.faults.nodes import (
    NAMES,
    Cluster,
    Load,
    chain,
    execute,
    first,
    measured,
    told,
)
from tests.support.server_process import ServerProcess
from tests.support.world import check_log

pytestmark = pytest.mark.faults
WORDS = 100  # of each step: two seconds


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.soak)])
@pytest.mark.timeout(900)
async def test_a_stream_outlives_the_nodes_that_it_comes_from(
    cluster: Cluster, url: str, ledger: Ledger, rounds: int
) -> None:
    """First the node that the client is connected to is killed, then the one that runs the task."""
    harmed, events = Counter[str](), 0
    for _ in range(rounds):
        async with Client(url) as client:
            connected = await serving(cluster)
            task, running = await executed_apart(cluster, connected)
            telling = asyncio.create_task(told(client, task))
            await first(client, task, "step_started")
            await asyncio.to_thread(restart, cluster.nodes[connected])
            harmed["killed while they served the client"] += 1
            await first(client, task, "step_completed")
            harmed["of them twice"] += await serving(cluster) == running
            await asyncio.to_thread(restart, cluster.nodes[running])
            harmed["killed while they ran its task"] += 1
            log = await telling
        for node in cluster.nodes.values():
            assert await asyncio.to_thread(node.wait_until_ready)
        check_log(log)
        assert log[-1].event_type == "task_completed"
        completed = [r.data["step_id"] for r in log if r.event_type == "step_completed"]
        assert completed == ["s0", "s1", "s2"]
        assert [r.event_type for r in log].count("task_recovered") == 1
        events += len(log)
    ledger.record(
        "P1, P2, P3", faults=harmed, checked={"streams": rounds, "events": events}, violations=0
    )


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [1, pytest.param(5, marks=pytest.mark.soak)])
@pytest.mark.timeout(600)
async def test_all_nodes_are_restarted_one_after_the_other(
    cluster: Cluster, url: str, ledger: Ledger, rounds: int
) -> None:
    """Clients reconnect and miss nothing; a drained node's tasks go on at once."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Client(url)) for _ in range(2 * len(NAMES))]
        greeted = {client.hello.connection_id for client in clients}
        load = Load(*clients, words=WORDS // 2)
        async with load.running():
            for _ in range(rounds):
                for name in NAMES:
                    await asyncio.sleep(1)
                    assert await asyncio.to_thread(cluster.nodes[name].stop) == 0
                    await asyncio.to_thread(cluster.nodes[name].start)
        assert {client.hello.connection_id for client in clients}.isdisjoint(greeted)
        changed = await load.differs(clients[0])
    ledger.record(
        "P8",
        faults={"nodes restarted": rounds * len(NAMES)},
        checked={
            "clients": len(clients),
            "tasks": len(load.told),
            "events": load.events,
            "moves of tasks": len(load.recoveries()),
            "s of silence, at most": load.longest_silence,
        },
        violations=load.violations + changed,
    )


async def serving(cluster: Cluster) -> str:
    """The node that the only client is connected to."""
    while True:
        for name in NAMES:
            with suppress(OSError):  # it starts just now
                if await measured(cluster.url(name), "agentsrv_connections"):
                    return name


async def executed_apart(cluster: Cluster, connected: str) -> tuple[str, str]:
    """A task that another node runs than the one given, and that node."""
    other = next(name for name in NAMES if name != connected)
    async with Client(cluster.url(other)) as client:
        while True:
            task = await execute(client, plan=chain(3), words=WORDS)
            running = (await first(client, task, "task_started")).data["node"]
            if running != connected:
                return task, running


def restart(node: ServerProcess) -> None:
    """Kill a node, and begin to start it again."""
    node.kill()
    node.launch()
