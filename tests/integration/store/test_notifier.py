"""The buses: hints arrive, come back after a connection was lost, and cost nothing when lost."""

import asyncio
from collections.abc import Callable

import asyncpg
import pytest

from agentsrv.errors import ConfigurationError
from agentsrv.store.base import LogHead
from agentsrv.store.notifier import (
    MAX_PAYLOAD_BYTES,
    Notification,
    Notifications,
    Notifier,
    decode,
    encode,
)
from agentsrv.store.postgres.notifier import PostgresNotifier, open_notifier
from agentsrv.store.postgres.store import PostgresStore
from agentsrv.store.redis_notifier import RedisNotifier
from tests.support.postgres import redis
from tests.support.store_listener import Heard
from tests.support.store_tasks import STILL, new_task

PATIENCE = 30  # seconds
CHANNEL = "agentsrv_test"


async def until(happened: Callable[[], bool]) -> None:
    """Wait for something that happens by itself."""
    async with asyncio.timeout(PATIENCE):
        while not happened():  # noqa: ASYNC110 - what happens may be anything
            await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def redis_url():
    """A Redis for all tests here."""
    with redis() as url:
        yield url


@pytest.fixture(params=["postgres", "redis"])
def new_bus(request):
    """Makes buses of each kind that reach each other."""
    if request.param == "postgres":
        dsn = request.getfixturevalue("server").dsn()
        return lambda: PostgresNotifier(dsn)
    url = request.getfixturevalue("redis_url")
    return lambda: RedisNotifier(url)


class Peer:
    """A node at the bus, and what it heard."""

    def __init__(self, bus: Notifier, number: int) -> None:
        self.heard: list[Notification] = []
        self.misses = 0
        self.hints = Notifications(bus, number, CHANNEL, self.heard.append, self._miss)
        self.task = asyncio.create_task(self.hints.run())

    def _miss(self) -> None:
        self.misses += 1

    @property
    def news(self) -> list[LogHead]:
        """All the news that it heard."""
        return [each for hint in self.heard for each in hint.news]


@pytest.fixture
async def peers(new_bus):
    """Two nodes that listen."""
    peers = [Peer(new_bus(), number) for number in (1, 2)]
    await until(lambda: all(peer.misses for peer in peers))
    yield peers
    for peer in peers:
        peer.task.cancel()
    await asyncio.wait([peer.task for peer in peers])


class TestBus:
    async def test_hints_arrive_at_the_others(self, peers):
        """Each kind arrives, at those who did not send it."""
        one, two = peers
        one.hints.add([LogHead("t1", "ann", 3)], is_ready=True, inbox=[7], replies=[8])
        await until(lambda: bool(two.heard))
        assert two.heard == [Notification(1, [LogHead("t1", "ann", 3)], True, [7], [8])]
        two.hints.add(is_ready=True)
        await until(lambda: bool(one.heard))
        assert one.heard == [Notification(2, [], True, [], [])]

    async def test_what_comes_while_one_is_sent_goes_together(self, peers):
        """Thousands of commits are a few messages, and of each task the last counts."""
        one, two = peers
        for seq in range(1, 3001):
            one.hints.add([LogHead(f"t{seq % 300}", "ann", seq)])
            if seq % 100 == 0:
                await asyncio.sleep(0)
        last = {LogHead(f"t{seq % 300}", "ann", seq) for seq in range(2701, 3001)}
        await until(lambda: last <= set(two.news))
        assert len(two.heard) < 300

    async def test_strangers_on_the_channel_do_no_harm(self, peers, new_bus):
        """A message that is not a notification is ignored."""
        one, two = peers
        await one.hints._notifier.publish(CHANNEL, [b"{}", b"nonsense", b'{"sender":1,"news":3}'])
        one.hints.add(is_ready=True)
        await until(lambda: bool(two.heard))
        assert two.heard == [Notification(1, [], True, [], [])]

    async def test_a_bus_that_is_not_there_makes_nobody_wait(self):
        """Hints are lost, and the sender goes on."""
        for bus in (
            PostgresNotifier("postgresql://x@127.0.0.1:1/x"),
            RedisNotifier("redis://127.0.0.1:1"),
        ):
            peer = Peer(bus, 1)
            for _ in range(3):
                peer.hints.add(is_ready=True)
                await asyncio.sleep(0.01)
            assert not peer.task.done()
            peer.task.cancel()
            await asyncio.wait([peer.task])


async def hear_again(peers: list[Peer]) -> None:
    """Wait until both know that they may have missed something, and one hears the other; end."""
    await until(lambda: all(peer.misses == 2 for peer in peers))
    peers[0].hints.add(is_ready=True)
    await until(lambda: bool(peers[1].heard))
    for peer in peers:
        peer.task.cancel()
    await asyncio.wait([peer.task for peer in peers])


async def test_postgres_listens_again(server):
    """After its connection was lost a node hears again, and is told that it may have missed."""
    peers = [Peer(PostgresNotifier(server.dsn()), number) for number in (1, 2)]
    await until(lambda: all(peer.misses == 1 for peer in peers))
    admin = await asyncpg.connect(server.dsn())
    await admin.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
    )
    await admin.close()
    await hear_again(peers)


async def test_redis_listens_again():
    """After the server was another one a node hears again."""
    with redis() as url:
        port = int(url.rpartition(":")[2])
        peers = [Peer(RedisNotifier(url), number) for number in (1, 2)]
        await until(lambda: all(peer.misses == 1 for peer in peers))
    with redis(port) as url:
        await hear_again(peers)


async def test_a_store_with_a_redis_bus(dsn, redis_url):
    """Nodes hear of each other's commits over Redis as they do over PostgreSQL."""
    one, two = (PostgresStore(dsn, node=n, bus=redis_url, timing=STILL) for n in ("one", "two"))
    told: list[LogHead] = []
    await one.open()
    await two.open(Heard(news=told.extend))
    await until(lambda: all(store._notifications._notifier._client for store in (one, two)))  # type: ignore[attr-defined]
    await one.create(new_task("t1"))
    await until(lambda: told == [LogHead("t1", "ann", 1)])
    for store in (one, two):
        await store.close()


async def test_the_store_lives_without_its_bus(dsn):
    """A bus that cannot be reached is no reason not to open, nor to stop."""
    store = PostgresStore(dsn, node="one", bus="redis://127.0.0.1:1", timing=STILL)
    await store.open()
    await store.create(new_task("t1"))
    await store.close()


def test_a_bus_that_there_is_not():
    """The refusal tells what was expected."""
    with pytest.raises(ConfigurationError, match="expected redis://host:port"):
        open_notifier("amqp://host", "")


class TestEncoding:
    @pytest.mark.parametrize("count", [0, 1, 60, 500])
    def test_messages_are_small_and_say_all(self, count):
        """However much there is to say, each message fits a NOTIFY, and nothing is said twice."""
        news = [LogHead(f"{n:064}", "ä" * 100, n) for n in range(count)]
        hint = Notification(3, news, True, list(range(50)), [1])
        payloads = list(encode(hint))
        assert max(map(len, payloads)) <= MAX_PAYLOAD_BYTES
        parts = [decode(payload) for payload in payloads]
        assert [each for part in parts for each in part.news] == news
        assert [part.is_ready for part in parts].count(True) == 1
        assert parts[0].inbox == list(range(50))
        assert {part.sender for part in parts} == {3}
