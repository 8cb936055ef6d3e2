"""Limits that hold over nodes: in simulated time, and of real servers on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
import pytest
from websockets.exceptions import ConnectionClosed

from agentsrv.delivery.broker import EventBroker
from agentsrv.delivery.subscriptions import Subscriber
from agentsrv.errors import OverloadedError, RateLimitedError
from agentsrv.models.usage import Use
from agentsrv.server.cluster_usage import ClusterUsage
from agentsrv.server.limits import ConnectionLimiter, Quota
from agentsrv.settings import Settings
from agentsrv.wiring import Server
from tests.support.postgres import QUICK, Postgres, postgres
from tests.support.principals import ADA_KEY, BOB_KEY, BOTH, bearer
from tests.support.shared_memory import Place
from tests.support.simulation import simulate
from tests.support.talk import Talk, serving, talking
from tests.support.world import Reader

ADA: dict[str, Any] = {"additional_headers": bearer(ADA_KEY)}
BOB: dict[str, Any] = {"additional_headers": bearer(BOB_KEY)}
WAITER = {"command": "create", "task_description": "x", "agent": "waiter", "execute": True}
SOON = 2.5  # simulated seconds: two sweeps, and what the store takes
LATER = 5.0  # until what a dead node told is forgotten, too


class Node:
    """The parts of a node that have to do with limits."""

    def __init__(self, place: Place, name: str, **limits: Any) -> None:
        settings = Settings(**limits)
        self.door = place.door(name)
        self.limiter = ConnectionLimiter(settings, 1000, asyncio.get_running_loop().time)
        self.broker = EventBroker(self.door, settings.principal_subscriptions)
        self._neighbours = ClusterUsage(self.door, self.limiter, self.broker, settings)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take part."""
        await self.door.open()
        self._task = asyncio.create_task(self._neighbours.run())

    def kill(self) -> None:
        """End without a word."""
        assert self._task is not None
        self._task.cancel()
        self.door.die()

    def connect(self, principal: str) -> Quota:
        """Another connection."""
        return self.limiter.assign_principal(self.limiter.accept(None), principal)

    def is_full(self, principal: str) -> bool:
        """Whether a connection more is refused; if not, it is over again."""
        stranger = self.limiter.accept(None)
        try:
            stranger = self.limiter.assign_principal(stranger, principal)
        except OverloadedError:
            return True
        finally:
            self.limiter.release(stranger)
        return False


async def make_nodes(count: int, **limits: Any) -> list[Node]:
    """Nodes of one store that answers late."""
    place = Place(latency=0.1)
    nodes = [Node(place, f"n{number}", **limits) for number in range(count)]
    for node in nodes:
        await node.start()
    return nodes


async def send(quota: Quota, rate: float, seconds: float) -> Counter[bool]:
    """Send commands evenly; count those that were let through, and those that were not."""
    outcomes = Counter[bool]()
    for _ in range(int(rate * seconds)):
        try:
            quota.take()
        except RateLimitedError:
            outcomes[False] += 1
        else:
            outcomes[True] += 1
        await asyncio.sleep(1 / rate)
    return outcomes


async def send_all(
    offered: Mapping[Quota, float], seconds: float
) -> tuple[list[Counter[bool]], float]:
    """Send on all of them at once; tell what became of each, and what was let through a second."""
    found = await asyncio.gather(*(send(quota, rate, seconds) for quota, rate in offered.items()))
    return found, sum(each[True] for each in found) / seconds


@pytest.mark.parametrize(
    "offered", [(300, 300, 300), (300, 300, 10), (1000, 40, 0.5), (60, 20, 20), (120, 0.2, 0.2)]
)
def test_a_rate_is_that_of_all_nodes(offered):
    """However it is spread: all of the limit is used, not more, and nobody else notices."""

    async def story() -> None:
        nodes = await make_nodes(3, command_rate=100, command_burst=50)
        ada = {node.connect("ada"): rate for node, rate in zip(nodes, offered, strict=True)}
        bob = {node.connect("bob"): 30.0 for node in nodes}
        (_, at_first), (of_bob, _) = await asyncio.gather(
            send_all(ada, LATER), send_all(bob, LATER)
        )
        assert at_first <= 3 * 100 * SOON / LATER + 100 + 3 * 50 / LATER
        found, rate = await send_all(ada, 60.0)
        assert 0.95 * min(100, sum(offered)) <= rate <= 1.05 * 100
        assert all(each[False] == 0 for each in of_bob)
        if offered[1] < 100 / 3:
            assert found[1][False] == 0, "who wants less than an equal part has it"

    simulate(story())


def test_whoever_is_quiet_elsewhere_has_the_whole_rate():
    """Soon after the others have stopped; until then an equal part at least."""

    async def story() -> None:
        here, there = await make_nodes(2, command_rate=100, command_burst=10)
        ada, her_other = here.connect("ada"), there.connect("ada")
        await send_all({ada: 300, her_other: 300}, 10.0)
        _, beside = await send_all({ada: 300, her_other: 300}, 10.0)
        assert 95 <= beside <= 105
        await send(ada, 300, 8.0)
        _, alone = await send_all({ada: 300}, 10.0)
        assert 95 <= alone <= 105

    simulate(story())


def test_connections_and_subscriptions_of_all_nodes_count():
    """Within the bound, and no longer than they are there."""

    async def story() -> None:
        one, two, three = await make_nodes(3, principal_connections=4, principal_subscriptions=3)
        first, _ = one.connect("ada"), two.connect("ada")
        one.connect("ada")
        follower, other = (Subscriber(node.broker, Reader(), "ada") for node in (one, two))
        one.broker.follow("t1", follower)
        one.broker.follow("t2", follower)
        assert not three.is_full("ada")
        await asyncio.sleep(SOON)
        assert not three.is_full("ada")
        three.connect("ada")
        two.broker.follow("t1", other)
        await asyncio.sleep(SOON)
        assert [node.is_full("ada") for node in (one, two, three)] == [True] * 3
        assert not two.is_full("bob")
        with pytest.raises(OverloadedError, match="you follow 3 tasks"):
            two.broker.follow("t2", other)
        one.limiter.release(first)
        one.broker.leave("t1", follower)
        await asyncio.sleep(SOON)
        two.broker.follow("t2", other)
        assert not three.is_full("ada")

    simulate(story())


def test_a_dead_node_uses_nothing_for_long():
    """Its clients find room elsewhere."""

    async def story() -> None:
        one, two = await make_nodes(2, principal_connections=1)
        one.connect("ada")
        await asyncio.sleep(SOON)
        assert two.is_full("ada")
        one.kill()
        await asyncio.sleep(LATER)
        assert not two.is_full("ada")

    simulate(story())


def test_without_the_store_each_node_has_its_own_limits():
    """They are common again when it is back."""

    async def story() -> None:
        one, two = await make_nodes(2, principal_connections=1, command_rate=10, command_burst=1)
        ada = one.connect("ada")
        await send(ada, 50, SOON)
        assert two.is_full("ada")
        two.door.cut()
        await send(ada, 50, 20.0)
        assert not two.is_full("ada")
        two.door.mend()
        await send(ada, 50, SOON)
        assert two.is_full("ada")

    simulate(story())


def test_only_what_matters_is_told():
    """Thousands of principals who use little cost the others nothing."""

    async def story() -> None:
        (node,) = await make_nodes(1, principal_connections=100, command_rate=100)
        for number in range(50):
            await send(node.connect(f"p{number}"), 10, 0.1)
        busy = node.connect("busy")
        for _ in range(5):
            node.connect("ada")
        await send(busy, 50, 3.0)
        (_, told) = node.door._place.uses["n0"]
        assert sorted(told) == ["ada", "busy"]
        assert told["ada"] == Use(connections=5)
        await asyncio.sleep(20.0)
        (_, told) = node.door._place.uses["n0"]
        assert list(told) == ["ada"]

    simulate(story())


# Real servers.


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A PostgreSQL."""
    with postgres(*QUICK) as running:
        yield running


@asynccontextmanager
async def two_nodes(server: Postgres, schema: str, **limits: Any) -> AsyncIterator[list[Server]]:
    """Servers that share a schema."""
    connection = await asyncpg.connect(server.dsn())
    await connection.execute(f"CREATE SCHEMA {schema}")
    await connection.close()
    settings = {"store": server.dsn(schema), "api_keys": BOTH, **limits}
    async with (
        serving(node="one", **settings) as one,
        serving(node="two", **settings) as two,
    ):
        yield [one, two]


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what comes by itself, within some sweeps of a busy machine."""
    async with asyncio.timeout(30):
        while not await holds():  # noqa: ASYNC110 - what holds may be anything
            await asyncio.sleep(0.05)


async def refusal(node: Server, **who: Any) -> str:
    """How a node closes another connection; nothing if it takes it."""
    try:
        async with talking(node, **who) as talk:
            assert (await talk.ask("ping"))["type"] == "reply"
    except ConnectionClosed as closed:
        return f"{closed.rcvd.code} {closed.rcvd.reason}" if closed.rcvd is not None else "lost"
    return ""


async def test_connections_at_one_node_count_at_the_other(server):
    """Refused soon, admitted soon after they are gone, and another principal never notices."""
    async with two_nodes(server, "connections", principal_connections=3) as (one, two):

        async def is_full() -> bool:
            assert not await refusal(two, **BOB)
            return bool(await refusal(two, **ADA))

        async def is_free() -> bool:
            return not await is_full()

        async with AsyncExitStack() as stack:
            for _ in range(3):
                await stack.enter_async_context(talking(one, **ADA))
            await until(is_full)
            told = await refusal(two, **ADA)
        assert told == "1013 connection limit reached (3 of yours are open)"
        await until(is_free)


async def test_subscriptions_at_one_node_count_at_the_other(server):
    """Until they end."""
    async with (
        two_nodes(server, "subscriptions", principal_subscriptions=2) as (one, two),
        talking(one, **ADA) as ada,
        talking(two, **ADA) as her_other,
        talking(two, **BOB) as bob,
    ):
        tasks = [(await ada.ask(WAITER))["task_id"] for _ in range(2)]
        follow = {"command": "subscribe", "task_id": tasks[0]}

        async def is_refused() -> bool:
            answer = await her_other.ask(follow)
            if answer["type"] == "reply":
                await her_other.ask({"command": "unsubscribe", "task_id": tasks[0]})
                return False
            assert answer["code"] == "overloaded"
            assert "you follow 2 tasks" in answer["message"]
            return True

        async def is_followed() -> bool:
            return not await is_refused()

        await until(is_refused)
        assert (await bob.ask(WAITER))["type"] == "reply"
        await ada.ask({"command": "unsubscribe", "task_id": tasks[1]})
        await until(is_followed)


@pytest.mark.slow
async def test_commands_at_both_nodes_share_one_rate(server, capsys):
    """Both together are let through as many as one alone; another principal never notices."""
    loop, rate, settles, counts = asyncio.get_running_loop(), 100, 4.0, 5.0
    served: Counter[str] = Counter()

    async def flood(talk: Talk, name: str) -> None:
        while True:
            answer = await talk.ask("ping")
            served[name] += answer["type"] == "reply"

    async def work(talk: Talk) -> None:
        while True:
            assert (await talk.ask("ping"))["type"] == "reply"
            await asyncio.sleep(0.1)

    async with (
        two_nodes(server, "rate", command_rate=rate, command_burst=20) as (one, two),
        talking(one, **ADA) as ada,
        talking(two, **ADA) as her_other,
        talking(one, **BOB) as bob,
        talking(two, **BOB) as his_other,
        asyncio.TaskGroup() as group,
    ):
        tasks = [
            group.create_task(each)
            for each in (flood(ada, "one"), flood(her_other, "two"), work(bob), work(his_other))
        ]
        await asyncio.sleep(settles)
        served.clear()
        began = loop.time()
        await asyncio.sleep(counts)
        both, alone = served.total(), rate * (loop.time() - began)
        for task in tasks:
            task.cancel()
    with capsys.disabled():
        print(f"\n  commands at two nodes: {both} of the {alone:.0f} that one may have")
    assert 0.3 * alone < both < 1.5 * alone
    assert min(served["one"], served["two"]) > 0.1 * both
