"""Finds the tasks of a PostgreSQL store that are on unreadable pages.

Theory of operation
===================
A statement that reads a damaged page fails as a whole and does not say which rows are on it. So
the rows are searched for: ranges of ids are read one after another by the index of ids, and a
range that cannot be read is halved until it has one id. A range has about ``ROWS_PER_RANGE`` rows,
so each statement is short; where ids are sparse because old tasks were purged, ranges get longer.

A damaged row of ``task`` does not show its task's id; the first event of its log does.

`PostgresStore` starts a search after a statement failed; ``agentsrv doctor`` starts one, too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, NamedTuple, TypeVar

import orjson
from asyncpg import Connection

from agentsrv.error_text import describe
from agentsrv.store.postgres import connections
from agentsrv.store.postgres.sql import queries

T = TypeVar("T")
Read = Callable[[Callable[[Connection], Awaitable[T]]], Awaitable[T]]
"""Calls its argument with a connection on which scans of whole tables are disabled."""

ROWS_PER_RANGE: Final = 1000
MAX_DAMAGED_TASKS: Final = 1000  # if there are more, an index is probably damaged


class DamagedTask(NamedTuple):
    """A task that cannot be read."""

    number: int
    """Its ``id`` in the table."""
    name: str
    """Its task id, or its number if the task id cannot be read either."""
    reason: str


class TooMuchDamageError(Exception):
    """More than ``MAX_DAMAGED_TASKS`` tasks cannot be read."""

    def __init__(self) -> None:
        super().__init__(f"more than {MAX_DAMAGED_TASKS} tasks cannot be read")


class SearchedRange(NamedTuple):
    """The number of tasks in a range of ids, and the damaged ones among them."""

    rows: int
    damaged: list[DamagedTask]


async def last_number(read: Read[Any]) -> int:
    """The number of the newest task."""
    last: int = await read(queries().last_task_number.fetch_value)
    return last


async def search(
    read: Read[Any], *, newest_first: bool = False, logs: bool = False
) -> AsyncIterator[SearchedRange]:
    """Read all tasks, one range after another.

    Args:
        read: Reads from the store.
        newest_first: Begin with the newest task. By default the oldest is first.
        logs: Read the logs, too, and the columns that only clients need.

    Raises:
        TooMuchDamageError: There are too many damaged tasks to list them.
    """
    last, length, done, count = await last_number(read), ROWS_PER_RANGE, 0, 0
    while done < last:
        size = min(length, last - done)
        low = last - done - size if newest_first else done
        found = await _search_range(read, low, low + size, logs=logs)
        count += len(found.damaged)
        if count > MAX_DAMAGED_TASKS:
            raise TooMuchDamageError
        yield found
        done += size
        if found.rows < ROWS_PER_RANGE // 2:
            length *= 2
        elif found.rows > ROWS_PER_RANGE:
            length = max(length // 2, 1)


async def _search_range(read: Read[Any], low: int, high: int, *, logs: bool) -> SearchedRange:
    """Read the tasks with the numbers ``low + 1`` to ``high``; halve a range that fails."""
    rows, damaged, ranges = 0, list[DamagedTask](), [(low, high)]
    while ranges:
        low, high = ranges.pop()
        try:
            rows += await read(lambda db: _probe(db, low, high, logs=logs))  # noqa: B023 - awaited here
        except connections.DAMAGED as error:
            if high - low == 1:
                damaged.append(DamagedTask(high, await _name(read, high), describe(error)))
                if len(damaged) > MAX_DAMAGED_TASKS:
                    raise TooMuchDamageError from error
            else:
                middle = (low + high) // 2
                ranges += [(middle, high), (low, middle)]
    return SearchedRange(rows + len(damaged), damaged)


async def _probe(db: Connection, low: int, high: int, *, logs: bool) -> int:
    """Read every row of a range; return how many tasks it has."""
    count: int = await queries().probe_tasks.fetch_value(db, low=low, high=high, all=logs)
    if logs:
        await queries().probe_events.execute(db, low=low, high=high)
    return count


async def _name(read: Read[Any], number: int) -> str:
    """The task's id from its row, from its first event, or ``number N``."""
    unreadable = (*connections.DAMAGED, ValueError, TypeError, AttributeError, KeyError)
    try:
        found = await read(lambda db: queries().task_id_of_number.fetch_value(db, number=number))
        if found is not None:
            return str(found)
    except connections.DAMAGED:
        pass  # its log may be readable
    try:
        body = await read(lambda db: queries().first_events.fetch_value(db, number=number))
        return str(orjson.loads(body.partition(b"\n")[0])["task_id"])
    except unreadable:
        return f"number {number}"
