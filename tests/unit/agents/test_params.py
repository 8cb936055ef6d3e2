from typing import Annotated

import pytest
from pydantic import BaseModel, ConfigDict, Field

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
