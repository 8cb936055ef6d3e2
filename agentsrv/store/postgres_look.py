"""What a PostgreSQL store holds, looked at from outside, without taking part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from agentsrv.errors import ConfigurationError
from agentsrv.store import postgres_link as link
from agentsrv.store import postgres_read
from agentsrv.store.postgres_statements import statements
from agentsrv.store.shared import Node


@dataclass(frozen=True, slots=True)
class Look:
    """What was found in a store.

    Attributes:
        version: PostgreSQL's.
        nodes: Those that live, and those that were lost in the last day; ``None`` where no
            server has used the database yet.
    """

    version: str
    nodes: Sequence[Node] | None


async def look(dsn: str) -> Look:
    """Read what is in the store; it is not changed.

    Raises:
        ConfigurationError: It cannot be reached or read.
    """
    try:
        connection = await link.connect(dsn)
        try:
            version = await connection.fetchval("SHOW server_version")
            try:
                nodes = await postgres_read.nodes(connection, statements())
            except asyncpg.UndefinedTableError:
                nodes = None
        finally:
            connection.terminate()
    except (*link.FAILED, ConfigurationError) as error:
        reason = link.explain(error, dsn)
        raise ConfigurationError(f"cannot look into the PostgreSQL store{reason}") from None
    return Look(version.partition(" ")[0], nodes)
