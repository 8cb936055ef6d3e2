"""Cancelling tasks in whatever state they are, in simulated time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from agentsrv.agents.agent import StepContext, TaskContext
from agentsrv.models.plan import ExecutionPlan, Step
from tests.support.simulation import simulate
from tests.support.world import World, check_log, running, step
from tests.unit.engine.sample_agents import SlowStore, failing, quick, slow


def test_cancel_reaches_a_running_coroutine():
    """The agent sees CancelledError, cleans up in peace, and the terminal event is the last."""
    seen = []

    async def careful(step: Step, ctx: StepContext) -> AsyncIterator[str]:
        yield "begun"
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append("cancelled")
            await asyncio.sleep(1)
            seen.append("cleaned up")
            raise

    async def story() -> None:
        world = World()
        world.agent(careful)
        async with running(world):
            task = await world.create(step("a", "careful"), step("b", "careful", "a"))
            await world.reader.until(task, "partial_output")
            result = await world.cancel(task, reason="enough")
            assert (result["status"], result["already"]) == ("cancelling", False)
            again = await world.cancel(task)
            assert (again["status"], again["already"]) == ("cancelling", True)
            end = await world.reader.until(task)
            late = await world.cancel(task)
            assert (late["status"], late["already"]) == ("cancelled", True)
            await asyncio.sleep(10)
        assert seen == ["cancelled", "cleaned up"]
        assert world.reader.types(task)[-3:] == [
            "task_cancelling", "step_cancelled", "task_cancelled",
        ]  # fmt: skip
        assert (end.data["reason"], end.data["by"], end.data["stopped"]) == (
            "enough", "somebody", True,
        )  # fmt: skip
        check_log(await world.log(task))

    simulate(story())


def test_a_cancel_stops_at_once_and_takes_one_commit():
    """The work does not run on for as long as the commit takes, and its end is in that commit."""
    at: list[float] = []

    async def sleeps(step: Step, ctx: StepContext) -> str:
        clock = asyncio.get_running_loop().time
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            at.append(clock())
            raise
        return "awake"

    async def story() -> None:
        clock = asyncio.get_running_loop().time
        world = World(SlowStore())
        world.agent(sleeps)
        async with running(world):
            task = await world.create(step("a", "sleeps"))
            await world.reader.until(task, "step_started")
            await asyncio.sleep(1)  # nothing is being committed
            asked = clock()
            result = await world.cancel(task)
            await world.reader.until(task)
            assert result["status"] == "cancelling"
            assert at == [asked]
            assert clock() - asked == pytest.approx(1.0)
        assert world.reader.types(task)[-3:] == [
            "task_cancelling", "step_cancelled", "task_cancelled",
        ]  # fmt: skip

    simulate(story())


def test_cancel_of_a_pending_and_a_queued_task_is_at_once():
    """Where nothing runs, the task is cancelled without a word between."""

    async def story() -> None:
        world = World(concurrency=1)
        world.agent(slow)
        async with running(world):
            busy = await world.create(step("a", "slow"))
            await world.reader.until(busy, "partial_output")
            queued = await world.create(step("a", "slow"))
            pending = await world.create(step("a", "slow"), execute=False)
            assert world.store.queued == 1
            for task in (queued, pending):
                result = await world.cancel(task)
                assert (result["status"], result["already"]) == ("cancelled", False)
                assert (await world.status(task))["status"] == "cancelled"
            assert world.store.queued == 0
            await world.cancel(busy)
            await world.reader.until(busy)
            assert world.reader.types(queued) == [
                "task_created", "task_queued", "task_cancelled",
            ]  # fmt: skip

    simulate(story())


def test_cancel_of_a_retrying_task_is_at_once():
    """A step in its back-off is stopped there; its next attempt never begins."""

    async def story() -> None:
        world = World()
        world.agent(failing(99), name="flaky", retry_base=30.0)
        async with running(world):
            task = await world.create(step("a", "flaky"))
            await world.reader.until(task, "step_retrying")
            assert (await world.cancel(task))["status"] == "cancelled"
            await world.reader.until(task)
            assert asyncio.get_running_loop().time() < 1
            await asyncio.sleep(60)
        assert world.reader.types(task)[-3:] == [
            "step_retrying", "step_cancelled", "task_cancelled",
        ]  # fmt: skip

    simulate(story())


def test_cancel_while_the_plan_is_made():
    """The planner's coroutine is cancelled as well."""

    async def planner(task_description: str, ctx: TaskContext) -> ExecutionPlan:
        await asyncio.sleep(60)
        raise AssertionError("never here")

    async def story() -> None:
        world = World()
        world.registry.planner = planner
        async with running(world):
            task = await world.create()
            await world.reader.until(task, "task_started")
            await world.cancel(task)
            await world.reader.until(task)
            assert asyncio.get_running_loop().time() < 1
        assert world.reader.types(task)[-2:] == ["task_cancelling", "task_cancelled"]

    simulate(story())


def test_a_stubborn_step_is_fenced_off():
    """After the grace period its writing is refused, and its slot stays taken till it ends."""

    async def stubborn(step: Step, ctx: StepContext) -> AsyncIterator[str]:
        for number in range(20):
            try:
                await asyncio.sleep(1)
            except asyncio.CancelledError:
                continue
            yield f"{number} "

    async def story() -> None:
        world = World(concurrency=1, grace=3.0)
        world.agent(stubborn)
        world.agent(quick)
        async with running(world):
            task = await world.create(step("a", "stubborn"))
            await world.reader.until(task, "partial_output")
            runner = world.worker.live(task)
            assert runner is not None
            await world.cancel(task)
            end = await world.reader.until(task)
            assert end.data["stopped"] is False
            assert asyncio.get_running_loop().time() == pytest.approx(4)
            behind = await world.create(step("a", "quick"))
            assert world.worker.running == 1
            await world.reader.until(behind)
            assert asyncio.get_running_loop().time() == pytest.approx(20, abs=1.1)
            assert world.environment.measures.refused > 10
            assert world.environment.measures.orphaned == 1
        check_log(await world.log(task))

    simulate(story())


def test_a_step_that_ends_well_while_it_is_cancelled_is_completed():
    """Its result is kept, and the task is cancelled all the same."""

    async def finishing(step: Step, ctx: StepContext) -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "saved"
        return "never"

    async def story() -> None:
        world = World()
        world.agent(finishing)
        async with running(world):
            task = await world.create(step("a", "finishing"), step("b", "finishing", "a"))
            await world.reader.until(task, "step_started")
            await world.cancel(task)
            end = await world.reader.until(task)
        assert world.reader.types(task)[-3:] == [
            "partial_output", "step_completed", "task_cancelled",
        ]  # fmt: skip
        assert end.data["stopped"] is True

    simulate(story())


def test_an_agent_that_fails_in_its_clean_up_is_cancelled_nonetheless():
    """An error raised instead of CancelledError starts no retry."""

    async def clumsy(step: Step, ctx: StepContext) -> str:
        try:
            await asyncio.sleep(60)
        finally:
            raise RuntimeError("cannot clean up")

    async def story() -> None:
        world = World()
        world.agent(clumsy)
        async with running(world):
            task = await world.create(step("a", "clumsy"))
            await world.reader.until(task, "step_started")
            await world.cancel(task)
            await world.reader.until(task)
        assert world.reader.types(task)[-2:] == ["step_cancelled", "task_cancelled"]

    simulate(story())


def test_cancel_wins_over_a_failure_that_winds_down():
    """A task that is failing slowly and is cancelled meanwhile ends as cancelled."""

    async def stubborn(step: Step, ctx: StepContext) -> str:
        while True:
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                if asyncio.get_running_loop().time() > 8:
                    raise
                await asyncio.sleep(20)

    async def story() -> None:
        world = World(grace=5)
        world.agent(stubborn)
        world.agent(failing(99), name="broken", retries=0)
        async with running(world):
            task = await world.create(step("a", "stubborn"), step("b", "broken"))
            await world.reader.until(task, "step_failed")
            await asyncio.sleep(1)
            await world.cancel(task)
            end = await world.reader.until(task)
            check_log(world.reader.of(task))
        assert end.event_type == "task_cancelled"

    simulate(story())


@pytest.mark.parametrize(("grace", "ends"), [(0.0, 1.0), (2.0, 3.0), (30.0, 31.0), (None, 6.0)])
def test_a_cancel_of_a_failing_task_has_its_own_grace(grace: float | None, ends: float):
    """Seconds from the cancel on, be they fewer or more than those of the failure."""

    async def stubborn(step: Step, ctx: StepContext) -> None:
        while asyncio.get_running_loop().time() < 100:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(100)

    async def story() -> None:
        world = World(grace=5)
        world.agent(stubborn)
        world.agent(failing(99), name="broken", retries=0)
        async with running(world):
            task = await world.create(step("a", "stubborn"), step("b", "broken"))
            await world.reader.until(task, "step_failed")
            began = asyncio.get_running_loop().time()
            await asyncio.sleep(1)
            fields = {} if grace is None else {"grace": grace}
            await world.cancel(task, **fields)
            end = await world.reader.until(task)
            assert asyncio.get_running_loop().time() - began == pytest.approx(ends)
            check_log(await world.log(task))
        assert (end.event_type, end.data["stopped"]) == ("task_cancelled", False)

    simulate(story())
