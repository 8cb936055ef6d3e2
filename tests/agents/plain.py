"""Plain functions as agents: importable, so that a process can find them."""

from __future__ import annotations

import asyncio
import os
import time

from agentsrv import PermanentError, Step, StepContext


def add(step: Step, ctx: StepContext, left: int = 1, right: int = 2) -> int:
    """Add two numbers, and tell where."""
    ctx.set_result({"pid": os.getpid(), "key": ctx.step_key})
    return left + right


def tell(step: Step, ctx: StepContext) -> None:
    """Give only a structured result."""
    ctx.set_result({"pid": os.getpid(), "key": ctx.step_key})


def has_model(step: Step, ctx: StepContext) -> str:
    """Tell whether there is a language model."""
    return str(bool(ctx.llm))


def fail(step: Step, ctx: StepContext) -> str:
    """Raise what is not retried."""
    raise PermanentError("out of paper")


def ask(step: Step, ctx: StepContext, message: bool = False) -> str:
    """Ask, or listen, where neither is possible."""

    async def speak() -> str:
        return str(await anext(ctx.messages()) if message else await ctx.ask("May I?"))

    return asyncio.run(speak())


def polite(step: Step, ctx: StepContext) -> str:
    """Work until asked to stop."""
    while not ctx.cancelled.is_set():
        time.sleep(0.005)
    return "stopped when asked"


def deaf(step: Step, ctx: StepContext) -> str:
    """Never look whether anybody asks."""
    time.sleep(1.5)
    return "done at last"
