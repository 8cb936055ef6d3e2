"""A step with an open question, and a node that is killed: a loss if code of the step ran.

The node is a process of its own, above a real PostgreSQL. In simulations see ``test_crew`` and
``test_suspects``.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from agentsrv.engine.recovery import interrupted_attempts
from agentsrv.models.events import decode
from agentsrv.store.postgres.store import PostgresStore
from agentsrv.store.replay import load_state
from tests.integration.engine.resting import ENDING, WAITING, knowing
from tests.support.postgres import QUICK, Postgres, postgres
from tests.support.store_tasks import STILL, claim
from tests.support.world import step

WATCHING = STILL._replace(sweep_interval=0.05)
ROOT = Path(__file__).parents[3]
PATIENCE = 30  # seconds
KILLS = 2  # the second interrupts an attempt that came to a question of an earlier one


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A PostgreSQL."""
    with postgres(*QUICK) as running:
        yield running


@pytest.fixture
async def dsn(server: Postgres, request: pytest.FixtureRequest) -> str:
    """An empty schema."""
    schema = request.node.callspec.id.replace("-", "_")
    server.ask(f"CREATE SCHEMA {schema}")
    return server.dsn(schema)


@asynccontextmanager
async def node(dsn: str) -> AsyncIterator[subprocess.Popen[bytes]]:
    """The node to be killed."""
    program = [sys.executable, "-m", "tests.integration.engine.resting", dsn]
    with subprocess.Popen(program, cwd=ROOT) as process:  # noqa: ASYNC220 - one fork, no wait
        try:
            yield process
            async with asyncio.timeout(PATIENCE):
                while process.poll() is None:  # noqa: ASYNC110 - another process ends
                    await asyncio.sleep(0.02)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL


async def claimed(door: PostgresStore) -> list[tuple[str | None, int]]:
    """What the crash interrupted, by the next node's lease; the lease is given back."""
    async with asyncio.timeout(PATIENCE):
        while not (leases := await claim(door, "other", 9)):
            continue
    (lease,) = leases
    assert lease.interrupted is None
    found = interrupted_attempts(await load_state(door, lease.task_id), lease)
    await door.release(lease.task_id, lease.epoch)
    return [(each.step_id, each.attempt) for each in found]


@pytest.mark.slow
@pytest.mark.parametrize("agent", [run.__name__ for run in ENDING])
async def test_a_step_that_ends_its_node_beside_a_question_loses(dsn: str, agent: str):
    """Also where it was woken by nothing that is in the log."""
    door = PostgresStore(dsn, node="other", timing=WATCHING)
    await door.open()
    try:
        task = await knowing(door).create(step("a", agent))
        async with node(dsn):
            pass
        attempts = [
            event.data["attempt"]
            for event in map(decode, await door.read(task, 0, 1000))
            if event.event_type == "step_started"
        ]
        assert await claimed(door) == [("a", attempts[-1])]
    finally:
        await door.close()


@pytest.mark.slow
@pytest.mark.parametrize("agent", [run.__name__ for run in WAITING])
async def test_a_step_that_only_waits_does_not(dsn: str, agent: str):
    """Nor does its next attempt, which asks nothing new."""
    door = PostgresStore(dsn, node="other", timing=WATCHING)
    await door.open()
    admin = await asyncpg.connect(dsn)
    try:
        task = await knowing(door).create(step("a", agent))
        for number in range(1, KILLS + 1):
            async with node(dsn) as process, asyncio.timeout(PATIENCE):
                while True:
                    state = await load_state(door, task)
                    working = await admin.fetchval("SELECT working FROM task")
                    attempt = state.steps["a"].attempt if state.steps else 0
                    if state.inputs and attempt == number and working is None:
                        break
                    await asyncio.sleep(0.02)
                process.kill()
            assert await claimed(door) == []
    finally:
        await admin.close()
        await door.close()
