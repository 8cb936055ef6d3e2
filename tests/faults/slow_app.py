"""An application for fault tests: three steps that take their time and leave a trace."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

from agentsrv import App, ExecutionPlan, Step, StepContext, TaskContext

TRACE = "TEST_TRACE"  # the file in which each attempt leaves a line
app = App()


@app.agent
async def slow(step: Step, ctx: StepContext) -> AsyncIterator[str]:
    """Write ten words, 20 ms apart, and say outside that the attempt ended."""
    for number in range(10):
        yield f"{step.step_id}:{number} "
        await asyncio.sleep(0.02)
    if TRACE in os.environ:
        with Path(os.environ[TRACE]).open("a") as trace:  # noqa: ASYNC230 - one line, to be killed at
            trace.write(f"{ctx.step_key}\n")


@app.planner
async def plan(task_description: str, ctx: TaskContext) -> ExecutionPlan:
    """Three steps, one after the other."""
    return ExecutionPlan(
        steps=(
            Step(step_id="a", agent="slow"),
            Step(step_id="b", agent="slow", depends_on=("a",)),
            Step(step_id="c", agent="slow", depends_on=("b",)),
        )
    )
