"""Damaged pages of an SQLite store: they concern their tasks, and nobody else."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from agentsrv.errors import ConfigurationError, Damaged
from agentsrv.store.base import Span
from agentsrv.store.sqlite import SqliteStore
from agentsrv.store.sqlite_look import find_damage
from tests.store.tasks import (
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


async def fill(path: Path, *, unfinished: bool = False) -> None:
    """A store of many tasks; each has a log of some pages of its own and a row of half a page."""
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
    store.on_broken = _fail
    await store.open()
    damaged: set[str] = set()
    refusals: list[Damaged] = []
    try:
        for number in range(TASKS):
            name = f"t{number:02}"
            for _ in range(2):
                try:
                    assert len(await log_of(store, name)) == EVENTS
                    await head_of(store, name)
                    assert await store.spec(name)
                except Damaged as refusal:
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
        store.on_broken = _fail
        await store.open()
        claimed: dict[str, int] = {}
        while leases := await claim(store, "node", 7):
            claimed.update((lease.task_id, lease.seq) for lease in leases)
            for lease in leases:
                try:
                    assert len(await log_of(store, lease.task_id)) == EVENTS
                except Damaged:
                    continue
        assert len(claimed) > TASKS - 6, f"life {life}"
        if table == "task":
            assert f"t{ODD:02}" not in claimed
        await store.close()


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
    store.on_broken = _fail
    await store.open()
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


def _fail(error: BaseException) -> None:
    raise AssertionError(f"the store broke: {error}")
