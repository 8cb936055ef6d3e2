import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from agentsrv import App, ExecutionPlan, Step
from agentsrv.settings import Settings
from tests.support.cli import in_a_thread

planned = App()


@planned.planner
async def plan(task_description, ctx):
    """A step that is tried twice, two beside each other, and one that writes."""
    first = Step(step_id="gather", agent="gather")
    beside = [
        Step(step_id=name, agent="look", depends_on=("gather",)) for name in ("left", "right")
    ]
    last = Step(step_id="last", agent=task_description.split()[0], depends_on=("left", "right"))
    return ExecutionPlan(steps=(first, *beside, last))


@planned.agent(retries=2, retry_base=0.01)
async def gather(step, ctx):
    """Fail at first."""
    if ctx.attempt == 1:
        raise RuntimeError("the line is busy")
    return "notes"


@planned.agent
async def look(step, ctx):
    """Say something."""
    await ctx.progress(1, 2, "looking")
    return "seen"


@planned.agent
async def write(step, ctx):
    """Write two lines."""
    yield "One\n"
    yield "Two\n"


@planned.agent(retries=1, retry_base=0.01)
async def rewrite(step, ctx):
    """Write something else at first."""
    yield "On"
    if ctx.attempt == 1:
        raise RuntimeError("out of ink")
    yield "e\n"


@planned.agent(retries=0)
async def ask(step, ctx):
    """Ask before anything is done."""
    return "done" if await ctx.confirm("Shall I?") else "not done"


@planned.agent
async def endless(step, ctx):
    """Stay."""
    await asyncio.Event().wait()


@planned.agent
async def stubborn(step, ctx):
    """Stay, also when cancelled, as long as the grace period lasts."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await asyncio.sleep(30)


@pytest.fixture(scope="session")
def plan_url() -> Iterator[str]:
    """A real server of plans with four steps."""

    @asynccontextmanager
    async def serving() -> AsyncIterator[str]:
        settings = Settings(port=0, store="memory:", drain_timeout=0.01)
        async with planned.running(settings) as running:
            yield running.url

    yield from in_a_thread(serving)
