"""What happens to an SQLite file while its store is open: the real file, real other programs."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agentsrv.errors import ConfigurationError, UnavailableError
from agentsrv.store.sqlite import log
from agentsrv.store.sqlite import store as sqlite
from agentsrv.store.sqlite.faults import UnopenedError
from agentsrv.store.sqlite.file import DatabaseFile, StoreInUseError, holder_of, writer_of
from agentsrv.store.sqlite.log import SqliteLog
from agentsrv.store.sqlite.schema import APPLICATION, SCHEMA_VERSION
from agentsrv.store.sqlite.store import SqliteStore
from tests.support.store_conditions import LASTING, LOCKED, MOVED, held
from tests.support.store_listener import Heard, heard
from tests.support.store_tasks import (
    QUEUED,
    claim,
    following,
    head_of,
    leased,
    log_of,
    new_task,
    numbers,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the store is: in a folder that may go."""
    folder = tmp_path / "store"
    folder.mkdir()
    return folder / "agentsrv.db"


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that announces at once that it waits, and tries again soon."""
    monkeypatch.setattr(sqlite, "REFUSE_AFTER", 0.0)
    monkeypatch.setattr(sqlite, "FIRST_RETRY_DELAY", 0.005)
    monkeypatch.setattr(sqlite, "MAX_RETRY_DELAY", 0.01)
    monkeypatch.setattr(sqlite, "FILE_CHECK_INTERVAL", 0.01)


@asynccontextmanager
async def opened(path: Path):
    """A store that is open within."""
    store = SqliteStore(path)
    await store.open(Heard(broken=_fail))
    try:
        yield store
    finally:
        await store.close()


def _fail(error: BaseException) -> None:
    raise AssertionError(f"the store broke: {error}")


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, however long it takes; the loop has its turns meanwhile."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - others' conditions have no event
            await asyncio.sleep(0.001)


@pytest.mark.process
@pytest.mark.parametrize("name", [*LOCKED, *MOVED])
async def test_what_passes_is_waited_for(path, name, caplog):
    """Running tasks wait and lose nothing, clients are refused, and then everything resumes."""
    async with opened(path) as store:
        lease = await leased(store)
        await store.append(following(lease))
        resumed: list[bool] = []
        heard(store).resumed = lambda: resumed.append(True)
        with (LOCKED | MOVED)[name](path):
            append = store.append(following(lease._replace(seq=2)))
            await until(lambda: store.trouble is not None)
            with pytest.raises(UnavailableError, match="cannot write now") as refused:
                await store.create(new_task("t2"))
            assert refused.value.retryable
            claiming = asyncio.ensure_future(store.claim("node", 1))
            if name in LOCKED:
                assert await log_of(store, "t1") == numbers(1, 2)
            else:  # what was committed to a file that is gone must not be told
                with pytest.raises(UnavailableError, match="cannot write now"):
                    await log_of(store, "t1")
            assert not append.done()
            assert not claiming.done()
        await append
        assert not await claiming
        await until(lambda: store.trouble is None)
        assert resumed == [True]
        await store.create(new_task("t2", QUEUED))
        assert [lease.task_id for lease in await claim(store, "node", 9)] == ["t2"]
    told = [record for record in caplog.records if "unable to write for" in record.message]
    assert len(told) == 1, "it is logged once"
    async with opened(path) as again:
        assert await log_of(again, "t1") == numbers(1, 3)
        assert await log_of(again, "t2") == numbers(1, 1)


async def test_a_deleted_log_is_made_anew(path):
    """What was in it is in the database before anything more is acknowledged."""
    async with opened(path) as store:
        lease = await leased(store)
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink()
        await store.append(following(lease))
        await until(lambda: store.trouble is None)
        assert path.with_name(f"{path.name}-wal").exists()
        await store.create(new_task("t2"))
        assert await log_of(store, "t1") == numbers(1, 2)
    async with opened(path) as again:
        assert await log_of(again, "t1") == numbers(1, 2)
        assert await again.head("t2") is not None


FAILURES: dict[str, tuple[object, str, Exception]] = {
    "no connection": (SqliteLog, "_connection", UnopenedError("unable to open database file")),
    "no set-up": (log, "_set_up", UnopenedError("unable to open database file")),
    "no look": (DatabaseFile, "watch", OSError(errno.EMFILE, "Too many open files")),
    "no look at a file": (DatabaseFile, "watch", FileNotFoundError(errno.ENOENT, "No such file")),
}


@pytest.mark.parametrize(("owner", "name", "error"), FAILURES.values(), ids=FAILURES)
async def test_a_deleted_log_is_made_anew_at_the_next_try(path, monkeypatch, owner, name, error):
    """However often the connection cannot be opened again: what waits is written, by one commit."""
    attempts = 0
    async with opened(path) as store:
        lease = await leased(store)
        await store.append(following(lease))
        function = getattr(owner, name)

        def fail(*arguments: object) -> object:
            nonlocal attempts
            attempts += 1
            if attempts <= 3:
                raise error
            return function(*arguments)

        monkeypatch.setattr(owner, name, fail)
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink()
        append = store.append(following(lease._replace(seq=2)))
        await until(lambda: attempts == 2)
        reading = store.head("t1")
        with pytest.raises(UnavailableError):
            await reading
        assert not append.done()
        await append
        await until(lambda: store.trouble is None)
        monkeypatch.undo()
        assert store._file._db.execute("PRAGMA synchronous").fetchone() == (2,)
        await store.create(new_task("t2"))
        assert await log_of(store, "t1") == numbers(1, 3)
    async with opened(path) as again:
        assert await log_of(again, "t1") == numbers(1, 3)
        assert await again.head("t2") is not None


async def test_no_empty_database_takes_the_place_of_one_that_is_moved(path, monkeypatch):
    """While its connection is opened again."""
    async with opened(path) as store:
        lease = await leased(store)
        moved = path.with_name("moved.db")

        def fail(self: SqliteLog) -> sqlite3.Connection:
            monkeypatch.undo()
            path.rename(moved)
            raise UnopenedError("unable to open database file")

        monkeypatch.setattr(SqliteLog, "_connection", fail)
        monkeypatch.setattr(sqlite, "MAX_RETRY_DELAY", 0.01)
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink()
        append = store.append(following(lease))
        await until(moved.exists)
        await until(lambda: "moved or replaced" in str(store._wait and store._wait.error))
        assert not path.exists()
        moved.rename(path)
        await append
    async with opened(path) as again:
        assert await log_of(again, "t1") == numbers(1, 2)


@pytest.mark.parametrize("condition", LASTING.values(), ids=LASTING)
async def test_what_lasts_is_noticed_and_nothing_more_is_acknowledged(path, condition, caplog):
    """Also by a store to which nobody writes; the log says what to do."""
    async with opened(path) as store:
        lease = await leased(store)
        told: list[str] = []
        heard(store).committed = lambda commit: told.append(commit.task_id)
        with condition(path):
            await until(lambda: store.trouble is not None)
            append = store.append(following(lease))
            with pytest.raises(UnavailableError, match="cannot write now"):
                await store.create(new_task("t2"))
            content = path.read_bytes() if path.exists() else None
            for _ in range(5):  # as many tries as it likes
                await asyncio.sleep(0.02)
            assert not append.done()
    with pytest.raises(UnavailableError, match="the outcome is unknown"):
        await append
    assert told == []
    assert "restore the store" in caplog.text
    after = path.read_bytes() if path.exists() else None
    assert after == content, "what was put there is left alone, also by the end"


@pytest.mark.parametrize("name", ["deleted", "renamed for a while", "folder renamed for a while"])
async def test_a_commit_into_a_file_that_is_gone_is_not_acknowledged(path, monkeypatch, name):
    """Not even in the second in which nobody has looked yet."""
    monkeypatch.setattr(sqlite, "FILE_CHECK_INTERVAL", 3600.0)
    async with opened(path) as store:
        lease = await leased(store)
        with (MOVED | LASTING)[name](path):
            append = store.append(following(lease))
            await until(lambda: store.trouble is not None)
            assert not append.done()
        if name in MOVED:
            await append
    async with asyncio.timeout(30):
        await asyncio.gather(append, return_exceptions=True)


@pytest.mark.process
async def test_a_short_lock_is_not_announced(path, monkeypatch, caplog):
    """A lock that is gone in time delays a write, and nobody is refused."""
    monkeypatch.setattr(sqlite, "REFUSE_AFTER", 3600.0)
    async with opened(path) as store:
        with held(path, "BEGIN IMMEDIATE"):
            creates = [asyncio.ensure_future(store.create(new_task(f"t{n}"))) for n in range(3)]
            for _ in range(3):
                await asyncio.sleep(0.02)
            assert not any(create.done() for create in creates)
            assert store.trouble is None
        await asyncio.gather(*creates)
    assert "cannot write" not in caplog.text


async def test_a_full_disk_is_waited_for(path):
    """A transaction that SQLite has rolled back is written again as it was decided."""
    async with opened(path) as store:
        running = await leased(store, "running")
        db = store._file._db
        pages = db.execute("PRAGMA page_count").fetchone()[0] + 10
        db.execute(f"PRAGMA max_page_count={pages}")
        creates = [
            asyncio.ensure_future(store.create(new_task(f"t{n}", QUEUED, events=[b"x" * 4000])))
            for n in range(20)
        ]
        leases = asyncio.ensure_future(store.claim("node", 5))
        append = store.append(following(running))
        await until(lambda: store.trouble is not None)
        assert "full" in str(store.trouble)
        refused = await asyncio.gather(*creates, return_exceptions=True)
        assert {type(error) for error in refused} == {UnavailableError}
        assert not append.done()
        db.execute("PRAGMA max_page_count=1000000")
        await append
        assert not await leases
        await until(lambda: store.trouble is None)
        assert await log_of(store, "running") == numbers(1, 2)
        written = [n for n in range(20) if await store.head(f"t{n}") is not None]
        assert store.queued == len(written)
    async with opened(path) as again:
        assert again.queued == len(written)
        for number in written:  # whole, or not at all
            assert await log_of(again, f"t{number}") == [b"x" * 4000]


@pytest.mark.process
async def test_a_store_that_waits_can_be_closed(path):
    """At once; those who wait are told, and nothing of it is written later."""
    async with opened(path) as store:
        lease = await leased(store)
        await store.append(following(lease))
        with held(path, "BEGIN IMMEDIATE"):
            append = store.append(following(lease._replace(seq=2)))
            await until(lambda: store.trouble is not None)
            async with asyncio.timeout(30):
                await store.close()
            with pytest.raises(UnavailableError, match="the outcome is unknown"):
                await append
    async with opened(path) as again:
        assert await log_of(again, "t1") == numbers(1, 2)


@pytest.mark.process
async def test_an_open_that_meets_a_lock_waits(path, caplog):
    """For as long as it is set to; the log says for what."""
    async with opened(path):
        pass
    with held(path, "BEGIN IMMEDIATE"):
        store = SqliteStore(path)
        opening = asyncio.ensure_future(store.open())
        await until(lambda: "waiting up to" in caplog.text)
        assert not opening.done()
    await opening
    await store.create(new_task())
    await store.close()


@pytest.mark.process
async def test_an_open_that_waits_in_vain_may_be_tried_again(path, monkeypatch):
    """It is no mistake in a setting: a supervisor starts the server again."""
    monkeypatch.setattr(sqlite, "OPEN_TIMEOUT", 0.0)
    async with opened(path):
        pass
    store = SqliteStore(path)
    with held(path, "BEGIN IMMEDIATE"), pytest.raises(UnavailableError, match="locked"):
        await store.open()
    await store.open()
    await store.close()


async def test_an_open_without_a_free_file_may_be_tried_again(path, monkeypatch):
    """Too many open files pass."""
    monkeypatch.setattr(sqlite, "OPEN_TIMEOUT", 0.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    store = SqliteStore(path)
    used = os.open(os.devnull, os.O_RDONLY)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
        with pytest.raises(UnavailableError, match="Too many open files"):
            await store.open()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(used)
    await store.open()
    await store.close()


def _text(path: Path) -> None:
    path.write_text("This is no database, however long it may be." * 30)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def _other_program(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE mine (x)")
    db.close()


def _newer(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE task (x)")
        db.execute(f"PRAGMA application_id={APPLICATION}")
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    db.close()


def _loop(path: Path) -> None:
    path.symlink_to(path)


PLACES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a folder": (Path.mkdir, "is a folder; expected a file in it"),
    "a socket": (_socket, "is not a regular file"),
    "a pipe": (os.mkfifo, "is not a regular file"),
    "a device": (lambda path: path.symlink_to("/dev/null"), "is not a regular file"),
    "a loop of links": (_loop, "symbolic links"),
    "a text": (_text, "not a database"),
    "another program's": (_other_program, "another program's database"),
    "a newer schema": (_newer, f"its schema is {SCHEMA_VERSION + 1}; expected {SCHEMA_VERSION}"),
}


@pytest.mark.parametrize(("make", "told"), PLACES.values(), ids=PLACES)
async def test_places_that_are_no_store(path, make, told):
    """One sentence says what was found there, and nothing is left behind."""
    make(path)
    before = sorted(path.parent.iterdir())
    with pytest.raises(ConfigurationError, match=told) as refused:
        await SqliteStore(path).open()
    assert "\n" not in refused.value.message
    assert str(path) in refused.value.message
    assert sorted(path.parent.iterdir()) == before


@pytest.mark.parametrize("spoilt", [(0, 16), (18, 2), (16, 84), (0, 4096)])
async def test_a_file_whose_header_is_spoilt(path, spoilt):
    """It cannot be opened, and the sentence says what to do."""
    async with opened(path) as store:
        await store.create(new_task())
    at, size = spoilt
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\xff" * size)
    with pytest.raises(ConfigurationError, match="restore a backup"):
        await SqliteStore(path).open()


def _linked(path: Path, link: Callable[[Path, Path], None]) -> Path:
    other = path.parent.parent / "link.db"
    link(other, path)
    return other


def _folder_linked(path: Path) -> Path:
    other = path.parent.parent / "linked"
    other.symlink_to(path.parent)
    return other


def _by_descriptor(path: Path) -> Path:
    return Path(f"/proc/self/fd/{os.open(path.parent, os.O_RDONLY)}") / path.name


SPELLINGS: dict[str, Callable[[Path], Path]] = {
    "itself": lambda path: path,
    "a relative path": lambda path: Path(os.path.relpath(path)),
    "dots": lambda path: path.parent / ".." / path.parent.name / path.name,
    "a symbolic link": lambda path: _linked(path, Path.symlink_to),
    "a hard link": lambda path: _linked(path, Path.hardlink_to),
    "a link to the folder": lambda path: _folder_linked(path) / path.name,
    "the folder's descriptor": _by_descriptor,
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
async def test_a_second_server_is_refused_however_the_store_is_spelt(path, spelling):
    """The lock is on the file, not on its name; the refusal says which process has it."""
    async with opened(path) as store:
        await store.create(new_task("t1"))
        with pytest.raises(StoreInUseError, match=rf"\(process {os.getpid()}\) uses the store"):
            await SqliteStore(spelling(path)).open()
        await store.create(new_task("t2"))


@pytest.mark.process
async def test_the_lock_ends_with_its_process(path):
    """Also with one that is killed; until then it is told which one it is."""
    program = (
        "import asyncio, sys, pathlib; from agentsrv.store.sqlite.store import SqliteStore\n"
        "store = SqliteStore(pathlib.Path(sys.argv[1]))\n"
        "asyncio.run(store.open()); print('open', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(  # noqa: ASYNC220 - nothing else runs in this loop
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(StoreInUseError, match=rf"\(process {other.pid}\)"):
            await SqliteStore(path).open()
        assert holder_of(path) == f" (process {other.pid})"
        other.kill()
    assert holder_of(path) is None
    async with opened(path) as store:
        await store.create(new_task())


@pytest.mark.process
async def test_who_writes_can_be_seen(path):
    """By whoever is asked why the store waits."""
    async with opened(path) as store:
        await store.create(new_task())
        assert writer_of(path) is None
        with held(path, "BEGIN IMMEDIATE") as pid:
            assert writer_of(path) == pid


@pytest.mark.process
async def test_a_log_that_somebody_keeps_long_is_told(path, monkeypatch, caplog):
    """A reader that never ends keeps SQLite from shortening it."""
    monkeypatch.setattr(sqlite, "LONG_WAL_BYTES", 1 << 20)
    async with opened(path) as store:
        await store.create(new_task("t0"))
        with held(path, "BEGIN", "SELECT count(*) FROM task"):
            number = 0
            while "cannot be shortened" not in caplog.text and number < 100:
                number += 1
                await store.create(new_task(f"t{number}", events=[b"x" * 100_000]))
            await until(lambda: "cannot be shortened" in caplog.text)
        assert store.trouble is None
        assert (await head_of(store, "t1")).seq == 1
    assert [record.levelno for record in caplog.records if "shortened" in record.message] == [
        logging.WARNING
    ]
