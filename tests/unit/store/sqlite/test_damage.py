"""Damaged pages of an SQLite store: they concern their tasks, and nobody else."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from agentsrv.errors import AgentsrvError, ConfigurationError, DamagedError, UnavailableError
from agentsrv.store.base import Append, Lease, NewTask, Span
from agentsrv.store.queue import QueueLimits
from agentsrv.store.sqlite.backup import back_up
from agentsrv.store.sqlite.inspect import DamageReport, find_damage
from agentsrv.store.sqlite.log import SqliteLog
from agentsrv.store.sqlite.store import SqliteStore
from tests.support.store_listener import Heard
from tests.support.store_tasks import (
    COMPLETED,
    QUEUED,
    RUNNING,
    claim,
    following,
    head_of,
    leased,
    log_of,
    new_task,
)

TASKS = 60
EVENTS = 12  # of each task
ODD = 30  # the number of the task whose page is spoilt; its page may have those of neighbours
PAGE = 4096
Spoil = Callable[[bytes], bytes]


def event(seq: int) -> bytes:
    """An event, of which four fill a page."""
    return b'{"seq":%d,"x":"%s"}' % (seq, b"y" * 900)


_filled: dict[bool, bytes] = {}


async def fill(path: Path, *, unfinished: bool = False) -> None:
    """A store of many tasks; each has a log of some pages of its own and a row of half a page."""
    if unfinished not in _filled:
        await make(path, unfinished=unfinished)
        _filled[unfinished] = read(path)
    else:
        write(path, _filled[unfinished])


def read(path: Path) -> bytes:
    """The file's content."""
    return path.read_bytes()


def write(path: Path, content: bytes) -> None:
    """Make the file."""
    path.write_bytes(content)


async def make(path: Path, *, unfinished: bool) -> None:
    """Write it."""
    store = SqliteStore(path)
    await store.open()
    for number in range(TASKS):
        name = f"t{number:02}"
        task = new_task(name, QUEUED, spec=b'{"n":"%s"}' % (b"z" * 1500), events=[event(1)])
        await store.create(task)
        (head,) = await store.claim("node", 1)
        for seq in range(2, EVENTS):
            await store.append(following(head)._replace(events=[event(seq)]))
            head = head._replace(seq=seq)
        end = following(head, RUNNING if unfinished else COMPLETED)
        await store.append(end._replace(events=[event(EVENTS)]))
    await store.close()


def page_of(path: Path, table: str) -> int:
    """The number of a leaf page of the table with something of the odd task, and of few others."""
    db = sqlite3.connect(path)
    try:
        roots = {
            number
            for (number,) in db.execute("SELECT rootpage FROM sqlite_master WHERE rootpage > 0")
        }
    finally:
        db.close()
    wanted = f"t{ODD:02}".encode() if table == "task" else None
    content = path.read_bytes()
    pages = [content[at : at + PAGE] for at in range(0, len(content), PAGE)]
    for number, page in enumerate(pages, 1):
        is_leaf = page[0] == 0x0D and number not in roots  # of a table's tree
        if is_leaf and (wanted in page if wanted else places(page) == {ODD + 1}):
            if table == "task" and b"do t" not in page:
                continue
            return number
    raise AssertionError(f"no page of {table}")


def places(page: bytes) -> set[int]:
    """The tasks of which a leaf page of the table event has rows; empty for another table's."""
    found = set()
    cells = int.from_bytes(page[3:5], "big")
    for index in range(cells):
        at = int.from_bytes(page[8 + 2 * index : 10 + 2 * index], "big")
        numbers = []
        for _ in range(2):  # the size of the row, then its key
            value = 0
            while page[at] & 0x80:
                value = value << 7 | page[at] & 0x7F
                at += 1
            numbers.append(value << 7 | page[at])
            at += 1
        found.add(numbers[1] >> 32)
    return found


def spoil(path: Path, table: str, how: Spoil) -> None:
    """Overwrite a page of the odd task."""
    number = page_of(path, table)
    with path.open("r+b") as file:
        file.seek((number - 1) * PAGE)
        page = file.read(PAGE)
        file.seek((number - 1) * PAGE)
        file.write(how(page))


WAYS: dict[str, Spoil] = {
    "zeros": lambda page: bytes(len(page)),
    "ones": lambda page: b"\xff" * len(page),
    "another kind of page": lambda page: b"\x05" + page[1:],
    "cells beyond the page": lambda page: page[:8] + b"\xff" * 64 + page[72:],
    "zeros in the rows": lambda page: page[:1000] + bytes(2000) + page[3000:],
    "letters in the rows": lambda page: page[:1000] + b"\xfe" * 3000 + page[4000:],
    "too many cells": lambda page: page[:3] + b"\xff\xff" + page[5:],
}


@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("table", ["task", "event"])
async def test_a_damaged_page_concerns_its_task(tmp_path, caplog, table, how):
    """Reads of it are refused, again and again; all others are answered, and writes go on."""
    path = tmp_path / "agentsrv.db"
    await fill(path)
    spoil(path, table, how)
    store = SqliteStore(path)
    await store.open(Heard(broken=_fail))
    damaged: set[str] = set()
    refusals: list[DamagedError] = []
    try:
        for number in range(TASKS):
            name = f"t{number:02}"
            for _ in range(2):
                try:
                    assert len(await log_of(store, name)) == EVENTS
                    await head_of(store, name)
                    assert await store.spec(name)
                except DamagedError as refusal:
                    damaged.add(name)
                    refusals.append(refusal)
        assert f"t{ODD:02}" in damaged
        assert len(damaged) < 6
        assert all(refusal.retryable for refusal in refusals)
        assert damaged == {refusal.message.split()[1] for refusal in refusals}
        spans = [Span(f"t{number:02}", 0, EVENTS) for number in range(TASKS)]
        found = await store.read_each(spans)
        assert sum(page is not None for page in found) >= TASKS - len(damaged)
        await store.append(following(await leased(store, "new")))
        await store.create(new_task("newer", key="k"))
    finally:
        await store.close()
    for name in damaged:
        assert caplog.text.count(f"task {name} cannot be read from") == 1
    assert "agentsrv doctor" in caplog.text
    assert "agentsrv backup" in caplog.text
    # The doctor may see more than was asked for here, but not less.
    assert damaged <= set(find_damage(path).tasks)
    assert len(find_damage(path).tasks) < 6


@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("table", ["task", "event"])
async def test_a_start_leaves_damaged_tasks_alone(tmp_path, table, how):
    """Unfinished tasks are claimed by the next server, but for those that cannot be read."""
    path = tmp_path / "agentsrv.db"
    await fill(path, unfinished=True)
    spoil(path, table, how)
    for life in range(3):
        store = SqliteStore(path)
        await store.open(Heard(broken=_fail))
        claimed: dict[str, int] = {}
        while leases := await claim(store, "node", 7):
            claimed.update((lease.task_id, lease.seq) for lease in leases)
            for lease in leases:
                try:
                    assert len(await log_of(store, lease.task_id)) == EVENTS
                except DamagedError:
                    continue
        assert len(claimed) > TASKS - 6, f"life {life}"
        if table == "task":
            assert f"t{ODD:02}" not in claimed
        await store.close()


INDEXES = (
    "sqlite_autoindex_task_1",
    "task_ready",
    "task_node",
    "task_ended",
    "task_owner",
    "task_key",
)


def spoil_root(path: Path, name: str, how: Spoil, *, child: int | None = None) -> None:
    """Overwrite the first page of an index, or a page that it leads to."""
    with sqlite3.connect(path) as db:
        (root,) = db.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = ?", (name,)
        ).fetchone()
    db.close()
    with path.open("r+b") as file:
        file.seek((root - 1) * PAGE)
        page = file.read(PAGE)
        if child is not None:
            assert page[0] == 0x02  # not a leaf
            at = int.from_bytes(page[12 + 2 * child : 14 + 2 * child], "big")
            root = int.from_bytes(page[at : at + 4], "big")
            file.seek((root - 1) * PAGE)
            page = file.read(PAGE)
        file.seek((root - 1) * PAGE)
        file.write(how(page))


def change(old: bytes, new: bytes) -> Spoil:
    """Change an entry of an index so that SQLite finds nothing wrong with the page."""

    def spoil(page: bytes) -> bytes:
        assert page.count(old) == 1
        return page.replace(old, new)

    return spoil


# An entry of the index of ids: the sizes of its parts, the id, the number of the row.
ENTRY = b"\x13\x01t%02d" % ODD + bytes([ODD + 1])
QUIET_WAYS: dict[str, Spoil] = {
    "the row of another task": change(ENTRY, ENTRY[:-1] + bytes([ODD - 9])),
    "a row that is not there": change(ENTRY, ENTRY[:-1] + b"\x7f"),
    "another id": change(ENTRY, ENTRY.replace(b"t30", b"t2~")),
}
"""Ways in which the index of ids can be wrong without SQLite's noticing."""


@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize("how", QUIET_WAYS.values(), ids=QUIET_WAYS)
async def test_a_wrong_index_of_ids_is_not_believed(tmp_path, caplog, how, is_open):
    """No task is given another one's row or log. A start makes the index anew where it can."""
    path = tmp_path / "agentsrv.db"
    await fill(path, unfinished=True)
    if not is_open:
        spoil_root(path, INDEXES[0], how)
    store = SqliteStore(path)
    await store.open(Heard(broken=_fail))
    if is_open:  # before the server has read the page
        store._file._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        store._file._db.execute("PRAGMA shrink_memory")
        spoil_root(path, INDEXES[0], how)
        store._file._db.execute("PRAGMA cache_size=0")
    leases = {lease.task_id: lease for lease in await claim(store, "node", TASKS)}
    acknowledged = await append_to_all(store, leases.values())
    for number in range(TASKS):
        name = f"t{number:02}"
        try:
            head = await store.head(name)
            log = await log_of(store, name)
        except DamagedError:
            continue
        assert head is None or (head.task_id, len(log)) == (name, head.seq)
    await store.close()
    assert len(acknowledged) >= TASKS - 2
    check_in_file(path, acknowledged)
    told = ("REINDEX", "rebuilt", "its row is missing")
    assert any(part in caplog.text for part in told)


@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("index", INDEXES)
async def test_a_start_makes_a_damaged_index_anew(tmp_path, caplog, index, how):
    """Whatever index it is: all tasks are run, and nothing is found wrong with the file."""
    path = tmp_path / "agentsrv.db"
    await fill(path, unfinished=True)
    spoil_root(path, index, how)
    store = SqliteStore(path)
    await store.open(Heard(broken=_fail))
    found = find_damage(path)
    acknowledged = await append_to_all(store, await claim(store, "node", TASKS))
    await store.close()
    assert len(acknowledged) == TASKS
    check_in_file(path, acknowledged)
    assert found == find_damage(path) == DamageReport("", [], [])
    back_up(path, tmp_path / "copy.db")
    logged = "rebuilt" in caplog.text
    caplog.clear()
    for file in (path, tmp_path / "copy.db"):
        again = SqliteStore(file)
        await again.open()
        assert len(await claim(again, "node", TASKS)) == TASKS
        await again.close()
    assert not caplog.records
    assert logged or index in ALIKE or how is WAYS["zeros in the rows"]


ALIKE = ("task_ready", "task_ended", "task_key")
"""Indexes without entries, of whose pages some can be changed without changing anything."""


@pytest.mark.parametrize("how", ["zeros", "another kind of page", "cells beyond the page"])
async def test_one_damaged_page_of_many_of_an_index(tmp_path, caplog, how):
    """The queue is read in its order from an index that was rebuilt."""
    path, names = tmp_path / "agentsrv.db", [f"t{number:04}" for number in range(2000)]
    store = SqliteStore(path)
    await store.open()
    await asyncio.gather(
        *(store.create(new_task(name, QUEUED, events=[b'{"seq":1}'])) for name in names)
    )
    await store.close()
    spoil_root(path, "task_ready", WAYS[how], child=1)
    store = SqliteStore(path)
    await store.open(Heard(broken=_fail))
    assert [lease.task_id for lease in await claim(store, "node", 2000)] == names
    await store.close()
    assert "rebuilt" in caplog.text
    assert find_damage(path) == DamageReport("", [], [])


@pytest.mark.parametrize("index", INDEXES)
async def test_an_index_that_cannot_be_made_anew_is_named(tmp_path, caplog, index):
    """Where a task's row is damaged too. The start is refused where it needs the index."""
    path = tmp_path / "agentsrv.db"
    await fill(path, unfinished=True)
    spoil(path, "task", WAYS["zeros"])
    spoil_root(path, index, WAYS["zeros"])
    store = SqliteStore(path)
    refusal = await refused(store)
    assert "cannot be rebuilt from the rows" in caplog.text
    if index in ("task_ready", "task_node"):
        assert refusal is not None
        assert "cannot be rebuilt from the rows" in refusal.message
        assert refusal.message.endswith("restore a backup, or set store to another file")
        return
    assert refusal is None
    acknowledged = await append_to_all(store, await claim(store, "node", TASKS))
    await store.close()
    check_in_file(path, acknowledged)


@pytest.mark.parametrize("reads", [False, True], ids=["", "reads"])
@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("table", ["task", "event"])
async def test_what_is_acknowledged_beside_a_damaged_page_is_in_the_file(
    tmp_path, table, how, reads
):
    """Also where the page is damaged under the open store, and all tasks share one transaction.

    A read in the same turn writes what others have appended: their damage is none of its task's,
    and what comes after it is written all the same.
    """
    path = tmp_path / "agentsrv.db"
    await fill(path, unfinished=True)
    store = SqliteStore(path)
    await store.open(Heard(broken=_fail))
    leases = await claim(store, "node", TASKS)
    store._file.commit()
    store._file._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    spoil(path, table, how)
    store._file._db.execute("PRAGMA cache_size=0")
    acknowledged = await append_to_all(store, leases, reads=reads)
    assert len(acknowledged) > TASKS - 6
    assert len(store.damage) < 6
    await store.close()
    check_in_file(path, acknowledged)


def spoil_row(path: Path, name: str) -> None:
    """Overwrite the page of a task's row."""
    content = path.read_bytes()
    for at in range(0, len(content), PAGE):
        page = content[at : at + PAGE]
        if page[0] == 0x0D and name.encode() in page and b"zzzz" in page:
            break
    else:
        raise AssertionError(f"no page of {name}")
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes(PAGE))


def big_task(name: str) -> NewTask:
    """A task with a row of half a page."""
    return new_task(name, spec=b'{"n":"%s"}' % (b"z" * 1500), events=[event(1)])


def log_with_appends(path: Path, damaged: str) -> SqliteLog:
    """A log with appends of the tasks "first" and "whole" that wait for their commit.

    Meanwhile the rows of "first" and of ``damaged`` are spoilt.
    """
    log = SqliteLog(path, QueueLimits())
    log.open()
    for name in ("before", "first", "between", "other", "whole", "after"):
        log.create(big_task(name))
    log.commit()
    log._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    log._db.execute("PRAGMA cache_size=0")
    for name in ("first", "whole"):
        log.append(Append(name, "ann", 0, 1, [event(2)], RUNNING, 0.0))
    log.flush()
    spoil_row(path, "first")
    spoil_row(path, damaged)
    return log


def check_appends(log: SqliteLog) -> None:
    """Of the two appends one is written whole, and nothing of the other is."""
    assert list(log.dropped) == ["first"]
    log.commit()
    assert log.head("whole") is not None
    assert log.read("whole", 0, 9) == [event(1), event(2)]
    (number,) = log._db.execute("SELECT id FROM task WHERE task_id = 'first'").fetchone()
    places = log._db.execute("SELECT place FROM event WHERE place >> 32 = ?", (number,))
    assert [place & 0xFFFF for (place,) in places] == [1]


@pytest.mark.parametrize("failing", [None, "t32", "t40"])
async def test_a_claim_takes_back_its_own_statements_only(tmp_path, monkeypatch, failing):
    """Also where a damaged task was taken out of its transaction since it began."""
    path = tmp_path / "agentsrv.db"
    await fill(path, unfinished=True)
    log = log_with_appends(path, "t30")
    lease, full = log._lease, sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL

    def lease_or_fail(task_id: str, node: str) -> Lease:
        if task_id == failing:
            raise full
        return lease(task_id, node)

    monkeypatch.setattr(log, "_lease", lease_or_fail)
    if failing is None:
        claimed = [each.task_id for each in log.claim("node", 50)]
        assert len(claimed) >= 48
    else:
        claimed = []
        with pytest.raises(sqlite3.OperationalError, match="full"):
            log.claim("node", 50)
    check_appends(log)
    leased_in_file = log._db.execute(
        "SELECT task_id FROM task INDEXED BY task_node WHERE node IS NOT NULL ORDER BY id"
    )
    assert [task_id for (task_id,) in leased_in_file] == claimed
    log.close()


@pytest.mark.parametrize("damaged", ["t00", "t30"])
async def test_a_purge_takes_back_its_own_statements_only(tmp_path, damaged):
    """A damaged task is kept with its log; what waits for the same commit is not touched."""
    path = tmp_path / "agentsrv.db"
    await fill(path)
    log = log_with_appends(path, damaged)
    purged = log.purge(2**40, 100)
    assert purged > TASKS - 8
    check_appends(log)
    ids = log._db.execute("SELECT id FROM task INDEXED BY task_owner")
    numbers = {number for (number,) in ids}
    logs = {place >> 32 for (place,) in log._db.execute("SELECT place FROM event")}
    assert logs == numbers
    assert len(numbers) == TASKS + 6 - purged
    log.close()


async def test_a_purge_that_meets_damage_later_is_left_out(tmp_path):
    """Where its statements are executed again; the next one does what can be done."""
    path = tmp_path / "agentsrv.db"
    await fill(path)
    log = SqliteLog(path, QueueLimits())
    log.open()
    log._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    log._db.execute("PRAGMA cache_size=0")
    log.create(big_task("before"))
    assert log.purge(2**40, 100) == TASKS
    log.unit += 1  # another operation
    log.create(big_task("after"))
    spoil_row(path, "t30")
    log.roll_back()  # as SQLite does of itself
    log.commit()
    assert not log.dropped
    assert [log.read(name, 0, 9) for name in ("before", "after")] == [[event(1)]] * 2
    assert log.purge(2**40, 100) > TASKS - 6
    log.commit()
    assert "t30" in log.damaged
    log.close()


async def test_a_task_that_cannot_be_written_is_not_claimed(tmp_path, monkeypatch):
    """Where that is found after its claim, before anybody has the lease."""
    path = tmp_path / "agentsrv.db"
    await fill(path, unfinished=True)
    store = SqliteStore(path)
    await store.open(Heard(broken=_fail))
    log, flush = store._file, store._file.flush
    log._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    log._db.execute("PRAGMA cache_size=0")

    def spoilt_flush() -> None:
        monkeypatch.undo()
        spoil_row(path, "t30")
        log.roll_back()
        log.replay()
        flush()

    monkeypatch.setattr(log, "flush", spoilt_flush)
    names = [lease.task_id for lease in await store.claim("node", TASKS)]
    assert "t30" not in names
    assert len(names) > TASKS - 6
    assert "t30" in store.damage
    await store.close()


async def refused(store: SqliteStore) -> ConfigurationError | None:
    """Open a store; return why it cannot be opened, if it cannot."""
    try:
        await store.open(Heard(broken=_fail))
    except ConfigurationError as refusal:
        return refusal
    return None


async def append_to_all(
    store: SqliteStore, leases: Iterable[Lease], *, reads: bool = False
) -> dict[str, int]:
    """Append an event to each task, all at once; return where those that were acknowledged are.

    With ``reads`` each append is followed by a read of another task's log. The text of each task names another task: a task is known by its id, not by what it says.
    """
    wanted = {
        lease.task_id: following(lease)._replace(events=[event(lease.seq + 1)]) for lease in leases
    }

    async def appended(append: Append) -> None:
        await store.append(append)

    calls: list[Coroutine[Any, Any, object]] = []  # all of them begin in one turn of the loop
    for append, other in zip(wanted.values(), [*wanted][::-1], strict=True):
        calls += [appended(append), store.read(other, 0, 100)] if reads else [appended(append)]
    every = await asyncio.gather(*calls, return_exceptions=True)
    found = every[:: 2 if reads else 1]
    refused = [each for each in found if each is not None]
    assert all(isinstance(each, AgentsrvError) for each in refused), refused
    return {
        task_id: append.expected + 1
        for (task_id, append), each in zip(wanted.items(), found, strict=True)
        if each is None
    }


def check_in_file(path: Path, acknowledged: Mapping[str, int]) -> None:
    """By the tables alone, whatever is left of the indexes."""
    db = sqlite3.connect(path)
    found: dict[str, int] = {}
    for number in range(1, 2 * TASKS):
        with suppress(sqlite3.DatabaseError):
            for task_id, seq in db.execute("SELECT task_id, seq FROM task WHERE id = ?", (number,)):
                place = number << 32 | seq
                if db.execute("SELECT body FROM event WHERE place = ?", (place,)).fetchone():
                    found[task_id] = seq
    db.close()
    assert acknowledged.items() <= found.items()


async def test_a_list_leaves_damaged_tasks_out(tmp_path):
    """The others are listed, on each page of the list."""
    path = tmp_path / "agentsrv.db"
    await fill(path)
    spoil(path, "task", WAYS["zeros"])
    store = SqliteStore(path)
    await store.open()
    try:
        listed: list[str] = []
        cursor = None
        while True:
            page = await store.list("ann", None, 10, cursor)
            listed += [row.task_id for row in page.rows]
            cursor = page.next_cursor
            if cursor is None:
                break
        expected = [f"t{n:02}" for n in reversed(range(TASKS))]
        left_out = set(expected) - set(listed)
        assert f"t{ODD:02}" in left_out
        assert len(left_out) < 6
        assert listed == [name for name in expected if name not in left_out]
    finally:
        await store.close()


async def test_a_purge_leaves_damaged_tasks_alone(tmp_path):
    """All others that are old enough are forgotten."""
    path = tmp_path / "agentsrv.db"
    await fill(path)
    spoil(path, "event", WAYS["zeros"])
    store = SqliteStore(path)
    await store.open(Heard(broken=_fail))
    try:
        forgotten = 0
        for _ in range(2 * TASKS):
            forgotten += await store.purge(float("inf"), 7)
        assert forgotten > TASKS - 6
        assert (await store.list("ann", None, 1, None)).total == TASKS - forgotten
    finally:
        await store.close()


async def test_a_store_without_a_readable_schema_cannot_be_opened(tmp_path):
    """The first page is everybody's; the sentence says what to do."""
    path = tmp_path / "agentsrv.db"
    await fill(path)
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * (PAGE - 100))
    with pytest.raises(ConfigurationError, match="restore a backup"):
        await SqliteStore(path).open()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        find_damage(path)


@pytest.mark.parametrize("suffix", ["", "-wal"])
async def test_a_file_that_is_cut_off_under_the_server_ends_it(tmp_path, caplog, suffix):
    """Nothing is acknowledged that would stand behind the gap; what is whole can be read after."""
    path = tmp_path / "agentsrv.db"
    await fill(path, unfinished=True)
    store = SqliteStore(path)
    broken: list[BaseException] = []
    await store.open(Heard(broken=broken.append))
    leases = await claim(store, "node", TASKS)
    before = await append_to_all(store, leases[:10])
    cut = path.with_name(path.name + suffix)
    os.truncate(cut, cut.stat().st_size // 2)
    after = await append_to_all(store, leases[10:])
    assert not after
    assert len(broken) == 1
    assert "was truncated" in str(broken[0])
    with pytest.raises(UnavailableError):
        await store.create(new_task("new"))
    await store.close()
    # What the next process finds: the lock and the index of the log are of this one.
    other = tmp_path / "other"
    other.mkdir()
    for each in (path, path.with_name(path.name + "-wal")):
        shutil.copy(each, other)
    if not suffix:
        return
    again = SqliteStore(other / path.name)
    await again.open(Heard(broken=_fail))
    for task_id in before:
        log = await log_of(again, task_id)
        assert [json.loads(each)["seq"] for each in log] == list(range(1, len(log) + 1))
        assert len(log) >= EVENTS
    await again.append(following(await leased_of(again)))
    await again.close()


async def leased_of(store: SqliteStore) -> Lease:
    """The lease of any task."""
    (lease,) = await claim(store, "node", 1)
    return lease


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
async def test_a_log_that_was_cut_off_is_read_up_to_the_gap(tmp_path, share):
    """While no server runs: each task's log is whole up to some event, and can be continued."""
    path = tmp_path / "agentsrv.db"
    await fill(path, unfinished=True)
    store = SqliteStore(path)
    await store.open()
    await append_to_all(store, await claim(store, "node", TASKS))
    other = tmp_path / "other"
    other.mkdir()
    for each in (path, path.with_name(path.name + "-wal")):
        shutil.copy(each, other)
    await store.close()
    log = other / f"{path.name}-wal"
    os.truncate(log, int(log.stat().st_size * share))
    again = SqliteStore(other / path.name)
    await again.open(Heard(broken=_fail))
    leases = await claim(again, "node", TASKS)
    assert len(leases) == TASKS
    for lease in leases:
        assert len(await log_of(again, lease.task_id)) == lease.seq
    acknowledged = await append_to_all(again, leases)
    assert len(acknowledged) == TASKS
    await again.close()
    check_in_file(other / path.name, acknowledged)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
async def test_a_database_that_was_cut_off_is_refused(tmp_path, share):
    """While no server runs: the sentence says what to do."""
    path = tmp_path / "agentsrv.db"
    await fill(path)
    os.truncate(path, int(path.stat().st_size * share) // PAGE * PAGE)
    with pytest.raises(ConfigurationError, match="restore a backup"):
        await SqliteStore(path).open()


def _fail(error: BaseException) -> None:
    raise AssertionError(f"the store broke: {error}")
