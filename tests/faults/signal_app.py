"""An application for fault tests: a task that runs until its client says that it may end."""

from __future__ import annotations

from agentsrv import App, ExecutionPlan, Step, StepContext, TaskContext

app = App()


@app.agent
async def waits(step: Step, ctx: StepContext) -> str:
    """Take messages until one says that it is over."""
    async for message in ctx.messages():
        if message == "over":
            break
    return "done"


@app.planner
async def plan(task_description: str, ctx: TaskContext) -> ExecutionPlan:
    """One step."""
    return ExecutionPlan(steps=(Step(step_id="a", agent="waits"),))
