"""What is asked of the PostgreSQL store without writing events: one statement each.

All of them may be done twice, because whoever calls them tries again after a lost connection.
"""

# ruff: noqa: S608 - statements are put together from constants of this file only

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from asyncpg import Connection

from agentsrv.errors import NotFoundError
from agentsrv.models.states import TaskStatus
from agentsrv.models.usage import Use
from agentsrv.store.base import Head, LogHead, Page, Row, Span, page_of
from agentsrv.store.postgres.statements import HEAD, Statements
from agentsrv.store.postgres.writer import to_head
from agentsrv.store.shared import TOLD_WITHIN, Message, Node

# Rows up to the one that holds the last event that is wanted: it may hold more.
READ: Final = """
SELECT place, event.seq, event.body
FROM unnest($1::text[], $2::bigint[], $3::bigint[])
    WITH ORDINALITY AS span(task_id, after, wanted, place)
JOIN task USING (task_id)
CROSS JOIN LATERAL (
    SELECT seq, body FROM event WHERE event.task = task.id AND seq > after AND seq <= (
        SELECT coalesce(min(seq), after + wanted) FROM event
        WHERE event.task = task.id AND seq >= after + wanted)
) AS event
ORDER BY place, seq
"""
POST: Final = """
INSERT INTO inbox (number, task, poster, body)
SELECT $1, id, $3, $4 FROM task WHERE task_id = $2
ON CONFLICT DO NOTHING
"""
SHARE: Final = f"""
WITH told AS (
    INSERT INTO use VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (writer) DO UPDATE SET principals = excluded.principals,
        connections = excluded.connections, subscriptions = excluded.subscriptions,
        rates = excluded.rates, at = excluded.at
)
SELECT principals, connections, subscriptions, rates FROM use
WHERE writer <> $1 AND at > clock_timestamp() - make_interval(secs => {TOLD_WITHIN})
"""


async def head(db: Connection, task_id: str) -> Head | None:
    """See ``Store.head``."""
    row = await db.fetchrow(f"SELECT {HEAD} FROM task WHERE task_id = $1", task_id)
    return None if row is None else to_head(*row)


async def find(db: Connection, find: Statements, owner: str, prefix: str) -> Sequence[str]:
    """See ``Store.find``."""
    rows = await db.fetch(
        f"SELECT task_id FROM {find.tasks}"
        " WHERE task_id >= $1 AND task_id < $2 AND owner = $3 LIMIT 2",
        prefix,
        prefix + "\U0010ffff",
        owner,
    )
    return [task_id for (task_id,) in rows]


async def find_key(db: Connection, owner: str, idempotency_key: str) -> str | None:
    """See ``Store.find_key``."""
    task_id: str | None = await db.fetchval(
        "SELECT task_id FROM task WHERE owner = $1 AND idempotency_key = $2",
        owner,
        idempotency_key.encode(),
    )
    return task_id


async def read_each(db: Connection, spans: Sequence[Span]) -> Sequence[Sequence[bytes]]:
    """See ``Store.read_each``."""
    found: list[list[bytes]] = [[] for _ in spans]
    for place, last, body in await db.fetch(READ, *zip(*spans, strict=True)) if spans else ():
        log, after = found[place - 1], spans[place - 1].after
        events = body.split(b"\n")
        known = after - (last - len(events))  # of these; more than 0 in the first row only
        log += events[max(known, 0) :]
    return [log[: span.limit] for log, span in zip(found, spans, strict=True)]


async def column(db: Connection, name: str, task_id: str) -> bytes | None:
    """The task's ``spec`` or ``state``."""
    body: bytes | None = await db.fetchval(f"SELECT {name} FROM task WHERE task_id = $1", task_id)
    return body


async def page(  # noqa: PLR0917 - what ``Store.list`` is given
    db: Connection,
    find: Statements,
    owner: str,
    status: TaskStatus | None,
    limit: int,
    before: int | None,
) -> Page:
    """See ``Store.list``; ``before`` is the number of the last task listed."""
    where, values = "owner = $1", [owner]
    if status is not None:
        where, values = "owner = $1 AND status = $2", [owner, status.value]
    place = len(values) + 1
    async with db.transaction(isolation="repeatable_read", readonly=True):
        total = await db.fetchval(f"SELECT count(*) FROM {find.tasks} WHERE {where}", *values)
        rows = await db.fetch(
            "SELECT id, task_id, status, user_input, created_at"
            f" FROM {find.tasks}"
            f" WHERE {where} AND id < ${place} ORDER BY id DESC LIMIT ${place + 1}",
            *values,
            (1 << 62) if before is None else before,
            limit + 1,
        )
    found = [(row[0], Row(row[1], TaskStatus(row[2]), row[3].decode(), row[4])) for row in rows]
    return page_of(found, limit, total)


async def news(
    db: Connection, find: Statements, task_ids: Sequence[str], owners: Sequence[str]
) -> Sequence[LogHead]:
    """See ``SharedStore.news``."""
    return [LogHead(*row) for row in await db.fetch(find.news, task_ids, owners)]


async def next_number(db: Connection) -> int:
    """A number for a message, greater than all before it."""
    number: int = await db.fetchval("SELECT nextval('message')")
    return number


async def post(
    db: Connection, number: int, task_id: str, poster: int | None, body: bytes
) -> int | None:
    """Put the message with this number into the inbox, once; return the lease it is for.

    Raises:
        NotFoundError: There is no such task.
    """
    await db.execute(POST, number, task_id, poster, body)
    row = await db.fetchrow("SELECT node FROM task WHERE task_id = $1", task_id)
    if row is None:
        raise NotFoundError(f"there is no task {task_id}")
    holder: int | None = row[0]
    return holder


async def withdraw(db: Connection, number: int) -> bytes | None:
    """See ``SharedStore.withdraw``."""
    reply: bytes | None = await db.fetchval(
        "UPDATE inbox SET withdrawn = true WHERE number = $1 RETURNING reply", number
    )
    return reply


async def replies(db: Connection, numbers: Sequence[int]) -> Mapping[int, bytes]:
    """See ``SharedStore.replies``."""
    rows = await db.fetch(
        "SELECT number, reply FROM inbox WHERE number = ANY ($1) AND reply IS NOT NULL", numbers
    )
    return {row[0]: row[1] for row in rows}


async def inbox(db: Connection, find: Statements, lease: int) -> Sequence[Message]:
    """See ``SharedStore.inbox``."""
    return [Message(*row) for row in await db.fetch(find.inbox, lease)]


async def share(
    db: Connection, writer: int, uses: Mapping[str, Use]
) -> Sequence[Mapping[str, Use]]:
    """See ``SharedStore.share``."""
    columns = [[use[place] for use in uses.values()] for place in range(len(Use._fields))]
    rows = await db.fetch(SHARE, writer, list(uses), *columns)
    return [{principal: Use(*use) for principal, *use in zip(*row, strict=True)} for row in rows]


async def nodes(db: Connection, find: Statements) -> Sequence[Node]:
    """See ``SharedStore.nodes``."""
    return [Node(*row) for row in await db.fetch(find.nodes)]


async def purge(db: Connection, find: Statements, before: float, limit: int) -> int:
    """See ``Store.purge``."""
    forgotten: Any = await db.fetchval(find.purge, before, limit)
    return int(forgotten)
