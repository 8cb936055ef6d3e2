"""The power is cut: whatever the disk has forgotten or torn, what was told is there."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agentsrv.errors import ConfigurationError, UnavailableError
from agentsrv.store.queue import QueueLimits
from agentsrv.store.sqlite.log import SqliteLog
from tests.faults.busy_app import SYNCHRONOUS
from tests.faults.checker import Stored, Violations, check_log, is_intact, read_copy, read_store
from tests.faults.conftest import Ledger
from tests.faults.lives import APPLICATION, all_ended
from tests.faults.load import Load
from tests.faults.nursery import ForkedServer, Nursery
from tests.faults.powercut import CALLS, KEEPS, Disk, Recording, Told
from tests.faults.strace import record, require_strace
from tests.support.server_process import ServerProcess

pytestmark = pytest.mark.faults
SERVED = 7  # every so many disks are not only looked at


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """Where the servers of these tests come from."""
    with Nursery() as nursery:
        yield nursery


@dataclass
class Outcome:
    """What the power cuts of one test have done."""

    cuts: int = 0
    uncertain: int = 0
    served: int = 0
    told: int = 0
    lost: int = 0
    images: set[int] = field(default_factory=set)
    wrong: Violations = field(default_factory=Violations)


@pytest.mark.parametrize("cuts", [20, pytest.param(300, marks=pytest.mark.soak)])
async def test_power_cuts_lose_nothing_that_was_told(
    tmp_path: Path, ledger: Ledger, nursery: Nursery, cuts: int
) -> None:
    """The disk keeps what was synced and some of the rest: every frame sent is in the log."""
    folder, recording = await record_life(tmp_path, tasks=max(40, cuts // 2))
    outcome = await cut_power(recording, folder, tmp_path / "image", cuts, nursery)
    print(outcome.wrong)
    ledger.record(
        "P1, P9",
        faults={"power cuts": outcome.cuts},
        checked={
            "different disks": len(outcome.images),
            "uncertain writes": outcome.uncertain,
            "checkpoints": recording.checkpoints,
            "served again": outcome.served,
            "events told": outcome.told,
            "lost": outcome.lost,
        },
        violations=len(outcome.wrong),
    )


@pytest.mark.parametrize("level", ["NORMAL", "OFF"])
async def test_the_cuts_would_show_a_store_that_syncs_less(tmp_path: Path, level: str) -> None:
    """The same cuts find losses where SQLite does not sync each commit."""
    folder, recording = await record_life(tmp_path, tasks=20, synchronous=level)
    outcome = await cut_power(recording, folder, tmp_path / "image", 20)
    assert outcome.lost > 0


async def record_life(
    tmp_path: Path, *, tasks: int, synchronous: str | None = None
) -> tuple[Path, Recording]:
    """Record a server under load from its birth to its end."""
    require_strace()
    folder, into = tmp_path / "store", tmp_path / "record"
    folder.mkdir()
    environment = {"AGENTSRV_LOOP": "asyncio"}  # which writes to sockets by sendto, as recorded
    if synchronous is not None:
        environment[SYNCHRONOUS] = synchronous
    server = ServerProcess(
        folder,
        APPLICATION,
        environment=environment,
        tracer=record(CALLS, into),
    )
    load = Load(server.url, quota=tasks, connections=3, window=4)
    try:
        await asyncio.to_thread(server.start)
        async with asyncio.timeout(50 + tasks):
            await load.run()
    finally:
        code = await asyncio.to_thread(server.stop)
    assert code == 0
    assert not load.wrong, str(load.wrong)
    recording = Recording(into, folder)
    assert same_as_received(recording, load) > 0
    return folder, recording


def same_as_received(recording: Recording, load: Load) -> int:
    """How many events the recorded sockets carry, if they are what the clients have."""
    told = Told()
    for _ in recording.play(Disk(), told):
        pass
    assert told.events == load.told
    return told.count


async def cut_power(
    recording: Recording, folder: Path, image: Path, cuts: int, nursery: Nursery | None = None
) -> Outcome:
    """Cut the power at ``cuts`` moments of a recorded life, and look at what is left each time.

    Some of the disks that are left are also served again, by a server out of ``nursery``.
    """
    chance = random.Random(cuts)
    sends = [number for number, call in enumerate(recording.calls) if call.name == "sendto"]
    moments = set(chance.sample(sends, cuts // 2))  # a frame has just gone out: the worst moment
    others = [number for number in range(len(recording.calls)) if number not in moments]
    moments.update(chance.sample(others, cuts - len(moments)))
    whole = read_store(folder / "agentsrv.db")
    outcome, disk, told = Outcome(), Disk(), Told()
    for number in recording.play(disk, told):
        if number not in moments:
            continue
        keep = KEEPS[outcome.cuts % len(KEEPS)]
        files = disk.after_cut(keep, chance)
        outcome.cuts += 1
        outcome.uncertain += disk.uncertain
        outcome.told += told.count
        outcome.images.add(hash(tuple(sorted(files.items()))))
        lost, wrong = look_at(files, told, whole, image)
        if nursery is not None and outcome.cuts % SERVED == 0:
            outcome.served += 1
            wrong += await serve_again(nursery, image)
        outcome.lost += lost
        outcome.wrong += [f"cut {number}, {keep} kept: {sentence}" for sentence in wrong]
    return outcome


async def serve_again(nursery: Nursery, image: Path) -> Violations:
    """Let a server go on with what a cut has left, until all tasks have ended."""
    before = read_copy(image)
    with ForkedServer(nursery, image, APPLICATION) as server:
        assert await asyncio.to_thread(server.wait_until_ready)
        await all_ended(server.url)
        server.terminate()
        code = await asyncio.to_thread(server.wait)
    stores = read_store(image / "agentsrv.db")
    wrong = Violations()
    wrong.expect(code == 0, f"the server after it ended with {code}")
    wrong.expect(stores.keys() == before.keys(), "other tasks than before")
    for task, stored in stores.items():
        wrong += check_log(stored, ended=stored.status != "pending")
        kept = before[task].log == stored.log[: len(before[task].log)]
        wrong.expect(kept, f"{task}: was in the store, and has changed")
    return wrong


def look_at(
    files: dict[str, bytes], told: Told, whole: dict[str, Stored], image: Path
) -> tuple[int, Violations]:
    """Open what a cut has left, as a server does, and compare it with what was told."""
    wrong = Violations()
    image.mkdir(exist_ok=True)
    for old in image.iterdir():
        old.unlink()
    for name, content in files.items():
        (image / name).write_bytes(content)
    path = image / "agentsrv.db"
    log = SqliteLog(path, QueueLimits())
    try:
        log.open()
    except (ConfigurationError, UnavailableError) as error:
        wrong.append(f"it does not open: {error}")
        return told.count, wrong
    log.close()
    if not is_intact(path):
        wrong.append("the file is damaged")
        return told.count, wrong
    stores = read_store(path)
    lost = 0
    for task, events in told.events.items():
        kept = stores[task].log if task in stores else []
        for seq, text in events.items():
            if kept[seq - 1 : seq] != [text]:
                lost += 1
                wrong.append(f"event {seq} of {task} was told and is lost")
    for frame in told.others:
        kept = stores[frame["task_id"]].log if frame["task_id"] in stores else []
        wrong.expect(len(kept) >= max(1, frame.get("seq", 1)), f"{frame} was told, found {kept}")
    for stored in stores.values():
        wrong += check_log(stored, ended=False)
        prefix = whole[stored.task_id].log[: len(stored.log)]
        wrong.expect(stored.log == prefix, f"{stored.task_id}: what was never written")
    return lost, wrong
