"""Each statement of queries.sql against a PostgreSQL with the schema."""

from __future__ import annotations

import asyncpg
import pytest

from agentsrv.store.postgres.schema import migrate
from agentsrv.store.postgres.sql import load, queries


@pytest.mark.parametrize("damaged", [(), (2, 5)])
async def test_every_statement_is_valid(dsn, damaged):
    """It can be prepared, and has as many parameters as names."""
    texts = load("queries.sql")
    fragments = {name for name in texts if any(f"{{{name}}}" in text for text in texts.values())}
    fragments |= {name for name in texts if name.endswith("_by_id")}
    connection = await asyncpg.connect(dsn)
    try:
        await migrate(connection)
        for name in texts.keys() - (fragments - {"queue"}):
            query = getattr(queries(damaged), name)
            if ";" in query.text:  # several statements without parameters
                await connection.execute(query.text)
                continue
            prepared = await connection.prepare(query.text)
            assert len(prepared.get_parameters()) == len(query.parameters), name
    finally:
        await connection.close()
