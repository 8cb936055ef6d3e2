"""Cancels at every point of a task's life, in a loop that shuffles what is ready."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from agentsrv.agents.agent import StepContext, TaskContext
from agentsrv.models.plan import ExecutionPlan, Step
from tests.support.simulation import simulate
from tests.support.world import World, check_log, running, step

pytestmark = pytest.mark.faults
POINTS = 120  # turns of the loop behind the creation at which the task is cancelled


@pytest.mark.seeds(30)
def test_a_cancel_at_any_point_ends_the_task_once(seed: int) -> None:
    """Every seed is another interleaving, and another point."""
    simulate(story(seed), seed)


async def story(seed: int) -> None:
    """A plan of four steps that stream, fail, wait and stick; a cancel somewhere in it."""
    chance = random.Random(seed)
    alive: set[str] = set()

    async def lively(step: Step, ctx: StepContext) -> AsyncIterator[str]:
        key = f"{step.step_id}/{ctx.attempt}"
        alive.add(key)
        try:
            for number in range(3):
                yield f"{number} "
                await asyncio.sleep(chance.choice([0, 0, 0.05]))
            if chance.random() < 0.3:
                raise ValueError("once more")
        finally:
            alive.discard(key)

    async def plan(task_description: str, ctx: TaskContext) -> ExecutionPlan:
        await asyncio.sleep(0)
        return ExecutionPlan(
            steps=(
                step("a", "lively"),
                step("b", "lively", "a"),
                step("c", "lively", "a"),
                step("d", "lively", "b", "c"),
            )
        )

    world = World(grace=1.0)
    world.agent(lively)
    world.registry.planner = plan
    async with running(world):
        task = await world.create()
        for _ in range(seed % POINTS):
            await asyncio.sleep(0)
        result = await world.cancel(task, reason="now")
        end = await world.reader.until(task)
        assert not alive, f"{alive} still run behind {end.event_type}"
        length = len(await world.log(task))
        await asyncio.sleep(100)
        log = await world.log(task)
        check_log(log)
        assert len(log) == length, "something followed the terminal event"
        assert world.reader.of(task) == log
        assert result["already"] or end.event_type == "task_cancelled"
        assert (await world.status(task))["status"] == end.data["status"]
