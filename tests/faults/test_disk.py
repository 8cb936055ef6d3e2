"""The disk is full, or fails: nothing is acknowledged that is not there afterwards."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.busy_app import TRACE
from tests.faults.checker import Violations, check_log, is_intact, read_copy, read_store
from tests.faults.conftest import Ledger
from tests.faults.lives import APPLICATION, Place, at_each
from tests.faults.load import UNDECIDED, Load, check_told
from tests.faults.nursery import Nursery
from tests.faults.strace import fail_from, require_strace
from tests.support.programs import require
from tests.support.server_process import ServerProcess

pytestmark = pytest.mark.faults
SENTENCE = "the store cannot be trusted any more"
FAULTS = ("Exception in callback", "never retrieved", "incident")  # what asyncio or we log
Grow = Callable[[str], None]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """Where the servers of these tests come from."""
    with Nursery() as nursery:
        yield nursery


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, Grow]]:
    """A disk in memory, and a way to change its size."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = [require("mount"), "-t", "tmpfs", "-o", "size=1m", "agentsrv-test", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"platform: no disk can be mounted: {mounted.stderr.decode().strip()}")

    def grow(size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)

    try:
        yield folder, grow
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("rounds", [2, pytest.param(40, marks=pytest.mark.soak)])
async def test_a_full_disk(
    tmp_path: Path, ledger: Ledger, small_disk: tuple[Path, Grow], rounds: int
) -> None:
    """Time and again the disk fills up under load: the server waits, and goes on with more room."""
    disk, grow = small_disk
    database = disk / "agentsrv.db"
    trace = {TRACE: str(tmp_path / "trace")}
    server = ServerProcess(
        tmp_path, APPLICATION, "--store", f"sqlite:///{database}", environment=trace
    )
    load = Load(server.url, connections=4, window=4)
    wrong = Violations()

    def used() -> int:
        found = os.statvfs(disk)
        return (found.f_blocks - found.f_bfree) * found.f_frsize // 1024

    async def logged(words: str, times: int) -> None:
        await asyncio.to_thread(server.wait_for_log, words, times)

    server.start()
    async with load.running() as running:
        for number in range(1, rounds + 1):
            grow(f"{used() + 500}k")
            await logged("unable to write for", number)
            stores = read_copy(disk)
            wrong += check_told(load, stores)[1]
            for stored in stores.values():
                wrong += check_log(stored, ended=False)
            grow("1g")
            await logged("can write again, after", number)
            frames = load.frames
            while load.frames < frames + 100:
                load.asked.clear()
                await load.asked.wait()
        await load.finish()
        await asyncio.wait({running}, timeout=60)
    code = server.stop()
    wrong.expect(code == 0, f"the server ended with {code}")
    wrong += check_words(code, server.log.read_text())
    wrong.expect(not load.open_jobs, f"never told to end: {load.open_jobs}")
    stores = read_store(database)
    lost, wrong_here = check_told(load, stores)
    wrong += wrong_here
    for stored in stores.values():
        wrong += check_log(stored)
        wrong.expect(
            not any(b'"task_recovered"' in event for event in stored.log),
            f"task {stored.task_id} was interrupted",
        )
    wrong.expect(is_intact(database), "the file is damaged")
    wrong.expect(load.errors.keys() <= {*UNDECIDED, "invalid_state"}, f"odd: {load.errors}")
    print(wrong)
    ledger.record(
        "P1, P9",
        faults={"full disks": rounds},
        checked={
            "tasks": len(stores),
            "events told": load.frames,
            "told unavailable": load.errors["unavailable"],
            "lost": lost,
        },
        violations=len(wrong),
    )


PLACES = [
    Place("nothing", "pwrite64", None),
    Place("ended", "pwrite64", "-wal"),
    Place("running", "pwrite64", "-wal"),
    Place("full", "pwrite64", ""),  # of a checkpoint, without which the server can do
    Place("nothing", "fsync,fdatasync", None),
    Place("ended", "fsync,fdatasync", None),
    Place("full", "fsync,fdatasync", None),
]


@pytest.mark.slow
@pytest.mark.parametrize("stride", [40, pytest.param(1, marks=pytest.mark.soak)])
async def test_a_disk_that_fails(
    tmp_path: Path, ledger: Ledger, nursery: Nursery, stride: int
) -> None:
    """From the n-th write or sync on all fail: the server ends, and all that was told is there."""
    require_strace()
    codes: Counter[int] = Counter()
    errors: Counter[str] = Counter()
    events = lost = 0
    wrong = Violations()
    async for trial in at_each(nursery, tmp_path, PLACES, stride, fail_from):
        codes[trial.code] += 1
        errors += trial.load.errors
        events += trial.load.frames
        lost += trial.lost
        wrong += trial.wrong
        wrong += check_words(trial.code, trial.said)
    wrong.expect(errors["unavailable"], f"nobody was told: {errors}")
    wrong.expect(errors.keys() <= {*UNDECIDED, "invalid_state"}, f"odd: {errors}")
    print(wrong)
    ledger.record(
        "P1, P9",
        faults={"failing disks": codes[1] + codes[2]},
        checked={
            "ended while serving": codes[1],
            "did not start": codes[2],
            "events told": events,
            "told unavailable": errors["unavailable"],
            "lost": lost,
        },
        violations=len(wrong),
    )


def check_words(code: int, said: str) -> Violations:
    """Whether the server said why it ended, and had no fault of its own."""
    wrong = Violations()
    last_words = {0: [""], 1: [SENTENCE, "cannot open the store"], 2: ["cannot open the store"]}
    wrong.expect(code in last_words, f"ended with {code}")
    is_told = any(words in said for words in last_words.get(code, ()))
    wrong.expect(is_told, f"ended with {code}: {said[-1000:]}")
    for fault in FAULTS:
        at = said.find(fault)
        wrong.expect(at < 0, f"has a fault of its own: {said[at : at + 1000]}")
    return wrong
