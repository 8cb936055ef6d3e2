"""What happens to PostgreSQL below a running store, and what is told of it: never the password."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import asyncpg
import pytest

from agentsrv.errors import ConfigurationError, UnavailableError
from agentsrv.settings import Settings
from agentsrv.store.postgres import store as postgres
from agentsrv.store.postgres.connections import address_of
from agentsrv.store.postgres.inspect import read_info
from agentsrv.store.postgres.notifier import open_notifier
from agentsrv.store.postgres.store import PostgresStore
from agentsrv.store.postgres.temporary_schema import temporary_schema
from tests.support.postgres import QUICK, Postgres, folder_of_servers, free_port
from tests.support.store_tasks import STILL, DeafBus, following, leased, log_of, new_task, numbers


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[PostgresStore]:
    """A store that is open within."""
    store = PostgresStore(dsn, node="node", bus=DeafBus(), timing=STILL)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, however long it takes."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - others' conditions have no event
            await asyncio.sleep(0.01)


@asynccontextmanager
async def locked_rows(server: Postgres, dsn: str) -> AsyncIterator[None]:
    """Somebody holds locks on all rows, and the role has a ``lock_timeout``."""
    admin = await asyncpg.connect(dsn)
    await admin.execute("ALTER ROLE postgres SET lock_timeout = '50ms'")
    await _end_sessions(admin)
    try:
        async with admin.transaction():
            await admin.execute("LOCK TABLE task, event IN EXCLUSIVE MODE")
            yield
    finally:
        await admin.execute("ALTER ROLE postgres RESET lock_timeout")
        await admin.close()


@asynccontextmanager
async def statements_end(server: Postgres, dsn: str) -> AsyncIterator[None]:
    """The role has a ``statement_timeout`` that nothing can keep."""
    admin = await asyncpg.connect(dsn)
    await admin.execute("ALTER ROLE postgres SET statement_timeout = '50ms'")
    await _end_sessions(admin)
    try:
        async with admin.transaction():
            await admin.execute("LOCK TABLE task, event IN EXCLUSIVE MODE")
            yield
    finally:
        await admin.execute("ALTER ROLE postgres RESET statement_timeout")
        await admin.close()


@asynccontextmanager
async def read_only(server: Postgres, dsn: str) -> AsyncIterator[None]:
    """All new sessions are read-only, as on a standby."""
    admin = await asyncpg.connect(dsn)
    await admin.execute("ALTER ROLE postgres SET default_transaction_read_only = on")
    await _end_sessions(admin)
    try:
        yield
    finally:
        await admin.execute("SET default_transaction_read_only = off")
        await admin.execute("ALTER ROLE postgres RESET default_transaction_read_only")
        await admin.close()


@asynccontextmanager
async def no_connections(server: Postgres, dsn: str) -> AsyncIterator[None]:
    """The database takes no connections, and those that there were are ended."""
    admin = await asyncpg.connect(dsn.replace("/postgres?", "/template1?"))
    await admin.execute("ALTER DATABASE postgres ALLOW_CONNECTIONS false")
    await _end_sessions(admin)
    try:
        yield
    finally:
        await admin.execute("ALTER DATABASE postgres ALLOW_CONNECTIONS true")
        await admin.close()


@asynccontextmanager
async def shut_out(server: Postgres, dsn: str) -> AsyncIterator[None]:
    """``pg_hba.conf`` lets nobody in for a while."""
    rules = server.folder / "pg_hba.conf"
    before = rules.read_text()
    admin = await asyncpg.connect(dsn)
    rules.write_text("host all all all reject\n")
    await admin.execute("SELECT pg_reload_conf()")
    await asyncio.sleep(0.1)
    await _end_sessions(admin)
    try:
        yield
    finally:
        rules.write_text(before)
        await admin.execute("SELECT pg_reload_conf()")
        await admin.close()


@asynccontextmanager
async def nameless(server: Postgres, dsn: str) -> AsyncIterator[None]:
    """Names are not resolved, as while a resolver is away; sessions end."""
    admin = await asyncpg.connect(dsn)
    real = asyncpg.connect

    async def connect(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    asyncpg.connect = connect
    await _end_sessions(admin)
    try:
        yield
    finally:
        asyncpg.connect = real
        await admin.close()


async def _end_sessions(admin: asyncpg.Connection) -> None:
    await admin.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND application_name = 'agentsrv'"
    )


CONDITIONS = {
    "lock timeouts": locked_rows,
    "statement timeouts": statements_end,
    "read-only": read_only,
    "no connections": no_connections,
    "shut out": shut_out,
    "no name resolution": nameless,
}


@pytest.mark.parametrize("condition", CONDITIONS.values(), ids=CONDITIONS)
async def test_what_passes_is_waited_for(server, dsn, condition, caplog):
    """An append waits and is written once; the log says what is wrong, and where."""
    caplog.set_level(logging.INFO, "agentsrv.store")
    async with opened(dsn) as store:
        lease = await leased(store)
        async with condition(server, dsn):
            append = store.append(following(lease))
            await until(lambda: "cannot be used now; trying again" in caplog.text)
            assert not append.done()
            with pytest.raises((UnavailableError, TimeoutError)):
                async with asyncio.timeout(0.3):
                    await store.check()
        await append
        await store.check()
        assert await log_of(store, "t1") == numbers(1, 2)
    assert f"PostgreSQL at 127.0.0.1:{server.port}" in caplog.text
    assert "PostgreSQL can be used again" in caplog.text


async def test_an_open_waits_for_a_server_that_starts(caplog):
    """The log says for what; a server that comes in time is used."""
    with folder_of_servers() as folder:
        late = Postgres(folder / "data", free_port(), *QUICK)
        await asyncio.to_thread(late.make)
        opening = asyncio.ensure_future(_open_and_close(late.dsn()))
        await until(lambda: "waiting up to" in caplog.text)
        assert not opening.done()
        try:
            await asyncio.to_thread(late.start)
            await opening
        finally:
            late.stop()


async def _open_and_close(dsn: str) -> None:
    async with opened(dsn) as store:
        await store.create(new_task())


SECRET = "pa55w0rd"
UNREACHABLE = {
    "refused": (f"postgresql://me:{SECRET}@127.0.0.1:1/db", "127.0.0.1:1"),
    "two hosts": (f"postgresql://me:{SECRET}@127.0.0.1:1,127.0.0.2:2/db", "127.0.0.1:1, 127.0.0.2"),
    "no such name": (f"postgresql://me:{SECRET}@nowhere.invalid/db", "nowhere.invalid:5432"),
    "IPv6": (f"postgresql://me:{SECRET}@[::1]:1/db", "[::1]:1"),
    "in the query": (f"postgresql://127.0.0.1:1/db?user=me&password={SECRET}", "127.0.0.1:1"),
    "encoded": ("postgresql://me:pa55%77%30rd@127.0.0.1:1/db", "127.0.0.1:1"),
    "a socket": (f"postgresql://me:{SECRET}@/db?host=/nowhere", "/nowhere"),
}
INVALID = {
    "a slash in the password": f"postgresql://me:{SECRET}/x@127.0.0.1:1/db",
    "a hash in the password": f"postgresql://me:{SECRET}#x@127.0.0.1:1/db",
    "a question mark in the password": f"postgresql://me:{SECRET}?x@127.0.0.1:1/db",
    "brackets in the password": f"postgresql://me:{SECRET}[x@127.0.0.1:1/db",
    "a port that is none": f"postgresql://me:{SECRET}@127.0.0.1:{SECRET}/db",
}


async def _told(work: Awaitable[object]) -> BaseException:
    with pytest.raises((UnavailableError, ConfigurationError)) as refused:
        await work
    return refused.value


async def _scratch(dsn: str) -> None:
    async with temporary_schema(dsn):
        pass


def _texts(error: BaseException | None) -> str:
    """All that a traceback would show of an error."""
    text = ""
    while error is not None:
        text += f"{error!r} {error}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return text


@pytest.mark.parametrize(("dsn", "where"), UNREACHABLE.values(), ids=UNREACHABLE)
async def test_what_cannot_be_reached_is_named_without_its_password(
    monkeypatch, caplog, dsn, where
):
    """Host and port are in each message; the password, in none, nor in the log."""
    monkeypatch.setattr(postgres, "OPEN_TIMEOUT", 0.0)
    store = PostgresStore(dsn, node="node", timing=STILL)
    for work in (store.open(), read_info(dsn), _scratch(dsn)):
        error = await _told(work)
        assert where in str(error)
        assert SECRET not in _texts(error)
    assert isinstance(await _told(store.open()), UnavailableError), "a supervisor tries again"
    assert SECRET not in caplog.text


@pytest.mark.parametrize("dsn", INVALID.values(), ids=INVALID)
async def test_a_url_that_is_not_valid_is_told_without_its_password(monkeypatch, caplog, dsn):
    """Parsers quote what they refuse, which may be a part of the password."""
    monkeypatch.setattr(postgres, "OPEN_TIMEOUT", 0.0)
    store = PostgresStore(dsn, node="node", timing=STILL)
    for work in (store.open(), read_info(dsn), _scratch(dsn)):
        assert SECRET not in _texts(await _told(work))
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{SECRET}/x@127.0.0.1:1",
        f"redis://:{SECRET}@127.0.0.1:port",
        f"rediss://me:{SECRET}[@127.0.0.1:1",
        f"amqp://me:{SECRET}@127.0.0.1:1",
    ],
)
def test_a_bus_is_told_without_its_password(url):
    """Whether the URL is not valid or of another program."""
    with pytest.raises(ConfigurationError) as refused:
        open_notifier(url, "postgresql://127.0.0.1/db")
    assert SECRET not in _texts(refused.value)


def test_settings_are_shown_without_their_passwords():
    """In a traceback or a debugger."""
    url = f"postgresql://me:{SECRET}@127.0.0.1/db"
    assert SECRET not in repr(Settings(store=url, bus=f"redis://:{SECRET}@127.0.0.1"))


@pytest.mark.parametrize(
    ("dsn", "expected"),
    [
        ("postgresql://a", "a:5432"),
        ("postgresql:///db", "localhost:5432"),
        ("postgresql://u:p@h:1,i:2/db?x=y@z", "h:1, i:2"),
        ("postgresql://u:p@w@h/db", "h:5432"),
        ("nonsense", "localhost:5432"),
    ],
)
def test_the_address_of_a_store(dsn, expected):
    """Hosts and ports, with the port that is used where none is named."""
    assert address_of(dsn) == expected
