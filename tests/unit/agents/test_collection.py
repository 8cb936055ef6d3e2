"""Collections of agents, and their inclusion into applications."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import Any

import pytest

from agentsrv import Agents, App, ConfigurationError, ExecutionPlan, Step, StepContext


async def find(ctx: StepContext) -> str:
    """Find."""
    return "found"


async def other_find(ctx: StepContext) -> str:
    """Find in another way."""
    return "found"


async def write() -> str:
    """Write."""
    return "written"


async def plan() -> ExecutionPlan:
    """Find."""
    return ExecutionPlan(steps=(Step(step_id="a", agent="find"),))


def collection(**agents: Any) -> Agents:
    """A collection of these agents."""
    made = Agents()
    for name, function in agents.items():
        made.agent(name)(function)
    return made


def names(agents: Agents) -> list[str]:
    """The names that ``agents`` replies."""
    return [agent["name"] for agent in agents.registry.described()]


def test_an_application_has_no_agents():
    """Those of `agentsrv.builtin` are another application's."""
    assert names(App()) == []
    assert App().registry.planner is None


def test_an_application_includes_the_agents_and_the_planner_of_a_collection():
    """Also a collection that another one includes; the collections are left as they were."""
    inner, outer, app = collection(find=find), collection(write=write), App()
    inner.planner(plan)
    outer.include(inner)
    app.include(outer)
    assert names(app) == ["write", "find"]
    assert app.registry.planner is plan
    assert names(inner) == ["find"]


def test_some_agents_are_included_by_name():
    """Without the planner, whose plans may need the others."""
    agents, app = collection(find=find, write=write), App()
    agents.planner(plan)
    app.include(agents, only=["write"])
    assert names(app) == ["write"]
    assert app.registry.planner is None


def test_an_agent_that_two_collections_include_is_one_agent():
    """No name is taken by another one."""
    common, first, second, app = collection(find=find), Agents(), Agents(), App()
    common.planner(plan)
    for agents in (first, second):
        agents.include(common)
        app.include(agents)
    assert names(app) == ["find"]


@asynccontextmanager
async def lifespan(app):
    """Open nothing."""
    yield


REFUSED = {
    "a name that is taken": (
        lambda app: app.include(collection(write=write, find=other_find)),
        r"agent 'find' is registered twice: as .*\.find and as .*\.other_find; expected one",
    ),
    "an unknown name": (
        lambda app: app.include(collection(write=write), only=["wirte"]),
        "include.* names agent 'wirte'; did you mean write?",
    ),
    "a text of names": (
        lambda app: app.include(collection(write=write), only="write"),
        r"only='write'; expected a list of names: \['write'\]",
    ),
    "a function": (lambda app: app.include(write), r"expected Agents\(\)"),
    "an application with a lifespan": (
        lambda app: app.include(App(lifespan=lifespan)),
        r"with a lifespan, which would never be entered; expected Agents\(\)",
    ),
    "another planner": (
        lambda app: app.planner(write),
        r"two planners: .*\.plan and .*\.write; expected one",
    ),
}


@pytest.mark.parametrize(("include", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_included_is_refused_as_a_whole(include, message):
    """The message says what was found and what was expected."""
    app = App()
    app.agent(find)
    app.planner(plan)
    with pytest.raises(ConfigurationError, match=message):
        include(app)
    assert names(app) == ["find"]
    assert app.registry.planner is plan


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "a number": (lambda app: app.agent(5), ConfigurationError, "5; expected a function, or in its"),
    "two positions": (lambda app: app.agent("a", "b"), TypeError, "2 positional arguments but 3"),
    "an empty name": (lambda app: app.agent("")(write), ConfigurationError, "agent '' has a name"),
    "a name that is no text": (
        lambda app: app.agent(name=5)(write),
        ConfigurationError,
        "agent 5 has name=5; expected a valid string",
    ),
    "no function under a name": (
        lambda app: app.agent("it")("write"),
        ConfigurationError,
        "agent 'it' is 'write'; expected a function",
    ),
    "no planner": (
        lambda app: app.planner("plan"),
        ConfigurationError,
        "expected an async function",
    ),
}


@pytest.mark.parametrize(("use", "error", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_use_of_a_decorator_says_what_is_expected(use, error, message):
    """In place of an error from inside of Python."""
    with pytest.raises(error, match=message):
        use(App())


def test_a_name_may_come_by_position_by_keyword_or_from_the_function():
    """The decorator returns the function."""
    app = App()
    assert app.agent(find) is find
    assert app.agent("by_position", retries=0)(find) is find
    assert app.agent(name="by_keyword")(find) is find
    assert app.agent()(write) is write
    assert names(app) == ["find", "by_position", "by_keyword", "write"]
