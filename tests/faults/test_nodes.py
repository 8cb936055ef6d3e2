"""Real nodes above a real PostgreSQL: they are killed, stopped, restarted, and so is it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from agentsrv.client import Client
from agentsrv.models.events import Record, parse_timestamp
from tests.faults.conftest import Ledger
from tests.faults.nodes import Cluster, chain, execute, fetch, first, made_cluster, told
from tests.support.postgres import QUICK, Postgres, postgres, redis
from tests.support.world import check_log

pytestmark = [pytest.mark.faults, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """The database of all clusters here; each has a schema of its own."""
    with postgres(*QUICK) as running:
        yield running


@pytest.fixture
async def cluster(server: Postgres, tmp_path: Path) -> AsyncIterator[Cluster]:
    """A cluster without nodes as yet."""
    async with made_cluster(server, tmp_path) as made:
        yield made


def runs_on(log: Sequence[Record]) -> list[str]:
    """The nodes that a task ran on."""
    kinds = ("task_started", "task_recovered")
    return [record.data["node"] for record in log if record.event_type in kinds]


@asynccontextmanager
async def clients(*urls: str) -> AsyncIterator[list[Client]]:
    """A client of each node."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Client(url)) for url in urls]


@asynccontextmanager
async def divided(cluster: Cluster, bus: str) -> AsyncIterator[Client]:
    """A client of ``gate``, which takes clients; ``work`` runs their tasks."""
    async with AsyncExitStack() as stack:
        options = [f"--bus={stack.enter_context(redis())}"] if bus == "redis" else []
        cluster.start("gate", options=["--role=gateway", *options])
        cluster.start("work", options=["--role=worker", *options])
        yield await stack.enter_async_context(Client(cluster.url("gate")))


@pytest.mark.parametrize("bus", ["postgresql", "redis"])
async def test_people_on_a_gateway_reach_what_a_worker_runs(cluster: Cluster, bus: str) -> None:
    """Follow, answer, send, cancel, look, list, by key and by prefix; the worker takes no one."""
    async with divided(cluster, bus) as client:
        asked = await execute(client, agent="asker", idempotency_key="one")
        question = await first(client, asked, "input_required")
        await client.task(asked).respond(question.data["input_id"], 7)
        log = await told(client, asked)
        check_log(log)
        assert log[-1].data["final_output"] == "7"
        assert runs_on(log) == ["work"]
        assert await execute(client, agent="asker", idempotency_key="one") == asked

        heard = await execute(client, agent="listener")
        await first(client, heard, "step_started")
        for word in ("one", "two", "three"):
            await client.task(heard).send(word)
        log = await told(client, heard)
        assert log[-1].data["final_output"] == "one two three"

        slept = await execute(client, agent="sleeper")
        await first(client, slept, "step_started")
        assert (await client.task(slept).status()).status == "running"
        await (await client.find(slept[:10])).cancel("enough")
        log = await told(client, slept)
        assert log[-1].event_type == "task_cancelled"
        page = await client.list()
        assert page.total == 3
        with pytest.raises(InvalidStatus, match="503"):
            await connect(cluster.url("work"))


async def test_the_clients_of_a_dead_node_find_room_at_others(
    cluster: Cluster, ledger: Ledger
) -> None:
    """What they used at it counts at the others while it lives, and not for long afterwards."""
    cluster.start("one", "two", options=["--principal-connections=2"])

    async def is_admitted() -> bool:
        async with connect(cluster.url("two")) as socket:
            try:
                await socket.recv()
            except ConnectionClosed:
                return False
        return True

    async with AsyncExitStack() as stack, asyncio.timeout(60):
        for _ in range(2):
            await stack.enter_async_context(connect(cluster.url("one")))
        while await is_admitted():
            continue
        cluster.nodes["one"].kill()
        since = time.monotonic()
        while not await is_admitted():
            continue
    ledger.record(
        "P12",
        faults={"kill -9": 1},
        checked={"its clients are admitted elsewhere after, s": round(time.monotonic() - since, 1)},
        violations=0,
    )


@pytest.mark.parametrize("samples", [20, pytest.param(500, marks=pytest.mark.soak)])
@pytest.mark.parametrize("bus", ["postgresql", "redis"])
@pytest.mark.timeout(600)
async def test_who_steers_from_another_node_is_heard_at_once(
    cluster: Cluster, ledger: Ledger, bus: str, samples: int
) -> None:
    """From a command to the coroutine that it is for, on the node that runs it."""
    async with divided(cluster, bus) as client:
        cancelled, answered = dict[str, float](), dict[str, float]()
        for _ in range(samples):
            task = await execute(client, agent="sleeper")
            await first(client, task, "step_started")
            cancelled[task] = time.monotonic()
            await client.task(task).cancel()
            assert (await told(client, task))[-1].event_type == "task_cancelled"
            task = await execute(client, agent="asker")
            question = await first(client, task, "input_required")
            answered[task] = time.monotonic()
            await client.task(task).respond(question.data["input_id"], 7)
            assert (await told(client, task))[-1].data["final_output"] == "7"
    heard = dict(line.split() for line in cluster.trace.read_text().splitlines())
    for promise, what, sent in (("P6", "cancels", cancelled), ("P11", "answers", answered)):
        took = sorted(1000 * (float(heard[task]) - at) for task, at in sent.items())
        ledger.record(
            promise,
            faults={f"{what} from another node ({bus})": len(took)},
            checked={
                "ms p50": statistics.median(took),
                "ms p99": took[int(0.99 * len(took))],
            },
            violations=samples - len(took),
        )


@pytest.mark.slow
async def test_a_client_misses_nothing_when_the_running_node_is_killed(
    cluster: Cluster, ledger: Ledger
) -> None:
    """The other node goes on behind the completed steps; nothing is told twice."""
    cluster.start("a", "b")
    async with clients(cluster.url("a"), cluster.url("b")) as both:
        tasks = [await execute(client, plan=chain(3)) for client in both for _ in range(3)]
        victim = (await first(both[0], tasks[0], "task_started")).data["node"]
        client = both[victim == "a"]
        telling = [asyncio.create_task(told(client, task)) for task in tasks]
        await first(client, tasks[0], "step_completed")
        cluster.nodes[victim].kill()
        killed = time.time()
        logs = await asyncio.gather(*telling)
    waits = []
    for log in logs:
        check_log(log)
        completed = [r.data["step_id"] for r in log if r.event_type == "step_completed"]
        assert sorted(completed) == ["s0", "s1", "s2"]
        recovered = [r for r in log if r.event_type == "task_recovered"]
        assert [r.data["node"] for r in recovered] == ["b" if victim == "a" else "a"] * len(
            recovered
        )
        waits += [seconds(r) - killed for r in recovered]
    assert waits
    ledger.record(
        "P1, P2, P3",
        faults={"nodes killed": 1},
        checked={"tasks": len(logs), "s until they run again, at most": max(waits)},
        violations=0,
    )


@pytest.mark.slow
async def test_a_stopped_node_finds_its_tasks_in_other_hands(
    cluster: Cluster, ledger: Ledger
) -> None:
    """SIGSTOP for longer than a lease: it writes nothing more, says so once, and goes on."""
    cluster.start("a", "b")
    async with clients(cluster.url("a"), cluster.url("b")) as both:
        task = await execute(both[0], plan=chain(3))
        victim = (await first(both[0], task, "task_started")).data["node"]
        stopped, other = both if victim == "a" else both[::-1]
        await first(other, task, "step_completed")
        os.kill(cluster.nodes[victim].pid, signal.SIGSTOP)
        await first(other, task, "task_recovered")
        os.kill(cluster.nodes[victim].pid, signal.SIGCONT)
        log = await told(other, task)
        check_log(log)
        assert len(runs_on(log)) == len(set(runs_on(log))) == 2
        assert await told(stopped, task) == log
        tasks = [await execute(stopped, plan=chain(1)) for _ in range(3)]
        for late in tasks:
            assert (await told(stopped, late))[-1].event_type == "task_completed"
    text = cluster.nodes[victim].log.read_text()
    assert text.count("lost its lease") == 1
    assert text.count("is closed to this worker") <= 1
    ledger.record("P3", faults={"nodes stopped": 1}, checked={"tasks": 1}, violations=0)


@pytest.mark.slow
async def test_nodes_go_on_when_postgresql_is_back(
    cluster: Cluster, server: Postgres, ledger: Ledger
) -> None:
    """Clients keep their sockets, nobody is restarted, and nothing acknowledged is lost."""
    cluster.start("a", "b")
    async with clients(cluster.url("a"), cluster.url("b")) as (one, two):
        tasks = [await execute(one, plan=chain(2), words=150) for _ in range(4)]
        begun = asyncio.Queue[str]()
        telling = [
            asyncio.create_task(told(client, task, begun))
            for task in tasks
            for client in (one, two)
        ]
        for _ in telling:
            await begun.get()
        connections = one.hello, two.hello
        server.stop()
        refused = 0
        try:
            async with connect(cluster.url("b")) as socket:
                await socket.recv()
                await socket.send('{"command": "list"}')
                answer = json.loads(await socket.recv())
                assert (answer["type"], answer["code"]) == ("error", "unavailable")
                refused += 1
            assert (await fetch(cluster.url("b"), "/readyz"))[0] == 503
        finally:
            server.start()
        logs = await asyncio.gather(*telling)
        late = await execute(two, plan=chain(1))
        assert (await told(one, late))[-1].event_type == "task_completed"
        assert (one.hello, two.hello) == connections
    for log, same in zip(logs[::2], logs[1::2], strict=True):
        check_log(log)
        assert log == same
        assert log[-1].event_type == "task_completed"
    ledger.record(
        "P1, P2, P3",
        faults={"PostgreSQL killed": 1},
        checked={"tasks": len(tasks), "commands refused meanwhile": refused},
        violations=0,
    )


def seconds(record: Record) -> float:
    """When an event happened, in seconds since the epoch."""
    return parse_timestamp(record.timestamp)
