"""Lives of servers that end in a fault: what their stores hold before, and who goes on after."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import orjson
from websockets.asyncio.client import connect

from tests.faults.busy_app import TRACE
from tests.faults.checker import (
    Violations,
    check_log,
    check_trace,
    is_intact,
    read_copy,
    read_store,
)
from tests.faults.load import NO_SERVER, TERMINAL, Load, check_told
from tests.faults.nursery import ForkedServer, Nursery
from tests.support.server_process import free_port

APPLICATION = "tests.faults.busy_app:app"
CHECKPOINT = 1000  # pages in the write-ahead log at which SQLite copies them into the file
FRAME = 4096 + 24  # bytes of such a page
ENDS_WITHIN = 30.0  # seconds for what is under way when the last fault has happened


@dataclass(frozen=True)
class Place:
    """System calls of which the n-th is where the fault happens."""

    before: str
    """What the store holds: ``nothing``, ``ended`` tasks, ``running`` ones, a ``full`` log."""
    calls: str
    file: str | None
    """The end of the name of the file whose calls count; ``None`` for all."""


@dataclass(frozen=True)
class Trial:
    """A fault at one call, and what became of it."""

    code: int
    """The exit status of the server that had the fault; 0 where it did not notice."""
    load: Load
    said: str
    """The log of the server, and of the one after it."""
    lost: int
    wrong: Violations


async def at_each(
    nursery: Nursery,
    folder: Path,
    places: Sequence[Place],
    stride: int,
    tracer: Callable[[str, int, Path | None], Sequence[str]],
) -> AsyncIterator[Trial]:
    """Let a server have a fault at every ``stride``-th call of each place, up to the last call.

    ``tracer`` makes the fault. After the first trial with a violation nothing more is tried at
    its place.
    """
    stores = await prepare(nursery, folder)
    for row, place in enumerate(places):
        step = stride if place.calls == "pwrite64" else max(1, stride // 4)  # syncs are few
        for number in itertools.count(1 + row * 3 % step, step):
            store = folder / f"{row}-{number}"
            shutil.copytree(stores[place.before], store)
            file = None if place.file is None else store / f"agentsrv.db{place.file}"
            code, load = await two_lives(nursery, store, tracer(place.calls, number, file))
            lost, wrong = check_lives(stores[place.before], store, load)
            said = (store / "server.log").read_text()
            wrong[:] = [f"{place} {number}: {sentence}" for sentence in wrong]
            shutil.rmtree(store)
            yield Trial(code, load, said, lost, wrong)
            if code == 0 or wrong:
                break


async def prepare(nursery: Nursery, folder: Path) -> dict[str, Path]:
    """A store of each kind that ``Place.before`` names."""
    kinds = {kind: folder / kind for kind in ("nothing", "ended", "running", "full")}
    for kind in ("nothing", "ended", "running"):
        kinds[kind].mkdir()
    port = free_port()
    load = Load(f"ws://127.0.0.1:{port}", quota=4)
    async with load.running() as running:
        assert await live(nursery, kinds["ended"], running, port=port) == 0
    load = Load(f"ws://127.0.0.1:{port}", cancels=0)
    with ForkedServer(nursery, kinds["running"], APPLICATION, port=port):
        async with load.running():
            while load.frames < 100:
                load.asked.clear()
                await load.asked.wait()
    fill_log(kinds["ended"], kinds["full"])
    return kinds


def fill_log(folder: Path, into: Path) -> None:
    """Copy a store, with a write-ahead log that one more commit lets be checkpointed."""
    shutil.copytree(folder, into / "open")
    path = into / "open" / "agentsrv.db"
    log = path.with_name("agentsrv.db-wal")
    db = sqlite3.connect(path, isolation_level=None)
    try:
        db.execute("PRAGMA wal_autocheckpoint=0")
        while not log.exists() or log.stat().st_size < (CHECKPOINT - 10) * FRAME:
            db.execute("UPDATE task SET created_at = created_at + 1")
            db.execute("INSERT INTO event SELECT -place, body FROM event")
            db.execute("DELETE FROM event WHERE place < 0")
        for name in (path, log):  # before it is closed, which would checkpoint
            shutil.copy(name, into)
    finally:
        db.close()
    shutil.rmtree(into / "open")


async def two_lives(nursery: Nursery, folder: Path, tracer: Sequence[str]) -> tuple[int, Load]:
    """Let a server die under load, and another one end what it left; return how the first did."""
    port = free_port()
    load = Load(
        f"ws://127.0.0.1:{port}",
        name="small job",
        agent="figures",
        connections=1,
        window=2,
        quota=2,
        cancels=0.3,
    )
    async with load.running() as running:
        code = await live(nursery, folder, running, port=port, tracer=tracer)
        if code != 0:
            again = await live(nursery, folder, running, port=port)
            load.wrong.expect(again == 0, f"the server after it ended with {again}")
        load.wrong.expect(not load.open_jobs, f"never told to end: {load.open_jobs}")
    return code, load


async def live(
    nursery: Nursery,
    folder: Path,
    running: asyncio.Task[None],
    *,
    port: int,
    tracer: Sequence[str] = (),
    log: Path | None = None,
) -> int:
    """One life of a server, until it dies or all is done; return its exit status."""
    with ForkedServer(
        nursery,
        folder,
        APPLICATION,
        port=port,
        environment={TRACE: str(folder / "trace")},
        tracer=tracer,
        log=log,
    ) as server:
        ended = asyncio.create_task(asyncio.to_thread(server.wait))
        await asyncio.wait(
            {ended, running}, timeout=ENDS_WITHIN, return_when=asyncio.FIRST_COMPLETED
        )
        if not ended.done() and await asyncio.to_thread(server.wait_until_ready):
            with suppress(*NO_SERVER):
                await all_ended(server.url)
            server.terminate()
        return await ended


async def all_ended(url: str) -> None:
    """Wait until the server has no task that is queued or runs, or cannot tell any more."""
    async with asyncio.timeout(ENDS_WITHIN), connect(url, compression=None, proxy=None) as socket:
        waiting: set[str] = set()
        for status in ("queued", "running", "input_required", "cancelling"):
            await socket.send(
                orjson.dumps({"command": "list", "status": status, "limit": 500}), text=True
            )
        lists = 4
        while lists or waiting:
            frame = orjson.loads(await socket.recv())
            if frame["type"] == "error":
                return
            if frame.get("command") == "list":
                lists -= 1
                for row in frame["tasks"]:
                    waiting.add(row["task_id"])
                    command = {"command": "subscribe", "task_id": row["task_id"]}
                    await socket.send(orjson.dumps(command), text=True)
            elif frame.get("event_type") in TERMINAL:
                waiting.discard(frame["task_id"])


def check_lives(before: Path, folder: Path, load: Load) -> tuple[int, Violations]:
    """Whether the store holds all that was in it, and all that the load was told."""
    earlier = read_copy(before)
    stores = read_store(folder / "agentsrv.db")
    lost, wrong = check_told(load, {task: stores[task] for task in stores.keys() - earlier.keys()})
    for task, stored in stores.items():
        idle = task in earlier and stored.status == "pending"  # nobody has executed it
        wrong += check_log(stored, ended=not idle)
    for task, stored in earlier.items():
        kept = task in stores and stores[task].log[: len(stored.log)] == stored.log
        lost += not kept
        wrong.expect(kept, f"{task}: was in the store, and has changed")
    wrong.expect(is_intact(folder / "agentsrv.db"), "the file is damaged")
    wrong += check_trace(folder / "trace", stores)[1]
    return lost, wrong
