"""A wall clock that is set while the server runs: what takes time takes as long as before."""

from __future__ import annotations

import asyncio

import pytest

from agentsrv.agents.agent import StepContext
from agentsrv.errors import ConflictError
from agentsrv.models.plan import Step
from agentsrv.store.replay import forget_old
from tests.support.simulation import now, simulate
from tests.support.world import World, check_log, crashed, running, step
from tests.unit.engine.sample_agents import only, question

HOUR = 3600.0
JUMPS = [-365 * 24 * HOUR, -HOUR, -1.0, 1.0, HOUR, 365 * 24 * HOUR]


class Wall:
    """A wall clock that can be set."""

    def __init__(self) -> None:
        self.jump = 0.0

    def __call__(self) -> float:
        """Seconds since the epoch, as it shows them."""
        return now() + self.jump


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    """The clock of all worlds."""
    clock = Wall()
    monkeypatch.setattr("tests.support.world.now", clock)
    return clock


async def sleeper(step: Step, ctx: StepContext) -> str:
    """Work for seven seconds."""
    await asyncio.sleep(7)
    return "done"


async def asker(step: Step, ctx: StepContext) -> str:
    """Ask for up to ten seconds; the first attempt fails after the answer."""
    answer = await ctx.ask("?", int, default=-1, timeout=10.0)
    if ctx.attempt == 1:
        raise ValueError("again")
    return str(answer)


@pytest.mark.parametrize("jump", JUMPS)
def test_a_task_lasts_as_long_as_it_lasts(wall, jump):
    """Its duration and its step's, with the clock set in the middle."""

    async def story() -> None:
        world = World()
        world.agent(sleeper)
        async with running(world):
            task = await world.create(step("a", "sleeper"))
            await world.reader.until(task, "step_started")
            await asyncio.sleep(3)
            wall.jump = jump
            ended = await world.reader.until(task)
        assert ended.data["duration"] == 7
        (step_ended,) = only(await world.log(task), "step_completed")
        assert step_ended["duration"] == 7

    simulate(story())


@pytest.mark.parametrize("jump", JUMPS)
@pytest.mark.parametrize("waits", [False, True], ids=["running", "waiting in the queue"])
def test_a_deadline_comes_when_it_is_due(wall, jump, waits):
    """Five seconds after the execution: while the task runs, or before it did."""

    async def story() -> None:
        world = World(concurrency=1)
        world.agent(sleeper)
        async with running(world):
            if waits:
                await world.create(step("a", "sleeper"))
            task = await world.create(step("a", "sleeper"), deadline=9.0 if waits else 5.0)
            await asyncio.sleep(3)
            wall.jump = jump
            began = asyncio.get_running_loop().time()
            ended = await world.reader.until(task)
            assert "deadline" in ended.data["error_message"]
            lasted = asyncio.get_running_loop().time() - began
            assert lasted == (6.0 if waits else 2.0)

    simulate(story())


@pytest.mark.parametrize("jump", JUMPS)
@pytest.mark.parametrize("answered", [False, True])
def test_a_question_is_open_as_long_as_it_was_to_be(wall, jump, answered):
    """It can be answered until then and expires then, also where the step is tried again."""

    async def story() -> None:
        world = World()
        world.agent(asker, retries=1)
        async with running(world):
            task = await world.create(step("a", "asker"))
            input_id = await question(world, task)
            await asyncio.sleep(3)
            wall.jump = jump
            await asyncio.sleep(6)
            if answered:
                await world.respond(input_id, 5)
            else:
                await asyncio.sleep(2)
                with pytest.raises(ConflictError):
                    await world.respond(input_id, 5)
            await world.reader.until(task)
        log = await world.log(task)
        check_log(log)
        (received,) = only(log, "input_received")
        assert received["action"] == ("accept" if answered else "expire")

    simulate(story())


@pytest.mark.parametrize("jump", [-365 * 24 * HOUR, -HOUR])
def test_after_a_restart_a_question_is_open_no_longer_than_at_first(wall, jump):
    """There only the wall clock counts; one that was set back gives the whole time again."""

    async def story() -> None:
        world = World()
        world.agent(asker)
        async with running(world):
            task = await world.create(step("a", "asker"))
            await question(world, task)
            world = await crashed(world, task, "input_required")
            wall.jump = jump
            began = asyncio.get_running_loop().time()
            async with running(world):
                await world.subscribe(task)
                await world.reader.until(task, "input_received")
                assert asyncio.get_running_loop().time() - began == 10

    simulate(story())


@pytest.mark.parametrize("jump", JUMPS)
def test_a_result_is_used_again_for_as_long_as_it_was_to_be(wall, jump):
    """A cached result is there after 50 of 60 seconds, and is not after 70."""
    made: list[int] = []

    async def maker(step: Step, ctx: StepContext) -> str:
        made.append(1)
        return "made"

    async def story() -> None:
        world = World()
        world.agent(maker, cache=60.0)
        async with running(world):
            for pause in (50, 20):
                await world.reader.until(await world.create(step("a", "maker")))
                wall.jump = jump
                await asyncio.sleep(pause)
            assert len(made) == 1
            await world.reader.until(await world.create(step("a", "maker")))
            assert len(made) == 2

    simulate(story())


@pytest.mark.parametrize("jump", JUMPS)
def test_a_clock_that_is_set_forward_forgets_no_young_task(wall, jump):
    """A task is kept for its retention by the time that has really passed."""

    async def story() -> None:
        world = World()
        world.agent(sleeper)
        async with running(world):
            forgetting = asyncio.create_task(forget_old(world.store, 1000, wall))
            task = await world.create(step("a", "sleeper"))
            await world.reader.until(task)
            wall.jump = jump
            await asyncio.sleep(900)
            assert await world.store.head(task) is not None
            if jump > 0:
                await asyncio.sleep(200)
                assert await world.store.head(task) is None
            forgetting.cancel()

    simulate(story())
