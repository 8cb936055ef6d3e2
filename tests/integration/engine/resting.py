"""A node that is to be killed: runs agents that ask, on a PostgreSQL store, until it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

from agentsrv.agents.agent import StepContext
from agentsrv.models.plan import Step
from agentsrv.store.postgres.lease import Timing
from agentsrv.store.postgres.store import PostgresStore
from tests.support.world import World, running

SHORT = Timing(ttl=1.5, margin=0.5, renew_interval=0.1, sweep_interval=0.05)
MOMENT = 0.3  # seconds: longer than a commit


def end() -> None:
    """End the process as the system's memory killer does."""
    os.kill(os.getpid(), signal.SIGKILL)


async def end_later() -> None:
    """The same, after the question is in the log."""
    await asyncio.sleep(MOMENT)
    end()


async def in_a_side_task(step: Step, ctx: StepContext) -> None:
    """Ask, and end the process in another task."""
    async with asyncio.TaskGroup() as group:
        group.create_task(end_later())
        await ctx.confirm("a?", key="a")


async def beside_a_child(step: Step, ctx: StepContext) -> None:
    """Ask in another task, and end the process."""
    async with asyncio.TaskGroup() as group:
        group.create_task(ctx.confirm("a?", key="a"))
        await end_later()


async def after_giving_up(step: Step, ctx: StepContext) -> None:
    """Ask, wait for a moment only, and end the process in the next line."""
    try:
        async with asyncio.timeout(MOMENT):
            await ctx.confirm("a?", key="a")
    except TimeoutError:
        end()


async def after_one_answer(step: Step, ctx: StepContext) -> None:
    """Ask twice, and end the process in the line after the first answer."""

    async def first() -> None:
        await ctx.confirm("a?", key="a", timeout=1.0, default=True)
        end()

    async with asyncio.TaskGroup() as group:
        group.create_task(first())
        await ctx.confirm("b?", key="b")


async def before_asking_again(step: Step, ctx: StepContext) -> None:
    """Fail beside a question; in the next attempt, end the process in the first line."""
    if ctx.attempt > 1:
        end()
    async with asyncio.TaskGroup() as group:
        group.create_task(ctx.confirm("a?", key="a"))
        await asyncio.sleep(MOMENT)
        raise ValueError("once")


async def waiting(step: Step, ctx: StepContext) -> None:
    """Ask."""
    await ctx.confirm("a?", key="a")


async def waiting_for_two(step: Step, ctx: StepContext) -> None:
    """Ask in two tasks."""
    await asyncio.gather(ctx.confirm("a?", key="a"), ctx.confirm("b?", key="b"))


async def waiting_after_work(step: Step, ctx: StepContext) -> None:
    """Ask, and work beside the question for a moment."""
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(MOMENT))
        await ctx.confirm("a?", key="a")


ENDING = [in_a_side_task, beside_a_child, after_giving_up, after_one_answer, before_asking_again]
WAITING = [waiting, waiting_for_two, waiting_after_work]


def knowing(store: PostgresStore) -> World:
    """A world with these agents, in which the real time passes."""
    world = World(store, clock=time.time)
    for run in (*ENDING, *WAITING):
        world.agent(run)
    return world


async def main(dsn: str) -> None:
    """Run what can be claimed until the process ends."""
    async with running(knowing(PostgresStore(dsn, node="killed", timing=SHORT))):
        await asyncio.sleep(3600)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
