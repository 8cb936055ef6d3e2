"""Agents that cancel themselves, or raise what others take for a cancellation.

Only ``TaskRunner.stop`` cancels on behalf of the server. Whatever else an agent's code does to its
own asyncio task is the agent's own success or failure: its attempts are counted, it ends, and the
step after it is not touched.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest

from agentsrv.agents.agent import StepContext, TaskContext
from agentsrv.errors import PermanentError
from agentsrv.models.plan import ExecutionPlan, Step
from tests.support.simulation import simulate
from tests.support.world import World, check_log, running, step
from tests.unit.engine.sample_agents import only, quick

RETRIES = 2


def own_task() -> asyncio.Task[Any]:
    """The asyncio task that runs the agent."""
    task = asyncio.current_task()
    assert task is not None
    return task


async def fails() -> None:
    """Fail a moment later."""
    await asyncio.sleep(0.01)
    raise ValueError("inner")


async def failing_group(step: Step, ctx: StepContext) -> None:
    """Two children of a task group fail."""
    async with asyncio.TaskGroup() as group:
        group.create_task(fails())
        group.create_task(fails())


async def failing_after_a_group(step: Step, ctx: StepContext) -> None:
    """A failed group is handled, then something else fails."""
    await handled_group(step, ctx)
    raise RuntimeError("later")


async def handled_group(step: Step, ctx: StepContext) -> None:
    """A failed group is handled."""
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(fails())
            group.create_task(asyncio.sleep(1))
    except* ValueError:
        pass


async def waiting_after_a_group(step: Step, ctx: StepContext) -> None:
    """A failed group is handled, then the time limit of the step is exceeded."""
    await handled_group(step, ctx)
    await asyncio.sleep(1000)


async def cancels_itself(step: Step, ctx: StepContext) -> None:
    """Cancel the own task and meet it."""
    own_task().cancel()
    await asyncio.sleep(1)


async def cancels_itself_twice(step: Step, ctx: StepContext) -> None:
    """Meet two cancellations."""
    try:
        await cancels_itself(step, ctx)
    finally:
        await cancels_itself(step, ctx)


async def cancels_itself_and_returns(step: Step, ctx: StepContext) -> str:
    """Leave a cancellation that is not delivered yet."""
    own_task().cancel()
    return "done"


async def cancels_itself_and_fails(step: Step, ctx: StepContext) -> None:
    """Leave a cancellation to the next attempt."""
    own_task().cancel()
    raise ValueError("attempt")


async def swallows_its_own(step: Step, ctx: StepContext) -> str:
    """Meet the cancellation and take no notice of it."""
    own_task().cancel()
    try:
        await asyncio.sleep(1)
    except asyncio.CancelledError:
        return "done"
    raise AssertionError("not cancelled")


async def cancelled_by_a_child(step: Step, ctx: StepContext) -> None:
    """A child coroutine cancels the agent's task."""
    own = own_task()
    child = asyncio.create_task(asyncio.sleep(0))
    child.add_done_callback(lambda _: own.cancel())
    await asyncio.sleep(5)


async def awaits_a_cancelled_task(step: Step, ctx: StepContext) -> None:
    """The CancelledError of another task passes through."""
    child = asyncio.create_task(asyncio.sleep(5))
    asyncio.get_running_loop().call_later(0.1, child.cancel)
    await child


async def gathers_a_cancelled_task(step: Step, ctx: StepContext) -> None:
    """So does that of one among several."""
    child = asyncio.create_task(asyncio.sleep(5))
    asyncio.get_running_loop().call_later(0.1, child.cancel)
    await asyncio.gather(child, asyncio.sleep(1))


async def times_out(step: Step, ctx: StepContext) -> None:
    """A time limit of its own passes."""
    async with asyncio.timeout(0.1):
        await asyncio.sleep(5)


async def times_out_handled(step: Step, ctx: StepContext) -> str:
    """And is handled."""
    try:
        await times_out(step, ctx)
    except TimeoutError:
        return "done"
    raise AssertionError("not timed out")


async def times_out_in_a_group(step: Step, ctx: StepContext) -> None:
    """A time limit around a group that fails."""
    async with asyncio.timeout(1), asyncio.TaskGroup() as group:
        group.create_task(fails())
        group.create_task(asyncio.sleep(5))


async def waits_for_a_group(step: Step, ctx: StepContext) -> None:
    """``wait_for`` around a failing group."""
    await asyncio.wait_for(failing_group(step, ctx), 5)


async def cancelled_scope(step: Step, ctx: StepContext) -> str:
    """A cancel scope of anyio that is left."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        await anyio.sleep(5)
    with anyio.move_on_after(0.1):
        await anyio.sleep(5)
    return "done"


async def failing_anyio_group(step: Step, ctx: StepContext) -> None:
    """A task group of anyio that fails."""
    async with anyio.create_task_group() as group:
        group.start_soon(fails)
        await anyio.sleep(5)


async def native_cancelled_in_a_scope(step: Step, ctx: StepContext) -> None:
    """The own task is cancelled within a scope of anyio."""
    with anyio.CancelScope():
        own_task().cancel()
        await anyio.sleep(5)


class OwnError(BaseException):
    """Neither an Exception nor one that asyncio knows."""


def raising(error: BaseException) -> Callable[..., Any]:
    """An agent that raises this."""

    async def agent(step: Step, ctx: StepContext) -> None:
        await asyncio.sleep(0)
        raise error

    return agent


async def ignores_its_close(step: Step, ctx: StepContext) -> AsyncIterator[Any]:
    """A generator that continues although it is closed."""
    try:
        yield 7
    except GeneratorExit:
        yield 8


async def never_closes(step: Step, ctx: StepContext) -> AsyncIterator[Any]:
    """A generator whose close takes for ever; the step's time limit ends it."""
    try:
        yield 7
    finally:
        await asyncio.sleep(100_000)


async def raises_in_its_close(step: Step, ctx: StepContext) -> AsyncIterator[Any]:
    """A generator whose close raises a CancelledError."""
    try:
        yield 7
    finally:
        raise asyncio.CancelledError


FAILS: list[tuple[Callable[..., Any], str]] = [
    (failing_group, "ExceptionGroup"),
    (failing_after_a_group, "later"),
    (waiting_after_a_group, "no result within"),
    (cancels_itself, "CancelledError"),
    (cancels_itself_twice, "CancelledError"),
    (cancels_itself_and_fails, "attempt"),
    (cancelled_by_a_child, "CancelledError"),
    (awaits_a_cancelled_task, "CancelledError"),
    (gathers_a_cancelled_task, "CancelledError"),
    (times_out, "TimeoutError"),
    (times_out_in_a_group, "ExceptionGroup"),
    (waits_for_a_group, "ExceptionGroup"),
    (failing_anyio_group, "ExceptionGroup"),
    (native_cancelled_in_a_scope, "CancelledError"),
    (raising(asyncio.CancelledError()), "CancelledError"),
    (raising(asyncio.CancelledError("a message")), "a message"),
    (raising(KeyboardInterrupt()), "KeyboardInterrupt"),
    (raising(SystemExit(3)), "SystemExit"),
    (raising(GeneratorExit()), "GeneratorExit"),
    (raising(StopIteration()), "StopIteration"),
    (raising(StopAsyncIteration()), "StopAsyncIteration"),
    (raising(OwnError("own")), "OwnError"),
    (raising(BaseExceptionGroup("both", [OwnError(), ValueError()])), "BaseExceptionGroup"),
    (raising(BaseExceptionGroup("all", [asyncio.CancelledError()])), "BaseExceptionGroup"),
    (ignores_its_close, "ignored GeneratorExit"),
    (never_closes, "no result within"),
    (raises_in_its_close, "CancelledError"),
]
COMPLETES = [
    handled_group,
    cancels_itself_and_returns,
    swallows_its_own,
    times_out_handled,
    cancelled_scope,
]


@pytest.mark.parametrize(("agent", "says"), FAILS)
def test_what_an_agent_does_to_itself_is_a_failure(agent, says):
    """Each attempt is counted, the step fails with the agent's own error, others are untouched."""

    async def story() -> None:
        world = World()
        world.agent(agent, name="it", retries=RETRIES, timeout=30.0)
        world.agent(quick)
        async with running(world):
            task = await world.create(step("a", "it"))
            beside = await world.create(step("a", "quick"))
            end = await world.reader.until(task)
            log = await world.log(task)
            check_log(log)
            assert (await world.reader.until(beside)).event_type == "task_completed"
            await asyncio.sleep(1)
            assert world.worker.running == 0
        assert end.event_type == "task_failed"
        assert says in end.data["error_message"]
        assert len(only(log, "step_started")) == RETRIES + 1
        assert not only(log, "task_recovered")

    simulate(story())


@pytest.mark.parametrize("agent", COMPLETES)
def test_what_an_agent_has_handled_is_over(agent):
    """The step completes at its first attempt, and the next step of the branch is not touched."""

    async def story() -> None:
        world = World()
        world.agent(agent, name="it", retries=RETRIES)

        async def waits(step: Step, ctx: StepContext) -> str:
            await asyncio.sleep(1)
            async with asyncio.timeout(5):
                await asyncio.sleep(1)
            return "whole"

        world.agent(waits)
        async with running(world):
            task = await world.create(step("a", "it"), step("b", "waits", "a"))
            end = await world.reader.until(task)
        assert end.data["final_output"] == "whole"
        assert len(only(world.reader.of(task), "step_started")) == 2

    simulate(story())


@pytest.mark.parametrize("victim", ["the next step", "the wait for other branches", "a back-off"])
def test_a_late_cancellation_does_not_start_the_task_over(victim):
    """An agent cancels its asyncio task when that runs the server's code, or another step."""
    other = {"the next step": "waits", "the wait for other branches": "late", "a back-off": "fails"}

    async def story() -> None:
        world = World()

        async def late(step: Step, ctx: StepContext) -> str:
            asyncio.get_running_loop().call_later(0.5, own_task().cancel)
            return "left"

        async def waits(step: Step, ctx: StepContext) -> str:
            await asyncio.sleep(1)
            return "whole"

        async def fails(step: Step, ctx: StepContext) -> str:
            asyncio.get_running_loop().call_later(0.5, own_task().cancel)
            raise ValueError("once more")

        for agent in (late, waits):
            world.agent(agent)
        world.agent(fails, retry_base=1.0, retries=1)
        async with running(world):
            name = other[victim]
            if name == "late":
                task = await world.create(step("a", "late"), step("b", "waits"))
            elif name == "waits":
                task = await world.create(step("a", "late"), step("b", "waits", "a"))
            else:
                task = await world.create(step("a", "fails"))
            end = await world.reader.until(task)
            log = await world.log(task)
            check_log(log)
        assert not only(log, "task_recovered")
        assert len(only(log, "step_started")) <= 4
        assert end.event_type == ("task_failed" if name == "fails" else "task_completed")

    simulate(story())


@pytest.mark.parametrize("planner", [failing_group, cancels_itself, cancels_itself_and_fails])
def test_a_planner_is_asked_so_often_and_no_more(planner):
    """What a planner does to itself is its failure, too."""
    asked = []

    async def plan(task_description: str, ctx: TaskContext) -> ExecutionPlan:
        asked.append(ctx.task_id)
        await planner(None, None)
        raise AssertionError("never here")

    async def story() -> None:
        world = World()
        world.registry.planner = plan
        async with running(world):
            task = await world.create()
            end = await world.reader.until(task)
        assert end.event_type == "task_failed"
        assert len(asked) == 4

    simulate(story())


class Bare(PermanentError):
    """An error of an author without the attributes of its class."""

    def __init__(self) -> None:
        """Set nothing."""


def test_a_planner_may_raise_an_error_without_a_message():
    """Its class is told; the planner is not asked again."""

    async def plan(task_description: str, ctx: TaskContext) -> ExecutionPlan:
        raise Bare

    async def story() -> None:
        world = World()
        world.registry.planner = plan
        async with running(world):
            end = await world.reader.until(await world.create())
        assert end.event_type == "task_failed"
        assert end.data["error_message"] == "planning failed: Bare"

    simulate(story())


def test_a_stop_is_not_taken_for_the_agents():
    """A cancelled agent that raises, swallows, or cancels itself is cancelled nonetheless."""

    async def clumsy(step: Step, ctx: StepContext) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            own_task().cancel()
            if step.step_id == "a":
                raise RuntimeError("cannot clean up")

    async def story() -> None:
        world = World()
        world.agent(clumsy)
        async with running(world):
            task = await world.create(step("a", "clumsy"), step("b", "clumsy"))
            await world.reader.until(task, "step_started", "b")
            await world.cancel(task)
            end = await world.reader.until(task)
            check_log(await world.log(task))
        assert (end.event_type, end.data["stopped"]) == ("task_cancelled", True)
        assert len(only(world.reader.of(task), "step_cancelled")) == 2

    simulate(story())
