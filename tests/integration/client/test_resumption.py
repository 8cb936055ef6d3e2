import asyncio
import random
from contextlib import aclosing

import pytest

from agentsrv.client import Client
from tests.support.proxy import Cut, CuttingProxy, Kind


async def follow(client, task_id):
    """Every event of a task."""
    async with aclosing(client.task(task_id).events()) as events:
        return [record async for record in events]


def check(records, pieces):
    """Each event once, in order, without a hole, and the whole text."""
    assert [record.seq for record in records] == list(range(1, len(records) + 1))
    texts = [r.data["output"] for r in records if r.event_type == "partial_output"]
    assert "".join(texts) == "".join(f"{number} " for number in range(pieces))
    assert sum(r.event_type == "task_started" for r in records) == 1
    assert records[-1].event_type == "task_completed"


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(5))
async def test_events_survive_cuts_at_any_byte(server, hasty, seed):
    """Three tasks, two iterators each, connections cut in the midst of frames: all is there."""
    chance = random.Random(seed)
    proxy = CuttingProxy(server.port, lambda: Cut(chance.randrange(200, 20_000), Kind.CLOSE))
    async with proxy.running(), Client(proxy.url, hasty) as client:
        created = await asyncio.gather(
            *(client.start("Count", agent="chatter", params={"pieces": 300}) for _ in range(3))
        )
        logs = await asyncio.gather(
            *(follow(client, task.id) for task in created for _ in range(2))
        )
        for log in logs:
            check(log, 300)
        assert proxy.cuts[Kind.CLOSE] > 10
        print(f"seed {seed}: {proxy.cuts[Kind.CLOSE]} cuts, {sum(map(len, logs))} events")


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(4))
async def test_commands_are_carried_out_once_over_cuts(server, hasty, seed):
    """Forty tasks are created and executed while answers are cut off: forty run, once each."""
    chance = random.Random(seed)
    # A greeting and the handshake have about 700 bytes: most cuts hit the answers.
    proxy = CuttingProxy(server.port, lambda: Cut(chance.randrange(300, 2500), Kind.CLOSE))
    async with proxy.running(), Client(proxy.url, hasty) as client:

        async def one(number):
            params = {"pieces": 2}
            created = await client.create(f"Task {number}", agent="chatter", params=params)
            await created.execute()
            return created.id

        ids = await asyncio.gather(*(one(number) for number in range(40)))
        assert proxy.cuts[Kind.CLOSE] > 5
    async with Client(server.url) as client:
        assert (await client.list()).total == 40
        for log in await asyncio.gather(*(follow(client, task_id) for task_id in ids)):
            check(log, 2)


@pytest.mark.faults
async def test_cancel_and_run_survive_cuts(server, hasty):
    """A cancel whose answer is cut off is asked again; run goes on behind its own create."""
    proxy = CuttingProxy(server.port, lambda: None)
    async with proxy.running(), Client(proxy.url, hasty) as client:
        for agent in ("chatter", "endless"):
            created = await client.start("Go on", agent=agent)
            proxy.abort()
            if agent == "endless":
                await created.cancel("over a cut")
            log = await follow(client, created.id)
            assert [record.seq for record in log] == list(range(1, len(log) + 1))
            assert log[-1].data.get("reason") == ("over a cut" if agent == "endless" else None)
        assert proxy.connections == 3
