"""An agent cannot hurt the server, and a cancel is quick however many others run."""

from __future__ import annotations

import asyncio
import statistics
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from agentsrv.client import Client, Record, TaskFailedError
from tests.faults.conftest import Ledger
from tests.faults.rogue_app import KINDS, TRACE
from tests.support.clients import run_task
from tests.support.server_process import ServerProcess

pytestmark = pytest.mark.faults
EXITS = ("SystemExit", "KeyboardInterrupt")  # which leave an event loop
ROGUES: list[tuple[str | None, dict[str, Any], str]] = [
    *(("raiser", {"error": error}, "do it") for error in KINDS),
    *(("liar", {"kind": kind}, "do it") for kind in ("nan", "huge", "cycle", "coroutine")),
    *((agent, {"error": error}, "do it") for agent in ("parent", "group") for error in EXITS),
    ("endless", {}, "do it"),
    ("mumbler", {}, "do it"),
    ("diver", {}, "do it"),
    *((None, {}, error) for error in KINDS),
    (None, {}, "cycle"),
    (None, {}, "nobody"),
]


@pytest.mark.slow
async def test_rogue_agents_fail_their_tasks_only(tmp_path: Path, ledger: Ledger) -> None:
    """Each of them fails with a message, and a task beside and behind each completes."""
    server = ServerProcess(tmp_path, "tests.faults.rogue_app:app")
    server.start()
    violations = 0
    try:
        async with Client(server.url) as client:
            for agent, params, text in ROGUES:
                beside = asyncio.create_task(run_task(client, "x", agent="good"))
                try:
                    await run_task(client, text, agent=agent, params=params)
                    violations += 1
                except TaskFailedError as failed:
                    violations += not failed.message
                violations += (await beside).final_output != "good"
            assert (await run_task(client, "x", agent="orphaner")).final_output == "left"
            for error in EXITS:
                run = await run_task(client, "x", agent="careless", params={"error": error})
                assert run.final_output == "careless"
            assert (await run_task(client, "x", agent="stopper")).final_output == "stopped"
            assert (await run_task(client, "x", agent="blocker")).final_output == "slept"
            assert (await run_task(client, "x", agent="good")).final_output == "good"
    finally:
        status = await asyncio.to_thread(server.stop)
    log = server.log.read_text()
    assert "the event loop is blocked" in log
    assert "in blocker" in log
    assert "code in this process raised SystemExit" in log
    assert "code in this process stopped the event loop" in log
    violations += status != 0
    ledger.record(
        "P10",
        faults={"rogue agents": len(ROGUES) + 3 + len(EXITS)},
        checked={"tasks beside them": len(ROGUES) + 1},
        violations=violations,
    )


@pytest.mark.parametrize(
    ("running", "cancels"),
    [
        (1, 20),
        (200, 50),
        pytest.param(1000, 200, marks=pytest.mark.soak),
        pytest.param(200, 200, marks=pytest.mark.soak),
    ],
)
async def test_cancel_is_quick(running: int, cancels: int, tmp_path: Path, ledger: Ledger) -> None:
    """From the command to CancelledError in the agent and to the client's event, p50 and p99."""
    trace = tmp_path / "trace"
    server = ServerProcess(
        tmp_path, "tests.faults.rogue_app:app", "--concurrency=2000", "--queue-limit=2000",
        environment={TRACE: str(trace)},
    )  # fmt: skip
    server.start()
    asked: dict[str, float] = {}
    told: dict[str, float] = {}
    violations = 0
    try:
        async with Client(server.url) as client:
            tasks = [await begin(client) for _ in range(running)]
            for _ in range(cancels):
                task = tasks.pop(0)
                asked[task] = time.monotonic()
                await client.task(task).cancel()
                last = [record async for record in client.task(task).events()][-1]
                told[task] = time.monotonic()
                violations += not is_clean(last)
                tasks.append(await begin(client))
    finally:
        await asyncio.to_thread(server.kill)
    reached = dict(line.split() for line in trace.read_text().splitlines())
    coroutine = [float(reached[task]) - asked[task] for task in asked if task in reached]
    violations += len(asked) - len(coroutine)
    event = [told[task] - asked[task] for task in asked]
    ledger.record(
        "P6",
        faults={"cancels": cancels, "running": running},
        checked={
            "to the coroutine p50 ms": milliseconds(coroutine, 0.5),
            "p99 ms": milliseconds(coroutine, 0.99),
            "to the client's event p50 ms": milliseconds(event, 0.5),
            "p99  ms": milliseconds(event, 0.99),
        },
        violations=violations,
    )


@pytest.mark.parametrize("processes", [3, pytest.param(30, marks=pytest.mark.soak)])
async def test_processes_that_do_not_stop_are_killed(
    processes: int, tmp_path: Path, ledger: Ledger
) -> None:
    """An endless loop in a process of its own is gone when its task is cancelled."""
    server = ServerProcess(tmp_path, "tests.faults.rogue_app:app")
    pids = tmp_path / "pids"
    pids.mkdir()
    server.start()
    violations, slowest = 0, 0.0
    try:
        async with Client(server.url) as client:
            for _ in range(processes):
                params = {"trace": str(pids)}
                created = await client.start("x", agent="spinner", params=params)
                file = pids / created.id
                while not (file.exists() and file.read_text()):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                asked = time.monotonic()
                await created.cancel()
                last = [record async for record in created.events()][-1]
                slowest = max(slowest, time.monotonic() - asked)
                violations += not is_clean(last)
                violations += Path(f"/proc/{file.read_text()}").exists()  # noqa: ASYNC240
    finally:
        violations += await asyncio.to_thread(server.stop) != 0
    ledger.record(
        "P6",
        faults={"endless processes": processes},
        checked={"slowest end ms": round(slowest * 1000, 1)},
        violations=violations,
    )


async def begin(client: Client) -> str:
    """Start a task that waits, and see that it does."""
    task = (await client.start("x", agent="waiter")).id
    async with aclosing(client.task(task).events()) as events:
        async for record in events:
            if record.event_type == "step_started":
                break
    return task


def is_clean(last: Record) -> bool:
    """Whether the task ended as cancelled, with nothing left running."""
    return last.event_type == "task_cancelled" and last.data["stopped"] is True


def milliseconds(seconds: list[float], quantile: float) -> float:
    """A quantile of durations, in milliseconds."""
    if len(seconds) < 2:
        return round(1000 * seconds[0], 2)
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return round(1000 * cuts[round(quantile * 100) - 1], 2)
