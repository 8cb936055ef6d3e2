from __future__ import annotations

from contextlib import suppress

import asyncpg
import pytest

from agentsrv.errors import ConfigurationError
from agentsrv.store.postgres.store import PostgresStore
from agentsrv.store.postgres.temporary_schema import temporary_schema
from tests.support.store_tasks import new_task


async def schemas(dsn: str) -> set[str]:
    """Those of the bench."""
    connection = await asyncpg.connect(dsn)
    rows = await connection.fetch("SELECT nspname FROM pg_namespace WHERE nspname ~ '^agentsrv_'")
    await connection.close()
    return {row["nspname"] for row in rows}


async def test_a_store_is_made_in_it_and_goes_with_it(dsn):
    """Also when what was done in it fails; the schema that the address names stays empty."""
    with suppress(ZeroDivisionError):
        async with temporary_schema(dsn) as made:
            store = PostgresStore(made.dsn, node="one")
            await store.open()
            assert await made.flushes() == 0
            await store.create(new_task("t1"))
            assert await made.flushes() == 1
            await store.close()
            assert len(await schemas(dsn)) == 1
            raise ZeroDivisionError
    assert await schemas(dsn) == set()
    connection = await asyncpg.connect(dsn)
    assert await connection.fetchval("SELECT to_regclass('task')") is None
    await connection.close()


async def test_what_else_the_address_says_is_kept(dsn):
    """Only the schema is another."""
    async with temporary_schema(f"{dsn}&application_name=mine") as made:
        connection = await asyncpg.connect(made.dsn)
        assert await connection.fetchval("SHOW application_name") == "mine"
        assert str(await connection.fetchval("SELECT current_schema")).startswith("agentsrv_bench_")
        await connection.close()


@pytest.mark.parametrize("address", ["postgresql://127.0.0.1:1/postgres", "postgresql://[/x"])
async def test_a_server_that_cannot_be_had_is_told(address):
    """As what it is: a wrong address."""
    with pytest.raises(ConfigurationError, match="cannot create a schema in PostgreSQL"):
        async with temporary_schema(address):
            pass
