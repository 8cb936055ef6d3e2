"""What a PostgreSQL store holds, looked at from outside, without taking part."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import asyncpg

from agentsrv.errors import ConfigurationError
from agentsrv.store.postgres import connections, reader
from agentsrv.store.postgres.damage import Damage, Reading, TooMuchDamageError, search
from agentsrv.store.postgres.statements import statements
from agentsrv.store.shared import Node

T = TypeVar("T")

MOST_EXAMINED: Final = 20_000  # tasks: some seconds


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


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found in the tasks of a store.

    Attributes:
        tasks: How many were read, with their logs: the newest ones.
        is_whole: Whether these are all.
        damage: What of them cannot be read.
    """

    tasks: int
    is_whole: bool
    damage: Sequence[Damage]


async def look(dsn: str) -> Look:
    """Read what is in the store; it is not changed.

    Raises:
        ConfigurationError: It cannot be reached or read.
    """
    async with _connected(dsn) as connection:
        version = await connection.fetchval("SHOW server_version")
        try:
            nodes = await _nodes(connection)
        except asyncpg.UndefinedTableError:
            nodes = None
    return Look(version.partition(" ")[0], nodes)


async def examine(dsn: str, most: int = MOST_EXAMINED) -> Examination:
    """Read the newest tasks, about ``most``, to find those that cannot be read.

    Raises:
        ConfigurationError: The store cannot be reached, or too much of it cannot be read.
    """
    tasks, is_whole, damage = 0, True, list[Damage]()
    async with _connected(dsn) as connection:
        async for piece in search(_reading(connection), newest=True, logs=True):
            if tasks >= most:
                is_whole = False
                break
            tasks += piece.rows
            damage += piece.damage
    return Examination(tasks, is_whole, damage)


async def _nodes(connection: asyncpg.Connection) -> Sequence[Node]:
    try:
        return await reader.nodes(connection, statements())
    except connections.DAMAGED:  # of the page of a task that one of them runs
        pieces = [piece async for piece in search(_reading(connection))]
    damaged = sorted(damage.number for piece in pieces for damage in piece.damage)
    return await reader.nodes(connection, statements(tuple(damaged)))


def _reading(connection: asyncpg.Connection) -> Reading[Any]:
    async def read(work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
        return await work(connection)

    return read


@asynccontextmanager
async def _connected(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    try:
        connection = await connections.connect(dsn, connections.READER)
        try:
            yield connection
        finally:
            connection.terminate()
    except (*connections.FAILED, ConfigurationError, TooMuchDamageError) as error:
        reason = connections.explain(error, dsn)
        raise ConfigurationError(f"cannot look into the PostgreSQL store{reason}") from None
