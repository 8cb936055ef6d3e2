"""Three nodes behind nginx whose primary is killed; a standby that has all of it takes over."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from websockets.asyncio.client import ClientConnection, connect

from agentsrv.client import Client
from examples.cluster.local import nginx
from tests.faults.apart import network
from tests.faults.conftest import Ledger
from tests.faults.nodes import NAMES, Load, made_cluster
from tests.faults.replicas import replicas

pytestmark = [pytest.mark.faults, pytest.mark.alone]
LATE = 10.0  # seconds: longer than nodes hold what they cannot renew
REFUSED_WITHIN = 30.0  # seconds; nodes try for two of them


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.soak)])
@pytest.mark.parametrize("silent", [False, True], ids=["killed", "silent"])
@pytest.mark.timeout(1800)
async def test_a_standby_takes_over(
    ledger: Ledger, tmp_path: Path, rounds: int, silent: bool
) -> None:
    """Nothing acknowledged is lost, nobody is told twice, and all sockets are kept.

    A primary that is killed ends its connections; one whose machine is gone says nothing any
    more. Every other standby is promoted so late that all nodes have lost their leases.
    """
    chance, harmed = random.Random(rounds), Counter[str]()
    killed, promoted = list[float](), list[float]()
    async with AsyncExitStack() as stack:
        apart = stack.enter_context(network()) if silent else None
        database = stack.enter_context(replicas(apart))
        cluster = await stack.enter_async_context(made_cluster(database, tmp_path))
        cluster.start(*NAMES)
        sockets = [await stack.enter_async_context(connect(cluster.url(name))) for name in NAMES]
        for socket in sockets:
            await socket.recv()
        ports = [cluster.nodes[name].port for name in NAMES]
        port = await stack.enter_async_context(nginx(tmp_path, ports))
        client = await stack.enter_async_context(Client(f"ws://127.0.0.1:{port}"))
        hello, load = client.hello, Load(client)
        async with load.running():
            for number in range(rounds):
                await asyncio.sleep(chance.uniform(2, 4))
                killed.append(time.monotonic())
                primary = database.primary
                if apart is not None:
                    await asyncio.to_thread(apart.cut, primary.host)
                await asyncio.to_thread(primary.kill)
                harmed["primaries silent" if silent else "primaries killed"] += 1
                answers = await asyncio.gather(*map(listed, sockets))
                assert [answer.get("code") for answer in answers] == ["unavailable"] * len(NAMES)
                if number % 2:
                    await asyncio.sleep(LATE)
                    harmed["of them replaced after the leases"] += 1
                promoted.append(time.monotonic())
                await asyncio.to_thread(database.promote)
                await load.goes_on()
                if apart is not None:
                    await asyncio.to_thread(apart.heal, primary.host)
                await asyncio.to_thread(database.rebuild)
        answers = await asyncio.gather(*map(listed, sockets))
        assert [answer["type"] for answer in answers] == ["reply"] * len(NAMES)
        assert client.hello == hello
        async with Client(cluster.url(chance.choice(NAMES))) as other:
            lost = await load.differs(other)
    silences = load.silences(promoted)
    assert silences
    ledger.record(
        "P1, P2, P3, P4, P5",
        faults=harmed,
        checked={
            "tasks": len(load.told),
            "events": load.events,
            "commands refused": rounds * len(NAMES) + load.refused,
            "recoveries": len(load.recoveries()),
            "s from the kill until a task runs again, at most": max(load.silences(killed)),
            "s from the promotion, at most": max(silences),
        },
        violations=load.violations + lost,
    )


async def listed(socket: ClientConnection) -> dict[str, str]:
    """The answer to a ``list``."""
    await socket.send('{"command": "list"}')
    async with asyncio.timeout(REFUSED_WITHIN):
        answer: dict[str, str] = json.loads(await socket.recv())
    return answer
