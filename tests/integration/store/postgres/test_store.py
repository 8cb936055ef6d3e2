"""What only PostgresStore has to do: live through lost connections and a server that goes away."""

import asyncio
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from agentsrv.errors import ConfigurationError, FencedError, InvalidCommandError, UnavailableError
from agentsrv.models.usage import Use
from agentsrv.store.base import Commit, Created, Head
from agentsrv.store.notifier import Notification, decode
from agentsrv.store.postgres import connections
from agentsrv.store.postgres.flush import MAX_REQUESTS, PendingRequest, take
from agentsrv.store.postgres.schema import STEPS, migrate
from agentsrv.store.postgres.store import PostgresStore
from agentsrv.store.postgres.writer import Claim, Flush, Release, Reply
from tests.support.postgres import QUICK, free_port, postgres
from tests.support.proxy import Cut, CuttingProxy, Kind
from tests.support.store_listener import Heard, heard
from tests.support.store_tasks import (
    COMPLETED,
    HOUR,
    PENDING,
    QUEUED,
    RUNNING,
    STILL,
    DeafBus,
    claim,
    following,
    head_of,
    leased,
    log_of,
    new_task,
    numbers,
)

PATIENCE = 30  # seconds


@pytest.fixture
async def connect():
    """Opens stores, and closes them."""
    opened: list[PostgresStore] = []

    async def connect(dsn: str, **how: Any) -> PostgresStore:
        settings: dict[str, Any] = {"node": "node", "bus": DeafBus(), "timing": STILL, **how}
        store = PostgresStore(dsn, **settings)
        await store.open(Heard())
        opened.append(store)
        return store

    yield connect
    for store in opened:
        await store.close()


@pytest.fixture
async def store(connect, dsn):
    """A store in an empty schema."""
    return await connect(dsn)


@pytest.fixture
async def admin(dsn):
    """A connection to the same schema, beside the store's."""
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


class HeardBus(DeafBus):
    """A bus that keeps what is sent."""

    def __init__(self) -> None:
        self.hints: list[Notification] = []

    async def publish(self, channel, payloads) -> None:
        """See ``Notifier.publish``."""
        self.hints += map(decode, payloads)


class Interrupted:
    """Lets the connection be lost around the flushes that it is told."""

    def __init__(self, monkeypatch) -> None:
        self.before = 0
        self.after = 0
        write = Flush.write

        async def interrupted(flush, connection, mark):
            if self.before:
                self.before -= 1
                connection.terminate()
            outcome = await write(flush, connection, mark)
            if self.after:
                self.after -= 1
                connection.terminate()
                raise ConnectionResetError
            return outcome

        monkeypatch.setattr(Flush, "write", interrupted)


@pytest.fixture(params=["before", "after", "both"])
def lose(request, monkeypatch):
    """Makes the next flush lose its connection: before it is written, after, or both in turn."""
    interrupted = Interrupted(monkeypatch)

    def lose() -> None:
        interrupted.before = int(request.param != "after")
        interrupted.after = int(request.param != "before")

    return lose


class TestLostAnswer:
    async def test_a_create_happens_once(self, store, lose):
        """It is there once, and answered as if nothing had happened."""
        told: list[Commit] = []
        heard(store).committed = told.append
        lose()
        created = await store.create(new_task("t1", QUEUED, key="k"))
        assert created == Created(Head("t1", "ann", QUEUED, 1, 0), replayed=False)
        assert store.queued == 1
        assert len(told) == 1
        assert (await store.list("ann", None, 9, None)).total == 1

    async def test_refusals_are_refused_still(self, store, lose):
        """What was replayed or refused in a lost flush is so when it is found out."""
        await store.create(new_task("t1", key="k"))
        lose()
        found = await asyncio.gather(
            store.create(new_task("t2", key="k")),
            store.create(new_task("t1")),
            store.create(new_task("t3", key="l")),
            store.append(following(await head_of(store, "t1"))._replace(expected=7)),
            return_exceptions=True,
        )
        assert found[0] == Created(Head("t1", "ann", PENDING, 1, 0), replayed=True)
        assert isinstance(found[1], UnavailableError)
        assert found[2] == Created(Head("t3", "ann", PENDING, 1, 0), replayed=False)
        assert isinstance(found[3], FencedError)

    async def test_an_append_happens_once(self, store, lose):
        """Its events and its answers are there once, and it is not fenced by itself."""
        lease = await leased(store)
        number = await store.post("t1", b"x")
        lose()
        await store.append(following(lease, count=2)._replace(replies=[(number, b"yes")]))
        assert await log_of(store, "t1") == numbers(1, 3)
        assert await store.replies([number]) == {number: b"yes"}

    async def test_claimed_tasks_are_not_forgotten(self, store, lose):
        """The leases that a lost answer told of are given out all the same, and no others."""
        for number in range(5):
            await store.create(new_task(f"t{number}", QUEUED))
        lose()
        leases = await claim(store, "node", 3)
        assert sorted(lease.task_id for lease in leases) == ["t0", "t1", "t2"]
        assert [lease.epoch for lease in leases] == [1, 1, 1]
        assert store.queued == 2
        for lease in leases:
            await store.append(following(lease))

    async def test_a_release_and_an_answer_happen_once(self, store, lose):
        """A task that was given back and claimed meanwhile is not given back again."""
        lease = await leased(store)
        number = await store.post("t1", b"x")
        lose()
        await asyncio.gather(store.release("t1", lease.epoch), store.reply(number, b"no"))
        (again,) = await claim(store, "node", 9)
        assert again.epoch == 2
        assert await store.replies([number]) == {number: b"no"}


async def test_what_nodes_told_of_their_use_goes_with_them(connect, dsn, admin):
    """A node that was lost leaves nothing behind that grows; who lives is not forgotten."""
    store = await connect(dsn)
    await store.share({"ann": Use(1)})
    await admin.execute(
        "INSERT INTO use SELECT 0, '{eve}', '{1}', '{0}', '{0}', at - interval '2 days' FROM use"
    )
    await connect(dsn, node="other", timing=STILL._replace(sweep_interval=0.05))
    async with asyncio.timeout(PATIENCE):
        while await admin.fetchval("SELECT count(*) FROM use") > 1:
            continue
    assert await admin.fetchval("SELECT principals FROM use") == ["ann"]


class TestLostConnections:
    async def test_cut_anywhere(self, connect, server, new_dsn, capsys):
        """Connections that are cut after any number of bytes: nothing is lost, nothing twice."""
        rng = random.Random(7)
        cutting = False

        def next_cut() -> Cut | None:
            if not cutting:
                return None
            upstream = rng.random() < 0.5
            kind = rng.choice([Kind.CLOSE, Kind.RESET])
            typical = 8000 if upstream else 1500  # bytes that some flushes take
            return Cut(int(rng.expovariate(1 / typical)) + 500, kind, upstream=upstream)

        proxy = CuttingProxy(server.port, next_cut)
        async with proxy.running():
            store = await connect(await new_dsn(proxy.port))
            cutting = True
            await store._pool.expire_connections()
            store._flusher._drop_connection()
            lengths = await asyncio.gather(*(self._write(store, f"t{n}", 100) for n in range(8)))
            cutting = False
            for number, length in enumerate(lengths):
                assert await log_of(store, f"t{number}") == numbers(1, length)
            with capsys.disabled():
                print(
                    f"\n  lost connections: {sum(proxy.cuts.values())}, lost or doubled events: 0"
                )
            assert sum(proxy.cuts.values()) > 10

    async def test_connections_that_fall_silent(self, connect, server, new_dsn, monkeypatch):
        """Half-open connections, of which neither end is told, in the midst of a flush."""
        monkeypatch.setattr(connections, "ATTEMPT_TIMEOUT", 1.0)
        # Amid the statements of a create, and amid the answers to it.
        cuts = [Cut(6000, Kind.SILENCE, upstream=True), Cut(900, Kind.SILENCE)]
        cutting = False
        proxy = CuttingProxy(server.port, lambda: cuts.pop() if cutting and cuts else None)
        async with proxy.running():
            store = await connect(await new_dsn(proxy.port))
            await leased(store, "t0")
            store._flusher._drop_connection()
            cutting = True
            lengths = await asyncio.gather(*(self._write(store, f"s{n}", 20) for n in range(4)))
            for number, length in enumerate(lengths):
                assert await log_of(store, f"s{number}") == numbers(1, length)
            assert proxy.cuts[Kind.SILENCE] == 2

    async def test_cut_off_by_the_server(self, store, admin):
        """Sessions that an administrator ends under load: nothing is lost, nothing twice."""
        ended = 0

        async def end_sessions() -> None:
            nonlocal ended
            while True:
                await asyncio.sleep(0.05)
                ended += await admin.fetchval(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                    " WHERE application_name = 'agentsrv' AND pid <> pg_backend_pid()"
                )

        enemy = asyncio.create_task(end_sessions())
        lengths: list[int] = []
        while ended < 20:
            count = len(lengths)
            lengths += await asyncio.gather(
                *(self._write(store, f"t{count + n}", 20) for n in range(8))
            )
        enemy.cancel()
        for number, length in enumerate(lengths):
            assert await log_of(store, f"t{number}") == numbers(1, length)

    async def _write(self, store: PostgresStore, task_id: str, appends: int) -> int:
        """Create and write a task; return how long its log must be."""
        created = await store.create(new_task(task_id, QUEUED))
        head = created.head
        for number in range(appends):
            status = COMPLETED if number == appends - 1 else RUNNING
            append = following(head, status, number % 3 + 1)
            await store.append(append)
            head = head._replace(seq=head.seq + len(append.events))
        return head.seq

    async def test_a_flush_that_comes_late_is_waited_for(self, connect, server, new_dsn, admin):
        """The server goes on with a flush whose connection was lost; it is found, not repeated."""
        proxy = CuttingProxy(server.port, lambda: None)
        async with proxy.running():
            dsn = await new_dsn(proxy.port)
            store = await connect(dsn)
            direct = await asyncpg.connect(dsn.replace(str(proxy.port), str(server.port)))
            lease = await leased(store)
            transaction = direct.transaction()
            await transaction.start()
            await direct.execute("SELECT FROM task FOR UPDATE")
            done = store.append(following(lease, count=2))
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            while await admin.fetchval(waiting) < 1:
                pass
            store._flusher._connection.terminate()  # the server has not heard of it
            while await admin.fetchval(waiting) < 2:
                pass
            await transaction.commit()
            await done
            assert await log_of(store, "t1") == numbers(1, 3)
            await direct.close()


@asynccontextmanager
async def writing(store: PostgresStore, writers: int) -> AsyncIterator[Counter[str]]:
    """How far each of so many was acknowledged, who write on within the block; all of it is there."""
    acknowledged = Counter[str]()
    stopped = asyncio.Event()

    async def write(task_id: str) -> None:
        head = (await store.create(new_task(task_id))).head
        while not stopped.is_set():
            await store.append(following(head))
            head = head._replace(seq=head.seq + 1)
            acknowledged[task_id] = head.seq

    tasks = [asyncio.create_task(write(f"t{n}")) for n in range(writers)]
    yield acknowledged
    stopped.set()
    await asyncio.gather(*tasks)
    for task_id, seq in acknowledged.items():
        assert await log_of(store, task_id, 100_000) == numbers(1, seq)


class TestAway:
    async def test_a_server_that_falls_and_rises(self, connect):
        """What was acknowledged before a crash is there after it, and writers just go on."""
        with postgres(*QUICK) as server:
            store = await connect(server.dsn())
            async with writing(store, 20) as acknowledged:
                for goal in (200, 400, 600):
                    await _until(lambda goal=goal: acknowledged.total() >= goal)  # type: ignore[misc]
                    await asyncio.to_thread(server.stop)
                    await asyncio.to_thread(server.start)
            await store.close()

    async def test_a_server_that_stays_away(self, connect, caplog):
        """Calls are told that it is, the node gives up its tasks once, and goes on afterwards."""
        now = 0.0
        lost = Counter[str]()
        with postgres(*QUICK) as server:
            store = await connect(server.dsn(), clock=lambda: now)
            broken: list[BaseException] = []
            heard(store).leases_lost = lambda: lost.update(["lost"])
            heard(store).broken = broken.append
            lease = await leased(store)
            await asyncio.to_thread(server.stop)
            waiting = [
                asyncio.ensure_future(each)
                for each in (
                    store.append(following(lease)),
                    store.create(new_task("t2")),
                    store.head("t1"),
                    store.post("t1", b"x"),
                )
            ]
            await _until(lambda: bool(store._flusher._writing))  # it has looked at the clock
            now += 2 * STILL.ttl
            found = await asyncio.gather(*waiting, return_exceptions=True)
            assert [type(each) for each in found] == [UnavailableError] * 4
            await _until(lambda: lost["lost"] == 1)
            assert list(await store.inbox()) == []
            await asyncio.to_thread(server.start)
            head = await head_of(store, "t1")
            assert (head.seq, lost["lost"], broken) == (1, 1, [])
            await store.create(new_task("t3"))
            await store.close()


class TestFailOver:
    async def test_a_host_that_is_silent_keeps_nobody_from_the_others(self, server):
        """As one whose machine is gone: it is the first that is named, and says nothing."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            host = f"127.0.0.1:{silent.getsockname()[1]}"
            dsn = server.dsn().replace("@", f"@{host},")
            connection = await connections.connect(dsn)
            assert await connection.fetchval("SELECT 1") == 1
            connection.terminate()
            pool = await connections.connect_pool(dsn)
            async with connections.borrowed(pool) as connection:
                assert await connection.fetchval("SELECT 1") == 1
            pool.terminate()

    async def test_what_a_server_says_counts_more_than_that_another_is_away(self, server):
        """Whoever cannot be let in is told so, whichever host is first."""
        here, away = f"127.0.0.1:{server.port}", f"127.0.0.1:{free_port()}"
        for hosts in (f"{away},{here}", f"{here},{away}"):
            with pytest.raises(asyncpg.InvalidCatalogNameError):
                await connections.connect(f"postgresql://postgres@{hosts}/nowhere")
        with pytest.raises(ConnectionRefusedError):
            await connections.connect(f"postgresql://postgres@{away},{away}/postgres")

    async def test_a_standby_takes_over(self, connect):
        """A store that knows both hosts goes on at the new primary, with all acknowledged events."""
        with postgres(*QUICK) as primary, primary.standby() as standby:
            admin = await asyncpg.connect(primary.dsn())
            await admin.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            await admin.execute("SELECT pg_reload_conf()")
            synchronous = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
            while not await admin.fetchval(synchronous):
                continue
            await admin.close()
            hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
            store = await connect(f"postgresql://postgres@{hosts}/postgres")
            async with writing(store, 10) as seqs:
                await _until(lambda: seqs.total() >= 100)
                await asyncio.to_thread(primary.stop)
                before = seqs.total()
                await asyncio.to_thread(standby.promote)
                # Now that nobody confirms what the new primary commits, it must not wait for anybody.
                admin = await asyncpg.connect(standby.dsn())
                await admin.execute("ALTER SYSTEM SET synchronous_standby_names = ''")
                await admin.execute("SELECT pg_reload_conf()")
                await admin.close()
                await _until(lambda: seqs.total() >= before + 100)
            await store.close()


class TestLease:
    async def test_a_node_that_stood_still_gives_up_first(self, connect, dsn):
        """By its own clock, once, before others may claim; then it has another lease."""
        now, lost = 0.0, Counter[str]()
        timing = STILL._replace(renew_interval=HOUR)
        paused = await connect(dsn, node="paused", clock=lambda: now, timing=timing)
        other = await connect(dsn, node="other")
        heard(paused).leases_lost = lambda: lost.update(["lost"])
        await leased(paused)
        first = paused._lease.id
        now += 2 * timing.ttl
        await _until(lambda: lost["lost"] > 0)
        assert await claim(other, "other", 9) == []
        await _until(lambda: paused._lease.id not in (None, first))
        await other.create(new_task("t2", QUEUED))
        assert [lease.task_id for lease in await claim(paused, "paused", 9)] == ["t2"]
        assert lost["lost"] == 1

    async def test_a_lease_that_others_saw_end_is_lost(self, connect, dsn, admin):
        """Where the database's clock was faster, the node learns it with its next beat."""
        lost = Counter[str]()
        node = await connect(dsn, timing=STILL._replace(renew_interval=0.05, sweep_interval=0.05))
        heard(node).leases_lost = lambda: lost.update(["lost"])
        lease = await leased(node)
        await admin.execute("UPDATE node SET expires_at = clock_timestamp() - interval '1 s'")
        await _until(lambda: lost["lost"] == 1)
        async with asyncio.timeout(PATIENCE):
            while not (leases := await claim(node, "node", 9)):
                continue
        assert leases[0].interrupted == ()  # the process is there, by another lease
        with pytest.raises(FencedError):
            await node.append(following(lease))
        assert lost["lost"] == 1

    async def test_claims_that_outlive_the_lease(self, store, monkeypatch):
        """What was claimed for a lease that was lost meanwhile is given to nobody here."""
        write = Flush.write

        async def losing(flush, connection, mark):
            outcome = await write(flush, connection, mark)
            store._lease._lose("the test says so")
            return outcome

        await store.create(new_task("t1", QUEUED))
        monkeypatch.setattr(Flush, "write", losing)
        assert await claim(store, "node", 9) == []
        assert (await head_of(store, "t1")).epoch == 1

    async def test_who_claims_gets_what_the_same_flush_queues(self, connect, dsn):
        """So a task runs where it was asked for, and nobody else is told of it."""
        bus = HeardBus()
        store = await connect(dsn, bus=bus)
        claims: list[asyncio.Future[Any]] = []
        heard(store).ready = lambda: claims.append(asyncio.ensure_future(store.claim("node", 1)))
        before = store._flusher._number
        await store.create(new_task("t1", QUEUED))
        assert [lease.task_id for lease in await claims[0]] == ["t1"]
        assert (len(claims), store._flusher._number) == (1, before + 1)
        both = asyncio.gather(*(store.create(new_task(name, QUEUED)) for name in ("t2", "t3")))
        await both
        await _until(lambda: any(hint.is_ready for hint in bus.hints))
        told = [[news.task_id for news in hint.news] for hint in bus.hints if not hint.is_ready]
        assert told == [["t1"]]

    async def test_a_cancelled_claim_gives_back(self, store):
        """What nobody is there to run can be claimed again, and is not counted as lost."""
        await store.create(new_task("t1", QUEUED))
        cancelled = asyncio.create_task(store.claim("node", 9))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.wait({cancelled})
        async with asyncio.timeout(PATIENCE):
            while not (leases := await claim(store, "node", 9)):
                continue
        assert (leases[0].epoch, leases[0].interrupted) == (2, ())

    async def test_a_listener_that_fails_loses_nothing_else(self, connect, dsn):
        """Somebody else's fault at the loss does not keep the node from its next lease."""
        now = 0.0
        node = await connect(dsn, clock=lambda: now, timing=STILL._replace(renew_interval=HOUR))
        first = node._lease.id
        heard(node).leases_lost = lambda: 1 / 0
        now += 2 * STILL.ttl
        await _until(lambda: node._lease.id not in (None, first))


class TestTake:
    async def take(self, *requests):
        """What of these goes in one flush, and what in the next."""
        nobody: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        operations = [PendingRequest(request, nobody) for request in requests]
        return [[each.request for each in part] for part in take(operations)]

    async def test_one_of_each_task(self):
        """What is about the same task, or has the same key, waits; the order stays."""
        lease = Head("t1", "ann", RUNNING, 1, 1)
        first, second, third = (following(lease) for _ in range(3))
        keyed, again = new_task("t2", key="k"), new_task("t3", key="k")
        other, bobs = Release("t4", 1), new_task("t5", key="k", owner="bob")
        assert await self.take(
            first, keyed, second, again, other, third, Release("t3", 1), bobs
        ) == [
            [first, keyed, other, bobs],
            [second, again, third, Release("t3", 1)],
        ]

    async def test_one_claim_and_any_answers(self):
        """Of two claims one waits; answers to messages never do."""
        answers = [Reply(1, b""), Reply(2, b"")]
        assert await self.take(Claim(1), *answers, Claim(2)) == [[Claim(1), *answers], [Claim(2)]]

    async def test_a_flush_has_an_end(self):
        """Neither requests nor events are more than it takes; the rest goes next."""
        many = [Reply(number, b"") for number in range(MAX_REQUESTS + 3)]
        assert list(map(len, await self.take(*many))) == [MAX_REQUESTS, 3]
        large = [new_task(f"t{number}", events=[b""] * 3000) for number in range(4)]
        assert list(map(len, await self.take(*large))) == [2, 2]


class TestTexts:
    async def test_a_text_with_any_character(self, store):
        """What PostgreSQL's texts cannot hold is kept all the same."""
        await store.create(new_task("t1", key="\0")._replace(user_input="a\0b"))
        assert (await store.list("ann", None, 9, None)).rows[0].user_input == "a\0b"
        assert await store.find_key("ann", "\0") == "t1"

    async def test_what_is_no_text_is_refused_alone(self, store):
        """One task that cannot be kept spoils no flush."""
        found = await asyncio.gather(
            store.create(new_task("t1")),
            store.create(new_task("t2")._replace(user_input="\ud800")),
            store.create(new_task("t3", owner="a\0")),
            return_exceptions=True,
        )
        assert [type(each) for each in found] == [Created, InvalidCommandError, InvalidCommandError]


POISON = {
    "what the server refuses": lambda append: append._replace(events=[b"poison"]),
    "what cannot be sent": lambda append: append._replace(epoch=1 << 40),
}


@pytest.mark.parametrize("spoil", POISON.values(), ids=POISON)
async def test_an_append_that_is_refused_each_time_is_refused_alone(store, admin, caplog, spoil):
    """However many others are in the same flush; the store takes none of it for an outage."""
    leases = [await leased(store, f"t{number}") for number in range(5)]
    await admin.execute("ALTER TABLE event ADD CHECK (position('poison'::bytea IN body) = 0)")
    for _ in range(3):
        appends = [following(await head_of(store, lease.task_id)) for lease in leases]
        appends[2] = spoil(appends[2])
        every = await asyncio.gather(*map(store.append, appends), return_exceptions=True)
        refused = every.pop(2)
        assert every == [None] * 4
        assert isinstance(refused, (asyncpg.PostgresError, ValueError))
        assert store.trouble is None
    assert [len(await log_of(store, f"t{number}")) for number in range(5)] == [4, 4, 1, 4, 4]
    assert "PostgreSQL refused a request (Append)" in caplog.text


async def test_a_flush_that_is_given_up_fails_its_own_requests_only(connect, dsn, monkeypatch):
    """Requests that waited meanwhile are written when the server is there again."""
    now = 0.0
    store = await connect(dsn, clock=lambda: now)

    async def refuse(*_: Any) -> Any:
        raise ConnectionRefusedError

    with monkeypatch.context() as patch:
        patch.setattr(connections, "connect", refuse)
        store._flusher._drop_connection()
        first = asyncio.ensure_future(store.create(new_task("t1")))
        await _until(lambda: store._flusher.trouble is not None)
        second = asyncio.ensure_future(store.create(new_task("t2")))
        await asyncio.sleep(0)
        now += 2 * HOUR
        with pytest.raises(UnavailableError, match="the outcome is unknown"):
            await first
    assert (await second).head.task_id == "t2"
    assert await store.head("t1") is None


class TestOpen:
    async def test_two_at_once(self, connect, dsn):
        """Of several nodes that open an empty schema one makes it."""
        stores = await asyncio.gather(*(connect(dsn, node=f"n{n}") for n in range(4)))
        await stores[0].create(new_task("t1"))
        assert (await head_of(stores[3], "t1")).seq == 1
        assert len(await stores[1].nodes()) == 4

    async def test_steps_are_applied_once_each(self, admin):
        """A schema of an earlier version is brought up, by those who come at the same time, too."""
        name = await migrate(admin, (STEPS[0],))
        steps = (STEPS[0], "CREATE TABLE more (a integer)", "INSERT INTO more VALUES (1)")
        assert await migrate(admin, steps[:2]) == name
        assert await migrate(admin, steps) == await migrate(admin, steps) == name
        assert await admin.fetchval("SELECT count(*) FROM more") == 1

    async def test_a_step_that_fails_changes_nothing(self, admin):
        """The schema stays of the version that it was."""
        await migrate(admin)
        with pytest.raises(asyncpg.PostgresError):
            await migrate(admin, (*STEPS, "CREATE TABLE more (a integer); SELECT 1 / 0"))
        assert await admin.fetchval("SELECT version FROM agentsrv") == len(STEPS)
        assert await admin.fetchval("SELECT to_regclass('more')") is None

    async def test_a_later_version_is_refused(self, connect, dsn, admin):
        """A node that is too old for the schema does not touch it."""
        await migrate(admin, (*STEPS, "SELECT 1"))
        found, expected = len(STEPS) + 1, len(STEPS)
        with pytest.raises(ConfigurationError, match=f"schema is {found}; expected {expected}"):
            await connect(dsn)

    async def test_another_programs_tables_are_refused(self, connect, dsn, admin):
        """A schema that has a table of ours already is not taken over."""
        await admin.execute("CREATE TABLE task (a integer)")
        with pytest.raises(ConfigurationError, match="cannot open the PostgreSQL store"):
            await connect(dsn)
        assert await admin.fetchval("SELECT to_regclass('agentsrv')") is None

    @pytest.mark.parametrize(
        "dsn",
        [
            "postgresql://postgres@127.0.0.1:PORT/nothing",
            "nonsense",
        ],
    )
    async def test_what_cannot_be_reached_is_told(self, connect, server, dsn):
        """A database that is not there, a DSN that is not valid."""
        with pytest.raises(ConfigurationError, match="cannot open the PostgreSQL store"):
            await connect(dsn.replace("PORT", str(server.port)))

    async def test_a_fault_of_the_store_is_told(self, store):
        """When what must always run ends, that is told once, and nobody waits in vain."""
        broken: list[BaseException] = []
        heard(store).broken = broken.append
        store._flusher._on_flushed = lambda *_: 1 / 0
        waiting = asyncio.ensure_future(store.create(new_task("t1")))
        await _until(lambda: bool(broken))
        assert isinstance(broken[0], ZeroDivisionError)
        with pytest.raises(UnavailableError):
            await waiting
        with pytest.raises(UnavailableError):
            await store.create(new_task("t2"))

    async def test_a_closed_store_is_unavailable(self, connect, dsn):
        """Nothing is written or read any more, and closing twice is closing once."""
        store = await connect(dsn)
        await store.close()
        await store.close()
        for call in (store.head("t1"), store.create(new_task("t1")), store.claim("node", 1)):
            with pytest.raises(UnavailableError):
                await call


async def _until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not happened():  # noqa: ASYNC110 - what happens may be anything
            await asyncio.sleep(0.01)
