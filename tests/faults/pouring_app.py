"""An application for fault tests: agents that pour, and agents that do not stop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from agentsrv import App, ExecutionPlan, Step, StepContext, TaskContext

FOR_EVER = 3600.0  # seconds; longer than any test
app = App()


@app.agent
async def count(step: Step, ctx: StepContext, events: int = 100, burst: int = 10) -> None:
    """Report progress ``events`` times, in bursts a few milliseconds apart."""
    for number in range(events):
        await ctx.progress(number, events, "on the way")
        if number % burst == 0:
            await asyncio.sleep(0.005)


@app.agent
async def pour(
    step: Step, ctx: StepContext, pieces: int = 64, size: int = 8192, pause: float = 0.004
) -> AsyncIterator[str]:
    """Write pieces that begin with the time at which they were written."""
    for _ in range(pieces):
        yield f"{time.time():.6f} ".ljust(size, "x")
        await asyncio.sleep(pause)


@app.agent
async def finish(step: Step, ctx: StepContext) -> str:
    """End a task whose output shall be short."""
    return "done"


@app.agent
async def words(step: Step, ctx: StepContext) -> AsyncIterator[str]:
    """Write ten words, 20 ms apart."""
    for number in range(10):
        yield f"{step.step_id}:{number} "
        await asyncio.sleep(0.02)


@app.agent
async def stubborn(step: Step, ctx: StepContext) -> str:
    """Swallow each cancellation; answer only at the second attempt."""
    while ctx.attempt == 1:
        try:
            await asyncio.sleep(FOR_EVER)
        except asyncio.CancelledError:
            continue
    return "at last"


@app.agent
async def blocking(step: Step, ctx: StepContext) -> str:
    """Sit in a thread that nobody can stop; answer only at the second attempt."""
    if ctx.attempt == 1:
        await asyncio.to_thread(time.sleep, FOR_EVER)
    return "at last"


@app.planner
async def plan(task_description: str, ctx: TaskContext) -> ExecutionPlan:
    """The agents whose names the task's description lists, one after the other."""
    names = task_description.split()
    steps = [
        Step(step_id=f"s{number}", agent=name, depends_on=(f"s{number - 1}",) if number else ())
        for number, name in enumerate(names)
    ]
    return ExecutionPlan(steps=tuple(steps))
