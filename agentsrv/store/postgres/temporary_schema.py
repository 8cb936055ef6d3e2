"""A store for a limited time: a new schema in an existing database, dropped at the end."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg

from agentsrv.errors import ConfigurationError
from agentsrv.store.postgres import connections


@dataclass(frozen=True, slots=True)
class TemporarySchema:
    """An empty schema."""

    dsn: str
    """The URL for servers that use this schema."""

    async def flushes(self) -> int:
        """The number of flushes of all nodes so far; each is one commit.

        Raises:
            AWAY, asyncpg.PostgresError: See ``connections.connect``; or no node has opened it yet.
        """
        connection = await connections.connect(self.dsn)
        try:
            return int(await connection.fetchval("SELECT coalesce(sum(flush), 0) FROM writer"))
        finally:
            await connection.close()


@asynccontextmanager
async def temporary_schema(dsn: str) -> AsyncIterator[TemporarySchema]:
    """Create a schema in the database of ``dsn``, and drop it with its content after the block.

    Nothing else in the database is changed. A cancellation drops the schema, too; a process that
    is killed leaves it, with the name ``agentsrv_bench_…``.

    Raises:
        ConfigurationError: The server cannot be reached, or does not allow creating a schema.
    """
    name = f"agentsrv_bench_{secrets.token_hex(8)}"
    try:
        await _execute(dsn, f"CREATE SCHEMA {name}")
    except (*connections.FAILED, ConfigurationError) as error:
        reason = connections.explain(error, dsn)
        raise ConfigurationError(f"cannot create a schema in PostgreSQL{reason}") from None
    try:
        yield TemporarySchema(_within(dsn, name))
    finally:
        await _execute(dsn, f"DROP SCHEMA {name} CASCADE")


async def _execute(dsn: str, statement: str) -> None:
    connection: asyncpg.Connection = await connections.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def _within(dsn: str, schema: str) -> str:
    parts = urlsplit(dsn)
    query = {**dict(parse_qsl(parts.query)), "search_path": schema}
    return urlunsplit(parts._replace(query=urlencode(query)))
