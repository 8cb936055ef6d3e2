"""P1, P2, P3: a program that uses the client does not notice that the server is killed."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from agentsrv.client import Client
from tests.faults.conftest import Ledger
from tests.faults.streaming import PATIENT, Streams, account
from tests.support.server_process import ServerProcess
from tests.support.wire import Wire

pytestmark = pytest.mark.faults
AT_ONCE = 4  # tasks; each meets fewer kills than a task may before it fails as the cause
TASK = "words words words"


@pytest.mark.slow
@pytest.mark.parametrize(
    "restarts",
    [
        pytest.param(3, id="short"),
        pytest.param(20, id="long", marks=[pytest.mark.soak, pytest.mark.timeout(600)]),
    ],
)
async def test_the_client_streams_through_kills(restarts, tmp_path: Path, ledger: Ledger):
    """A server killed again and again; the client's iterators bring each event once, in order."""
    server = ServerProcess(tmp_path, "tests.faults.pouring_app:app")
    chance = random.Random(restarts)
    await asyncio.to_thread(server.start)
    try:
        async with Client(server.url, PATIENT) as client:
            streams = Streams(client)
            async with streams.kept_up(TASK, AT_ONCE):
                for _ in range(restarts):
                    await streams.until_ended(AT_ONCE)
                    await asyncio.sleep(chance.uniform(0.0, 0.5))  # in whatever it is doing
                    await asyncio.to_thread(server.kill)
                    await asyncio.to_thread(server.start)
        with Wire(server.port) as wire:
            found = await asyncio.to_thread(account, wire, streams.streams)
    finally:
        assert await asyncio.to_thread(server.stop) == 0
    assert found.recovered > 0
    ledger.record(
        "P1, P2, P3",
        faults={"kills under a client": restarts},
        checked={
            "tasks": found.tasks,
            "of them recovered": found.recovered,
            "events": found.events,
            "missed": found.missed,
            "doubled": found.doubled,
        },
        violations=found.wrong,
    )
