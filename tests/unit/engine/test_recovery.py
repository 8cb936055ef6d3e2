"""Tasks that lost their worker, and go on where their log ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace

import pytest

from agentsrv.agents.agent import StepContext
from agentsrv.engine.recovery import interrupted_attempts
from agentsrv.models import events as e
from agentsrv.models.plan import Step
from agentsrv.models.task import TaskState
from agentsrv.store.base import Lease
from tests.support.simulation import simulate
from tests.support.world import World, check_log, crashed, die, running, step
from tests.unit.engine.sample_agents import only, sleeper, slow
from tests.unit.models.samples import AT, STEPS


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
        await world.open()
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


def test_a_step_that_runs_at_five_crashes_fails():
    """It may be what crashes the server: each loss is told, the fifth is the last."""

    async def story() -> None:
        world = World()
        await world.open()
        world.agent(sleeper)
        world.worker.start()
        task = await world.create(step("a", "sleeper"))
        for _ in range(5):
            world = await crashed(world, task, "step_started")
            await world.open()
            world.worker.start()
            await world.subscribe(task, (await world.log(task))[-1].seq)
        await world.reader.until(task)
        log = await world.log(task)
        await world.worker.drain(0.001)
        check_log(log)
        assert log[-1].event_type == "task_failed"
        assert log[-1].data["failed_step"] == "a"
        assert 'isolation="process"' in log[-1].data["error_message"]
        assert [(each["losses"], each["suspected"]) for each in only(log, "step_lost")] == [
            (1, False), (2, True), (3, True), (4, True), (5, True),
        ]  # fmt: skip

    simulate(story())


async def progressing(step: Step, ctx: StepContext) -> AsyncIterator[str]:
    """Write more in each attempt than in the one before."""
    for number in range(ctx.attempt):
        yield f"word {number} "
    await asyncio.sleep(60)


async def repeating(step: Step, ctx: StepContext) -> AsyncIterator[str]:
    """Write the same in each attempt."""
    yield "word "
    await asyncio.sleep(60)


async def answered(step: Step, ctx: StepContext) -> None:
    """Ask, and stand still after the answer."""
    await ctx.confirm("go on?", timeout=1, default=True, key=f"question-{ctx.attempt}")
    await asyncio.sleep(60)


async def waiting(step: Step, ctx: StepContext) -> None:
    """Wait for an answer."""
    await ctx.confirm("go on?")


async def backing_off(step: Step, ctx: StepContext) -> None:
    """Fail, and wait for the next attempt."""
    raise ConnectionError("not yet")


@pytest.mark.parametrize(
    ("agent", "losses"),
    [
        (sleeper, [1, 2, 3, 4]),
        (progressing, [1, 1, 1, 1]),
        (repeating, [1, 2, 3, 4]),
        (answered, [1, 1, 1, 1]),
        (waiting, []),
        (backing_off, []),
    ],
)
def test_only_code_that_makes_no_progress_loses(agent, losses):
    """Four crashes, each long after the attempt began."""

    async def story() -> None:
        world = World()
        await world.open()
        world.agent(agent, name="it", retry_base=1000.0)
        world.worker.start()
        task = await world.create(step("a", "it"))
        for _ in range(4):
            await asyncio.sleep(5)
            die(world)
            world = World(world.store, world.registry)
            await world.open()
            world.worker.start()
        await asyncio.sleep(5)
        log = await world.log(task)
        await world.worker.drain(0.001)
        assert [each["losses"] for each in only(log, "step_lost")] == losses

    simulate(story())


@pytest.mark.parametrize("stops", [20])
def test_a_stop_that_was_declared_loses_nothing(stops):
    """However often, and although the step does not stop in time."""

    async def stubborn(step: Step, ctx: StepContext) -> None:
        while asyncio.get_running_loop().time() < 200:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(1000)

    async def story() -> None:
        world = World(grace=0.1)
        await world.open()
        world.agent(stubborn)
        world.agent(sleeper)
        world.worker.start()
        tasks = [await world.create(step("a", name)) for name in ("stubborn", "sleeper")]
        for _ in range(stops):
            await asyncio.sleep(5)
            await world.worker.drain(0.1)
            world = World(world.store, world.registry, grace=0.1)
            await world.open()
            world.worker.start()
        await asyncio.sleep(5)
        for task in tasks:
            log = await world.log(task)
            assert len(only(log, "task_recovered")) == stops
            assert not only(log, "step_lost")
        await asyncio.sleep(1000)
        await world.worker.drain(0.1)

    simulate(story())


def test_two_suspects_never_run_at_once():
    """After two crashes the steps that were there run one after the other; the others wait for
    the first of them at most ten seconds.
    """
    alive: set[str] = set()
    most = 0
    started: dict[str, float] = {}

    async def silent(step: Step, ctx: StepContext) -> str:
        nonlocal most
        alive.add(ctx.task_id)
        most = max(most, len(alive))
        try:
            await asyncio.sleep(30)
        finally:
            alive.discard(ctx.task_id)
        return "done"

    async def fresh(step: Step, ctx: StepContext) -> str:
        started[ctx.task_id] = asyncio.get_running_loop().time()
        return "done"

    async def story() -> None:
        nonlocal most
        world = World()
        await world.open()
        world.agent(silent)
        world.agent(fresh)
        world.worker.start()
        tasks = [await world.create(step("a", "silent")) for _ in range(3)]
        for _ in range(2):
            await asyncio.sleep(5)
            die(world)
            world = World(world.store, world.registry)
            await world.open()
            world.worker.start()
            await asyncio.sleep(0)
        alive.clear()
        most = 0
        began = asyncio.get_running_loop().time()
        other = await world.create(step("a", "fresh"))
        for task in (*tasks, other):
            await world.subscribe(task)
            assert (await world.reader.until(task)).event_type == "task_completed"
        assert most == 1
        assert 10 <= started[other] - began < 11
        assert 90 <= asyncio.get_running_loop().time() - began < 92
        await world.worker.drain(0.001)

    simulate(story())


def test_an_agent_that_is_gone_fails_the_recovered_task():
    """The application may have changed between the crash and the start."""

    async def story() -> None:
        world = World()
        await world.open()
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


CREATED = [e.TaskCreated("x", None, {}, {}), e.TaskQueued(1), e.TaskStarted("node-1")]
DONE = e.StepCompleted("look", 1, "completed", None, cached=False, duration=1.0)
PLANNED = [*CREATED, e.PlanCreated(STEPS)]
FIRST = e.StepStarted("look", 1, "retriever", "")
SECOND = [e.StepRetrying("look", 1, 2, 0.0, "no", 1, "error"), replace(FIRST, attempt=2)]


@pytest.mark.parametrize(
    ("log", "marked", "found"),
    [
        (CREATED, ("", 1), [(None, 1)]),
        (CREATED, ("look", 1), [(None, 1)]),
        (PLANNED, ("look", 1), [("look", 1)]),
        ([*PLANNED, FIRST], ("look", 1), [("look", 1)]),
        ([*PLANNED, FIRST, SECOND[0]], ("look", 2), [("look", 2)]),
        ([*PLANNED, FIRST, *SECOND], ("look", 2), [("look", 2)]),
        # marks that are older than the log: what a power cut may leave
        (PLANNED, ("", 1), []),
        (PLANNED, ("gone", 1), []),
        ([*PLANNED, FIRST, *SECOND], ("look", 1), []),
        ([*PLANNED, FIRST, SECOND[0]], ("look", 1), []),
        ([*PLANNED, FIRST, DONE], ("look", 1), []),
    ],
)
def test_only_attempts_that_the_log_does_not_end_are_interrupted(log, marked, found):
    """Marks may be older than the log, but never by what a crash of the process can do."""
    state = TaskState.fold(
        "t1", [e.encode(event, "t1", seq, AT) for seq, event in enumerate(log, 1)]
    )
    lease = Lease("t1", 2, state.seq, b"{}", "ann", [marked])
    assert [(one.step_id, one.attempt) for one in interrupted_attempts(state, lease)] == found
