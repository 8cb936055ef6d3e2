"""Deadlines, resuming, limits on output: what a task may count on, in simulated time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from agentsrv.agents.agent import StepContext
from agentsrv.delivery.subscriptions import Subscriber
from agentsrv.engine import recovery
from agentsrv.errors import InvalidCommandError, InvalidStateError, NotFoundError
from agentsrv.models.commands import Create
from agentsrv.models.plan import Step
from agentsrv.store.replay import forget_old
from tests.support.simulation import now, simulate
from tests.support.world import OWNER, Reader, World, check_log, create, running, step


async def sleeper(step: Step, ctx: StepContext) -> AsyncIterator[str]:
    """Write a word a second, ten of them."""
    for number in range(10):
        yield f"{number} "
        await asyncio.sleep(1)


async def quick(step: Step, ctx: StepContext) -> str:
    """Answer at once."""
    return f"{step.step_id} after {'+'.join(ctx.outputs.values()) or 'nothing'}"


def test_a_deadline_fails_the_task():
    """Counted from the execution; the step is stopped, and what it wrote is kept."""

    async def story() -> None:
        world = World()
        world.agent(sleeper)
        async with running(world):
            task = await world.create(step("a", "sleeper"), execute=False, deadline=3.5)
            await asyncio.sleep(60)
            await world.execute(task)
            end = await world.reader.until(task)
            assert asyncio.get_running_loop().time() == pytest.approx(63.5)
        assert end.event_type == "task_failed"
        assert end.data["error_message"] == "the deadline of 3.5 s has passed"
        assert end.data["partial_output"] == "0 1 2 3 "
        assert world.reader.types(task)[-2:] == ["step_cancelled", "task_failed"]

    simulate(story())


def test_a_deadline_that_passed_in_the_queue_fails_the_task_at_its_start():
    """A task that waited too long for its slot does not begin its work."""

    async def story() -> None:
        world = World(concurrency=1)
        world.agent(sleeper)
        async with running(world):
            await world.create(step("a", "sleeper"))
            late = await world.create(step("a", "sleeper"), deadline=2)
            end = await world.reader.until(late)
            assert end.event_type == "task_failed"
            check_log(await world.log(late))
            assert "partial_output" not in world.reader.types(late)

    simulate(story())


def test_a_task_in_time_knows_no_deadline():
    """The timer ends with the task."""

    async def story() -> None:
        world = World()
        world.agent(quick)
        async with running(world):
            task = await world.create(step("a", "quick"), deadline=1)
            assert (await world.reader.until(task)).event_type == "task_completed"
            await asyncio.sleep(10)
            check_log(await world.log(task))

    simulate(story())


def test_a_failed_task_is_resumed_behind_its_completed_steps():
    """Completed steps are taken over as cached, in one append with the plan; the rest runs."""
    ran: list[str] = []
    broken = True

    async def worker(step: Step, ctx: StepContext) -> str:
        ran.append(step.step_id)
        if step.step_id == "b" and broken:
            raise ValueError("no")
        ctx.set_result({"of": step.step_id})
        return f"{step.step_id}({'+'.join(ctx.outputs.values())})"

    async def story() -> None:
        nonlocal broken
        world = World()
        world.agent(worker, retries=0)
        async with running(world):
            steps = step("a", "worker"), step("b", "worker", "a"), step("c", "worker", "a", "b")
            first = await world.create(*steps)
            assert (await world.reader.until(first)).event_type == "task_failed"
            broken = False
            second = await world.create(resume_from=first)
            end = await world.reader.until(second)
            check_log(await world.log(second))
        assert end.data["final_output"] == "c(a()+b(a()))"
        assert ran == ["a", "b", "b", "c"]
        cached = {
            r.data["step_id"]: r.data["cached"]
            for r in world.reader.of(second)
            if r.event_type == "step_completed"
        }
        assert cached == {"a": True, "b": False, "c": False}
        assert (await world.status(second))["steps"][0]["output"] == "a()"

    simulate(story())


def test_what_is_taken_over_is_in_small_events_and_counts_as_output(monkeypatch):
    """A long text comes in several events, and takes the room that a task has for output."""
    monkeypatch.setattr(recovery, "MAX_PIECE", 300)
    is_broken = True

    async def worker(step: Step, ctx: StepContext) -> str:
        if step.step_id == "d" and is_broken:
            raise ValueError("no")
        return "x" * (10 if step.step_id == "d" else 1000)

    async def story() -> None:
        nonlocal is_broken
        world = World()  # in which a task may write 3000 characters
        world.agent(worker, retries=0)
        async with running(world):
            before = [step(name, "worker") for name in "abc"]
            first = await world.create(*before, step("d", "worker", *"abc"))
            assert (await world.reader.until(first)).event_type == "task_failed"
            is_broken = False
            second = await world.create(resume_from=first)
            end = await world.reader.until(second)
            check_log(await world.log(second))
        pieces = [
            r.data["output"]
            for r in world.reader.of(second)
            if (r.event_type, r.data.get("step_id")) == ("partial_output", "a")
        ]
        assert [len(piece) for piece in pieces] == [300, 300, 300, 100]
        assert end.event_type == "task_failed"
        assert "the output is too long" in end.data["error_message"]

    simulate(story())


def test_what_cannot_be_resumed_is_refused():
    """Only an own task that failed or was cancelled, and without another plan beside it."""

    async def story() -> None:
        world = World()
        world.agent(quick)
        async with running(world):
            task = await world.create(step("a", "quick"))
            await world.reader.until(task)
            with pytest.raises(InvalidStateError, match="is completed; resume_from needs"):
                await world.create(resume_from=task)
            with pytest.raises(NotFoundError):
                await world.create(resume_from="feedbeef")
            with pytest.raises(InvalidCommandError, match="the plan is taken over"):
                await world.create(step("a", "quick"), resume_from=task)
            eve = Create(task_description="x", resume_from=task)
            with pytest.raises(NotFoundError):
                await world.command_handler.create("eve", eve, "t1")

    simulate(story())


@pytest.mark.parametrize(
    ("size", "steps", "written"), [(400, 1, [1000]), (300, 4, [900, 900, 900, 300])]
)
def test_endless_output_is_cut_off(size, steps, written):
    """A step, and a task, fail with what they have written; the message says the limits."""

    async def chatty(step: Step, ctx: StepContext) -> AsyncIterator[str]:
        for _ in range(3 if steps > 1 else 1000):
            yield "x" * size

    async def story() -> None:
        world = World()
        world.agent(chatty)
        async with running(world):
            chain = [step(f"s{n}", "chatty", *([f"s{n - 1}"] if n else [])) for n in range(steps)]
            task = await world.create(*chain)
            end = await world.reader.until(task)
            snapshot = await world.status(task)
        assert end.event_type == "task_failed"
        assert "1000 characters (max_step_output) and a task 3000" in end.data["error_message"]
        assert [len(s["output"]) for s in snapshot["steps"]] == written
        assert world.reader.types(task).count("step_retrying") == 0

    simulate(story())


def test_a_bound_task_is_told_to_its_connection_until_it_ends():
    """on_disconnect: cancel binds a task; one that has ended is bound no more."""

    async def story() -> None:
        world = World()
        world.agent(quick)
        world.agent(sleeper)
        subscriber = Subscriber(world.broker, Reader(), OWNER)
        async with running(world):
            tasks = []
            for agent in ("quick", "sleeper"):
                command = Create(
                    task_description="x", agent=agent, execute=True, on_disconnect="cancel"
                )
                created = await create(world, subscriber, OWNER, command)
                tasks.append(created["task_id"])
            free = Create(task_description="x", agent="sleeper", execute=True)
            await create(world, subscriber, OWNER, free)
            await asyncio.sleep(1)
            assert subscriber.close() == [tasks[1]]

    simulate(story())


def test_a_refused_execute_leaves_the_bond_of_another_connection():
    """Whoever executes a task that runs already takes nothing from its owner's connection."""

    async def story() -> None:
        world = World()
        world.agent(sleeper)
        owner = Subscriber(world.broker, Reader(), OWNER)
        command = Create(
            task_description="x", agent="sleeper", execute=True, on_disconnect="cancel"
        )
        async with running(world):
            created = await create(world, owner, OWNER, command)
            await asyncio.sleep(1)
            with pytest.raises(InvalidStateError):
                await world.execute(created["task_id"])
            assert owner.close() == [created["task_id"]]

    simulate(story())


def test_old_tasks_are_forgotten_whole_and_running_ones_never():
    """After the retention an ended task is not found; one that runs stays, however old."""

    async def story() -> None:
        world = World()
        world.agent(quick)

        async def endless(step: Step, ctx: StepContext) -> str:
            await asyncio.sleep(1e9)
            return "never"

        world.agent(endless)
        async with running(world):
            old = await world.create(step("a", "quick"))
            runs = await world.create(step("a", "endless"))
            await world.reader.until(old)
            purging = asyncio.create_task(forget_old(world.store, 1000, now))
            await asyncio.sleep(900)
            young = await world.create(step("a", "quick"))
            await world.reader.until(young)
            await asyncio.sleep(200)
            with pytest.raises(NotFoundError):
                await world.status(old)
            assert (await world.status(young))["status"] == "completed"
            assert (await world.status(runs))["status"] == "running"
            purging.cancel()
            await world.cancel(runs)
            await world.reader.until(runs)

    simulate(story())
