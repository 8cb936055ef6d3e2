"""An agent that ends the server's process fails its own task, and no other.

One node under a supervisor that starts it again: the culprit fails after five crashes that only it
can have caused, its message says so, and all tasks beside it complete.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agentsrv.client import Client
from agentsrv.models.events import Record
from agentsrv.models.plan import ExecutionPlan
from agentsrv.orchestrator.suspects import FAILS_AT, SUSPECT_AT
from tests.faults.conftest import Ledger
from tests.faults.process import ServerProcess
from tests.faults.streaming import PATIENT
from tests.faults.supervisor import supervised
from tests.orchestrator.world import step

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

APP = "tests.faults.poison_app:app"
INNOCENT = ["sleeping", "streaming", "asking", "threaded"]
CULPRITS = [
    "first_line",
    "after_an_await",
    "while_streaming",
    "by_a_signal",
    "in_c",
    "in_a_thread",
    "in_its_params",
]
MOST_CRASHES = FAILS_AT + 2  # text that was not committed before may count as progress once more


async def until_end(client: Client, task: str) -> list[Record]:
    """A task's whole log; its questions are answered, once the culprit is out of the way."""
    return [record async for record in client.events(task)]


@pytest.mark.parametrize("culprit", CULPRITS)
async def test_the_culprit_fails_and_nobody_else(culprit: str, tmp_path: Path, ledger: Ledger):
    """Whatever way it ends the process."""
    server = ServerProcess(tmp_path, APP)
    plan = ExecutionPlan(
        steps=tuple(step(f"s{n}", "short", *([f"s{n - 1}"] if n else [])) for n in range(10))
    ).model_dump(mode="json")
    async with supervised(server) as supervisor, Client(server.url, PATIENT) as client:
        tasks: dict[str, str] = {}
        for name in INNOCENT:
            tasks[name] = (await client.create("x", agent=name, execute=True))["task_id"]
        tasks["plan"] = (await client.create("x", plan=plan, execute=True))["task_id"]
        params: dict[str, Any] = {"number": 13} if culprit == "in_its_params" else {}
        guilty = (await client.create("x", agent=culprit, params=params))["task_id"]
        await client.execute(guilty)
        logs = {name: asyncio.create_task(until_end(client, task)) for name, task in tasks.items()}
        log = await until_end(client, guilty)
        await client.respond(f"{tasks['asking']}/step_001/1", True)
        ends = {name: (await found)[-1] for name, found in logs.items()}
    losses = [record.data for record in log if record.event_type == "step_lost"]
    assert log[-1].event_type == "task_failed"
    assert log[-1].data["failed_step"] == "step_001"
    assert 'isolation="process"' in log[-1].data["error_message"]
    assert losses[-1]["losses"] == FAILS_AT
    assert all(each["suspected"] is (each["losses"] >= SUSPECT_AT) for each in losses)
    assert len(supervisor.ends) <= MOST_CRASHES
    failed = [name for name, end in ends.items() if end.event_type != "task_completed"]
    ledger.record(
        "P10",
        faults={"crashes by an agent": len(supervisor.ends)},
        checked={"tasks beside it": len(ends)},
        violations=len(failed),
    )
