import asyncio
import gc
import logging
from collections.abc import Sequence
from typing import Any

import pytest

from agentsrv.agents.agent import StepContext
from agentsrv.engine import worker
from agentsrv.errors import UnavailableError
from agentsrv.models.commands import Create
from agentsrv.models.plan import Step
from agentsrv.store.replay import forget_old
from tests.support.shared_memory import LEASE, Place
from tests.support.simulation import now, simulate
from tests.support.world import World, check_log, running, step
from tests.unit.engine.sample_agents import only, quick, sleeper
from tests.unit.engine.simulated_cluster import cluster


def test_a_worker_claims_again_when_the_store_is_back(caplog):
    """It says once that it cannot, and once that it can."""
    caplog.set_level(logging.INFO, "agentsrv.worker")

    async def story() -> None:
        async with cluster(Place(latency=0.01), "ab", gateways="b") as (here, other):
            here.agent(sleeper)
            here.door.cut()
            await asyncio.sleep(100)
            task = await other.create(step("a", "sleeper"))
            here.door.mend()
            end = await other.reader.until(task)
            assert end.event_type == "task_completed"

    simulate(story())
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "no tasks are claimed",
        "tasks are claimed again",
    ]


def test_a_worker_whose_leases_are_over_stops_before_others_begin(caplog):
    """Its agents are cancelled by its own clock; nothing of it is in the log."""
    alive: set[str] = set()

    async def story() -> None:
        async with cluster(Place(latency=0.01), "ab") as members:

            async def agent(step, ctx) -> None:
                assert not alive, "two nodes run it"
                alive.add(ctx.step_key)
                try:
                    await asyncio.sleep(60)
                finally:
                    alive.clear()

            members[0].agent(agent)
            task = await members[0].create(step("a", "agent"))
            started = await members[0].reader.until(task, "task_started")
            here, other = members
            if started.data["node"] == other.name:
                here, other = other, here
            await other.subscribe(task)
            here.door.cut()
            await asyncio.sleep(LEASE - 0.5)
            assert not alive
            here.door.mend()
            end = await other.reader.until(task)
            log = await other.log(task)
        check_log(log)
        assert end.event_type == "task_completed"
        assert len(only(log, "task_recovered")) == 1

    simulate(story())
    assert "the leases of 1 tasks may have expired; the tasks stop on this node" in caplog.messages


@pytest.mark.parametrize("resumes", [False, True])
def test_a_task_whose_log_cannot_be_read_now_is_given_back(resumes):
    """Its node lives on, so nobody else would take it; nothing of that is a failure of the task."""

    async def story() -> None:
        async with cluster(Place(latency=0.01), "a") as (here,):
            here.agent(sleeper)
            task = await here.create(step("a", "sleeper"))
            await here.reader.until(task, "step_started")
            await here.cancel(task)
            await here.reader.until(task)
            reading, broken = here.door.read, 3

            async def read(task_id: str, after: int, limit: int) -> Sequence[bytes]:
                nonlocal broken
                if broken:
                    broken -= 1
                    raise UnavailableError("not now")
                return await reading(task_id, after, limit)

            here.door.read = read  # type: ignore[method-assign]
            if resumes:
                task = await here.create(resume_from=task)
            else:
                here.worker._prepared.clear()
                task = await here.create(step("a", "sleeper"), execute=False)
                here.door.read = reading  # type: ignore[method-assign]
                await here.execute(task)
                here.door.read = read  # type: ignore[method-assign]
            end = await here.reader.until(task)
            assert end.event_type == "task_completed"
            assert not broken
            check_log(await here.log(task))

    simulate(story())


@pytest.mark.parametrize("resumes", [False, True])
def test_a_task_that_is_given_back_again_and_again_is_claimed_less_and_less(resumes):
    """A log that can never be read costs a few reads a minute, not hundreds a second."""

    async def story() -> None:
        async with cluster(Place(latency=0.01), "a") as (here,):
            here.agent(sleeper)
            task = await here.create(step("a", "sleeper"))
            await here.reader.until(task, "step_started")
            await here.cancel(task)
            await here.reader.until(task)
            reads = 0

            async def read(task_id: str, after: int, limit: int) -> Sequence[bytes]:
                nonlocal reads
                reads += 1
                raise UnavailableError("not now")

            if resumes:
                here.door.read = read  # type: ignore[method-assign]
                await here.create(resume_from=task)
            else:
                task = await here.create(step("a", "sleeper"), execute=False)
                await here.execute(task)
                here.worker._prepared.clear()
                here.door.read = read  # type: ignore[method-assign]
            await asyncio.sleep(600)
            assert 1 < reads < 40

    simulate(story())


def test_old_tasks_are_forgotten_although_the_store_was_away():
    """The next look is as good."""

    async def story() -> None:
        async with cluster(Place(latency=0.01), "a") as (here,):
            here.agent(sleeper)
            task = await here.create(step("a", "sleeper"))
            await here.reader.until(task)
            forgetting = asyncio.create_task(forget_old(here.store, 100, now))
            here.door.cut()
            await asyncio.sleep(90)
            assert await here.door._place.head(task) is not None
            here.door.mend()
            await asyncio.sleep(130)
            assert await here.door._place.head(task) is None
            forgetting.cancel()

    simulate(story())


def test_a_release_is_tried_again():
    """As long as the store cannot carry it out now: else the lease would stay where it is."""

    async def story() -> None:
        world = World()
        world.agent(quick)
        async with running(world):
            task = await world.create(step("a", "quick"), execute=False)
            read, release = world.store.read, world.store.release
            refused = 0

            async def unreadable(task_id: str, after: int, limit: int) -> Sequence[bytes]:
                if limit != 100_000:
                    raise UnavailableError("not now")
                return await read(task_id, after, limit)

            async def unwilling(task_id: str, epoch: int) -> None:
                nonlocal refused
                refused += 1
                if refused < 4:
                    raise UnavailableError("not now")
                world.store.read = read  # type: ignore[method-assign]
                await release(task_id, epoch)

            await world.execute(task)
            world.worker._prepared.clear()
            world.store.read = unreadable  # type: ignore[method-assign]
            world.store.release = unwilling  # type: ignore[method-assign]
            assert (await world.reader.until(task)).event_type == "task_completed"
            assert refused == 4

    simulate(story())


def test_a_task_that_waits_for_its_release_takes_no_slot(monkeypatch):
    """The back-off before a release is up to a minute; others run meanwhile."""

    async def story() -> None:
        world = World(concurrency=1)
        world.agent(sleeper)
        world.agent(quick)
        async with running(world):
            broken = [await world.create(step("a", "sleeper"), execute=False) for _ in range(3)]
            read = world.store.read

            async def unreadable(task_id: str, after: int, limit: int) -> Sequence[bytes]:
                if task_id in broken and limit != 100_000:
                    raise UnavailableError("not now")
                return await read(task_id, after, limit)

            for task in broken:
                await world.execute(task)
            world.worker._prepared.clear()
            world.store.read = unreadable  # type: ignore[method-assign]
            await asyncio.sleep(300)
            assert world.worker.running == 0
            assert len(world.worker._broken_runs) == 3
            task = await world.create(step("a", "quick"))
            began = asyncio.get_running_loop().time()
            await world.reader.until(task)
            assert asyncio.get_running_loop().time() - began < 1
            monkeypatch.setattr(worker, "MAX_TRACKED_TASKS", 2)
            await asyncio.sleep(300)
            assert len(world.worker._broken_runs) <= 2
            world.store.read = read  # type: ignore[method-assign]
            for task in broken:
                await world.reader.until(task)
            assert not world.worker._broken_runs

    simulate(story())


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_task_that_waits_keeps_a_small_command_only(size):
    """The others are read from the store when their turn comes; the deadline counts all the same."""
    held: list[Create] = []

    async def taker(step: Step, ctx: StepContext, **params: Any) -> str:
        await asyncio.sleep(100)
        return str(len(ctx.params["text"]))

    async def story() -> None:
        world = World(concurrency=1)
        world.agent(taker)
        async with running(world):
            fields: dict[str, Any] = {"params": {"text": "x" * size}}
            tasks = [await world.create(step("a", "taker"), **fields) for _ in range(3)]
            late = await world.create(step("a", "taker"), deadline=200.0, **fields)
            await asyncio.sleep(1)
            gc.collect()
            found = [one for one in gc.get_objects() if isinstance(one, Create)]
            held.extend(one for one in found if len(str(one.params.get("text"))) == size)
            for task in tasks:
                end = await world.reader.until(task)
                assert end.data["final_output"] == str(size)
            assert "deadline" in (await world.reader.until(late)).data["error_message"]

    simulate(story())
    assert len(held) == (4 if size == 10 else 1)  # the one that runs
