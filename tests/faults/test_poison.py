"""An agent that ends the server's process fails its own task, and no other.

Under a supervisor that starts the server again, the poison task fails after five crashes that only it
can have caused, its message says so, and all tasks beside it complete: on one node, and on three
that share a database.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from agentsrv.client import Client
from agentsrv.engine.crash_suspects import MAX_LOSSES, SUSPECT_LOSSES
from agentsrv.models.events import Record
from agentsrv.models.plan import ExecutionPlan
from examples.cluster.local import nginx
from tests.faults.conftest import Ledger
from tests.faults.nodes import NAMES, chain, made_cluster
from tests.faults.streaming import PATIENT
from tests.faults.supervisor import supervised, watched
from tests.support.postgres import QUICK, postgres
from tests.support.programs import require
from tests.support.server_process import ServerProcess

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

APP = "tests.faults.poison_app:app"
HARMLESS = ["sleeping", "streaming", "asking", "asking_twice", "threaded", "processed"]
QUESTIONS = {"asking": 1, "asking_twice": 2}
POISON = [
    "first_line",
    "after_an_await",
    "while_streaming",
    "by_a_signal",
    "in_c",
    "in_a_thread",
    "in_its_params",
    "beside_a_question",
    "in_a_side_task",
    "by_cancelling_all_tasks",
    "by_closing_all_generators",
]
PLAN: ExecutionPlan = chain(10, "short")
MOST_CRASHES = MAX_LOSSES + 2  # text that was not committed before may count as progress once more


class Tasks:
    """Harmless tasks of all kinds, of each ``count``, and a poison task."""

    def __init__(self, client: Client, count: int) -> None:
        self._client = client
        self._count = count
        self._logs: list[asyncio.Task[list[Record]]] = []
        self._asking: list[str] = []

    async def begin(self) -> None:
        """Execute the harmless tasks."""
        kinds: list[dict[str, Any]] = [{"agent": name} for name in HARMLESS]
        kinds.append({"plan": PLAN.model_dump(mode="json")})
        for _ in range(self._count):
            for kind in kinds:
                task = (await self._client.start("x", **kind)).id
                self._logs.append(asyncio.create_task(self.log(task)))
                count = QUESTIONS.get(kind.get("agent", ""), 0)
                self._asking += [f"{task}/step_001/{number + 1}" for number in range(count)]

    async def poison(self, agent: str) -> list[Record]:
        """Execute the poison task; return its log when it has ended."""
        params: dict[str, Any] = {"number": 13} if agent == "in_its_params" else {}
        task = (await self._client.create("x", agent=agent, params=params)).id
        await self._client.task(task).execute()
        return await self.log(task)

    async def finish(self) -> list[list[Record]]:
        """The logs of the harmless tasks, whose questions are answered now."""
        for question in self._asking:
            await self._client.task(question.partition("/")[0]).respond(question, value=True)
        return [await log for log in self._logs]

    async def log(self, task: str) -> list[Record]:
        """A task's whole log."""
        return [record async for record in self._client.task(task).events()]


def check_poison(log: list[Record]) -> None:
    """It fails at its fifth loss, and is told why and what to do."""
    losses = [record.data for record in log if record.event_type == "step_lost"]
    assert log[-1].event_type == "task_failed"
    assert log[-1].data["failed_step"] == "step_001"
    assert 'isolation="process"' in log[-1].data["error_message"]
    assert losses[-1]["losses"] == MAX_LOSSES
    assert all(each["suspected"] is (each["losses"] >= SUSPECT_LOSSES) for each in losses)


def keep(ledger: Ledger, crashes: int, logs: list[list[Record]]) -> None:
    """Write down what came of the harmless tasks."""
    ledger.record(
        "P10",
        faults={"crashes by an agent": crashes},
        checked={"tasks beside it": len(logs)},
        violations=sum(log[-1].event_type != "task_completed" for log in logs),
    )


@pytest.mark.parametrize(
    "agent", [POISON[0], *(pytest.param(name, marks=pytest.mark.slow) for name in POISON[1:])]
)
@pytest.mark.parametrize("count", [1, pytest.param(9, marks=pytest.mark.soak)])
async def test_the_poison_task_fails_and_no_other(
    agent: str, count: int, tmp_path: Path, ledger: Ledger
):
    """Whatever way it ends the process."""
    server = ServerProcess(tmp_path, APP)
    async with supervised(server) as supervisor, Client(server.url, PATIENT) as client:
        tasks = Tasks(client, count)
        await tasks.begin()
        log = await tasks.poison(agent)
        logs = await tasks.finish()
    check_poison(log)
    assert len(supervisor.ends) <= MOST_CRASHES
    keep(ledger, len(supervisor.ends), logs)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "agent", ["first_line", "after_an_await", "in_c", "beside_a_question", "in_a_side_task"]
)
async def test_the_poison_task_fails_on_many_nodes(agent: str, tmp_path: Path, ledger: Ledger):
    """It goes from node to node, and each is started again."""
    require("nginx")
    with postgres(*QUICK) as database:
        async with AsyncExitStack() as stack:
            cluster = await stack.enter_async_context(made_cluster(database, tmp_path, APP))
            await asyncio.to_thread(cluster.start, *NAMES)
            nodes = [await stack.enter_async_context(watched(cluster.nodes[n])) for n in NAMES]
            ports = [cluster.nodes[name].port for name in NAMES]
            port = await stack.enter_async_context(nginx(tmp_path, ports))
            client = await stack.enter_async_context(Client(f"ws://127.0.0.1:{port}", PATIENT))
            tasks = Tasks(client, 9)
            await tasks.begin()
            log = await tasks.poison(agent)
            logs = await tasks.finish()
            crashes = sum(len(node.ends) for node in nodes)
    check_poison(log)
    assert crashes <= MOST_CRASHES
    keep(ledger, crashes, logs)
