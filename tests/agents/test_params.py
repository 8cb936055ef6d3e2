from typing import Annotated

import pytest
from pydantic import Field

from agentsrv.agents.params import Parameters
from agentsrv.errors import ConfigurationError


async def agent(step, ctx, times: Annotated[int, Field(le=3)], word: str = "yes"):
    """Take two parameters."""


@pytest.fixture
def parameters():
    """Those of the function above."""
    return Parameters.of(agent, "agent 'agent'", {})


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


@pytest.mark.parametrize(
    "function", [lambda step: None, lambda step, ctx, *rest: None, lambda step, ctx, **rest: None]
)
def test_a_function_needs_two_parameters_and_named_ones(function):
    """What it is called stands in the error."""
    with pytest.raises(ConfigurationError, match="the planner takes"):
        Parameters.of(function, "the planner", {})
