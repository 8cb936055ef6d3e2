from typing import Annotated

import pytest
from pydantic import Field

from agentsrv.agents.base import PLANNER_SLOTS, SLOTS
from agentsrv.agents.params import Parameters
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
