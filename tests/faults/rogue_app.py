"""Agents that do what agents must not; the server has to outlive each of them."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from agentsrv import App, ExecutionPlan, PermanentError, Step, StepContext, TaskContext

TRACE = "TEST_TRACE"  # the file in which a cancelled agent leaves a line
KINDS: dict[str, type[BaseException]] = {
    kind.__name__: kind
    for kind in (
        ValueError,
        SystemExit,
        KeyboardInterrupt,
        asyncio.CancelledError,
        GeneratorExit,
        MemoryError,
        RecursionError,
        PermanentError,
        StopAsyncIteration,
    )
}
app = App()


@app.agent
async def good(step: Step, ctx: StepContext) -> str:
    """Behave."""
    return "good"


@app.agent(retries=1, retry_base=0.01)
async def raiser(step: Step, ctx: StepContext, error: str = "ValueError") -> str:
    """Raise whatever is asked for."""
    raise KINDS[error]("rogue")


async def _exit(error: str) -> None:
    await asyncio.sleep(0.01)
    raise KINDS[error](3)


@app.agent(retries=1, retry_base=0.01)
async def parent(step: Step, ctx: StepContext, error: str) -> None:
    """Await a child that raises."""
    await asyncio.create_task(_exit(error))


@app.agent(retries=1, retry_base=0.01)
async def group(step: Step, ctx: StepContext, error: str) -> None:
    """Have a group of which one raises."""
    async with asyncio.TaskGroup() as children:
        children.create_task(_exit(error))
        children.create_task(asyncio.sleep(60))


@app.agent
async def careless(step: Step, ctx: StepContext, error: str) -> str:
    """Leave a child and a callback that raise to themselves."""

    def callback() -> None:
        raise KINDS[error](3)

    asyncio.create_task(_exit(error))  # noqa: RUF006 - that is the fault
    asyncio.get_running_loop().call_soon(callback)
    await asyncio.sleep(0.1)
    return "careless"


@app.agent(retries=0)
async def stopper(step: Step, ctx: StepContext) -> str:
    """Stop the event loop, once and again."""
    for _ in range(3):
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0.01)
    return "stopped"


@app.agent(retries=0)
async def endless(step: Step, ctx: StepContext) -> AsyncIterator[str]:
    """Write without end, and without giving others a turn."""
    while True:
        yield "endless " * 1000


@app.agent(retries=0)
async def liar(step: Step, ctx: StepContext, kind: str = "set") -> Any:
    """Return what is no JSON."""
    loop: list[Any] = []
    loop.append(loop)
    values: dict[str, Any] = {
        "set": {1},
        "nan": float("nan"),
        "huge": 1 << 80,
        "cycle": loop,
        "surrogate": "\udc80",
        "coroutine": good,
    }
    return values[kind]


@app.agent(retries=0)
async def mumbler(step: Step, ctx: StepContext) -> AsyncIterator[Any]:
    """Yield what is no text."""
    yield "text"
    yield {"not": "text"}


@app.agent(retries=0)
async def blocker(step: Step, ctx: StepContext) -> str:
    """Block the event loop."""
    time.sleep(1.5)  # noqa: ASYNC251 - that is the fault
    return "slept"


@app.agent(retries=0)
async def diver(step: Step, ctx: StepContext, depth: int = 0) -> str:
    """Recurse without end."""
    sys.setrecursionlimit(min(sys.getrecursionlimit(), 1000))
    return await diver(step, ctx, depth + 1)


@app.agent(retries=0)
async def orphaner(step: Step, ctx: StepContext) -> str:
    """Leave a task behind that raises when nobody looks."""

    async def left() -> None:
        await asyncio.sleep(0.05)
        raise RuntimeError("nobody looks")

    ctx.log.info("leaving %s", asyncio.ensure_future(left()))
    return "left"


@app.agent
async def waiter(step: Step, ctx: StepContext) -> str:
    """Wait; when cancelled, tell the time outside."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        if TRACE in os.environ:
            with Path(os.environ[TRACE]).open("a") as trace:  # noqa: ASYNC230 - one line
                trace.write(f"{ctx.task_id} {time.monotonic()}\n")
        raise
    return "never"


@app.agent(isolation="process")
def spinner(step: Step, ctx: StepContext, trace: str = "") -> str:
    """Write the process id into a file, and compute for ever."""
    Path(trace, ctx.task_id).write_text(str(os.getpid()))
    while True:
        pass


@app.planner
async def plan(task_description: str, ctx: TaskContext) -> ExecutionPlan:
    """Plan what cannot be, or raise what must not be raised."""
    if task_description in KINDS:
        raise KINDS[task_description]("rogue")
    if task_description == "cycle":
        first = Step(step_id="a", agent="good", depends_on=("b",))
        return ExecutionPlan(steps=(first, Step(step_id="b", agent="good", depends_on=("a",))))
    return ExecutionPlan(steps=(Step(step_id="a", agent="nobody"),))
