"""``ctx.result_of``: which dependency it is, and the type of its result."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import TYPE_CHECKING, Any, assert_type

import pytest
from pydantic import BaseModel

from agentsrv import PermanentError, Step, StepContext
from agentsrv.agents.results import read_result
from tests.support.simulation import simulate
from tests.support.world import World, running, step

if TYPE_CHECKING:
    from nowhere import Unknown  # type: ignore[import-not-found]


class Visit(BaseModel):
    """A result."""

    day: dt.date
    cost: Decimal = Decimal(0)


async def visit() -> Visit:
    """Return a model."""
    return Visit(day=dt.date(2026, 1, 2), cost=Decimal("1.5"))


async def days() -> set[dt.date]:
    """Return dates."""
    return {dt.date(2026, 1, 2)}


async def digest() -> bytes:
    """Return bytes."""
    return b"\xff\x00"


async def text() -> str:
    """Return text."""
    return "a text"


async def both(ctx: StepContext) -> str:
    """Return text, and set a result."""
    ctx.set_result({"n": 1})
    return "a text"


async def nothing() -> None:
    """Return nothing."""


async def anything():
    """Return JSON, without an annotation."""
    return {"day": "2026-01-02"}


async def pieces(ctx: StepContext) -> AsyncIterator[str]:
    """Stream text, and set a result."""
    yield "text"
    ctx.set_result({"n": 1})


def in_thread() -> Visit:
    """Be a plain function."""
    return Visit(day=dt.date(2026, 1, 2))


async def unknown() -> Unknown:
    """Have an annotation that cannot be evaluated."""
    return {"n": 1}


async def wrong() -> Visit:
    """Return something else than it says."""
    return {"cost": 1}  # type: ignore[return-value]


async def late(ctx: StepContext) -> None:
    """Fail, in a step that may be missing."""
    raise PermanentError("too late")


AGENTS: list[Any] = [visit, days, digest, text, both, nothing, anything, pieces, unknown, wrong]


def asked(wanted: Any, *ran: str) -> Any:
    """The result of ``wanted`` in a step that depends on steps of the agents ``ran``."""
    found: list[Any] = []

    async def asking(ctx: StepContext) -> None:
        found.append(ctx.result_of(wanted))

    async def story() -> str | None:
        world = World()
        for agent in AGENTS:
            world.agent(agent)
        world.agent(in_thread, isolation="thread")
        world.agent(late, on_failure="degrade", name="late")
        world.agent(asking)
        steps = [step(f"s{number}", agent) for number, agent in enumerate(ran)]
        last = step("last", "asking", *[each.step_id for each in steps])
        async with running(world):
            task = await world.create(*steps, last)
            end = await world.reader.until(task)
        assert world.reader.types(task).count("step_retrying") == 0
        return end.data.get("error_message")

    failed = simulate(story())
    if failed is not None:
        raise PermanentError(failed)
    return found[0]


@pytest.mark.parametrize(
    ("agent", "result"),
    [
        (visit, Visit(day=dt.date(2026, 1, 2), cost=Decimal("1.5"))),
        (days, {dt.date(2026, 1, 2)}),
        (digest, b"\xff\x00"),
        (text, "a text"),
        (both, "a text"),
        ("both", {"n": 1}),
        (nothing, None),
        (anything, {"day": "2026-01-02"}),
        (pieces, {"n": 1}),
        ("visit", {"day": "2026-01-02", "cost": "1.5"}),
        ("unknown", {"n": 1}),
    ],
)
def test_a_result_has_the_type_that_its_function_declares(agent, result):
    """By a name it is JSON; other dependencies do not matter."""
    name = agent if isinstance(agent, str) else agent.__name__
    found = asked(agent, "anything" if name != "anything" else "text", name)
    assert found == result
    assert type(found) is type(result)


@pytest.mark.parametrize(
    ("agent", "ran", "message"),
    [
        (
            visit,
            ["text", "text"],
            r"no completed dependency of step 'last' ran agent .*\.visit; it",
        ),
        (visit, ["text", "text"], r"depends on 's0' \(text, completed\), 's1' \(text, completed\)"),
        ("visit", [], "ran agent 'visit'; it depends on no step"),
        ("late", ["late"], r"it depends on 's0' \(late, failed\)"),
        ("text", ["text", "visit", "text"], "steps 's0', 's2' ran agent 'text'; expected one: ctx"),
        (unknown, ["unknown"], "'Unknown' cannot be evaluated"),
        (wrong, ["wrong"], r"does not fit its return annotation: results\.s0\.day: Field required"),
    ],
)
def test_a_result_that_cannot_be_told_fails_the_step_at_once(agent, ran, message):
    """The message names the dependencies that there are."""
    with pytest.raises(PermanentError, match=message):
        asked(agent, *ran)


def test_a_function_is_found_by_the_name_it_was_registered_with():
    """Also a bound method, whose object matters."""

    class Clerk:
        async def run(self, step: Step) -> dict[str, str]:
            return {"name": step.agent}

    clerk, other, found = Clerk(), Clerk(), []

    async def asking(ctx: StepContext) -> None:
        found.append(ctx.result_of(clerk.run))

    async def story() -> None:
        world = World()
        world.agent(clerk.run, name="clerk")
        world.agent(other.run, name="other")
        world.agent(asking)
        async with running(world):
            steps = step("a", "other"), step("b", "clerk"), step("c", "asking", "a", "b")
            await world.reader.until(await world.create(*steps))
        assert found == [{"name": "clerk"}]

    simulate(story())


def test_a_type_that_pydantic_does_not_read_is_refused():
    """With what to use in its place."""

    async def opaque() -> asyncio.Event:
        return asyncio.Event()

    with pytest.raises(PermanentError, match="or the agent's name in place of its function"):
        read_result(opaque, {}, "", "a")


async def check_types(ctx: StepContext) -> None:
    """Read by the type checker only."""
    assert_type(ctx.result_of(visit), Visit)
    assert_type(ctx.result_of(days), set[dt.date])
    assert_type(ctx.result_of(in_thread), Visit)
    assert_type(ctx.result_of("visit"), Any)
    assert_type(await ctx.ask("Who?"), str)
    assert_type(await ctx.ask("How many?", int), int)
    assert_type(await ctx.ask("Which?", options=[1, 2]), int)
    assert_type(await ctx.confirm("Sure?"), bool)
