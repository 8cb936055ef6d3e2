"""An application for tests of many nodes: agents that count, cling, ask, listen, and sleep."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

from agentsrv import App, Step, StepContext

TRACE = "TEST_TRACE"  # the file in which agents leave lines
PIECE = 0.02  # seconds between two words

app = App()


@app.agent
async def counter(step: Step, ctx: StepContext, words: int = 50) -> AsyncIterator[str]:
    """Write numbers, one after the other."""
    for number in range(words):
        yield f"{number} "
        await asyncio.sleep(PIECE)


@app.agent
async def clinger(step: Step, ctx: StepContext, words: int = 50) -> AsyncIterator[str]:
    """Count, leave when that was, and say something more when it is cancelled."""
    begun = time.monotonic()
    try:
        for number in range(words):
            yield f"{number} "
            await asyncio.sleep(PIECE)
    except asyncio.CancelledError:
        await ctx.progress(0, words, "late")
        raise
    finally:
        leave(f"{ctx.step_key} {begun} {time.monotonic()}")


@app.agent
async def asker(step: Step, ctx: StepContext) -> str:
    """Ask for a number, and leave the time when it was told."""
    number = await ctx.ask("How many?", int)
    leave(f"{ctx.step_key.partition('/')[0]} {time.monotonic()}")
    return str(number)


@app.agent
async def listener(step: Step, ctx: StepContext, messages: int = 3) -> str:
    """Wait for messages, and tell them."""
    found: list[str] = []
    async for message in ctx.messages():
        found.append(str(message))
        if len(found) == messages:
            break
    return " ".join(found)


@app.agent
async def sleeper(step: Step, ctx: StepContext) -> None:
    """Sleep until it is cancelled, and leave the time of that."""
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        leave(f"{ctx.step_key.partition('/')[0]} {time.monotonic()}")
        raise


def leave(line: str) -> None:
    """Add a line to the trace, which all processes share; they have one clock."""
    with Path(os.environ[TRACE]).open("a") as trace:
        trace.write(f"{line}\n")
