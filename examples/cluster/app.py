"""What the nodes of the example serve: one agent that counts, slowly enough to pull plugs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from agentsrv import App, ExecutionPlan, Step

STEPS = 4
app = App()


@app.agent
async def counter() -> AsyncIterator[str]:
    """Count to twenty within two seconds."""
    for number in range(1, 21):
        yield f"{number} "
        await asyncio.sleep(0.1)


@app.planner
async def plan() -> ExecutionPlan:
    """Count again and again."""
    names = [f"count_{number}" for number in range(1, STEPS + 1)]
    steps = [
        Step(step_id=name, agent="counter", depends_on=tuple(names[:number][-1:]))
        for number, name in enumerate(names)
    ]
    return ExecutionPlan(steps=tuple(steps))
