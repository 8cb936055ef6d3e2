"""Tasks that lost their worker, and go on where their log ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from agentsrv.agents.base import StepContext
from agentsrv.models.plan import Step
from tests.orchestrator.people import slow
from tests.orchestrator.world import World, check_log, crashed, die, running, step
from tests.simulation import simulate


def test_a_task_goes_on_behind_its_completed_steps():
    """After a crash completed steps do not run again; the one under way begins anew."""
    ran = []

    async def counting(step: Step, ctx: StepContext) -> AsyncIterator[str]:
        ran.append((step.step_id, ctx.attempt, ctx.step_key))
        yield f"{step.step_id} "
        await asyncio.sleep(1)
        yield "done"

    async def story() -> None:
        world = World()
        world.agent(counting)
        async with running(world):
            task = await world.create(step("a", "counting"), step("b", "counting", "a"))
            successor = await crashed(world, task, "step_started", "b")
            async with running(successor):
                await successor.subscribe(task)
                end = await successor.reader.until(task)
                log = await successor.log(task)
        check_log(log)
        assert end.data["final_output"] == "b done"
        assert ran == [("a", 1, f"{task}/a"), ("b", 1, f"{task}/b"), ("b", 2, f"{task}/b")]
        recovered = [r.data for r in log if r.event_type == "task_recovered"]
        assert [r["completed_steps"] for r in recovered] == [["a"]]
        retry = next(r.data for r in log if r.event_type == "step_retrying")
        assert (retry["reason"], retry["retry_count"], retry["next_attempt"]) == ("recovered", 0, 2)

    simulate(story())


def test_a_task_that_was_being_cancelled_is_cancelled_after_the_crash():
    """The intent was committed; the successor carries it out."""

    async def story() -> None:
        world = World()

        async def deaf(step: Step, ctx: StepContext) -> str:
            while asyncio.get_running_loop().time() < 30:
                try:
                    await asyncio.sleep(30)
                except asyncio.CancelledError:
                    continue
            return "late"

        world.agent(deaf)
        async with running(world):
            task = await world.create(step("a", "deaf"))
            await world.reader.until(task, "step_started")
            await world.cancel(task, reason="stop")
            successor = await crashed(world, task, "task_cancelling")
            async with running(successor):
                await successor.subscribe(task)
                end = await successor.reader.until(task)
                check_log(await successor.log(task))
        assert (end.event_type, end.data["reason"]) == ("task_cancelled", "stop")

    simulate(story())


def test_a_task_that_loses_its_worker_too_often_fails():
    """It may be what kills the worker: the sixth recovery is its last."""

    async def story() -> None:
        world = World()
        world.agent(slow)
        world.worker.start()
        task = await world.create(step("a", "slow"))
        for _ in range(6):
            world = await crashed(world, task, "step_started")
            await world.store.open()
            world.worker.start()
            await world.subscribe(task, (await world.log(task))[-1].seq)
        await world.reader.until(task)
        log = await world.log(task)
        await world.worker.drain(0.001)
        check_log(log)
        assert log[-1].event_type == "task_failed"
        assert "lost its worker 6 times" in log[-1].data["error_message"]

    simulate(story())


def test_an_agent_that_is_gone_fails_the_recovered_task():
    """The application may have changed between the crash and the start."""

    async def story() -> None:
        world = World()
        world.agent(slow)
        async with running(world):
            task = await world.create(step("a", "slow"))
            await world.reader.until(task, "step_started")
            die(world)
            successor = World(world.store)
            async with running(successor):
                await successor.subscribe(task)
                end = await successor.reader.until(task)
        assert "wants agent 'slow'" in end.data["error_message"]

    simulate(story())
