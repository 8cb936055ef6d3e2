from typing import Any, Literal

import pytest
from pydantic_core import core_schema

from agentsrv import App
from agentsrv.agents.agent import Agent
from agentsrv.agents.registry import Registry
from agentsrv.errors import ConfigurationError, InvalidCommandError
from agentsrv.models.plan import ExecutionPlan, Step
from agentsrv.settings import Settings
from tests.support.agent_contexts import make_context

PLAN = ExecutionPlan(steps=(Step(step_id="a", agent="writer"),))


async def writer(step, ctx, size: int = 1):
    """Write."""


async def planner(task_description, ctx, size: Literal["s", "m"], mood: str = "good"):
    """Remember what it was handed."""
    ctx.params = {"size": size, "mood": mood}
    return PLAN


@pytest.fixture
def registry():
    """One agent and a planner, which both take a size."""
    registry = Registry()
    registry.add(Agent.of(writer))
    registry.planner = planner
    return registry


async def test_agents_that_no_reply_can_describe_are_refused():
    """At the start of the server; the error names the largest."""
    app = App()
    app.agent(writer)
    literal: Any = Literal
    many = literal[tuple(f"{number:064}" for number in range(20_000))]

    async def chooser(step, ctx, choice: many):  # type: ignore[valid-type]
        """Choose."""

    async with app.running(Settings(port=0, store="memory:")):
        pass
    app.agent(chooser)
    with pytest.raises(ConfigurationError, match=r"agent 'chooser' 1\d+; expected at most 1000000"):
        async with app.running(Settings(port=0, store="memory:")):
            pass


def test_describing_calls_nothing_of_an_author(registry):
    """A schema of the author's own is made when the agent is registered, and not for a client."""
    made = []

    class Size:
        """A type that makes its schema itself."""

        @classmethod
        def __get_pydantic_core_schema__(cls, source, handler):
            return core_schema.int_schema()

        @classmethod
        def __get_pydantic_json_schema__(cls, core, handler):
            made.append(cls)
            return {"type": "integer"}

    async def sized(step, ctx, size: Size):
        """Take a size."""

    registry.add(Agent.of(sized))
    assert made
    made.clear()
    assert registry.described()[-1]["params"]["properties"]["size"]["type"] == "integer"
    assert made == []


async def test_a_planner_is_handed_its_params(registry):
    """Those that it names, like an agent."""
    ctx = make_context("task")
    ctx.params = {"size": "m", "other": 1}
    assert await registry.ask_planner(ctx) is PLAN
    assert ctx.params == {"size": "m", "mood": "good"}


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({}, "params.size"),
        ({"size": "xl"}, "params.size"),
        ({"size": "s", "mood": 1}, "params.mood"),
    ],
)
def test_what_the_planner_cannot_take_is_refused(registry, params, field):
    """Before it is asked; a task that brings its plan does not need it."""
    with pytest.raises(InvalidCommandError, match=field):
        registry.check_params(params, None)
    if "size" not in params:
        registry.check_params(params, PLAN)


def test_a_planner_of_another_shape_is_refused(registry):
    """When it is registered."""
    with pytest.raises(ConfigurationError, match="expected an async function"):
        registry.planner = lambda task: None
