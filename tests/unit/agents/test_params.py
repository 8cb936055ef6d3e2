from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

from agentsrv import Step, StepContext, TaskContext
from agentsrv.agents.agent import PLANNER_SLOTS, SLOTS
from agentsrv.agents.params import MAX_ERRORS, Parameters
from agentsrv.errors import ConfigurationError


async def agent(step, ctx, times: Annotated[int, Field(le=3)], word: str = "yes"):
    """Take two parameters."""


@pytest.fixture
def parameters():
    """Those of the function above."""
    return Parameters.of(agent, "agent 'agent'", SLOTS)


def test_only_what_a_function_names_is_handed_to_it(parameters):
    """Other params are another's; one with a default may be missing."""
    assert parameters.names == ("times", "word")
    assert parameters.arguments({"times": 2, "mood": "good"}) == {"times": 2, "word": "yes"}


def test_a_wrong_value_and_a_missing_one_are_complaints(parameters):
    """Each names its place."""
    assert parameters.complaints({"times": 1}) == []
    assert [complaint["loc"] for complaint in parameters.complaints({})] == [("times",)]
    assert [complaint["loc"] for complaint in parameters.complaints({"times": 4, "word": 1})] == [
        ("times",),
        ("word",),
    ]


def test_positional_parameters_without_a_name_are_refused():
    """The error says which, and of what."""
    with pytest.raises(ConfigurationError, match=r"the planner takes \*rest"):
        Parameters.of(lambda task, ctx, *rest: None, "the planner", PLANNER_SLOTS)


@pytest.mark.parametrize(
    "value",
    [
        [{}] * 19_000,
        [{"a": 1, "b": 1}] * 19_000 + [1],
        {f"k{number}": "x" for number in range(19_000)},
        {f"k{number}": number for number in range(MAX_ERRORS + 1)},
    ],
)
def test_few_errors_of_a_large_value_are_described(value):
    """Lists stop at their first invalid element; many unknown members are counted."""

    class Item(BaseModel):
        """Takes no other members."""

        model_config = ConfigDict(extra="forbid")
        a: int
        b: int

    async def lists(step, ctx, items: list[Item] | Item):
        """Take either."""

    parameters = Parameters.of(lists, "agent 'lists'", SLOTS)
    complaints = parameters.complaints({"items": value})
    assert 0 < len(complaints) <= MAX_ERRORS
    assert all(complaint["loc"][0] == "items" for complaint in complaints)


async def by_annotation(text: str, work: Step, *, it: StepContext | None = None):
    """Take both by annotation, under other names."""
    return text, work, it


async def by_name(ctx, n: int, step):
    """Take both by name, without annotations."""
    return n, step, ctx


async def by_loose_name(step: Any, ctx: Annotated[StepContext, "mine"]):
    """Have other annotations that mean the same."""
    return step, ctx


async def nothing(n: int = 1):
    """Take neither."""
    return n


def unevaluated():
    """A function whose annotations exist for type checkers only."""

    async def run(s, ctx, n: int):
        return s, ctx, n

    run.__annotations__ |= {"s": "nowhere.Step", "ctx": "nowhere.StepContext | None"}
    return run


@pytest.mark.parametrize(
    ("function", "params", "found"),
    [
        (by_annotation, {"text": "a"}, ("a", "STEP", "CTX")),
        (by_name, {"n": 2}, (2, "STEP", "CTX")),
        (by_loose_name, {}, ("STEP", "CTX")),
        (nothing, {"n": 3}, 3),
        (unevaluated(), {"n": 4}, ("STEP", "CTX", 4)),
    ],
)
async def test_the_step_and_the_context_are_injected(function, params, found):
    """By annotation or by name, in any place; everything else is a param."""
    read = Parameters.of(function, "agent 'it'", SLOTS)
    assert read.names == tuple(params)
    assert await read.adapted(function)("STEP", "CTX", **read.arguments(params)) == found


def test_an_unannotated_parameter_of_another_name_is_a_param():
    """Wherever it is."""

    async def agent(first, second):
        """Take two params."""

    assert Parameters.of(agent, "agent 'it'", SLOTS).names == ("first", "second")


def test_a_planner_takes_the_task_and_the_context():
    """By name, and by annotation; in any order, or not at all."""

    async def plan(depth: int, it: TaskContext, task_description: str):
        return depth, it, task_description

    async def least():
        """Take nothing."""

    read = Parameters.of(plan, "the planner", PLANNER_SLOTS)
    assert read.names == ("depth",)
    assert Parameters.of(least, "the planner", PLANNER_SLOTS).names == ()


async def a_step(step: int):
    """Take a param of a reserved name."""


async def a_ctx(ctx: dict[str, str]):
    """Take another one."""


async def twice(ctx, context: StepContext):
    """Take the context twice."""


async def of_an_agent(task_description: str, ctx: StepContext):
    """Plan with the context of an agent."""


@pytest.mark.parametrize(
    ("function", "slots", "message"),
    [
        (a_step, SLOTS, r"parameter 'step': found .*int.*; expected Step or none, or another name"),
        (a_ctx, SLOTS, r"parameter 'ctx': found .*dict\[str, str\]; expected StepContext or none"),
        (twice, SLOTS, "two parameters, 'ctx' and 'context', for the same object; expected one"),
        (of_an_agent, PLANNER_SLOTS, "'ctx': found .*StepContext.*; expected TaskContext or none"),
    ],
)
def test_a_parameter_that_may_be_meant_otherwise_is_refused(function, slots, message):
    """At the registration, with what to write."""
    with pytest.raises(ConfigurationError, match=message):
        Parameters.of(function, "agent 'it'", slots)


async def test_a_param_may_have_a_reserved_name():
    """By an alias."""

    async def walk(size: Annotated[int, Field(alias="step")]):
        return size

    read = Parameters.of(walk, "agent 'it'", SLOTS)
    assert read.names == ("step",)
    assert await read.adapted(walk)("STEP", "CTX", **read.arguments({"step": 3})) == 3
