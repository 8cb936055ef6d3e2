"""Damaged pages of a PostgreSQL store: they concern their tasks, and no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from agentsrv.errors import Damaged
from agentsrv.store.base import Span
from agentsrv.store.postgres import PostgresStore
from tests.postgres import QUICK, Postgres, postgres
from tests.store.tasks import (
    QUEUED,
    STILL,
    DeafBus,
    claim,
    following,
    head_of,
    log_of,
    new_task,
)

PAGE = 8192  # bytes
TASKS = 40
EVENTS = 8  # of each task; the events of one fill a page
ODD = "t20"
BLOCKS = {
    "task": "SELECT task_id, (ctid::text::point)[0]::int FROM task",
    "event": (
        "SELECT task_id, (event.ctid::text::point)[0]::int"
        " FROM event JOIN task ON event.task = task.id"
    ),
}
"""The numbers of the pages on which tasks have rows of a table."""


@pytest.fixture
def own_server() -> Iterator[Postgres]:
    """A server of one test, whose files are damaged."""
    with postgres(*QUICK) as running:
        yield running


@asynccontextmanager
async def opened(server: Postgres) -> AsyncIterator[PostgresStore]:
    """A store that is open within."""
    store = PostgresStore(server.dsn(), node="node", bus=DeafBus(), timing=STILL)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def fill(server: Postgres) -> None:
    """Tasks with logs and rows of some pages."""
    async with opened(server) as store:
        for number in range(TASKS):
            name = f"t{number:02}"
            spec = bytes(str(number), "ascii").rjust(1500, b"x")  # TOAST begins at 2 kB
            await store.create(new_task(name, QUEUED, spec=spec))
            (head,) = await claim(store, "node", 1)
            for seq in range(2, EVENTS + 1):
                append = following(head)
                event = append.events[0].ljust(1000, b" ")
                await store.append(append._replace(events=[event]))
                head = head._replace(seq=seq)


async def spoil(server: Postgres, table: str) -> set[str]:
    """Damage the page of the odd task's last row in a table; return the tasks that are on it."""
    admin = await asyncpg.connect(server.dsn())
    await admin.execute(f"VACUUM (FREEZE) {table}")
    await admin.execute("CHECKPOINT")
    path = await admin.fetchval("SELECT pg_relation_filepath($1::regclass)", table)
    rows = await admin.fetch(BLOCKS[table])
    await admin.close()
    block = max(block for task_id, block in rows if task_id == ODD)
    server.stop()
    file = server.folder / path
    with file.open("r+b") as page:
        page.seek(block * PAGE + PAGE // 2)
        page.write(b"\xff" * 100)
    server.start()
    return {task_id for task_id, found in rows if found == block}


@pytest.mark.parametrize("table", ["task", "event"])
async def test_a_damaged_page_concerns_its_tasks(own_server, caplog, table):
    """They are named, and refused again and again; all others are read, listed and written."""
    await fill(own_server)
    damaged = await spoil(own_server, table)
    assert ODD in damaged
    assert len(damaged) < TASKS / 2
    async with opened(own_server) as store:
        for number in range(TASKS):
            name = f"t{number:02}"
            for _ in range(2):
                if name not in damaged:
                    assert len(await log_of(store, name)) == EVENTS
                    await head_of(store, name)
                    continue
                with pytest.raises(Damaged, match=name):
                    await log_of(store, name)
                if table == "task":
                    with pytest.raises(Damaged, match=name):
                        await store.spec(name)
        spans = [Span(f"t{number:02}", 0, EVENTS) for number in range(TASKS)]
        found = await store.read_each(spans)
        assert {span.task_id for span, log in zip(spans, found, strict=True) if log is None} == (
            damaged
        )
        assert set(store.damage) == damaged
        assert "cannot be read from PostgreSQL" in caplog.text
        for name in damaged:
            assert caplog.text.count(f"task {name} cannot be read") == 1
        await store.create(new_task("newer", key="k"))
        assert len(await log_of(store, "newer")) == 1


async def test_a_flush_with_a_damaged_task_is_done_for_the_others(own_server):
    """All of them wait for one flush: each that can be written is, once."""
    await fill(own_server)
    damaged = await spoil(own_server, "task")
    async with opened(own_server) as store:
        whole = [f"t{number:02}" for number in range(TASKS) if f"t{number:02}" not in damaged]
        heads = {name: await head_of(store, name) for name in whole}
        odd = heads[whole[0]]._replace(task_id=ODD)
        appends = [following(head) for head in (*heads.values(), odd)]
        found = await asyncio.gather(*map(store.append, appends), return_exceptions=True)
        *others, of_odd = found
        assert others == [None] * len(whole)
        assert isinstance(of_odd, Damaged)
        assert set(store.damage) == {ODD}
        for name in whole:
            assert len(await log_of(store, name)) == EVENTS + 1
