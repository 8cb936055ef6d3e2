"""Cursors: in order, without a hole, whatever the reader does."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from agentsrv.agents.agent import StepContext
from agentsrv.delivery.subscriptions import Hold, Subscriber
from agentsrv.errors import InvalidStateError, NotFoundError, SeqAheadError
from agentsrv.models.commands import Create
from agentsrv.models.plan import Step
from agentsrv.store.base import Head
from agentsrv.store.memory import MemoryStore
from tests.support.simulation import simulate
from tests.support.world import OWNER, Reader, World, execute, running, step, subscribe


async def talking(step: Step, ctx: StepContext) -> AsyncIterator[str]:
    """Write thirty pieces, a tenth of a second apart."""
    for number in range(30):
        yield f"{number} "
        await asyncio.sleep(0.1)


async def follow(world: World, reader: Reader, task: str, after: int = 0) -> Subscriber:
    """Subscribe another connection."""
    subscriber = Subscriber(world.broker, reader, OWNER)
    await subscribe(world, subscriber, task, after)
    return subscriber


@pytest.mark.seeds(20)
def test_every_reader_sees_the_log_from_where_it_asked(seed):
    """Readers that join at any time, behind any event, and stop reading at times, miss nothing."""
    chance = random.Random(seed)

    async def read(world: World, task: str) -> None:
        await asyncio.sleep(chance.random() * 4)
        head = len(await world.log(task))
        after = chance.randrange(head + 1)
        reader = Reader()
        subscriber = await follow(world, reader, task, after)
        while not (reader.records and reader.records[-1].is_terminal):
            await asyncio.sleep(chance.random())
            reader.has_room = chance.random() < 0.5 or reader.has_room is False
            if reader.has_room:
                subscriber.resume()
            last = (await world.log(task))[-1]
            if last.is_terminal and last.seq == after:
                break
        await asyncio.sleep(1)
        log = await world.log(task)
        assert reader.records == log[after:]
        assert len(reader.marks) == 1
        assert len(subscriber) == 0

    async def story() -> None:
        world = World()
        world.agent(talking)
        async with running(world):
            task = await world.create(step("a", "talking"))
            async with asyncio.TaskGroup() as group:
                for _ in range(8):
                    group.create_task(read(world, task))

    simulate(story(), seed)


def test_caught_up_comes_behind_the_last_logged_event():
    """It stands between what was logged when the subscription began and what is live."""

    class Noting(Reader):
        def caught_up(self, task_id: str, seq: int) -> None:
            super().caught_up(task_id, seq)
            assert self.records[-1].seq == seq

    async def story() -> None:
        world = World()
        world.agent(talking)
        async with running(world):
            task = await world.create(step("a", "talking"))
            await asyncio.sleep(1)
            reader = Noting()
            head = len(await world.log(task))
            await follow(world, reader, task)
            await reader.until(task)
            assert reader.marks == [(task, head)]

    simulate(story())


def test_a_subscription_behind_the_last_event_of_an_ended_task_only_catches_up():
    """There is nothing to deliver and nothing will come: the subscription is over."""

    async def story() -> None:
        world = World()
        world.agent(talking)
        async with running(world):
            task = await world.create(step("a", "talking"))
            end = await world.reader.until(task)
            reader = Reader()
            subscriber = await follow(world, reader, task, end.seq)
            await asyncio.sleep(0.01)
            assert (reader.records, reader.marks) == ([], [(task, end.seq)])
            assert len(subscriber) == 0

    simulate(story())


def test_no_event_is_delivered_before_the_reply():
    """While a command is answered, what it caused is kept back; then it comes at once."""

    async def story() -> None:
        world = World()
        world.agent(talking)
        world.subscriber.subscribe_all()
        async with running(world):
            command = Create(task_description="x", agent="talking", execute=True)
            with Hold(world.subscriber, "t1", after=0) as hold:
                hold.accept(await world.command_handler.create(OWNER, command, "t1"))
                await asyncio.sleep(1)
                assert world.reader.records == []
            await world.reader.until("t1")
            assert [r.seq for r in world.reader.records] == list(
                range(1, len(world.reader.records) + 1)
            )

    simulate(story())


def test_all_tells_the_life_cycle_of_own_tasks():
    """Created, queued, started, completed; nothing of steps, nothing of others' tasks."""

    async def story() -> None:
        world = World()
        world.agent(talking)
        watcher, stranger = Reader(), Reader()
        for name, reader in ((OWNER, watcher), ("stranger", stranger)):
            Subscriber(world.broker, reader, name).subscribe_all()
        async with running(world):
            task = await world.create(step("a", "talking"))
            await watcher.until(task)
        assert watcher.types(task) == [
            "task_created", "task_queued", "task_started", "task_completed",
        ]  # fmt: skip
        assert stranger.records == []

    simulate(story())


def test_all_loses_nothing_while_the_reader_has_no_room():
    """What could not be told at once is read from the log later, in each task's order."""

    async def story() -> None:
        world = World()
        world.agent(talking)
        watcher = Reader()
        subscriber = Subscriber(world.broker, watcher, OWNER)
        subscriber.subscribe_all()
        async with running(world):
            watcher.has_room = False
            tasks = [await world.create(step("a", "talking")) for _ in range(5)]
            for task in tasks:
                await world.reader.until(task)
            assert watcher.records == []
            watcher.has_room = True
            subscriber.resume()
            for task in tasks:
                await watcher.until(task)
                assert watcher.types(task) == [
                    "task_created", "task_queued", "task_started", "task_completed",
                ]  # fmt: skip

    simulate(story())


def test_a_task_that_is_also_followed_is_not_told_twice():
    """The single subscription delivers everything; ``all`` adds nothing to it."""

    async def story() -> None:
        world = World()
        world.agent(talking)
        world.subscriber.subscribe_all()
        async with running(world):
            task = await world.create(step("a", "talking"))
            await world.reader.until(task)
            await asyncio.sleep(0.1)
            assert world.reader.of(task) == await world.log(task)

    simulate(story())


def test_a_new_subscription_takes_the_place_of_the_earlier():
    """The log is told again from where the new one asks, and no event twice after that."""

    async def story() -> None:
        world = World()
        world.agent(talking)
        async with running(world):
            task = await world.create(step("a", "talking"))
            await world.reader.until(task, "partial_output")
            await asyncio.sleep(1)
            before = len(world.reader.records)
            await world.subscribe(task, 3)
            await world.reader.until(task)
            assert world.reader.records[before:] == (await world.log(task))[3:]

    simulate(story())


def test_a_refused_subscription_leaves_the_earlier_one():
    """Beyond the log is an error, and what was followed before goes on being followed."""

    async def story() -> None:
        world = World()
        world.agent(talking)
        async with running(world):
            task = await world.create(step("a", "talking"))
            await world.reader.until(task, "partial_output")
            with pytest.raises(SeqAheadError, match="expected at most"):
                await world.subscribe(task, 10_000)
            with pytest.raises(NotFoundError):
                await world.subscribe("feedbeef")
            await world.reader.until(task)
            assert world.reader.of(task) == await world.log(task)

    simulate(story())


def test_execute_keeps_a_subscription_that_is_there():
    """Whoever follows a pending task and executes it sees its first event once."""

    async def story() -> None:
        world = World()
        world.agent(talking)
        async with running(world):
            task = await world.create(step("a", "talking"), execute=False)
            await world.subscribe(task)
            await world.reader.until(task, "task_created")
            await world.execute(task)
            await world.reader.until(task)
            assert world.reader.of(task) == await world.log(task)

    simulate(story())


def test_unsubscribe_ends_delivery():
    """Nothing of the task comes afterwards; a second time there is nothing to end."""

    async def story() -> None:
        world = World()
        world.agent(talking)
        async with running(world):
            task = await world.create(step("a", "talking"))
            await world.reader.until(task, "partial_output")
            assert world.subscriber.unsubscribe(task)
            assert not world.subscriber.unsubscribe(task)
            seen = len(world.reader.records)
            await asyncio.sleep(10)
            assert len(world.reader.records) == seen

    simulate(story())


def test_a_long_backlog_does_not_starve_another_task():
    """The reader serves the tasks a page in turn, so a short log is told amid a long one."""

    async def pour(step: Step, ctx: StepContext) -> AsyncIterator[str]:
        for number in range(900):
            yield f"{number % 10}"
            await asyncio.sleep(0.001)

    async def story() -> None:
        world = World()
        world.agent(pour)
        world.agent(talking)
        async with running(world):
            long = await world.create(step("a", "pour"), step("b", "pour", "a"))
            await world.reader.until(long, "step_started")
            world.reader.has_room = False
            short = await world.create(step("a", "talking"))
            await asyncio.sleep(60)
            before = len(world.reader.records)
            world.reader.has_room = True
            world.subscriber.resume()
            end = await world.reader.until(short)
            assert world.reader.records.index(end) - before < 300
            await world.reader.until(long)
            assert world.reader.of(long) == await world.log(long)

    simulate(story())


@pytest.mark.seeds(10)
def test_a_cancel_beside_a_task_that_is_bound_to_its_client(seed):
    """What is committed may be nothing: who waits for the log does not always add to it."""

    async def story() -> None:
        world = World()
        world.agent(talking)
        async with running(world):
            bound = await world.create(step("a", "talking"))
            Subscriber(world.broker, Reader(), OWNER).bind(bound)
            task = await world.create(step("a", "talking"))
            await asyncio.sleep(1)
            await world.cancel(task)
            await asyncio.sleep(1)
            assert (await world.log(task))[-1].event_type == "task_cancelled"

    simulate(story(), seed)


class Awaited(MemoryStore):
    """A store whose answers take their time, as those of a file do."""

    async def head(self, task_id: str) -> Head | None:
        """See ``Store.head``."""
        found = await super().head(task_id)
        await asyncio.sleep(0.01)
        return found


FIRST, REFUSED, SECOND = 0, 10_000, 3
"""Events behind which a subscription begins: the middle one is refused."""


@pytest.mark.parametrize(
    ("before", "commands", "begins"),
    [
        (None, (REFUSED, FIRST), FIRST),
        (None, (FIRST, REFUSED), FIRST),
        (None, (REFUSED, FIRST, REFUSED), FIRST),
        (None, (FIRST, REFUSED, SECOND), SECOND),
        (None, (REFUSED, REFUSED), None),
        (FIRST, (REFUSED, SECOND), SECOND),
        (FIRST, (REFUSED, SECOND, REFUSED), SECOND),
        (FIRST, (REFUSED, REFUSED), None),
    ],
)
def test_a_refused_subscription_takes_back_nothing_but_itself(before, commands, begins):
    """Commands are carried out side by side; the last one that is accepted counts."""

    async def story() -> None:
        world = World(Awaited())
        world.agent(talking)
        async with running(world):
            task = await world.create(step("a", "talking"))
            await asyncio.sleep(1)
            world.subscriber.unsubscribe(task)
            if before is not None:
                await world.subscribe(task, before)
                await asyncio.sleep(0.2)
            known = len(world.reader.of(task))
            asked = [world.subscribe(task, after) for after in commands]
            replies = await asyncio.gather(*asked, return_exceptions=True)
            refused = [isinstance(reply, SeqAheadError) for reply in replies]
            assert refused == [after == REFUSED for after in commands]
            await asyncio.sleep(10)
            log, told = await world.log(task), world.reader.of(task)[known:]
            if begins is not None:
                assert told == log[begins:]
            elif before is None:
                assert told == []
            else:
                assert world.reader.of(task)[-1] == log[-1]
                assert told == log[-len(told) :]
            assert len(world.subscriber) == 0
            assert world.broker.counts == {}

    simulate(story())


@pytest.mark.parametrize("connections", [1, 2])
@pytest.mark.parametrize("closes", [True, False])
def test_an_execute_that_is_refused_leaves_the_bond_and_the_subscription(connections, closes):
    """Of two side by side one queues the task; the task belongs to its connection."""

    async def story() -> None:
        world = World(Awaited())
        world.agent(talking)
        readers = [Reader() for _ in range(connections)]
        subscribers = [Subscriber(world.broker, reader, OWNER) for reader in readers]

        async def is_executed(subscriber: Subscriber) -> bool:
            try:
                await execute(world, subscriber, task)
            except InvalidStateError:
                return False
            return True

        async with running(world):
            work = step("a", "talking")
            task = await world.create(work, execute=False, on_disconnect="cancel")
            both = (subscribers * 2)[:2]
            done = await asyncio.gather(*map(is_executed, both))
            assert sorted(done) == [False, True]
            owner = both[done.index(True)]
            if closes:
                assert owner.close() == [task]
            else:
                await asyncio.sleep(10)
                reader = readers[subscribers.index(owner)]
                assert reader.of(task) == await world.log(task)
                assert owner.close() == []

    simulate(story())


def test_a_follower_of_a_task_that_is_forgotten_is_told():
    """It has read a part of the log; the rest is not kept any more."""

    async def story() -> None:
        world = World()
        world.agent(talking)
        watcher = Reader()
        everything = Subscriber(world.broker, watcher, OWNER)
        everything.subscribe_all()
        async with running(world):
            task = await world.create(step("a", "talking"))
            await world.reader.until(task, "partial_output")
            world.reader.has_room = watcher.has_room = False
            await asyncio.sleep(10)
            assert await world.store.purge(world.environment.now() + 1, 10) == 1
            world.reader.has_room = watcher.has_room = True
            world.subscriber.resume()
            everything.resume()
            await asyncio.sleep(1)
            (refusal,) = world.reader.refusals
            assert isinstance(refusal, NotFoundError)
            assert "it ended too long ago" in refusal.message
            assert watcher.refusals == []
            assert len(world.subscriber) == 0

    simulate(story())


def test_a_task_whose_earlier_task_is_forgotten_fails_with_the_reason():
    """It was to take over what is not kept any more."""

    async def fails(step: Step, ctx: StepContext) -> str:
        raise ValueError("not today")

    async def story() -> None:
        world = World()
        world.agent(fails, retries=0)
        async with running(world):
            earlier = await world.create(step("a", "fails"))
            await world.reader.until(earlier)
            task = await world.create(execute=False, resume_from=earlier)
            assert await world.store.purge(world.environment.now() + 1, 10) == 1
            await world.execute(task)
            end = await world.reader.until(task)
            assert end.data["error_message"] == (
                f"task {earlier} was deleted: it ended too long ago"
            )

    simulate(story())
