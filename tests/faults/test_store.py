"""What happens to a store below a running server, seen by its clients and by its supervisor."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import orjson
import pytest

from agentsrv.cli import serving
from agentsrv.cli.exits import Exit
from agentsrv.client import Client
from agentsrv.errors import InvalidStateError, UnavailableError
from agentsrv.settings import Settings
from agentsrv.store.postgres import store as postgres
from agentsrv.store.sqlite import store as sqlite
from agentsrv.store.sqlite.inspect import find_damage
from tests.faults.checker import is_intact, read_store
from tests.faults.nodes import fetch, measured
from tests.support.server_process import ServerProcess
from tests.support.store_conditions import LASTING, LOCKED, MOVED, held
from tests.unit.store.sqlite.test_damage import PAGE, places

pytestmark = pytest.mark.faults
APP = "tests.faults.signal_app:app"
UNIT = Path(__file__).parents[2] / "examples/deploy/agentsrv.service"


@pytest.fixture
def server(tmp_path: Path):
    """A server that runs; its store is in a folder of its own."""
    folder = tmp_path / "store"
    folder.mkdir()
    process = ServerProcess(tmp_path, APP, "--store", f"sqlite:///{folder / 'agentsrv.db'}")
    process.start()
    yield process
    process.kill()


def store_of(tmp_path: Path) -> Path:
    """The server's database."""
    return tmp_path / "store" / "agentsrv.db"


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for a condition, however long it takes."""
    async with asyncio.timeout(30):
        while not await condition():  # noqa: ASYNC110 - in another process
            await asyncio.sleep(0.02)


async def is_ready(server: ServerProcess, status: int = 200) -> bool:
    """Whether ``/readyz`` answers with that status."""
    return (await fetch(server.url, "/readyz"))[0] == status


@pytest.mark.parametrize("name", ["write lock", "folder renamed for a while"])
async def test_what_passes_is_told_and_everything_resumes(server, tmp_path, name):
    """Nothing ends: not the server, not its connections, not the tasks that run."""
    path = store_of(tmp_path)
    async with Client(server.url) as client:
        task_id = await client.start("x")
        async with aclosing(task_id.events()) as events:
            types = [(await anext(events)).event_type]
            while types[-1] != "step_started":
                types.append((await anext(events)).event_type)
            with (LOCKED | MOVED)[name](path):
                await until(lambda: is_ready(server, 503))
                with pytest.raises(UnavailableError) as refused:
                    await client.create("y")
                assert refused.value.retryable
                with pytest.raises(UnavailableError):
                    await task_id.send("over")
                status, reason = await fetch(server.url, "/readyz")
                assert (status, "the store cannot write now" in reason) == (503, True)
                assert (await fetch(server.url, "/healthz"))[0] == 200
                assert await measured(server.url, "agentsrv_store_waiting") == 1
            await until(lambda: is_ready(server))
            assert (await client.create("y")).id
            await task_id.send("over")
            types += [record.event_type async for record in events]
        assert types[-1] == "task_completed"
        assert "task_recovered" not in types
    assert await measured(server.url, "agentsrv_store_waiting") == 0
    log = server.wait_for_log("can write again, after")
    assert log.count("can write again, after") == 1
    assert log.count("unable to write for") == 1
    assert ("(process " in log) == (name == "write lock"), "who has the lock is told"
    assert server.stop() == Exit.DONE
    assert is_intact(path)
    for stored in read_store(path).values():
        assert [orjson.loads(event)["seq"] for event in stored.log] == list(
            range(1, stored.seq + 1)
        )


@pytest.mark.parametrize("name", LASTING)
async def test_what_lasts_is_told(server, tmp_path, name):
    """The server acknowledges nothing more, and still stops in order."""
    async with Client(server.url) as client:
        await client.create("x")
        with LASTING[name](store_of(tmp_path)):
            await until(lambda: is_ready(server, 503))
            with pytest.raises(UnavailableError):
                await client.create("y")
            assert (await fetch(server.url, "/healthz"))[0] == 200
    server.wait_for_log("restore the store")
    assert server.stop() == Exit.DONE


async def test_a_server_that_finds_the_store_locked_waits(tmp_path):
    """It says for what, and listens as soon as it can."""
    server = ServerProcess(tmp_path, APP)
    server.start()
    assert server.stop() == Exit.DONE
    server.log.unlink()
    with held(tmp_path / "agentsrv.db", "BEGIN IMMEDIATE"):
        server.launch()

        async def waits() -> bool:
            return "waiting up to" in server.log.read_text()

        await until(waits)
    try:
        assert server.wait_until_ready()
    finally:
        assert server.stop() == Exit.DONE


async def make_store(path: Path) -> None:
    """An empty store."""
    store = sqlite.SqliteStore(path)
    await store.open()
    await store.close()


def test_a_start_that_waits_in_vain_is_repeated_by_systemd(tmp_path, monkeypatch, capfd):
    """What passes ends with a status after which the shipped unit starts the server again."""
    monkeypatch.setattr(sqlite, "OPEN_TIMEOUT", 0.0)
    settings = Settings(port=0, store=f"sqlite:///{tmp_path / 'agentsrv.db'}")
    (never,) = re.findall(r"^RestartPreventExitStatus=(.*)$", UNIT.read_text(), re.MULTILINE)
    (policy,) = re.findall(r"^Restart=(.*)$", UNIT.read_text(), re.MULTILINE)
    asyncio.run(make_store(tmp_path / "agentsrv.db"))
    with (
        held(tmp_path / "agentsrv.db", "BEGIN IMMEDIATE"),
        pytest.raises(SystemExit) as refused,
    ):
        serving.serve(None, settings)
    assert "locked" in capfd.readouterr().err
    assert policy == "on-failure"
    assert str(refused.value.code) not in never.split()


def test_systemd_repeats_a_start_that_waits_without_limit():
    """So many starts as would be too many do not fit into the time in which they are counted."""
    text = UNIT.read_text()
    interval, burst, pause = (
        int(re.findall(rf"^{name}=(\d+)$", text, re.MULTILINE)[0])
        for name in ("StartLimitIntervalSec", "StartLimitBurst", "RestartSec")
    )
    assert burst * (sqlite.OPEN_TIMEOUT + pause) > interval
    assert sqlite.OPEN_TIMEOUT == postgres.OPEN_TIMEOUT


@pytest.mark.parametrize("name", ["", ".", ":memory:", "nowhere/agentsrv.db", "a.db?mode=memory"])
def test_what_cannot_pass_is_not_repeated_by_systemd(tmp_path, monkeypatch, name):
    """A name that no store can have stays wrong."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as refused:
        serving.serve(None, Settings(port=0, store=f"sqlite:///{name}"))
    assert refused.value.code == Exit.USAGE
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("way", ["zeros", "garbage in the events"])
async def test_a_damaged_page_of_a_running_server(tmp_path, way):
    """Its task is answered `unavailable` and runs no more; others do, in each life of the server."""
    server = ServerProcess(tmp_path, APP)
    path = tmp_path / "agentsrv.db"
    server.start()
    async with Client(server.url) as client:
        tasks = [(await client.start(f"{number:04} " * 700)).id for number in range(1, 11)]
    server.kill()  # with all of them under way
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        rows = dict(db.execute("SELECT task_id, id FROM task"))
    db.close()
    content = path.read_bytes()
    starts = range(0, len(content), PAGE)
    odd, at = next(
        (task, at)
        for task in tasks
        for at in starts
        if content[at] == 0x0D and places(content[at : at + PAGE]) == {rows[task]}
    )
    with path.open("r+b") as file:
        if way == "zeros":
            file.seek(at)
            file.write(bytes(PAGE))
        else:
            file.seek(at + 1000)
            file.write(b"\0" * 1000)
    for _ in range(2):
        server.start()
        async with Client(server.url) as client:
            with pytest.raises(UnavailableError, match=odd):
                await client.task(odd).status()
            assert (await client.list()).total >= len(tasks)
            refused = 0
            for task in tasks:
                try:
                    await client.task(task).send("over")
                except UnavailableError:  # also a neighbour's, whose next event belongs on the page
                    refused += 1
                except InvalidStateError:  # it has ended in the life before
                    continue
            assert 1 <= refused <= 2
            other = await client.start("z")
            await other.send("over")
            async with aclosing(other.events()) as events:
                async for _record in events:
                    pass
        server.kill()
    log = server.log.read_text()
    assert odd in log
    assert "agentsrv doctor" in log
    assert "never retrieved" not in log
    assert odd in find_damage(path).tasks
