"""Params of a step: over those of the task, validated, in the log, and in the cache's key."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agentsrv.agents.agent import StepContext, TaskContext
from agentsrv.errors import InvalidCommandError
from agentsrv.models.plan import ExecutionPlan, Step
from tests.support.simulation import simulate
from tests.support.world import World, crashed, running, step


async def translator(ctx: StepContext, language: str, tone: str = "plain") -> str:
    """Say what it is given."""
    return f"{language} {tone} {sorted(ctx.params)} {sorted(ctx.step.params)}"


async def counter(n: int = 1) -> str:
    """Say a number."""
    return str(n)


async def taker(**params: Any) -> str:
    """Take params of any name."""
    return str(sorted(params.items()))


def a_world() -> World:
    """One with these agents."""
    world = World()
    for agent in (translator, counter, taker):
        world.agent(agent)
    return world


def test_the_params_of_a_step_replace_those_of_its_task():
    """For this step; another step of the same agent has those of the task."""

    async def story() -> None:
        world = a_world()
        async with running(world):
            task = await world.create(
                step("a", "translator", params={"language": "fr", "tone": "dry"}),
                step("b", "translator", params={"tone": "dry"}),
                step("c", "translator"),
                step("d", "taker", params={"x": [1]}),
                params={"language": "de"},
            )
            end = await world.reader.until(task)
            planned = (await world.reader.until(task, "plan_created")).data["steps"]
        assert end.data["final_output"].split("\n\n") == [
            "fr dry ['language', 'tone'] ['language', 'tone']",
            "de dry ['language', 'tone'] ['tone']",
            "de plain ['language'] []",
            "[('language', 'de'), ('x', [1])]",
        ]
        assert [each.get("params") for each in planned] == [
            {"language": "fr", "tone": "dry"},
            {"tone": "dry"},
            None,
            {"x": [1]},
        ]

    simulate(story())


REFUSED = {
    "unknown": (
        [step("a", "counter"), step("b", "translator", params={"langage": "fr"})],
        {"language": "de"},
        "plan.steps.1.params.langage: unknown; did you mean language?",
    ),
    "of another agent": (
        [step("a", "counter", params={"language": "fr"}), step("b", "translator")],
        {"language": "de"},
        "plan.steps.0.params.language: unknown; the params are n",
    ),
    "invalid": (
        [step("a", "counter", params={"n": "many"})],
        {"n": 1},
        "plan.steps.0.params.n: Input should be a valid integer, unable to parse string as an integer",
    ),
    "invalid, of the task": (
        [step("a", "translator", params={"tone": "dry"})],
        {"language": 1},
        "params.language: Input should be a valid string",
    ),
    "missing": (
        [step("a", "translator", params={"language": "fr"}), step("b", "translator")],
        {},
        "params.language: Field required",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("steps", "params", "message"), REFUSED.values(), ids=REFUSED)
def test_params_that_the_agent_of_a_step_cannot_take_are_refused(steps, params, message):
    """When the task is created; the field names the step."""

    async def story() -> None:
        world = a_world()
        async with running(world):
            with pytest.raises(InvalidCommandError) as refused:
                await world.create(*steps, params=params)
        assert refused.value.message == message

    simulate(story())


def test_a_required_param_may_come_from_the_step():
    """The task need not have it."""

    async def story() -> None:
        world = a_world()
        async with running(world):
            task = await world.create(step("a", "translator", params={"language": "fr"}))
            assert (await world.reader.until(task)).event_type == "task_completed"

    simulate(story())


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"language": "fr"}, None),
        ({"langage": "fr"}, "plan.steps.0.params.langage: unknown; did you mean language?"),
        ({"language": 5}, "plan.steps.0.params.language: Input should be a valid string"),
        ({}, "params.language: Field required"),
    ],
)
def test_a_planner_sets_params_and_can_check_its_plan(params, message):
    """A plan that the server would refuse fails the task; ``check_plan`` tells it before."""
    checked = []

    async def planner(ctx: TaskContext) -> ExecutionPlan:
        plan = ExecutionPlan(steps=(step("a", "translator", params=params),))
        assert [agent["name"] for agent in ctx.agents] == ["translator", "counter", "taker"]
        try:
            ctx.check_plan(plan)
        except InvalidCommandError as error:
            checked.append(error.message)
        return plan

    async def story() -> None:
        world = a_world()
        world.registry.planner = planner
        async with running(world):
            end = await world.reader.until(await world.create())
        assert end.event_type == ("task_failed" if message else "task_completed")
        assert checked == ([message] if message else [])
        assert (message or "") in str(end.data.get("error_message"))

    simulate(story())


def test_what_an_agent_changes_in_its_params_is_its_own():
    """A later attempt has what the planner gave, whatever that has changed since."""
    plans: list[ExecutionPlan] = []

    async def changing(ctx: StepContext, x: list[int]) -> str:
        assert ctx.params == ctx.step.params == {"x": [1]}
        params: list[Any] = [ctx.params, ctx.step.params, plans[0].steps[0].params]
        for own in params:
            own["x"].append(2)
        if ctx.attempt == 1:
            raise ValueError("again")
        return "done"

    async def planner() -> ExecutionPlan:
        plans.append(ExecutionPlan(steps=(step("a", "changing", params={"x": [1]}),)))
        return plans[0]

    async def story() -> None:
        world = World()
        world.agent(changing)
        world.registry.planner = planner
        async with running(world):
            end = await world.reader.until(await world.create())
        assert end.event_type == "task_completed"

    simulate(story())


def test_a_task_goes_on_with_the_params_of_its_steps_after_a_crash():
    """They are in the log."""

    async def waits(ctx: StepContext, word: str) -> str:
        if ctx.attempt == 1:
            await asyncio.Event().wait()
        return word

    async def story() -> None:
        world = World()
        world.agent(waits)
        async with running(world):
            task = await world.create(step("a", "waits", params={"word": "kept"}))
            after = await crashed(world, task, "step_started")
        async with running(after):
            await after.subscribe(task)
            assert (await after.reader.until(task)).data["final_output"] == "kept"

    simulate(story())


def test_a_plan_with_large_params_is_refused():
    """They count as its inputs do."""

    async def story() -> None:
        world = a_world()
        async with running(world):
            with pytest.raises(InvalidCommandError, match="expected at most 500000"):
                await world.create(step("a", "taker", params={"x": "x" * 500_001}))

    simulate(story())


def test_a_step_without_params_says_nothing_of_them():
    """A plan from before them reads the same."""
    plan = ExecutionPlan(steps=(Step(step_id="a", agent="counter"),))
    assert "params" not in plan.described(lambda _: 3)[0]
