"""An application for fault tests: two steps ask, behind one that works; each leaves a trace."""

from __future__ import annotations

import asyncio
import os

from agentsrv import App, ExecutionPlan, Step, StepContext, TaskContext

TRACE = "TEST_TRACE"  # the file in which is left what was done
QUESTIONS = 3  # of each step that asks
app = App()


def leave(what: str) -> None:
    """Say outside what was done, whole and at once: the process may be killed right behind it."""
    trace = os.open(os.environ[TRACE], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(trace, f"{what}\n".encode())
    os.close(trace)


@app.agent
async def worker(step: Step, ctx: StepContext) -> str:
    """Work before anybody is asked."""
    leave(f"{ctx.step_key} worked")
    return "ready"


@app.agent
async def clerk(step: Step, ctx: StepContext) -> str:
    """Ask one thing after the other, and act on each answer."""
    for number in range(1, QUESTIONS + 1):
        answer = await ctx.ask(f"Which number has {number}?", int)
        leave(f"{ctx.step_key}/{number} {answer}")
        await asyncio.sleep(0.01)
    return "done"


@app.planner
async def plan(task_description: str, ctx: TaskContext) -> ExecutionPlan:
    """Work, then ask twice at the same time."""
    return ExecutionPlan(
        steps=(
            Step(step_id="a", agent="worker"),
            Step(step_id="b", agent="clerk", depends_on=("a",)),
            Step(step_id="c", agent="clerk", depends_on=("a",)),
        )
    )
