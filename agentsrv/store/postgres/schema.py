"""The schema of the PostgreSQL store: applies the missing steps of ``schema.sql``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import asyncpg

from agentsrv.errors import ConfigurationError
from agentsrv.store.postgres.sql import load

MIN_POSTGRES_VERSION: Final = 15  # the oldest that is tested
MIGRATION_LOCK: Final = 0x61677376  # key of the advisory lock of a migration: "agsv"
STEPS: Final = tuple(load("schema.sql").values())
"""Step 1 makes version 1 from an empty schema, step 2 version 2 from version 1, and so on."""


async def migrate(connection: asyncpg.Connection, steps: Sequence[str] = STEPS) -> str:
    """Apply the missing steps in one transaction. If several nodes start, one of them does it.

    Returns:
        A name that is unique to this store.

    Raises:
        ConfigurationError: The server is too old, or a newer agentsrv made the schema.
    """
    if connection.get_server_version().major < MIN_POSTGRES_VERSION:
        found = connection.get_server_version().major
        raise ConfigurationError(f"PostgreSQL is {found}; expected {MIN_POSTGRES_VERSION} or newer")
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", MIGRATION_LOCK)
        if await connection.fetchval("SELECT to_regclass(current_schema || '.agentsrv')") is None:
            await connection.execute(
                "CREATE TABLE agentsrv (version integer NOT NULL, store text NOT NULL);"
                "INSERT INTO agentsrv VALUES (0, replace(gen_random_uuid()::text, '-', ''))"
            )
        version, store = await connection.fetchrow("SELECT version, store FROM agentsrv")
        if version > len(steps):
            raise ConfigurationError(f"its schema is {version}; expected {len(steps)}")
        for step in steps[version:]:
            await connection.execute(step)
        if version < len(steps):
            await connection.execute("UPDATE agentsrv SET version = $1", len(steps))
    return str(store)
