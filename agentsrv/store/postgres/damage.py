"""Finds the tasks of a PostgreSQL store that are on pages which cannot be read.

Theory of operation
===================

A statement that meets a damaged page fails whole and does not say which rows were on it. The rows
have to be looked for: ranges of ids are read one after the other, by the index of ids, and a range
that cannot be read is halved until it has one id. A range has about ``ROWS`` rows, so no statement
takes long; where ids are sparse, because old tasks were forgotten, ranges become longer.

A damaged row of ``task`` does not say what its task is called. The first event of its log does.

The search is made when a statement has failed (``PostgresStore``), and by ``agentsrv doctor``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, NamedTuple, TypeVar

import orjson
from asyncpg import Connection

from agentsrv.error_text import describe
from agentsrv.store.postgres import connections

T = TypeVar("T")
Reading = Callable[[Callable[[Connection], Awaitable[T]]], Awaitable[T]]
"""Does something with a connection for which a scan of a whole table is disabled."""

ROWS: Final = 1000  # of one statement
MOST: Final = 1000  # damaged tasks; if there are more, it is an index that is damaged
LAST: Final = "SELECT last_value FROM task_id_seq"
ROW: Final = """
SELECT count(*), max(seq), count(md5(spec)) FILTER (WHERE ready IS NOT NULL OR $3),
    count(md5(state)) FILTER (WHERE $3)
FROM task WHERE id > $1 AND id <= $2
"""
"""Reads rows, and what a worker needs in addition; all that is stored apart from them if $3."""
LOGS: Final = "SELECT count(md5(body)) FROM event WHERE task > $1 AND task <= $2"
FIRST: Final = "SELECT body FROM event WHERE task = $1 ORDER BY seq LIMIT 1"
NAME: Final = "SELECT task_id FROM task WHERE id = $1"


class Damage(NamedTuple):
    """A task that cannot be read."""

    number: int
    """Its ``id`` in the table."""
    name: str
    """What clients call it, or its number where that cannot be read either."""
    reason: str


class TooMuchDamageError(Exception):
    """More tasks than ``MOST`` cannot be read."""

    def __init__(self) -> None:
        super().__init__(f"more than {MOST} tasks cannot be read")


class Piece(NamedTuple):
    """What was found in some of the tasks."""

    rows: int
    damage: list[Damage]


async def last_number(read: Reading[Any]) -> int:
    """The number of the newest task."""
    last: int = await read(lambda db: db.fetchval(LAST))
    return last


async def search(
    read: Reading[Any], *, newest: bool = False, logs: bool = False
) -> AsyncIterator[Piece]:
    """Read all tasks, piece by piece.

    Args:
        read: Reads from the store.
        newest: Begin with the newest task. By default the oldest is first.
        logs: Read also their logs and what only clients need.

    Raises:
        TooMuchDamageError: There are too many damaged tasks to name them.
    """
    last, length, done, found = await last_number(read), ROWS, 0, 0
    while done < last:
        size = min(length, last - done)
        low = last - done - size if newest else done
        piece = await _look(read, low, low + size, logs=logs)
        found += len(piece.damage)
        if found > MOST:
            raise TooMuchDamageError
        yield piece
        done += size
        if piece.rows < ROWS // 2:
            length *= 2
        elif piece.rows > ROWS:
            length = max(length // 2, 1)


async def _look(read: Reading[Any], low: int, high: int, *, logs: bool) -> Piece:
    """Read the tasks with the numbers ``low + 1`` to ``high``."""
    rows, damage, ranges = 0, list[Damage](), [(low, high)]
    while ranges:
        low, high = ranges.pop()
        try:
            rows += await read(lambda db: _read(db, low, high, logs=logs))  # noqa: B023 - awaited here
        except connections.DAMAGED as error:
            if high - low == 1:
                damage.append(Damage(high, await _name(read, high), describe(error)))
                if len(damage) > MOST:
                    raise TooMuchDamageError from error
            else:
                middle = (low + high) // 2
                ranges += [(middle, high), (low, middle)]
    return Piece(rows + len(damage), damage)


async def _read(db: Connection, low: int, high: int, *, logs: bool) -> int:
    count: int = await db.fetchval(ROW, low, high, logs)
    if logs:
        await db.fetchval(LOGS, low, high)
    return count


async def _name(read: Reading[Any], number: int) -> str:
    for statement in (NAME, FIRST):
        try:
            found = await read(lambda db: db.fetchval(statement, number))  # noqa: B023 - likewise
            if statement is NAME and found is not None:
                return str(found)
            return str(orjson.loads(found.partition(b"\n")[0])["task_id"])
        except (*connections.DAMAGED, ValueError, TypeError, AttributeError, KeyError):
            continue
    return f"number {number}"
