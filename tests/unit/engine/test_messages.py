"""What clients send to running tasks: every step hears it, in its order, as it stands in the log."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agentsrv.agents.agent import StepContext
from agentsrv.engine import inputs
from agentsrv.errors import (
    InvalidStateError,
    NotFoundError,
    TooLargeError,
)
from agentsrv.models.plan import Step
from tests.support.simulation import simulate
from tests.support.world import OWNER, World, die, running, step
from tests.unit.engine.sample_agents import SlowStore, sleeper


def test_messages_reach_every_step_in_their_order():
    """Those that run, and those that begin later; the reply has the number in the log."""
    heard: dict[str, list[Any]] = {}

    async def listener(step: Step, ctx: StepContext) -> str:
        got = heard.setdefault(step.step_id, [])
        async for message in ctx.messages():
            got.append(message)
            if message == "stop":
                break
        return "heard"

    async def story() -> None:
        world = World()
        world.agent(listener)
        async with running(world):
            task = await world.create(
                step("a", "listener"), step("b", "listener"), step("c", "listener", "a")
            )
            await world.reader.until(task, "step_started", "b")
            numbers = [
                (await world.send(task, message))["seq"]
                for message in ("be brief", {"tone": ["dry"]}, "stop")
            ]
            end = await world.reader.until(task)
        assert end.event_type == "task_completed"
        log = await world.log(task)
        received = [record for record in log if record.event_type == "message_received"]
        assert [record.seq for record in received] == numbers
        assert [record.data["by"] for record in received] == [OWNER] * 3
        assert heard == {name: ["be brief", {"tone": ["dry"]}, "stop"] for name in "abc"}

    simulate(story())


def test_messages_outlive_attempts_and_workers():
    """An attempt that runs again hears them again, also one that nobody ran to hear."""
    heard: list[tuple[int, Any]] = []

    async def listener(step: Step, ctx: StepContext) -> str:
        async for message in ctx.messages():
            heard.append((ctx.attempt, message))
            if message == "fail" and ctx.attempt == 1:
                raise ConnectionError("as told")
            if message == "stop":
                break
        return "heard"

    async def story() -> None:
        world = World()
        world.agent(listener)
        async with running(world):
            task = await world.create(step("a", "listener"))
            await world.reader.until(task, "step_started")
            await world.send(task, "fail")
            await world.reader.until(task, "step_retrying")
            await asyncio.sleep(1)
            die(world)
            successor = World(world.store, world.registry)
            await successor.open()
            last = (await successor.log(task))[-1].seq
            assert (await successor.send(task, "stop"))["seq"] == last + 1
            async with running(successor):
                await successor.subscribe(task)
                end = await successor.reader.until(task)
        assert end.event_type == "task_completed"
        assert heard == [(1, "fail"), (2, "fail"), (3, "fail"), (3, "stop")]

    simulate(story())


def test_an_agent_hears_only_committed_messages():
    """As with answers: what it acts on is in the log."""
    heard = []

    async def listener(step: Step, ctx: StepContext) -> None:
        await anext(aiter(ctx.messages()))
        heard.append(asyncio.get_running_loop().time())

    async def story() -> None:
        world = World(SlowStore())
        world.agent(listener)
        async with running(world):
            task = await world.create(step("a", "listener"))
            await world.reader.until(task, "step_started")
            sent = asyncio.get_running_loop().time()
            await world.send(task, "go")
            assert asyncio.get_running_loop().time() == pytest.approx(sent + 1)
            await world.reader.until(task)
        assert heard == [pytest.approx(sent + 1)]

    simulate(story())


def test_a_task_that_does_not_run_takes_no_messages():
    """Pending, queued and ended tasks refuse them; so does nobody's task."""

    async def story() -> None:
        world = World(concurrency=1)
        world.agent(sleeper)
        async with running(world):
            busy = await world.create(step("a", "sleeper"))
            await world.reader.until(busy, "step_started")
            queued = await world.create(step("a", "sleeper"))
            pending = await world.create(step("a", "sleeper"), execute=False)
            for task, status in ((queued, "queued"), (pending, "pending")):
                with pytest.raises(InvalidStateError, match=f"a task that is {status} takes"):
                    await world.send(task, "hello")
            await world.reader.until(busy)
            with pytest.raises(InvalidStateError, match="a task that is completed takes nothing"):
                await world.send(busy, "hello")
            with pytest.raises(NotFoundError):
                await world.send("nowhere", "hello")
            await world.cancel(queued)

    simulate(story())


@pytest.mark.parametrize(
    ("number", "message"),
    [(inputs.MAX_MESSAGES, "x"), (1, "x" * (inputs.MAX_MESSAGES_SIZE - 2))],
)
def test_the_messages_of_a_task_are_bounded(number, message):
    """What would be one too many is refused; nothing that was taken is dropped."""

    async def story() -> None:
        world = World()
        world.agent(sleeper)
        async with running(world):
            task = await world.create(step("a", "sleeper"))
            await world.reader.until(task, "step_started")
            for _ in range(number):
                await world.send(task, message)
            with pytest.raises(TooLargeError, match="expected at most 1000, and 1048576 bytes"):
                await world.send(task, 1)
            assert world.reader.types(task).count("message_received") == number
            await world.cancel(task)
            await world.reader.until(task)

    simulate(story())
