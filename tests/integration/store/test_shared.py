"""What every store has to do that several nodes share, run by each of them.

Each test has some doors to one store. What happens by itself is waited for, not timed.
"""

import asyncio
from collections import Counter
from collections.abc import Callable

import asyncpg
import pytest

from agentsrv.errors import FencedError, OverloadedError
from agentsrv.models.usage import Use
from agentsrv.store.base import LogHead, Store
from agentsrv.store.postgres.lease import Timing
from agentsrv.store.postgres.store import PostgresStore
from agentsrv.store.queue import QueueLimits
from agentsrv.store.shared import SharedStore
from tests.support.shared_memory import Place, SharedMemory
from tests.support.store_listener import Heard, heard
from tests.support.store_tasks import (
    COMPLETED,
    PENDING,
    QUEUED,
    RUNNING,
    STILL,
    claim,
    following,
    head_of,
    leased,
    log_of,
    new_task,
    numbers,
)

SHORT = Timing(
    ttl=1.5, margin=0.5, renew_interval=0.1, sweep_interval=0.05
)  # of doors that are to be lost
SWEEPING = STILL._replace(sweep_interval=0.05)
PATIENCE = 30  # seconds


async def until(happened: Callable[[], bool]) -> None:
    """Wait for something that happens by itself."""
    async with asyncio.timeout(PATIENCE):
        while not happened():  # noqa: ASYNC110 - what happens may be anything
            await asyncio.sleep(0.01)


class Doors:
    """Opens doors to one store, and closes them."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.opened: list[PostgresStore] = []
        self._held: list[asyncpg.Connection] = []  # of nodes that hang

    async def open(
        self, node: str = "one", timing: Timing = STILL, limits: QueueLimits | None = None
    ) -> SharedStore:
        """Another node's door."""
        store = PostgresStore(self.dsn, node=node, timing=timing, limits=limits)
        await store.open(Heard())
        self.opened.append(store)
        return store

    async def kill(self, door: SharedStore) -> None:
        """End a node without its giving anything back."""
        (store,) = [store for store in self.opened if store is door]
        self.opened.remove(store)
        for task in store._tasks:
            task.cancel()
        await asyncio.wait(store._tasks)
        store._pool.terminate()

    async def hang(self, door: SharedStore) -> None:
        """Let a node live, but not renew its lease; the connection that it does so by stays."""
        (store,) = [store for store in self.opened if store is door]
        lease, found = store._lease, "SELECT backend FROM node WHERE id = $1"
        connection = await asyncpg.connect(self.dsn)
        async with asyncio.timeout(PATIENCE):
            while (  # noqa: ASYNC110 - what is waited for is in the database
                lease._connection is None
                or await connection.fetchval(found, lease.id) != lease._connection.get_server_pid()
            ):
                await asyncio.sleep(0.01)
        await connection.close()
        assert lease._connection is not None
        self._held.append(lease._connection)
        lease._drop_connection = lambda: None  # type: ignore[method-assign]
        await self.kill(door)

    def let_go(self) -> None:
        """Close the connections of nodes that hang."""
        for connection in self._held:
            connection.terminate()


class MemoryDoors:
    """The same, of the store that simulations use."""

    def __init__(self) -> None:
        self.place = Place()
        self.opened: list[SharedMemory] = []

    async def open(
        self, node: str = "one", timing: Timing = STILL, limits: QueueLimits | None = None
    ) -> SharedStore:
        """Another node's door."""
        self.place._queue.limits = limits or QueueLimits()
        store = self.place.door(node, timing)
        await store.open(Heard())
        self.opened.append(store)
        return store

    async def kill(self, door: SharedStore) -> None:
        """End a node without its giving anything back."""
        assert isinstance(door, SharedMemory)
        self.opened.remove(door)
        door.die()

    async def hang(self, door: SharedStore) -> None:
        """Let a node live, but not renew its lease."""
        assert isinstance(door, SharedMemory)
        door.cut(stopped=True)


@pytest.fixture(params=["memory", "postgres"])
async def doors(request):
    """Doors of each kind."""
    doors: Doors | MemoryDoors = MemoryDoors()
    if request.param == "postgres":
        doors = Doors(await request.getfixturevalue("new_dsn")())
    yield doors
    for store in doors.opened:
        await store.close()
    if isinstance(doors, Doors):
        doors.let_go()


@pytest.fixture
async def one(doors):
    """A node's door."""
    return await doors.open("one")


@pytest.fixture
async def two(doors):
    """Another node's."""
    return await doors.open("two")


async def outcomes(*awaitables):
    """Each awaitable's result, or its error's class."""
    found = await asyncio.gather(*awaitables, return_exceptions=True)
    return [type(each) if isinstance(each, BaseException) else each for each in found]


class TestOneTruth:
    async def test_what_one_wrote_the_other_reads(self, one, two):
        """Heads, logs, lists, keys and prefixes are the same at every door."""
        await one.create(new_task("t1", QUEUED, key="k"))
        (lease,) = await two.claim("two", 1)
        await two.append(following(lease, count=3))
        for door in (one, two):
            assert await log_of(door, "t1") == numbers(1, 4)
            assert await door.find_key("ann", "k") == "t1"
            assert list(await door.find("ann", "t")) == ["t1"]
            assert (await door.list("ann", RUNNING, 9, None)).total == 1
        assert (await two.create(new_task("t2", key="k"))).head.task_id == "t1"

    async def test_the_head_tells_who_holds_the_lease(self, one, two):
        """Everybody sees at which node a task is, and that it is at none."""
        await one.create(new_task("t1", QUEUED))
        assert (await one.head("t1")).node is None
        (lease,) = await two.claim("two", 1)
        assert [(await door.head("t1")).node for door in (one, two)] == ["two", "two"]
        await two.append(following(lease, COMPLETED))
        assert (await one.head("t1")).node is None

    async def test_claims_at_the_same_time_share_nothing(self, one, two):
        """Every waiting task goes to exactly one node."""
        for number in range(40):
            await one.create(new_task(f"t{number}", QUEUED))
        found = await asyncio.gather(*(claim(door, door.node, 5) for door in (one, two) * 8))
        claimed = [lease.task_id for leases in found for lease in leases]
        rest = [lease.task_id for lease in await claim(one, "one", 40)]
        assert sorted(claimed + rest) == sorted(f"t{number}" for number in range(40))

    async def test_a_key_used_at_all_doors_at_once_makes_one_task(self, one, two):
        """Concurrent creates with one key: one creates, the others find it."""
        for key in ("a", "b", "c"):
            creates = [
                door.create(new_task(f"{key}-{door.node}-{n}", key=key))
                for n in range(3)
                for door in (one, two)
            ]
            found = await asyncio.gather(*creates)
            assert sorted(each.replayed for each in found) == [False] + [True] * 5
            assert len({each.head.task_id for each in found}) == 1

    async def test_the_queue_is_everybodys(self, doors):
        """A queue that one node has filled is full for the other."""
        one, two = [await doors.open(name, limits=QueueLimits(total=2)) for name in ("one", "two")]
        for number in range(2):
            await one.create(new_task(f"t{number}", QUEUED))
        assert await outcomes(two.create(new_task("t9", QUEUED))) == [OverloadedError]
        await two.claim("two", 1)
        await one.create(new_task("t8", QUEUED))

    @pytest.mark.parametrize("rounds", [100, pytest.param(1000, marks=pytest.mark.soak)])
    async def test_one_of_six_writers_wins(self, doors, capsys, rounds):
        """Of writers at three doors behind the same number, one is acknowledged each time."""
        nodes = [await doors.open(name) for name in ("one", "two", "three")]
        lease = await leased(nodes[0])
        winners = Counter[int]()
        for seq in range(1, rounds + 1):
            appends = [
                following(lease)._replace(expected=seq, events=[b"%d %d" % (seq, writer)])
                for writer in range(6)
            ]
            found = await outcomes(*(nodes[n % 3].append(each) for n, each in enumerate(appends)))
            assert Counter(found) == {None: 1, FencedError: 5}
            winners[found.index(None)] += 1
            (body,) = await nodes[seq % 3].read("t1", seq, 10)
            assert body == appends[found.index(None)].events[0]
        with capsys.disabled():
            print(f"\n  six-way race: one winner in {winners.total()} of {rounds} rounds")

    async def test_a_closed_node_leaves_its_tasks_to_others(self, doors, one, two):
        """Who ends in order need not be waited for."""
        lease = await leased(one)
        await one.append(following(lease))
        await one.close()
        (again,) = await claim(two, "two", 9)
        assert (again.task_id, again.seq, again.interrupted) == ("t1", 2, ())
        assert [node.name for node in await two.nodes()] == ["two"]


class TestHints:
    async def test_commits_are_told_at_the_other_doors(self, one, two):
        """A node hears of others' commits, and not of its own by this way."""
        told: list[LogHead] = []
        own: list[LogHead] = []
        heard(two).news, heard(one).news = told.extend, own.extend
        # Until both listen, hints are lost: a marker that arrived says that they do.
        for number in range(PATIENCE * 20):
            await one.create(new_task(f"m{number}"))
            await asyncio.sleep(0.05)
            if told:
                break
        await one.create(new_task("t1", QUEUED))
        (lease,) = await one.claim("one", 1)
        await one.append(following(lease, count=3))
        await until(lambda: LogHead("t1", "ann", 4) in told)
        assert own == []

    async def test_a_task_to_claim_is_told(self, one, two):
        """What is queued or released at one door rings at the other."""
        rung = Counter[str]()
        heard(two).ready = lambda: rung.update(["ready"])
        await one.create(new_task("t1", QUEUED))
        await asyncio.sleep(0.05)
        for number in range(PATIENCE * 20):
            if rung:
                break
            await one.create(new_task(f"m{number}", QUEUED))
            await asyncio.sleep(0.05)
        assert rung

    async def test_without_hints_the_sweep_rings(self, doors):
        """Whoever hears nothing is told again and again to ask."""
        door = await doors.open("one", SWEEPING)
        rung = Counter[str]()
        heard(door).ready = lambda: rung.update(["ready"])
        heard(door).inbox = lambda: rung.update(["inbox"])
        await until(lambda: rung["ready"] > 2 and rung["inbox"] > 2)

    async def test_the_sweep_counts_the_queue(self, doors, one):
        """What others queued is counted, too."""
        door = await doors.open("two", SWEEPING)
        await one.create(new_task("t1", QUEUED))
        await until(lambda: door.queued == 1)
        await one.claim("one", 1)
        await until(lambda: door.queued == 0)


class TestNews:
    async def test_logs_that_are_asked_for(self, one, two):
        """Where they end; what is not there is left out."""
        await one.create(new_task("t1", events=numbers(1, 3)))
        await one.create(new_task("t2", owner="bob"))
        assert sorted(await two.news(["t2", "t1", "t9"], [])) == [
            LogHead("t1", "ann", 3),
            LogHead("t2", "bob", 1),
        ]
        assert list(await two.news([], [])) == []

    async def test_what_an_owners_tasks_did_lately(self, one, two):
        """All of the owner's that were created, went on or ended in the last seconds."""
        await one.create(new_task("t1"))
        await one.create(new_task("t3", owner="bob"))
        lease = await leased(one, "t2")
        await one.append(following(lease, COMPLETED))
        assert sorted(await two.news([], ["ann"])) == [
            LogHead("t1", "ann", 1),
            LogHead("t2", "ann", 2),
        ]
        assert sorted(await two.news(["t1"], ["ann", "bob"])) == [
            LogHead("t1", "ann", 1),
            LogHead("t2", "ann", 2),
            LogHead("t3", "bob", 1),
        ]


class TestInbox:
    async def test_messages_are_for_the_holder_of_the_lease(self, one, two):
        """They are there in their order, for nobody else, until they are answered."""
        lease = await leased(one)
        sent = [await two.post("t1", b"%d" % number) for number in range(3)]
        assert sent == sorted(sent)
        found = await one.inbox()
        assert [(each.number, each.task_id, each.body) for each in found] == [
            (number, "t1", b"%d" % place) for place, number in enumerate(sent)
        ]
        assert list(await two.inbox()) == []
        await one.reply(sent[1], b"no")
        await one.append(following(lease)._replace(replies=[(sent[0], b"yes")]))
        assert [each.number for each in await one.inbox()] == [sent[2]]
        assert await two.replies(sent) == {sent[0]: b"yes", sent[1]: b"no"}

    async def test_a_refused_append_answers_nothing(self, one, two):
        """Events and answers are written together or not at all."""
        lease = await leased(one)
        number = await two.post("t1", b"x")
        stale = following(lease)._replace(expected=7, replies=[(number, b"yes")])
        assert await outcomes(one.append(stale)) == [FencedError]
        assert await two.replies([number]) == {}
        assert len(await one.inbox()) == 1

    async def test_what_was_withdrawn_is_never_acted_on(self, one, two):
        """An append that would answer it is refused, and nobody reads it any more."""
        lease = await leased(one)
        number = await two.post("t1", b"x")
        assert await two.withdraw(number) is None
        assert list(await one.inbox()) == []
        late = following(lease)._replace(replies=[(number, b"yes")])
        assert await outcomes(one.append(late)) == [FencedError]
        assert await log_of(one, "t1") == numbers(1, 1)
        await one.reply(number, b"no")
        assert await two.withdraw(number) is None

    async def test_what_was_answered_is_not_withdrawn(self, one, two):
        """Whoever withdraws too late has the reply, as often as it is asked for."""
        lease = await leased(one)
        number = await two.post("t1", b"x")
        await one.append(following(lease)._replace(replies=[(number, b"yes")]))
        assert [await two.withdraw(number) for _ in range(2)] == [b"yes", b"yes"]

    async def test_withdrawing_while_it_is_answered(self, one, two):
        """Either it was withdrawn and nothing was written, or it was answered: never both."""
        head = await leased(one)
        for _ in range(50):
            number = await two.post("t1", b"x")
            append = following(head)._replace(replies=[(number, b"yes")])
            written, reply = await outcomes(one.append(append), two.withdraw(number))
            assert (written, reply) in ((None, b"yes"), (FencedError, None))
            head = head._replace(seq=head.seq + (written is None))
            assert (await head_of(one, "t1")).seq == head.seq

    async def test_the_next_holder_finds_what_is_not_answered(self, one, two):
        """A message outlives the lease during which it was posted."""
        lease = await leased(one)
        number = await two.post("t1", b"x")
        await one.release("t1", lease.epoch)
        await two.claim("two", 1)
        assert [each.number for each in await two.inbox()] == [number]
        assert list(await one.inbox()) == []
        await one.reply(number, b"no")  # as the one before, which took its time
        assert await one.replies([number]) == {}
        await two.reply(number, b"yes")
        assert await one.replies([number]) == {number: b"yes"}

    async def test_messages_and_replies_ring(self, one, two):
        """The holder is told of a message, and the poster of its reply."""
        rung = Counter[str]()
        await leased(one)
        number = None
        heard(one).inbox = lambda: rung.update(["inbox"])
        heard(two).inbox = lambda: rung.update(["replies"])
        rung.clear()
        for _ in range(PATIENCE * 20):
            number = await two.post("t1", b"x")
            await asyncio.sleep(0.05)
            if rung["inbox"]:
                break
        rung.clear()
        await one.reply(number, b"yes")
        await until(lambda: rung["replies"] > 0)


class TestLease:
    @pytest.mark.parametrize("announced", [False, True])
    async def test_a_crash_is_told_until_the_next_worker_has_written(self, doors, announced):
        """Not where the process had declared that it stops; an answer in between changes nothing."""
        dying = await doors.open("dying", SHORT)
        old = await leased(dying)
        await dying.append(following(old))
        if announced:
            await dying.announce_stop()
        await doors.kill(dying)
        other = await doors.open("other", SWEEPING)
        told: list[object] = []
        for _ in range(2):
            async with asyncio.timeout(PATIENCE):
                while not (leases := await claim(other, "other", 9)):
                    continue
            (lease,) = leases
            told.append(lease.interrupted)
            await other.release("t1", lease.epoch)
            await other.append(following(await head_of(other, "t1")))  # an answer
        (lease,) = await claim(other, "other", 9)
        await other.append(following(lease))
        await other.release("t1", lease.epoch)
        (lease,) = await claim(other, "other", 9)
        expected = () if announced else None
        assert [*told, lease.interrupted] == [expected, expected, ()]

    async def test_a_node_that_is_cut_off_has_not_crashed(self, doors):
        """Its process lives, whatever others think of its lease."""
        hanging = await doors.open("hanging", SHORT)
        old = await leased(hanging)
        await hanging.append(following(old))
        await doors.hang(hanging)
        other = await doors.open("other", SWEEPING)
        async with asyncio.timeout(PATIENCE):
            while not (leases := await claim(other, "other", 9)):
                continue
        assert leases[0].interrupted == ()

    async def test_the_tasks_of_a_dead_node_go_to_another(self, doors, two):
        """When its lease is over they can be claimed, and the loss is counted."""
        dying = await doors.open("dying", SHORT)
        old = await leased(dying)
        await dying.append(following(old))
        await doors.kill(dying)
        other = await doors.open("other", SWEEPING)
        async with asyncio.timeout(PATIENCE):
            while not (leases := await claim(other, "other", 9)):
                continue
        (lease,) = leases
        assert (lease.task_id, lease.seq, lease.interrupted) == ("t1", 2, None)
        assert lease.epoch > old.epoch
        late = following(old)._replace(expected=2)
        assert await outcomes(two.append(late)) == [FencedError]
        assert await claim(other, "other", 9) == []

    async def test_a_living_node_keeps_its_tasks(self, doors, two):
        """Beats renew the lease over and over."""
        timing = Timing(ttl=20, margin=1, renew_interval=0.05, sweep_interval=0.05)
        living = await doors.open("living", timing)
        await leased(living)
        living.lag = 0.25
        async with asyncio.timeout(PATIENCE):
            while True:
                (node,) = [node for node in await two.nodes() if node.name == "living"]
                if node.lag:
                    break
        assert node.lag == 0.25
        assert node.expires_in > 0
        assert await claim(two, "two", 9) == []

    async def test_nodes_are_seen(self, doors, one, two):
        """Each with its role, its tasks and its lag; lost ones with how long ago."""
        dying = await doors.open("dying", SHORT)
        await doors.kill(dying)
        await leased(two)
        async with asyncio.timeout(PATIENCE):
            while (found := {node.name: node for node in await one.nodes()})[
                "dying"
            ].expires_in > 0:
                continue
        assert list(found) == ["dying", "one", "two"]
        assert [found[name].running for name in found] == [0, 0, 1]
        assert found["one"].expires_in > 0
        assert found["one"].role == "all"
        assert found["one"].started_at <= found["two"].started_at


class TestUse:
    async def test_each_node_learns_what_the_others_told(self, doors, one, two):
        """The last that each of them told, and not its own."""
        three = await doors.open("three")
        assert list(await one.share({"ann": Use(1, 2, 0.5), "bob": Use(3)})) == []
        assert list(await two.share({})) == [{"ann": Use(1, 2, 0.5), "bob": Use(3)}]
        assert list(await one.share({"ann": Use(4), "Zoë": Use(rate=7.5)})) == [{}]
        assert list(await two.share({"ann": Use(5)})) == [{"ann": Use(4), "Zoë": Use(rate=7.5)}]
        found = await three.share({})
        assert [use["ann"] for use in sorted(found, key=len)] == [Use(5), Use(4)]

    async def test_who_ends_in_order_uses_nothing_any_more(self, one, two):
        """Its clients may come to others at once."""
        await one.share({"ann": Use(1)})
        assert list(await two.share({})) == [{"ann": Use(1)}]
        await one.close()
        assert list(await two.share({})) == []

    async def test_a_dead_node_is_believed_for_some_seconds(self, doors, one, two):
        """What it told is forgotten then; who goes on telling is believed."""
        dying = await doors.open("dying")
        await dying.share({"ann": Use(1)})
        await doors.kill(dying)
        assert list(await two.share({})) == [{"ann": Use(1)}]
        async with asyncio.timeout(PATIENCE):
            while {"ann": Use(1)} in await two.share({}):
                await one.share({"bob": Use(2)})
                await asyncio.sleep(0.1)
        await one.share({"bob": Use(2)})
        assert list(await two.share({})) == [{"bob": Use(2)}]


async def test_pending_tasks_are_not_claimed_anywhere(one, two):
    """A door shows no task to claim that only waits to be executed."""
    store: Store = one
    await store.create(new_task("t1", PENDING))
    assert await claim(two, "two", 9) == []
