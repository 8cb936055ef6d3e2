import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from agentsrv.agents.agent import StepContext
from agentsrv.engine.cluster.follower import POSITION_TTL
from agentsrv.models.events import decode
from agentsrv.models.plan import Step
from agentsrv.store.base import Commit, LogHead
from agentsrv.store.queue import QueueLimits
from agentsrv.store.shared import SWEEP_INTERVAL
from tests.support.shared_memory import Place
from tests.support.simulation import simulate
from tests.support.world import Reader, check_log, step
from tests.unit.engine.sample_agents import sleeper
from tests.unit.engine.simulated_cluster import Member, cluster


async def talker(step: Step, ctx: StepContext) -> AsyncIterator[str]:
    """Write a word every tenth of a second, thirty of them."""
    for number in range(30):
        yield f"{number} "
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("drops", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("after", [0, 3])
def test_a_task_of_another_node_is_followed(drops, after):
    """From any number on, whatever becomes of the hints: each event once and in its order."""

    async def story() -> None:
        place = Place(latency=0.05, drops=drops)
        async with cluster(place, "ab", gateways="b") as (here, other):
            here.agent(talker)
            task = await here.create(step("a", "talker"))
            await here.reader.until(task, "step_started")
            await other.subscribe(task, after)
            await other.reader.until(task)
            log = await other.log(task)
            check_log(log)
            assert other.reader.of(task) == log[after:]
            assert here.reader.of(task) == log
            assert len(other.subscriber) == 0

    simulate(story())


def test_all_who_follow_share_one_reading():
    """Of a thousand tails, whose followers are told the same bytes: one query a sweep."""

    async def story() -> None:
        place = Place(drops=1.0, limits=QueueLimits(total=2000))
        async with cluster(place, "ab", gateways="b") as (here, other):
            here.agent(sleeper)
            here.worker._concurrency = 1000
            tasks = [await here.create(step("a", "sleeper")) for _ in range(500)]
            clients = [other.client() for _ in range(2)]
            for task in tasks:
                for subscriber, _ in clients:
                    other.subscriber = subscriber
                    await other.subscribe(task)
            await asyncio.sleep(10)
            other.door.calls.clear()
            await asyncio.sleep(10)
            assert other.door.calls.count("news") == pytest.approx(10 / SWEEP_INTERVAL, abs=1)
            assert "read" not in other.door.calls
            other.door.calls.clear()
            await asyncio.sleep(60)
            (_, one), (_, two) = clients
            for task in tasks:
                check_log(one.of(task))
            # 500 tasks ended in the same second.
            assert other.door.calls.count("read_each") <= 3
            ends = {id(frame) for frame in one.frames if decode(frame).is_terminal}
            assert ends == {id(frame) for frame in two.frames if decode(frame).is_terminal}

    simulate(story())


def test_nothing_is_asked_where_nobody_follows():
    """A node without subscribers leaves the store alone."""

    async def story() -> None:
        async with cluster(Place(), "ab", gateways="b") as (here, other):
            here.agent(sleeper)
            task = await here.create(step("a", "sleeper"))
            await here.reader.until(task, "step_started")
            here.door.calls.clear()
            await asyncio.sleep(10)
            assert "news" not in other.door.calls
            # Its own task needs no asking either.
            assert "read_each" not in here.door.calls

    simulate(story())


def all_of(member: Member) -> Reader:
    """A client that follows the life cycle of all tasks."""
    subscriber, reader = member.client()
    subscriber.subscribe_all()
    return reader


def life_cycle(log):
    """What such a client is to be told of a log."""
    return [record for record in log if record.event_type.startswith("task_")]


@pytest.mark.parametrize("drops", [0.0, 0.5, 1.0])
def test_the_life_cycle_of_all_tasks_of_all_nodes_is_told(drops):
    """Each event once, on every node, within a sweep; those of others are not."""

    async def story() -> None:
        place = Place(latency=0.02, drops=drops)
        async with cluster(place, "abc", gateways="c") as members:
            members[0].agent(talker)
            readers = [all_of(member) for member in members]
            stranger = members[0].client("eve")
            stranger[0].subscribe_all()
            tasks = [await member.create(step("a", "talker")) for member in members * 3]
            await asyncio.sleep(5)
            for task in tasks:
                expected = life_cycle(await members[0].log(task))
                assert expected[-1].event_type == "task_completed"
                for reader in readers:
                    assert reader.of(task) == expected
            assert not stranger[1].records
            # Long forgotten, they are not told again when one of them goes on.
            await asyncio.sleep(2 * POSITION_TTL)
            assert not any(member.follower._positions for member in members)
            assert sum(len(reader.records) for reader in readers) == 4 * len(tasks) * len(members)

    simulate(story())


@pytest.mark.parametrize("drops", [0.0, 1.0])
def test_an_old_task_that_goes_on_is_told_of_from_there(drops):
    """What was before the subscription is not told."""

    async def story() -> None:
        place = Place(latency=0.02, drops=drops)
        async with cluster(place, "ab", gateways="b") as (here, other):
            here.agent(sleeper)
            task = await here.create(step("a", "sleeper"), execute=False)
            await asyncio.sleep(60)
            early = all_of(other)
            await asyncio.sleep(40)
            await here.execute(task)
            await asyncio.sleep(30)
            late = all_of(other)
            await asyncio.sleep(60)
            types = [record.event_type for record in early.of(task)]
            assert types == ["task_queued", "task_started", "task_completed"]
            assert [record.event_type for record in late.of(task)] == ["task_completed"]

    simulate(story())


def test_nothing_is_missed_while_the_store_is_away():
    """Also for longer than it looks back: known and new tasks are told of when it is there."""

    async def story() -> None:
        place = Place(latency=0.02, drops=0.5)
        async with cluster(place, "ab", gateways="b") as (here, other):
            here.agent(sleeper)
            reader = all_of(other)
            first = await here.create(step("a", "sleeper"))
            await other.subscribe(first)
            await asyncio.sleep(5)
            other.door.cut()
            second = await here.create(step("a", "sleeper"))
            await asyncio.sleep(200)
            other.door.mend()
            await asyncio.sleep(3)
            assert other.reader.of(first) == await here.log(first)
            for task in (first, second):
                assert reader.of(task) == life_cycle(await here.log(task))

    simulate(story())


def test_a_reader_that_failed_reads_on_by_itself():
    """A client that keeps its socket is told what it had no room for, when the store is back."""

    async def story() -> None:
        place = Place(latency=0.02)
        async with cluster(place, "ab", gateways="b") as (here, other):
            here.agent(talker)
            task = await here.create(step("a", "talker"))
            await other.subscribe(task)
            other.reader.has_room = False
            await here.reader.until(task)
            other.door.cut()
            other.reader.has_room = True
            other.subscriber.resume()
            await asyncio.sleep(20)
            assert not other.reader.of(task)[5:]
            other.door.mend()
            await asyncio.sleep(2)
            check_log(other.reader.of(task))

    simulate(story())


def test_hints_that_make_no_sense_do_no_harm():
    """Old ones, doubled ones, and such of what nobody wants."""

    async def story() -> None:
        async with cluster(Place(latency=0.01), "ab", gateways="b") as (here, other):
            here.agent(talker)
            task = await here.create(step("a", "talker"))
            await other.subscribe(task)
            chance = random.Random(1)
            while len(other.subscriber):
                old = chance.randrange(40)
                other.listener.news([LogHead(task, "somebody", old), LogHead("gone", "nobody", 7)])
                other.listener.committed(Commit("gone", "nobody", 3, [b"x"]))
                await asyncio.sleep(0.03)
            check_log(other.reader.of(task))
            assert other.follower._positions.keys() <= {task}

    simulate(story())


def test_the_delay_of_the_loop_is_told():
    """Not that of the store: others look at it to see who is overloaded."""

    async def story() -> None:
        async with cluster(Place(latency=3), "a") as (here,):
            all_of(here)
            loop = asyncio.get_running_loop()
            await asyncio.sleep(20)
            assert here.door.lag == pytest.approx(0, abs=0.01)
            here.door._place.latency = 0
            await asyncio.sleep(10)
            loop.call_soon(lambda: setattr(loop, "_now", loop.time() + 1.5))
            lags = set()
            for _ in range(100):
                await asyncio.sleep(0.1)
                lags.add(round(here.door.lag, 1))
            assert max(lags) > 0.5

    simulate(story())
