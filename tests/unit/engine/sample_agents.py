"""Agents that are quick, slow, fail or ask, a store that takes its time, and what was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from agentsrv.agents.agent import StepContext
from agentsrv.models.events import Record
from agentsrv.models.plan import Step
from agentsrv.store.base import Append
from agentsrv.store.memory import MemoryStore
from tests.support.world import World


class SlowStore(MemoryStore):
    """A store whose commits take a second."""

    def append(self, append: Append) -> asyncio.Future[None]:
        """See ``Store.append``."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def commit() -> None:
            error = super(SlowStore, self).append(append).exception()
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

        loop.call_later(1.0, commit)
        return done


async def quick(step: Step, ctx: StepContext) -> str:
    """Answer at once."""
    return f"{step.step_id} after {', '.join(ctx.outputs) or 'nothing'}"


async def slow(step: Step, ctx: StepContext) -> AsyncIterator[str]:
    """Write a word a second, for a minute."""
    for number in range(60):
        yield f"word {number} "
        await asyncio.sleep(1)


def failing(times: int, error: type[BaseException] = ValueError) -> Callable[..., Any]:
    """An agent that fails so many times before it succeeds."""

    async def agent(step: Step, ctx: StepContext) -> str:
        if ctx.attempt <= times:
            raise error(f"attempt {ctx.attempt}")
        return "at last"

    return agent


async def asker(step: Step, ctx: StepContext, wait: float | None = None) -> str:
    """Ask whether it is allowed, and tell the answer."""
    return f"{step.step_id}: {await ctx.confirm('May I?', timeout=wait)}"


async def sleeper(step: Step, ctx: StepContext) -> str:
    """Sleep for a minute."""
    await asyncio.sleep(60)
    return "awake"


def only(log: Sequence[Record], event_type: str) -> list[dict[str, Any]]:
    """The data of a log's events of one type."""
    return [dict(record.data) for record in log if record.event_type == event_type]


async def question(world: World, task: str, step_id: str | None = None) -> str:
    """Wait for a question; return its id."""
    return str((await world.reader.until(task, "input_required", step_id)).data["input_id"])
