"""Commands become decisions: limits, idempotency, other people's tasks."""

from __future__ import annotations

import asyncio

import pytest

from agentsrv.agents.agent import StepContext
from agentsrv.errors import (
    ConflictError,
    InvalidCommandError,
    InvalidStateError,
    NotFoundError,
    OverloadedError,
    ShuttingDownError,
)
from agentsrv.models.commands import Cancel, Create, Execute, List, Subscribe
from agentsrv.models.plan import ExecutionPlan, Step
from agentsrv.store.memory import MemoryStore
from agentsrv.store.queue import QueueLimits
from tests.support.simulation import simulate
from tests.support.world import OWNER, World, create, running, step


async def quick(step: Step, ctx: StepContext, times: int = 1) -> str:
    """Answer at once."""
    return "done" * times


async def endless(step: Step, ctx: StepContext) -> str:
    """Never answer."""
    await asyncio.sleep(1e9)
    return "never"


def test_create_alone_leaves_the_task_pending():
    """Nothing runs until it is executed; then the whole log is told."""

    async def story() -> None:
        world = World()
        world.agent(quick)
        async with running(world):
            task = await world.create(step("a", "quick"), execute=False)
            await asyncio.sleep(1)
            assert (await world.status(task))["status"] == "pending"
            assert world.reader.records == []
            result = await world.execute(task)
            assert (result["status"], result["seq"]) == ("queued", 2)
            await world.reader.until(task)
            assert world.reader.of(task) == await world.log(task)
            with pytest.raises(InvalidStateError, match="is completed; execute needs pending"):
                await world.execute(task)

    simulate(story())


def test_the_queue_is_bounded():
    """Beyond the limit both ways into the queue are refused, and nothing is left behind."""

    async def story() -> None:
        world = World(MemoryStore(QueueLimits(total=2)), concurrency=1)
        world.agent(endless)
        async with running(world):
            busy = await world.create(step("a", "endless"))
            await world.reader.until(busy, "step_started")
            waiting = [await world.create(step("a", "endless")) for _ in range(2)]
            await asyncio.sleep(0.01)
            positions = [r.data["position"] for r in world.reader.records if r.seq == 2]
            assert positions == [1, 1, 2]
            with pytest.raises(OverloadedError, match="2 tasks are waiting") as refused:
                await world.create(step("a", "endless"))
            assert refused.value.retry_after
            pending = await world.create(step("a", "endless"), execute=False)
            with pytest.raises(OverloadedError):
                await world.execute(pending)
            assert (await world.status(pending))["seq"] == 1
            listed = await world.command_handler.list(OWNER, List())
            assert listed["total"] == 4
            await world.cancel(waiting[0])
            await world.execute(pending)

    simulate(story())


def test_an_idempotency_key_creates_once():
    """The same command again is answered with the same task; another one is a conflict."""

    async def story() -> None:
        world = World()
        world.agent(quick)
        async with running(world):
            command = Create(task_description="x", agent="quick", idempotency_key="k", execute=True)
            first = await create(world, world.subscriber, OWNER, command)
            await world.reader.until(first["task_id"])
            repeated = command.model_copy(update={"id": 9})
            again = await create(world, world.subscriber, OWNER, repeated)
            assert (again["task_id"], again["replayed"]) == (first["task_id"], True)
            assert again["status"] == "completed"
            await asyncio.sleep(0.1)
            log = await world.log(first["task_id"])
            assert world.reader.of(first["task_id"]) == [*log, *log]
            other = command.model_copy(update={"task_description": "y"})
            with pytest.raises(ConflictError, match="'k' was used with other parameters"):
                await create(world, world.subscriber, OWNER, other)
            assert await world.command_handler.find_key(OWNER, "k") == first["task_id"]
            theirs = await create(world, world.subscriber, "other", command)
            assert theirs["replayed"] is False

    simulate(story())


def test_anothers_task_is_not_found():
    """Every command answers as if the task did not exist, in the same words."""

    async def story() -> None:
        world = World()
        world.agent(quick)
        async with running(world):
            task = await world.create(step("a", "quick"), execute=False)
            answers = []
            for task_id in (task, "0" * 16):
                for attempt in (
                    world.command_handler.execute("eve", Execute(task_id=task_id)),
                    world.command_handler.cancel("eve", Cancel(task_id=task_id)),
                    world.command_handler.subscribe("eve", Subscribe(task_id=task_id)),
                    world.command_handler.status("eve", task_id),
                    world.command_handler.resolve("eve", task_id),
                ):
                    with pytest.raises(NotFoundError) as refused:
                        await attempt
                    answers.append(refused.value.message.replace(task_id, "TASK"))
            assert answers[:5] == answers[5:]
            assert (await world.command_handler.list("eve", List()))["tasks"] == []
            assert (await world.status(task))["status"] == "pending"

    simulate(story())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"agent": "nobody"}, "wants agent 'nobody'; the agents are endless, quick"),
        ({"plan": ExecutionPlan(steps=(step("a", "nobody"),))}, "wants agent 'nobody'"),
        ({"agent": "quick", "plan": ExecutionPlan(steps=(step("a", "quick"),))}, "found both"),
        ({"agent": "quick", "params": {"times": "many"}}, "params.times: Input should be"),
        ({}, "no planner; expected an agent or a plan"),
    ],
)
def test_what_cannot_run_is_refused_at_create(fields, message):
    """Before anything is stored, with a sentence that says what there is."""

    async def story() -> None:
        world = World()
        world.agent(quick)
        world.agent(endless)
        with pytest.raises(InvalidCommandError, match=message):
            await world.create(**fields)
        assert (await world.command_handler.list(OWNER, List()))["total"] == 0

    simulate(story())


@pytest.mark.parametrize("before", range(12))
@pytest.mark.parametrize("between", range(10))
def test_a_cancel_may_be_said_again_at_once(before, between):
    """Also where the first one overtook a worker that had just claimed the task."""

    async def story() -> None:
        world = World()
        world.agent(endless)
        async with running(world):
            task = await world.create(step("a", "endless"))
            for _ in range(before):
                await asyncio.sleep(0)
            first = await world.cancel(task)
            for _ in range(between):
                await asyncio.sleep(0)
            again = await world.cancel(task)
            assert (first["already"], again["already"]) == (False, True)
            end = await world.reader.until(task)
            assert end.event_type == "task_cancelled"

    simulate(story(), seed=12 * between + before)


def test_a_prefix_names_a_task():
    """As long as it names only one."""

    async def story() -> None:
        world = World()
        world.agent(quick)
        tasks = [await world.create(step("a", "quick"), execute=False) for _ in range(40)]
        assert await world.command_handler.resolve(OWNER, tasks[0][:10]) == tasks[0]
        with pytest.raises(InvalidCommandError, match="begins more than one"):
            await world.command_handler.resolve(OWNER, "")
        with pytest.raises(NotFoundError):
            await world.command_handler.resolve(OWNER, "zz")

    simulate(story())


def test_a_draining_server_takes_no_work():
    """New work is refused as retryable; questions are still answered."""

    async def story() -> None:
        world = World()
        world.agent(quick)
        task = await world.create(step("a", "quick"), execute=False)
        world.command_handler.draining = True
        with pytest.raises(ShuttingDownError):
            await world.create(step("a", "quick"))
        with pytest.raises(ShuttingDownError):
            await world.execute(task)
        assert (await world.status(task))["status"] == "pending"

    simulate(story())


def test_status_tells_what_is_committed():
    """The snapshot of a running task has its steps, and its text agrees with its number."""

    async def writer(step: Step, ctx: StepContext):
        for number in range(5):
            yield f"{number}"
            await asyncio.sleep(1)

    async def story() -> None:
        world = World()
        world.agent(writer)
        async with running(world):
            task = await world.create(step("a", "writer"))
            await asyncio.sleep(2.5)
            snapshot = await world.status(task)
            log = await world.log(task)
            assert snapshot["seq"] == log[-1].seq
            assert snapshot["partial_output"] == "012" == snapshot["steps"][0]["output"]
            assert snapshot["final_output"] is None
            await world.reader.until(task)
            assert (await world.status(task))["final_output"] == "01234"

    simulate(story())
