"""The plug is pulled at random moments, and at each single write: nothing lost, doubled, stuck."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.busy_app import TRACE
from tests.faults.checker import Violations, check_log, check_trace, read_store
from tests.faults.conftest import Ledger
from tests.faults.lives import APPLICATION, ENDS_WITHIN, Place, at_each
from tests.faults.load import Load, check_told
from tests.faults.nursery import Nursery
from tests.faults.strace import kill_at, require_strace
from tests.support.server_process import ServerProcess

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("kills", [8, pytest.param(500, marks=pytest.mark.soak)])
async def test_kills_at_random_moments(tmp_path: Path, ledger: Ledger, kills: int) -> None:
    """Under load, killed while it works or while it starts: all that was told stays true."""
    trace = tmp_path / "trace"
    server = ServerProcess(tmp_path, APPLICATION, environment={TRACE: str(trace)})
    chance = random.Random(kills)
    load = Load(server.url, seed=kills)
    early = code = 0
    try:
        async with load.running() as running:
            for _ in range(kills):
                early += await live_and_die(server, load, chance)
            await asyncio.to_thread(server.start)
            await load.finish()
            await asyncio.wait({running}, timeout=ENDS_WITHIN)
            stuck = load.open_jobs
    finally:
        code = await asyncio.to_thread(server.stop)
    stores = read_store(tmp_path / "agentsrv.db")
    lost, wrong = check_told(load, stores)
    wrong.expect(code == 0, f"the last server ended with {code}")
    wrong.expect(not stuck, f"never told to end: {stuck}")
    for stored in stores.values():
        wrong += check_log(stored)
    attempts, wrong_attempts = check_trace(trace, stores)
    wrong += wrong_attempts
    print(wrong)
    ledger.record(
        "P1, P2, P4, P5",
        faults={"kills": kills, "while starting": early},
        checked={
            "tasks": len(stores),
            "events told": load.frames,
            "replies": len(load.replies),
            "creates sent again": load.resent,
            "attempts": attempts,
            "lost": lost,
        },
        violations=len(wrong),
    )


async def live_and_die(server: ServerProcess, load: Load, chance: random.Random) -> bool:
    """One life that ends at a random moment; return whether that was while it started."""
    early = chance.random() < 0.2
    if early:
        server.launch()
        await asyncio.sleep(chance.uniform(0.3, 1.0))  # about when it opens its store
    else:
        await asyncio.to_thread(server.start)
        await asyncio.sleep(chance.uniform(0.0, 0.6))
        if chance.random() < 0.5:  # before, while or after a command is carried out
            load.asked.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await load.asked.wait()
            await asyncio.sleep(chance.uniform(0.0, 0.005))
    await asyncio.to_thread(server.kill)
    return early


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """Where the servers of the tests below come from."""
    require_strace()
    with Nursery() as nursery:
        yield nursery


PLACES = [
    Place("nothing", "pwrite64", None),  # the schema is made
    Place("ended", "pwrite64", "-wal"),  # each commit
    Place("running", "pwrite64", "-wal"),  # those of the recovery
    Place("ended", "pwrite64", ""),  # the checkpoint on closing
    Place("full", "pwrite64", ""),  # the checkpoint between two commits
    Place("nothing", "fdatasync", None),
    Place("ended", "fdatasync", None),
    Place("full", "fdatasync", None),
]


@pytest.mark.slow
@pytest.mark.parametrize("stride", [16, pytest.param(1, marks=pytest.mark.soak)])
async def test_a_crash_at_every_write(
    tmp_path: Path, ledger: Ledger, nursery: Nursery, stride: int
) -> None:
    """The server dies in its 1st, 2nd, ... write and sync of each kind: its log stays right."""
    crashes = events = lost = 0
    wrong = Violations()
    async for trial in at_each(nursery, tmp_path, PLACES, stride, kill_at):
        crashes += trial.code == -signal.SIGKILL
        wrong.expect(trial.code in (0, -signal.SIGKILL), f"ended with {trial.code}: {trial.said}")
        wrong += trial.wrong
        events += trial.load.frames
        lost += trial.lost
    wrong.expect(crashes > len(PLACES), "the server did not die")
    print(wrong)
    ledger.record(
        "P1, P2, P4, P5",
        faults={"crashes in a write or sync": crashes},
        checked={"places": len(PLACES), "events told": events, "lost": lost},
        violations=len(wrong),
    )
