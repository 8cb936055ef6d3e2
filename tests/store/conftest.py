"""One PostgreSQL for all tests of a session; each test has a schema of its own in it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import asyncpg
import pytest

from tests.postgres import QUICK, Postgres, postgres

_schemas = count(1)


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
