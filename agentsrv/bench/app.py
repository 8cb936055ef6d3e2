"""The agents that a server is measured with: ``agentsrv serve agentsrv.bench.app``.

A server that is measured from another machine is started so; it needs ``--concurrency`` and
``--principal-queued`` of 2000 for the full sizes.
"""

from __future__ import annotations

import asyncio
import random
from typing import Final

from agentsrv.agents.agent import StepContext
from agentsrv.app import App
from agentsrv.bench.figures import percentile
from agentsrv.models.plan import ExecutionPlan, Step

EVENTS: Final = 14  # of a task with three steps that each write one piece
PLANNER_SLEEP: Final = 0.2  # seconds
AGENT_SLEEPS: Final = (0.1, 0.15, 0.1)  # seconds
LAG_PERIOD: Final = 0.005  # seconds between two looks at the loop
MESSAGE: Final = "x" * 80  # makes a progress event about as long as the others

SLEEPY: Final = "sleep"
"""The task description that asks for a planner and agents that wait as models do."""

app = App()


@app.agent
async def instant() -> str:
    """Answer at once."""
    return "done"


@app.agent
async def sleeper(step: Step) -> str:
    """Wait as for a model, then answer; the seconds are the step's input."""
    assert isinstance(step.input, float)
    await asyncio.sleep(step.input)
    return "done"


@app.agent
async def ticker(ctx: StepContext, events: int, pause: float = 0.0) -> str:
    """Write ``events`` events, ``pause`` seconds apart, the first after a part of a pause."""
    await ctx.progress(0, events, MESSAGE)
    if pause:
        await asyncio.sleep(pause * random.random())  # noqa: S311 - thousands must not tick as one
    for number in range(1, events):
        await ctx.progress(number, events, MESSAGE)
        if pause:
            await asyncio.sleep(pause)
    return "done"


@app.agent
async def lag(seconds: float) -> float:
    """Tell how late the event loop is: the 99th percentile, in milliseconds."""
    clock = asyncio.get_running_loop().time
    late = []
    end = clock() + seconds
    while (before := clock()) < end:
        await asyncio.sleep(LAG_PERIOD)
        late.append(clock() - before - LAG_PERIOD)
    return round(percentile(late, 0.99) * 1000, 3)


@app.planner
async def plan(task_description: str) -> ExecutionPlan:
    """Plan three steps, one after the other."""
    if task_description != SLEEPY:
        return _INSTANT
    await asyncio.sleep(PLANNER_SLEEP)
    return _SLEEPY


def _chain(agent: str, inputs: tuple[float, ...]) -> ExecutionPlan:
    names = [f"step_{number:03}" for number in range(1, len(inputs) + 1)]
    before: list[tuple[str, ...]] = [(), *((name,) for name in names)]
    return ExecutionPlan(
        steps=tuple(
            Step(step_id=name, agent=agent, input=value, depends_on=depends_on)
            for name, value, depends_on in zip(names, inputs, before, strict=False)
        )
    )


_INSTANT: Final = _chain("instant", (0, 0, 0))
_SLEEPY: Final = _chain("sleeper", AGENT_SLEEPS)
