"""Agents that end the server's process, and harmless ones that run when it happens."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import time
from collections.abc import AsyncIterator
from typing import Annotated

from pydantic import AfterValidator

from agentsrv import App, Step, StepContext

app = App()


@app.agent(retries=0)
async def first_line(step: Step, ctx: StepContext) -> None:
    """End the process before anything is committed."""
    os._exit(1)


@app.agent(retries=0)
async def after_an_await(step: Step, ctx: StepContext) -> None:
    """End it a moment later."""
    await asyncio.sleep(0.05)
    os._exit(1)


@app.agent(retries=0)
async def while_streaming(step: Step, ctx: StepContext) -> AsyncIterator[str]:
    """End it amid the text, which is the same each time."""
    for number in range(5):
        yield f"{number} "
        await asyncio.sleep(0.02)
    os._exit(1)


@app.agent(retries=0)
async def by_a_signal(step: Step, ctx: StepContext) -> None:
    """What the system's memory killer does."""
    os.kill(os.getpid(), signal.SIGKILL)


@app.agent(retries=0)
async def by_cancelling_all_tasks(step: Step, ctx: StepContext) -> None:
    """End what it takes for its own, as programs do before they exit."""
    for task in asyncio.all_tasks():
        task.cancel()
    await asyncio.sleep(1)


@app.agent(retries=0)
async def by_closing_all_generators(step: Step, ctx: StepContext) -> None:
    """Likewise."""
    await asyncio.get_running_loop().shutdown_asyncgens()
    await asyncio.sleep(1)


@app.agent(retries=0)
async def in_c(step: Step, ctx: StepContext) -> None:
    """A fault in C code."""
    ctypes.string_at(0)


@app.agent(retries=0, isolation="thread")
def in_a_thread(step: Step, ctx: StepContext) -> None:
    """The same in a thread of its own."""
    time.sleep(0.05)
    os._exit(1)


def _fatal(value: int) -> int:
    if value == 13:
        os._exit(1)
    return value


@app.agent(retries=0)
async def in_its_params(
    step: Step, ctx: StepContext, number: Annotated[int, AfterValidator(_fatal)] = 0
) -> None:
    """Nothing: its params end the process."""


@app.agent(retries=0)
async def beside_a_question(step: Step, ctx: StepContext) -> None:
    """Ask, and end the process beside the question."""
    question = asyncio.create_task(ctx.confirm("go on?"))
    await asyncio.sleep(0.3)
    question.cancel()
    os._exit(1)


@app.agent(retries=0)
async def in_a_side_task(step: Step, ctx: StepContext) -> None:
    """Ask, and end the process in another task."""

    async def end() -> None:
        await asyncio.sleep(0.3)
        os._exit(1)

    async with asyncio.TaskGroup() as group:
        group.create_task(end())
        await ctx.confirm("go on?")


@app.agent(retries=0)
async def sleeping(step: Step, ctx: StepContext) -> str:
    """Say nothing for a while."""
    await asyncio.sleep(1.0)
    return "awake"


@app.agent(retries=0)
async def streaming(step: Step, ctx: StepContext) -> AsyncIterator[str]:
    """Say something all the time."""
    for number in range(40):
        yield f"word {number} "
        await asyncio.sleep(0.05)


@app.agent(retries=0)
async def asking(step: Step, ctx: StepContext) -> str:
    """Wait for a person."""
    return str(await ctx.confirm("go on?"))


@app.agent(retries=0)
async def asking_twice(step: Step, ctx: StepContext) -> str:
    """Wait for two persons."""
    return str(await asyncio.gather(ctx.confirm("go on?"), ctx.confirm("really?")))


@app.agent(retries=0, isolation="thread")
def threaded(step: Step, ctx: StepContext) -> str:
    """Work where nothing can be stopped."""
    time.sleep(1.0)
    return "done"


@app.agent(retries=0, isolation="process")
def processed(step: Step, ctx: StepContext) -> str:
    """Work in a process of its own."""
    time.sleep(1.0)
    return "done"


@app.agent(retries=0)
async def short(step: Step, ctx: StepContext) -> str:
    """One of many steps."""
    await asyncio.sleep(0.05)
    return step.step_id
