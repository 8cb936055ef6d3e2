"""Ends of the server that no task causes: no task is counted a loss, and none fails."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from agentsrv.client import Client
from agentsrv.models.events import Record
from tests.faults.conftest import Ledger
from tests.faults.nodes import chain
from tests.faults.nursery import ForkedServer, Nursery
from tests.faults.streaming import PATIENT
from tests.faults.test_poison import APP, Tasks
from tests.support.server_process import ServerProcess, free_port

pytestmark = pytest.mark.faults
MOST_LOSSES = 2  # without progress: the step that runs when the server is killed may begin again


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """Where the servers of these tests come from."""
    with Nursery() as nursery:
        yield nursery


@pytest.mark.parametrize(
    "steps", [8, pytest.param(100, marks=[pytest.mark.soak, pytest.mark.timeout(900)])]
)
async def test_a_plan_that_progresses_lives_through_any_number_of_kills(
    steps: int, tmp_path: Path, nursery: Nursery, ledger: Ledger
) -> None:
    """A kill -9 after each of its steps, or after some of them where the machine is busy."""
    port, kills = free_port(), 1
    log: list[Record] = []
    news = asyncio.Event()

    async def follow(client: Client, task: str) -> None:
        async for record in client.task(task).events():
            log.append(record)
            news.set()

    def done() -> int:
        return sum(record.event_type == "step_completed" for record in log)

    async def until(count: int) -> None:
        async with asyncio.timeout(60):
            while done() < count:
                news.clear()
                await news.wait()

    with ExitStack() as first:
        server = first.enter_context(ForkedServer(nursery, tmp_path, APP, port=port))
        assert server.wait_until_ready()
        async with Client(server.url, PATIENT) as client:
            plan = chain(steps, "short").model_dump(mode="json")
            task = (await client.start("x", plan=plan)).id
            following = asyncio.create_task(follow(client, task))
            await until(1)
            first.close()
            while (count := done()) < steps:
                kills += 1
                with ForkedServer(nursery, tmp_path, APP, port=port):
                    await until(count + 1)  # a server that is killed sooner may have made none
            with ForkedServer(nursery, tmp_path, APP, port=port):
                await following
    losses = [record.data for record in log if record.event_type == "step_lost"]
    ledger.record(
        "P10",
        faults={"kill -9": kills},
        checked={"losses": len(losses), "steps": done()},
        violations=(log[-1].event_type != "task_completed")
        + sum(loss["losses"] > MOST_LOSSES for loss in losses),
    )


@pytest.mark.parametrize(
    "stops", [3, pytest.param(20, marks=[pytest.mark.soak, pytest.mark.timeout(600)])]
)
async def test_orderly_stops_are_no_loss(stops: int, tmp_path: Path, ledger: Ledger) -> None:
    """Also of work that the server does not wait for, such as threads."""
    server = ServerProcess(tmp_path, APP, "--drain-timeout=0.1", "--cancel-grace=0.1")
    chance = random.Random(stops)
    await asyncio.to_thread(server.start)
    async with Client(server.url, PATIENT) as client:
        tasks = Tasks(client, 2)
        await tasks.begin()
        for _ in range(stops):
            await asyncio.sleep(chance.uniform(0, 0.3))  # in whatever they are doing
            assert await asyncio.to_thread(server.stop) == 0
            await asyncio.to_thread(server.start)
        logs = await tasks.finish()
    await asyncio.to_thread(server.kill)
    lost = sum(record.event_type == "step_lost" for log in logs for record in log)
    failed = sum(log[-1].event_type != "task_completed" for log in logs)
    ledger.record(
        "P8, P10",
        faults={"orderly stops": stops},
        checked={"tasks": len(logs)},
        violations=lost + failed,
    )
