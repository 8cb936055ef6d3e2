"""Work that computes for long, in processes of its own: the event loop and the cores stay free.

agentsrv serve examples.cpu_bound:app
agentsrv run "How many primes are there?" --param below=2000000
"""

from __future__ import annotations

from math import isqrt
from typing import Annotated, Final

from pydantic import Field

from agentsrv import App, ExecutionPlan, Step, StepContext

PARTS: Final = 4

app = App()


@app.agent(isolation="process", timeout=300)
def count(
    step: Step,
    below: Annotated[int, Field(ge=4, le=10**9)] = 100_000,
) -> int:  # a plain function; a process is killed when its task is cancelled
    """Count the primes of one part of the numbers."""
    part = int(str(step.input))
    size = -(-below // PARTS)
    numbers = range(max(2, part * size), min(below, (part + 1) * size))
    return sum(all(n % divisor for divisor in range(2, isqrt(n) + 1)) for n in numbers)


@app.agent
async def add(step: Step, ctx: StepContext) -> str:
    """Add up what the parts have found."""
    return f"There are {sum(ctx.results[name] for name in step.depends_on):,} primes."


@app.planner
async def plan() -> ExecutionPlan:
    """Side by side, then together."""
    parts = [Step(step_id=f"part_{n}", agent="count", input=n) for n in range(PARTS)]
    needed = tuple(step.step_id for step in parts)
    return ExecutionPlan(steps=(*parts, Step(step_id="sum", agent="add", depends_on=needed)))
