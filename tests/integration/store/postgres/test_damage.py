"""Damaged pages of a PostgreSQL store: they concern their tasks, and no other."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, TypeVar

import asyncpg
import pytest

from agentsrv.cli.doctor import Finding, Level, check_postgres
from agentsrv.errors import DamagedError, UnavailableError
from agentsrv.settings import Settings
from agentsrv.store.base import Span
from agentsrv.store.postgres import connections, damage
from agentsrv.store.postgres import store as store_module
from agentsrv.store.postgres.inspect import examine, read_info
from agentsrv.store.postgres.lease import Timing
from agentsrv.store.postgres.sql import Query, queries
from agentsrv.store.postgres.store import PostgresStore
from tests.support.postgres import QUICK, Postgres, postgres
from tests.support.store_tasks import (
    CANCELLED,
    COMPLETED,
    QUEUED,
    STILL,
    DeafBus,
    claim,
    following,
    head_of,
    log_of,
    new_task,
)

T = TypeVar("T")

PAGE = 8192  # bytes
WHOLE, PATH = "whole", "path"  # the file that was damaged as it was, and where it belongs
TASKS = 40
EVENTS = 8  # of each task; the events of one fill a page
QUEUE = 12  # tasks of each kind, where there are some
PATIENCE = 30  # seconds
SHORT = Timing(ttl=1.5, margin=0.5, renew_interval=0.1, sweep_interval=0.05)
SWEEPING = STILL._replace(sweep_interval=0.05)
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
    # Each scan reads the rows, as it does where PostgreSQL has not noted that all may see a page.
    with postgres(*QUICK, "enable_indexonlyscan=off") as running:
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


async def spoil(server: Postgres, table: str, odd: str = ODD) -> set[str]:
    """Damage the page of a task's last row in a table; return the tasks that are on it."""
    admin = await asyncpg.connect(server.dsn())
    await admin.execute(f"VACUUM (FREEZE) {table}")
    await admin.execute("CHECKPOINT")
    path = await admin.fetchval("SELECT pg_relation_filepath($1::regclass)", table)
    rows = await admin.fetch(BLOCKS[table])
    await admin.close()
    block = max(block for task_id, block in rows if task_id == odd)
    server.stop()
    file = server.folder / path
    shutil.copy(file, server.folder / WHOLE)
    (server.folder / PATH).write_text(path)
    with file.open("r+b") as page:
        page.seek(block * PAGE + PAGE // 2)
        page.write(b"\xff" * 100)
    server.start()
    return {task_id for task_id, found in rows if found == block}


@pytest.mark.slow
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
                with pytest.raises(DamagedError, match=name):
                    await log_of(store, name)
                if table == "task":
                    with pytest.raises(DamagedError, match=name):
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
        assert isinstance(of_odd, DamagedError)
        assert set(store.damage) == {ODD}
        for name in whole:
            assert len(await log_of(store, name)) == EVENTS + 1


def repair(server: Postgres) -> None:
    """Put the file back that ``spoil`` has damaged."""
    server.stop()
    path = (server.folder / PATH).read_text()
    (server.folder / path).write_bytes((server.folder / WHOLE).read_bytes())
    server.start()


OWNERS = ("ann", "bob", "eve")
LOST, HELD, ENDED, WAITING = "lost", "held", "ended", "waiting"


def name_of(kind: str, number: int) -> str:
    """A task of a kind."""
    return f"{kind}{number:02}"


async def fill_queue(server: Postgres) -> None:
    """Tasks of each kind: given back, of a node that died, ended, and in the queue."""
    dying = PostgresStore(server.dsn(), node="dying", bus=DeafBus(), timing=SHORT)
    await dying.open()
    for kind in (ENDED, HELD, LOST, WAITING):
        for number in range(QUEUE):
            owner = OWNERS[number % len(OWNERS)]
            name, events = (
                name_of(kind, number),
                [b'{"task_id":"%s"}' % name_of(kind, number).encode()],
            )
            spec = name.encode().rjust(1500, b"x")
            await dying.create(new_task(name, QUEUED, owner=owner, spec=spec, events=events))
            if kind is WAITING:
                continue
            (lease,) = await claim(dying, "dying", 1)
            if kind is ENDED:
                await dying.append(following(lease, COMPLETED))
            else:
                await dying.append(following(lease))
        if kind is LOST:
            for number in range(QUEUE):
                await dying.release(name_of(LOST, number), 1)
    for task in dying._tasks:
        task.cancel()
    await asyncio.wait(dying._tasks)
    dying._pool.terminate()


async def patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Ask until the damaged tasks are known."""
    while True:
        with suppress(UnavailableError):
            return await call()
        await asyncio.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [LOST, HELD, ENDED, WAITING])
async def test_a_damaged_page_keeps_no_other_task_from_being_found(own_server, caplog, kind):
    """All others are claimed, taken from dead nodes, queued, listed, told and forgotten."""
    await fill_queue(own_server)
    damaged = await spoil(own_server, "task", name_of(kind, QUEUE // 2))
    assert 1 <= len(damaged) < QUEUE
    expected = {
        name_of(kind, number) for kind in (LOST, HELD, WAITING) for number in range(QUEUE)
    } - damaged
    store = PostgresStore(own_server.dsn(), node="node", bus=DeafBus(), timing=SWEEPING)
    await store.open()
    cancelled = min(name for name in expected if name.startswith(WAITING))
    expected.remove(cancelled)
    claimed: set[str] = set()
    try:
        async with asyncio.timeout(PATIENCE):
            ending = following(await head_of(store, cancelled), CANCELLED)
            await patiently(lambda: store.append(ending))
            while claimed != expected:
                leases = await patiently(lambda: claim(store, "node", 2))
                claimed |= {lease.task_id for lease in leases}
            await patiently(lambda: store.create(new_task("newer", QUEUED)))
            assert [lease.task_id for lease in await claim(store, "node", 9)] == ["newer"]
            for owner in OWNERS:
                listed = await patiently(lambda: store.list(owner, None, 1000, None))  # noqa: B023 - awaited
                assert not {row.task_id for row in listed.rows} & damaged
            found = {news.task_id for news in await patiently(lambda: store.news([], OWNERS))}
            assert found >= expected
            assert not found & damaged
            await store.post("newer", b"x")
            assert [message.task_id for message in await store.inbox()] == ["newer"]
            (node,) = [node for node in await store.nodes() if node.name == "node"]
            assert node.running == len(expected) + 1
            while forgotten := await patiently(lambda: store.purge(1e12, 5)):
                assert forgotten <= 5
            assert await store.find("ann", "newer") == ["newer"]
            assert await store.head(name_of(ENDED, 0)) is None or name_of(ENDED, 0) in damaged
        assert set(store.damage) == damaged
        for name in damaged:
            assert caplog.text.count(f"task {name} cannot be read from PostgreSQL") == 1
    finally:
        await store.close()


async def test_tasks_on_a_page_that_was_repaired_are_found_again(own_server, monkeypatch):
    """The store looks at them from time to time, and reports them no longer."""
    monkeypatch.setattr(store_module, "SWEEPS_PER_CLEANUP", 2)
    await fill_queue(own_server)
    spoiled = await spoil(own_server, "task", name_of(WAITING, 0))
    damaged = {name for name in spoiled if name.startswith(WAITING)}
    async with (
        asyncio.timeout(PATIENCE),
        AsyncExitStack() as stack,
    ):
        store = PostgresStore(own_server.dsn(), node="node", bus=DeafBus(), timing=SWEEPING)
        await store.open()
        stack.push_async_callback(store.close)
        while set(store.damage) != spoiled:
            await patiently(lambda: claim(store, "node", 9))
        repair(own_server)
        while store.damage:  # noqa: ASYNC110 - a search ends
            await asyncio.sleep(0.01)
        claimed: set[str] = set()
        while not claimed >= damaged:
            claimed |= {lease.task_id for lease in await patiently(lambda: claim(store, "node", 9))}


@pytest.fixture
async def closing() -> AsyncIterator[AsyncExitStack]:
    """Closes connections after a test."""
    async with AsyncExitStack() as stack:
        yield stack


def scans_of_tasks(plan: dict[str, Any]) -> Iterator[str]:
    """The conditions by which a plan reads rows of the table of tasks from an index."""
    if plan.get("Relation Name") == "task" and plan["Node Type"] not in ("ModifyTable", "LockRows"):
        yield " AND ".join(_conditions(plan))
    for part in plan.get("Plans", ()):
        yield from scans_of_tasks(part)


def _conditions(plan: dict[str, Any]) -> Iterator[str]:
    yield plan.get("Index Cond", "")
    if plan["Node Type"].startswith("Bitmap"):
        assert plan["Node Type"] != "BitmapOr"
        for part in plan.get("Plans", ()):
            yield from _conditions(part)


LEAVES_OUT = re.compile(r"\(id [<>=]|\(task_id = |\(idempotency_key = ")
"""Conditions of an index that lead to no task but those that may be read, or that were named."""


ARGUMENTS = {
    "look_up_queue_and_keys": {
        "position": "'{1}'",
        "owner": "'{o1}'",
        "key": "'{k}'",
        "created_at": "'{1}'",
    },
    "claim_tasks": {"node": "1", "limit": "10", "max_running": "1000"},
    "write_flush": {
        "writer": "1",
        "previous_flush": "1",
        "this_flush": "2",
        "refused": "'{}'",
        "claimed": "'{}'",
        "counts_queue": "true",
        "node": "1",
    },
    "read_news": {"task_ids": "'{t1}'", "owners": "'{o1,o2}'"},
    "read_inbox": {"node": "1"},
    "purge_tasks": {"before": "1", "limit": "10"},
}
"""Literals for the parameters of statements; NULL for the others."""


def arguments(name: str, query: Query) -> str:
    """The list of arguments of EXECUTE."""
    given = ARGUMENTS.get(name, {})
    values = ", ".join(given.get(parameter, "NULL") for parameter in query.parameters)
    return f"({values})" if values else ""


@pytest.mark.slow
@pytest.mark.parametrize("rows", [0, 10, 20_000])
@pytest.mark.parametrize("damaged", [(1,), (2, 3, 4, 9), tuple(range(5, 900, 3))])
async def test_what_is_left_out_is_left_out_by_an_index(dsn, closing, rows, damaged):
    """Whatever the size of the table: a condition that is looked at later meets damaged rows."""
    store = PostgresStore(dsn, node="node", bus=DeafBus(), timing=STILL)
    await store.open()
    await store.close()
    admin = await asyncpg.connect(dsn)
    await admin.execute(
        "INSERT INTO task (task_id, owner, status, seq, ready, node, created_at, ended_at,"
        " closed_at, user_input, spec) SELECT 't' || n, 'o' || n % 7, 'queued', 1,"
        " CASE WHEN n % 3 = 0 THEN n % 30 END, CASE WHEN n % 3 = 1 THEN 1 END, 1,"
        " CASE WHEN n % 3 = 2 THEN 2 END, CASE WHEN n % 3 = 2 THEN now() END, '', ''"
        " FROM generate_series(1, $1::integer) AS n",
        rows,
    )
    await admin.execute("ANALYZE task")
    await admin.close()
    found = queries(damaged)
    looked: list[str] = []
    for settings, names in (
        (
            connections.WRITER_SETTINGS,
            ("queue", "look_up_queue_and_keys", "claim_tasks", "write_flush"),
        ),
        (
            connections.READER_SETTINGS,
            ("queue", "reclaim_tasks", "read_news", "read_inbox", "list_nodes", "purge_tasks"),
        ),
    ):
        connection = await connections.connect(dsn, settings)
        closing.push_async_callback(connection.close)
        modes = {settings.get("plan_cache_mode", "force_custom_plan"), "force_generic_plan"}
        for plans in sorted(modes):
            await connection.execute(f"SET plan_cache_mode = {plans}")
            for name in names:
                query = getattr(found, name)
                await connection.execute(f"PREPARE it AS {query.text}")
                call = f"EXPLAIN (FORMAT JSON) EXECUTE it{arguments(name, query)}"
                (plan,) = json.loads(await connection.fetchval(call))
                await connection.execute("DEALLOCATE it")
                conditions = list(scans_of_tasks(plan["Plan"]))
                assert [each for each in conditions if not LEAVES_OUT.search(each)] == [], (
                    f"{name}, {plans}"
                )
                looked += conditions
    assert looked


@pytest.mark.parametrize("table", ["task", "event"])
async def test_the_doctor_names_the_damaged_tasks(own_server, table):
    """Of those that it reads, the newest first; what it prints says how many these are."""
    await fill(own_server)
    (finding,) = [each async for each in diagnosed(own_server)]
    assert finding == Finding(
        Level.OK,
        f"damage: all {TASKS} tasks of the store were read, with their logs; none is damaged",
    )
    damaged = await spoil(own_server, table)
    found = await examine(own_server.dsn())
    assert {damage.name for damage in found.damaged} == (
        damaged if table == "event" else {f"number {int(name[1:]) + 1}" for name in damaged}
    )
    assert (found.tasks, found.is_whole) == (TASKS, True)
    assert (await read_info(own_server.dsn())).nodes == []
    (finding,) = [each async for each in diagnosed(own_server)]
    assert finding.level is Level.FAIL
    assert f"all {TASKS} tasks of the store were read, with their logs; " in finding.what
    assert f"{len(damaged)} cannot be read: {found.damaged[0].name}" in finding.what
    assert "invalid page" in finding.what
    assert "restore" in finding.advice


async def test_the_doctor_reads_no_more_than_so_many_tasks(own_server, monkeypatch):
    """It says so, and which these are."""
    monkeypatch.setattr(damage, "ROWS_PER_RANGE", 8)
    await fill(own_server)
    assert ODD in await spoil(own_server, "event")
    found = await examine(own_server.dsn(), max_tasks=8)
    assert (found.tasks, found.is_whole, found.damaged) == (8, False, [])
    found = await examine(own_server.dsn(), max_tasks=32)
    assert (found.tasks, found.is_whole) == (32, False)
    assert ODD in {damage.name for damage in found.damaged}


async def diagnosed(server: Postgres) -> AsyncIterator[Finding]:
    """What the doctor says of damage."""
    async for finding in check_postgres(Settings(store=server.dsn())):
        if finding.what.startswith("damage"):
            yield finding
