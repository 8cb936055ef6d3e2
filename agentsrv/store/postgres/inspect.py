"""Inspects a PostgreSQL store from outside, for ``agentsrv doctor`` and ``agentsrv nodes``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import asyncpg

from agentsrv.errors import ConfigurationError
from agentsrv.store.postgres import connections, reader
from agentsrv.store.postgres.damage import DamagedTask, Read, TooMuchDamageError, search
from agentsrv.store.postgres.sql import queries
from agentsrv.store.shared import Node

T = TypeVar("T")

MAX_EXAMINED_TASKS: Final = 20_000  # takes some seconds


@dataclass(frozen=True, slots=True)
class PostgresStoreInfo:
    """An overview of a store.

    Attributes:
        version: PostgreSQL's version.
        nodes: The live nodes, and those that were lost in the last day; ``None`` if no server has
            used the database yet.
    """

    version: str
    nodes: Sequence[Node] | None


@dataclass(frozen=True, slots=True)
class Examination:
    """The result of reading the tasks of a store.

    Attributes:
        tasks: How many tasks were read, with their logs: the newest ones.
        is_whole: Whether these are all tasks.
        damaged: The tasks that cannot be read.
    """

    tasks: int
    is_whole: bool
    damaged: Sequence[DamagedTask]


async def read_info(dsn: str) -> PostgresStoreInfo:
    """Read the overview; the store is not changed.

    Raises:
        ConfigurationError: The store cannot be reached or read.
    """
    async with _connected(dsn) as connection:
        version = await connection.fetchval("SHOW server_version")
        try:
            nodes = await _nodes(connection)
        except asyncpg.UndefinedTableError:
            nodes = None
    return PostgresStoreInfo(version.partition(" ")[0], nodes)


async def examine(dsn: str, max_tasks: int = MAX_EXAMINED_TASKS) -> Examination:
    """Read about ``max_tasks`` of the newest tasks, and list those that cannot be read.

    Raises:
        ConfigurationError: The store cannot be reached, or too much of it cannot be read.
    """
    tasks, is_whole, damaged = 0, True, list[DamagedTask]()
    async with _connected(dsn) as connection:
        async for found in search(_read(connection), newest_first=True, logs=True):
            if tasks >= max_tasks:
                is_whole = False
                break
            tasks += found.rows
            damaged += found.damaged
    return Examination(tasks, is_whole, damaged)


async def _nodes(connection: asyncpg.Connection) -> Sequence[Node]:
    try:
        return await reader.nodes(connection, queries())
    except connections.DAMAGED:  # the page of a task that a node runs
        found = [found async for found in search(_read(connection))]
    numbers = sorted(task.number for each in found for task in each.damaged)
    return await reader.nodes(connection, queries(tuple(numbers)))


def _read(connection: asyncpg.Connection) -> Read[Any]:
    async def read(work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
        return await work(connection)

    return read


@asynccontextmanager
async def _connected(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    try:
        connection = await connections.connect(dsn, connections.READER_SETTINGS)
        try:
            yield connection
        finally:
            connection.terminate()
    except (*connections.FAILED, ConfigurationError, TooMuchDamageError) as error:
        reason = connections.explain(error, dsn)
        raise ConfigurationError(f"cannot inspect the PostgreSQL store{reason}") from None
