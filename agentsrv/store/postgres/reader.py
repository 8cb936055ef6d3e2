"""Reads of the PostgreSQL store, and writes of messages and usage: one statement each.

The caller repeats a function after a lost connection, so each may be executed twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Final

from asyncpg import Connection

from agentsrv.errors import NotFoundError
from agentsrv.models.states import TaskStatus
from agentsrv.models.usage import Use
from agentsrv.store.base import Head, LogHead, Page, Row, Span, page_of
from agentsrv.store.postgres.sql import Queries, columns, queries
from agentsrv.store.postgres.writer import to_head
from agentsrv.store.shared import Message, Node

PAGE_COLUMNS: Final = ("id", "task_id", "status", "user_input", "created_at")


async def head(db: Connection, task_id: str) -> Head | None:
    """See ``Store.head``."""
    row = await queries().read_head.fetch_row(db, task_id=task_id)
    return None if row is None else to_head(row)


async def find(db: Connection, queries: Queries, owner: str, prefix: str) -> Sequence[str]:
    """See ``Store.find``."""
    rows = await queries.find_ids.fetch(db, owner=owner, prefix=prefix, end=prefix + "\U0010ffff")
    return [row["task_id"] for row in rows]


async def find_key(db: Connection, owner: str, idempotency_key: str) -> str | None:
    """See ``Store.find_key``."""
    key = idempotency_key.encode()
    task_id: str | None = await queries().find_key.fetch_value(db, owner=owner, key=key)
    return task_id


async def read_each(db: Connection, spans: Sequence[Span]) -> Sequence[Sequence[bytes]]:
    """See ``Store.read_each``."""
    found: list[list[bytes]] = [[] for _ in spans]
    if not spans:
        return found
    for row in await queries().read_events.fetch(db, **columns(Span._fields, spans)):
        position = row["position"] - 1
        log, after = found[position], spans[position].after
        events = row["body"].split(b"\n")
        before = after - (row["seq"] - len(events))  # events up to `after`, in the first row only
        log += events[max(before, 0) :]
    return [log[: span.limit] for log, span in zip(found, spans, strict=True)]


async def page(  # noqa: PLR0917 - the parameters of ``Store.list``
    db: Connection,
    queries: Queries,
    owner: str,
    status: TaskStatus | None,
    limit: int,
    before: int | None,
) -> Page:
    """See ``Store.list``; ``before`` is the number of the last listed task."""
    count, select = queries.count_tasks, queries.list_tasks
    where = {"owner": owner}
    if status is not None:
        count, select = queries.count_tasks_by_status, queries.list_tasks_by_status
        where["status"] = status.value
    async with db.transaction(isolation="repeatable_read", readonly=True):
        total = await count.fetch_value(db, **where)
        rows = await select.fetch(
            db, **where, before=(1 << 62) if before is None else before, limit=limit + 1
        )
    found = [
        (number, Row(task_id, TaskStatus(status), user_input.decode(), created_at))
        for number, task_id, status, user_input, created_at in map(itemgetter(*PAGE_COLUMNS), rows)
    ]
    return page_of(found, limit, total)


async def news(
    db: Connection, queries: Queries, task_ids: Sequence[str], owners: Sequence[str]
) -> Sequence[LogHead]:
    """See ``SharedStore.news``."""
    rows = await queries.read_news.fetch(db, task_ids=task_ids, owners=owners)
    return [LogHead(**row) for row in rows]


async def next_number(db: Connection) -> int:
    """A number for a message, greater than all earlier ones."""
    number: int = await queries().next_message.fetch_value(db)
    return number


async def post(
    db: Connection, number: int, task_id: str, poster: int | None, body: bytes
) -> int | None:
    """Insert the message with this number once; return the lease that it is for.

    Raises:
        NotFoundError: There is no such task.
    """
    await queries().post_message.execute(
        db, number=number, task_id=task_id, poster=poster, body=body
    )
    row = await queries().lease_holder.fetch_row(db, task_id=task_id)
    if row is None:
        raise NotFoundError(f"there is no task {task_id}")
    holder: int | None = row["node"]
    return holder


async def withdraw(db: Connection, number: int) -> bytes | None:
    """See ``SharedStore.withdraw``."""
    reply: bytes | None = await queries().withdraw_message.fetch_value(db, number=number)
    return reply


async def replies(db: Connection, numbers: Sequence[int]) -> Mapping[int, bytes]:
    """See ``SharedStore.replies``."""
    rows = await queries().read_replies.fetch(db, numbers=numbers)
    return {row["number"]: row["reply"] for row in rows}


async def inbox(db: Connection, queries: Queries, lease: int) -> Sequence[Message]:
    """See ``SharedStore.inbox``."""
    return [Message(**row) for row in await queries.read_inbox.fetch(db, node=lease)]


async def share(
    db: Connection, writer: int, uses: Mapping[str, Use]
) -> Sequence[Mapping[str, Use]]:
    """See ``SharedStore.share``."""
    published = columns(Use._fields, list(uses.values()))
    rows = await queries().share_usage.fetch(db, writer=writer, principals=list(uses), **published)
    return [{principal: Use(*use) for principal, *use in zip(*row, strict=True)} for row in rows]


async def nodes(db: Connection, queries: Queries) -> Sequence[Node]:
    """See ``SharedStore.nodes``."""
    return [Node(**row) for row in await queries.list_nodes.fetch(db)]


async def purge(db: Connection, queries: Queries, before: float, limit: int) -> int:
    """See ``Store.purge``."""
    return int(await queries.purge_tasks.fetch_value(db, before=before, limit=limit))
