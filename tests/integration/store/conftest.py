"""One PostgreSQL for all tests of a session; each test has a schema of its own in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from itertools import count
from typing import Any

import asyncpg
import pytest

from tests.support.postgres import QUICK, Postgres, postgres

_schemas = count(1)


@pytest.fixture(autouse=True)
async def all_connections_are_closed(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """A test closes its connections; else the garbage collector finds them in a later test."""
    made: list[asyncpg.Connection] = []
    init = asyncpg.Connection.__init__

    def remembered(connection: asyncpg.Connection, *arguments: Any, **named: Any) -> None:
        init(connection, *arguments, **named)
        made.append(connection)

    monkeypatch.setattr(asyncpg.Connection, "__init__", remembered)
    yield
    left = [connection for connection in made if not connection.is_closed()]
    for connection in left:
        connection.terminate()
    assert not left


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    """The PostgreSQL that tests share."""
    with postgres(*QUICK) as running:
        yield running


@pytest.fixture
def new_dsn(server):
    """Makes empty schemas; they go with the server."""

    async def new_dsn(port: int | None = None) -> str:
        schema = f"s{next(_schemas)}"
        connection = await asyncpg.connect(server.dsn())
        await connection.execute(f"CREATE SCHEMA {schema}")
        await connection.close()
        return str(server.dsn(schema, port=port))

    return new_dsn


@pytest.fixture
async def dsn(new_dsn):
    """An empty schema."""
    return await new_dsn()
