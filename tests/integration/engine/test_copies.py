"""What an agent is given is its own: nobody else sees what it changes, before and after a restart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agentsrv import App, ExecutionPlan, Step, StepContext, TaskContext
from agentsrv.client import Client
from agentsrv.settings import Settings
from agentsrv.testing import serving
from tests.support.clients import run_task

PLAN = [
    {"step_id": "source", "agent": "source", "input": {"items": [1, 2]}},
    {"step_id": "first", "agent": "taker", "depends_on": ["source"], "input": {"items": [1, 2]}},
    {"step_id": "second", "agent": "taker", "depends_on": ["first", "source"]},
]
PARAMS = {"options": {"tags": ["a"]}}


def spoil(value: Any) -> None:
    """Change all that can be changed in a JSON value."""
    if isinstance(value, dict):
        for item in value.values():
            spoil(item)
        value["spoilt"] = True
    elif isinstance(value, list):
        for item in value:
            spoil(item)
        value.append("spoilt")


def seen(step: Step, ctx: StepContext, options: Any) -> list[Any]:
    """All that the attempt is given; then all of it is changed."""
    given: list[Any] = [ctx.params, ctx.results, ctx.outputs, step.input, ctx.step.input, options]
    text = [repr(value) for value in given]
    for value in given:
        if value is not ctx.outputs:
            spoil(value)
    return text


def application(log: list[tuple[str, int, list[Any]]], gate: bool = False) -> App:
    """An app whose agents write down what they are given, and spoil it."""
    app = App()

    @app.agent(retries=0)
    async def source(step: Step, ctx: StepContext, options: Any = None) -> Any:
        log.append((ctx.step_key.rpartition("/")[2], ctx.attempt, seen(step, ctx, options)))
        return {"items": ({"n": 1}, (2, 3))}

    @app.agent(retries=1, retry_base=0)
    async def taker(step: Step, ctx: StepContext, options: Any = None) -> str:
        name = ctx.step_key.rpartition("/")[2]
        log.append((name, ctx.attempt, seen(step, ctx, options)))
        if gate and name == "second":
            async for _ in ctx.messages():
                break
        if ctx.attempt == 1 and name == "first":
            raise ValueError("again")
        return name

    return app


async def run(client: Client) -> str:
    """The final output of a task of the plan."""
    result = await run_task(client, "x", plan={"steps": PLAN}, params=PARAMS)
    return result.final_output


async def test_steps_and_attempts_do_not_see_each_others_changes():
    """Params, results, inputs and arguments are decoded anew for each attempt."""
    log: list[tuple[str, int, list[Any]]] = []
    async with serving(application(log)) as client:
        assert await run(client) == "second"
    assert [(name, attempt) for name, attempt, _ in log] == [
        ("source", 1),
        ("first", 1),
        ("first", 2),
        ("second", 1),
    ]
    assert log[1][2] == log[2][2]
    results = "{'items': [{'n': 1}, [2, 3]]}"
    assert log[1][2][:2] == ["{'options': {'tags': ['a']}}", f"{{'source': {results}}}"]
    assert log[3][2][1] == f"{{'first': 'first', 'source': {results}}}"
    assert all("spoilt" not in text for _, _, given in log for text in given)


async def test_a_restart_changes_nothing_that_a_step_is_given(tmp_path: Path):
    """A tuple is a list before and after; the same attempt is given the same."""
    settings = Settings(port=0, store=f"sqlite:///{tmp_path / 'log.db'}", drain_timeout=0.1)
    before: list[tuple[str, int, list[Any]]] = []
    async with (
        application(before, gate=True).running(settings) as running,
        Client(running.url) as client,
    ):
        task = await client.start("x", plan={"steps": PLAN}, params=PARAMS)
        async for record in task.events():
            if record.event_type == "step_started" and record.data["step_id"] == "second":
                break
    after: list[tuple[str, int, list[Any]]] = []
    async with (
        application(after, gate=True).running(settings) as running,
        Client(running.url) as client,
    ):
        resumed = client.task(task.id)
        await resumed.send("go on")
        async for _ in resumed.events():
            pass
    assert {name for name, _, _ in after} == {"second"}  # once, or again if its claim was fenced
    assert all(given == before[-1][2] for _, _, given in after)


async def test_messages_and_answers_are_each_readers_own():
    """Two steps read the same message; both change it."""
    app = App()
    texts = []

    @app.agent
    async def reader(step: Step, ctx: StepContext) -> None:
        async for message in ctx.messages():
            texts.append(repr(message))
            spoil(message)
            break
        answer = await ctx.ask("What?", {"type": "object"}, key="a")
        again = await ctx.ask("What?", {"type": "object"}, key="a")
        spoil(answer)
        texts.append(repr(again))

    steps = [{"step_id": name, "agent": "reader"} for name in ("a", "b")]
    pytest.importorskip("jsonschema_rs")
    async with serving(app) as client:
        task = await client.start("x", plan={"steps": steps})
        await task.send({"items": [1]})
        async for record in task.events():
            if record.event_type == "input_required":
                await task.respond(record.data["input_id"], {"items": [1]})
    assert texts == ["{'items': [1]}"] * 4


async def test_a_planner_cannot_change_its_plan_later():
    """Its inputs are taken in the log's form when it returns; its params are its own."""
    app = App()
    kept: dict[str, Any] = {"items": [1]}
    found: list[Mapping[str, Any]] = []

    @app.planner
    async def plan(task_description: str, ctx: TaskContext) -> ExecutionPlan:
        spoil(ctx.params)
        return ExecutionPlan(steps=(Step(step_id="a", agent="agent", input=kept),))

    @app.agent
    async def agent(step: Step, ctx: StepContext, options: Any = None) -> None:
        spoil(kept)
        found.append(step.input)  # type: ignore[arg-type]
        found.append(ctx.params)

    async with serving(app) as client:
        await run_task(client, "x", params=PARAMS)
    assert found == [{"items": [1]}, PARAMS]


def test_nothing_is_decoded_before_it_is_read():
    """A context costs the same however much is in it."""
    read = []

    def source() -> dict[str, Any]:
        read.append(1)
        return {"a": [1]}

    async def never(*_: Any, **__: Any) -> Any:
        raise AssertionError

    ctx = StepContext(
        task_id="t",
        task_description="x",
        params={},
        principal="p",
        searcher=never,
        attempt=1,
        step_key="t/s",
        outputs={},
        results=source,  # type: ignore[arg-type]
        reporter=never,
        asker=never,
        mailbox=never,
    )
    assert read == []
    assert ctx.results["a"] is ctx.results["a"]
    assert read == [1]
