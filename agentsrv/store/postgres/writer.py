"""Flush: one transaction that writes the requests of many callers. `flush` says when one is sent.

Theory of operation
===================
A flush of appends, replies and releases is one statement, ``write_flush``, which commits by
itself: one round trip, one ``fsync``. It

1. locks the writer's row and checks that this flush follows the last one;
2. locks and advances the heads whose epoch and number are what the append expects, in the order of
   task ids, so that flushes of different nodes cannot deadlock;
3. inserts the events of these heads, stores replies, and releases leases;
4. stores the number of the flush and the positions of the refused requests in the writer's row;
5. returns these positions. `Flush` reads the heads of refused appends to say what it found.

So a conflict refuses its own request only, and the others commit. The writer's row and the events
commit together, which is why a flush whose answer was lost can be looked up (``recall``).

If the flush creates, queues or claims tasks, it is a transaction with these statements before
``write_flush``:

    look_up_queue_and_keys   places in the queue, the queue's length per owner, used keys
    expire_keys              takes expired keys from their tasks
    create_tasks             inserts new tasks with their first events
    claim_tasks              leases tasks to this node, including those just created

Every request is in one of these states afterwards; requests are named by their position:

    in ``refusals``          it wrote nothing; its caller gets the exception
    in ``again``             it wrote nothing, because another node was writing the same
                             idempotency key; the next flush repeats it
    otherwise                it is committed; its caller gets the value in ``results``, or ``None``
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import asyncpg

from agentsrv.errors import OverloadedError
from agentsrv.models.states import TaskStatus
from agentsrv.store import base
from agentsrv.store.base import Append, Created, Head, Lease, LeaseEnd, NewTask
from agentsrv.store.postgres.sql import Queries, columns
from agentsrv.store.queue import QueueLimits

NO_RUNNING_LIMIT: Final = 1 << 31  # tasks; more than run anywhere


class Claim(NamedTuple):
    """Requests leases of up to ``limit`` tasks."""

    limit: int


class Release(NamedTuple):
    """Gives a lease back."""

    task_id: str
    epoch: int


class Reply(NamedTuple):
    """Answers a message that caused no event."""

    number: int
    body: bytes


Request = NewTask | Append | Claim | Release | Reply


class FlushNumber(NamedTuple):
    """Identifies a flush: ``number`` follows ``previous`` in the row of ``writer``."""

    writer: int
    previous: int
    number: int


class FlushConflictError(Exception):
    """The last flush in the writer's row is not ``previous``; nothing was written."""


@dataclass(slots=True)
class FlushResult:
    """The results of a flush. Keys and items are positions of requests; see the module."""

    results: dict[int, Any] = field(default_factory=dict)
    refusals: dict[int, Exception] = field(default_factory=dict)
    again: list[int] = field(default_factory=list)
    queued: dict[str, int] | None = None
    """The number of waiting tasks of each owner, if the flush may have changed it."""
    posters: Sequence[int] = ()
    """The leases of the nodes whose messages were answered."""
    seconds: float = 0.0
    """Time from the first attempt until the flush was durable."""

    def forget_claims(self, requests: Sequence[Request]) -> None:
        """Return no claimed tasks: the node has lost the lease that they belong to."""
        for position in self.results:
            if isinstance(requests[position], Claim):
                self.results[position] = []


CREATE_COLUMNS: Final = tuple(
    "position task_id owner status seq ready user_input created_at key spec body".split()
)
APPEND_COLUMNS: Final = tuple(
    f"append_{column}"
    for column in (
        "position task_id epoch expected seq status ready ended_at state working body".split()
    )
)
KEY_COLUMNS: Final = ("position", "owner", "key", "created_at")
REPLY_COLUMNS: Final = ("reply_position", "reply_number", "reply_body")
RELEASE_COLUMNS: Final = ("release_task_id", "release_epoch")


class Flush:
    """One attempt to write some requests, no two of which concern the same task.

    Args:
        requests: The requests to write.
        node: The node's lease. ``None``: nothing is claimed.
        limits: Of tasks that wait and run.
        queries: The statements, without the tasks that are known to be damaged.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        node: int | None,
        limits: QueueLimits,
        queries: Queries,
    ) -> None:
        self._requests = requests
        self.queries = queries
        self._node = node
        self._limits = limits
        self._result = FlushResult()
        self._claimed: list[int] = []
        self._ready: dict[int, int] = {}
        """Places in the queue that creates and appends take, by position."""
        self._changes_queue = any(map(may_change_queue, requests))

    async def write(self, connection: asyncpg.Connection, number: FlushNumber) -> FlushResult:
        """Write the requests; they are durable when this returns.

        Raises:
            FlushConflictError: ``number`` is not the next flush; nothing was written.
        """
        if not self._changes_queue and not self._all(NewTask):
            await self._write(connection, number)
            return self._result
        async with connection.transaction():
            await self._create(connection)
            await self._claim(connection)
            await self._write(connection, number)
        return self._result

    async def recall(self, connection: asyncpg.Connection, number: FlushNumber) -> FlushResult:
        """Rebuild the result of this flush from the writer's row, which says that it committed.

        Refused requests are repeated: they wrote nothing.
        """
        result = self._result = FlushResult()
        row = await self.queries.flush_result.fetch_row(connection, writer=number.writer)
        result.again = row["refused"]
        for position, request in self._all(NewTask):
            if position not in result.again:
                result.results[position] = _created(request)
        leases = await self.queries.claimed_leases.fetch(
            connection, ids=row["claimed"], node=self._node
        )
        for position, _ in self._all(Claim):
            result.results[position] = [_lease(lease) for lease in leases]
        if self._changes_queue:
            result.queued = await count_queue(connection, self.queries)
        return result

    def _all(self, kind: type) -> list[tuple[int, Any]]:
        """The requests of a kind, with their positions."""
        return [each for each in enumerate(self._requests) if isinstance(each[1], kind)]

    async def _create(self, connection: asyncpg.Connection) -> None:
        """Assign places in the queue, and create tasks."""
        result = self._result
        creates = dict(self._all(NewTask))
        keyed = [
            (position, task.owner, _key(task), task.created_at)
            for position, task in creates.items()
            if task.idempotency_key is not None
        ]
        queueing = [
            (position, request.owner)
            for position, request in enumerate(self._requests)
            if isinstance(request, NewTask | Append) and request.status is TaskStatus.QUEUED
        ]
        expired: dict[int, int] = {}
        if keyed or queueing:
            found = await self.queries.look_up_queue_and_keys.fetch_row(
                connection, **columns(KEY_COLUMNS, keyed)
            )
            expired = self._replay(creates, found)
            self._assign_places(queueing, found["first_place"], _counts(found))
        for position in creates.keys() & result.refusals.keys():
            del creates[position]
        if not creates:
            return
        expired = {position: number for position, number in expired.items() if position in creates}
        if expired:
            successors = [creates[position].task_id for position in expired]
            await self.queries.expire_keys.execute(
                connection, id=list(expired.values()), successor=successors
            )
        rows = [
            _create_row(position, task, self._ready.get(position))
            for position, task in creates.items()
        ]
        for row in await self.queries.create_tasks.fetch(
            connection, **columns(CREATE_COLUMNS, rows)
        ):
            result.results[row["position"]] = _created(creates.pop(row["position"]))
        if creates:
            await self._explain_creates(connection, creates)

    def _replay(self, creates: dict[int, NewTask], found: Mapping[str, Any]) -> dict[int, int]:
        """Answer the creates whose idempotency key is in use, and remove them from ``creates``.

        Returns:
            The numbers of the tasks whose key has expired, by the position of the new task.
        """
        expired: dict[int, int] = {}
        names = "position id spec is_fresh task_id owner status seq epoch node".split()
        for used in zip(*(found[name] or () for name in names), strict=True):
            position, number, spec, is_fresh, *head = used
            task = creates[position]
            if not is_fresh:
                expired[position] = number
                continue
            del creates[position]
            if spec == task.spec:
                self._result.results[position] = Created(
                    to_head(dict(zip(names[4:], head, strict=True))), replayed=True
                )
            else:
                self._result.refusals[position] = base.key_conflict(task.idempotency_key or "")
        return expired

    def _assign_places(
        self, queueing: Sequence[tuple[int, str]], first_place: int, queued: dict[str, int]
    ) -> None:
        """Assign places from ``first_place`` on; refuse requests for which the queue is full."""
        result, total = self._result, sum(queued.values())
        for position, owner in queueing:
            if position in result.results or position in result.refusals:
                continue
            try:
                self._limits.check(queued.get(owner, 0), total)
            except OverloadedError as refusal:
                result.refusals[position] = refusal
                continue
            self._ready[position] = first_place + position
            queued[owner] = queued.get(owner, 0) + 1
            total += 1

    async def _explain_creates(
        self, connection: asyncpg.Connection, left: Mapping[int, NewTask]
    ) -> None:
        """Refuse the creates whose task id exists. Another node used the keys of the others."""
        rows = await self.queries.existing_ids.fetch(
            connection, task_ids=[task.task_id for task in left.values()]
        )
        existing = {row["task_id"] for row in rows}
        for position, task in left.items():
            if task.task_id in existing:
                self._result.refusals[position] = base.id_taken(task.task_id)
            else:
                self._result.again.append(position)

    async def _claim(self, connection: asyncpg.Connection) -> None:
        for position, claim in self._all(Claim):
            if self._node is None or claim.limit <= 0:
                self._result.results[position] = []
                continue
            running = self._limits.running
            rows = await self.queries.claim_tasks.fetch(
                connection,
                node=self._node,
                limit=claim.limit,
                max_running=NO_RUNNING_LIMIT if running is None else running,
            )
            rows.sort(key=lambda row: (row["place"], row["since"], row["id"]))
            self._claimed = [row["id"] for row in rows]
            self._result.results[position] = [_lease(row) for row in rows]

    async def _write(self, connection: asyncpg.Connection, number: FlushNumber) -> None:
        """Execute ``write_flush``."""
        result = self._result
        appends = [each for each in self._all(Append) if each[0] not in result.refusals]
        appends.sort(key=lambda each: each[1].task_id)  # the order in which heads are locked
        rows = [
            _append_row(position, append, self._ready.get(position)) for position, append in appends
        ]
        replies = [
            (position, *reply) for position, append in appends for reply in append.replies
        ] + [(None, *reply) for _, reply in self._all(Reply)]
        releases = [release for _, release in self._all(Release)]
        refused = [*result.refusals, *result.again]
        refused += [position for position, made in result.results.items() if _is_replay(made)]
        row = await self.queries.write_flush.fetch_row(
            connection,
            writer=number.writer,
            previous_flush=number.previous,
            this_flush=number.number,
            refused=refused,
            claimed=self._claimed,
            node=self._node,
            counts_queue=self._changes_queue,
            **columns(APPEND_COLUMNS, rows),
            **columns(REPLY_COLUMNS, replies),
            **columns(RELEASE_COLUMNS, releases),
        )
        if row is None:
            raise FlushConflictError
        result.posters = [poster for poster in row["posters"] if poster is not None]
        if self._changes_queue:
            result.queued = _counts(row)
        fenced = set(row["refused"]) - set(refused)
        if fenced:
            await self._explain_appends(connection, fenced)

    async def _explain_appends(self, connection: asyncpg.Connection, fenced: set[int]) -> None:
        """Refuse the appends that did not match their heads, with the heads that were found."""
        appends = {position: append for position, append in self._all(Append) if position in fenced}
        rows = await self.queries.heads.fetch(
            connection, task_ids=[append.task_id for append in appends.values()]
        )
        heads = {row["task_id"]: to_head(row) for row in rows}
        for position, append in appends.items():
            self._result.refusals[position] = base.fenced(append, heads.get(append.task_id))


async def count_queue(connection: asyncpg.Connection, queries: Queries) -> dict[str, int]:
    """The number of each owner's tasks that wait for their first worker."""
    return {row["owner"]: row["count"] for row in await queries.queue.fetch(connection)}


def _counts(row: Mapping[str, Any]) -> dict[str, int]:
    """The queue from two arrays; ``array_agg`` of no rows is NULL."""
    return dict(zip(row["owners"] or (), row["counts"] or (), strict=True))


def to_head(row: Mapping[str, Any]) -> Head:
    """The head from the columns of the fragment ``head``."""
    return Head(
        task_id=row["task_id"],
        owner=row["owner"],
        status=TaskStatus(row["status"]),
        seq=row["seq"],
        epoch=row["epoch"],
        node=row["node"],
    )


def _lease(row: Mapping[str, Any]) -> Lease:
    """The lease from the columns of the fragment ``lease``."""
    return Lease(
        task_id=row["task_id"],
        epoch=row["epoch"],
        seq=row["seq"],
        spec=row["spec"],
        owner=row["owner"],
        interrupted=None if row["lease_end"] == LeaseEnd.CRASH else (),
        working=tuple((row["working"] or "").split()),
    )


def _create_row(position: int, task: NewTask, ready: int | None) -> tuple[Any, ...]:
    """A row of ``CREATE_COLUMNS``."""
    return (
        position,
        task.task_id,
        task.owner,
        task.status.value,
        len(task.events),
        ready,
        task.user_input.encode(),
        task.created_at,
        _key(task),
        task.spec,
        _body(task.events),
    )


def _append_row(position: int, append: Append, ready: int | None) -> tuple[Any, ...]:
    """A row of ``APPEND_COLUMNS``."""
    ends = append.status.is_terminal
    return (
        position,
        append.task_id,
        append.epoch,
        append.expected,
        append.expected + len(append.events),
        append.status.value,
        ready,
        append.at if ends else None,
        append.state if ends else None,
        " ".join(append.working) or None,
        _body(append.events),
    )


def _created(task: NewTask) -> Created:
    head = Head(task.task_id, task.owner, task.status, len(task.events), 0)
    return Created(head, replayed=False)


def _is_replay(result: object) -> bool:
    """Whether a ``create`` found its task and wrote nothing."""
    return isinstance(result, Created) and result.replayed


def may_change_queue(request: Request) -> bool:
    """Whether the flush of the request counts the queue, and so reads rows of other tasks."""
    match request:
        case NewTask():
            return request.status is TaskStatus.QUEUED
        case Append():  # epoch 0: the task was never claimed, so it may be in the queue
            ends_early = request.status.is_terminal and not request.epoch
            return request.status is TaskStatus.QUEUED or ends_early
    return isinstance(request, Claim)


def _body(events: Sequence[bytes]) -> bytes | None:
    return b"\n".join(events) if events else None


def _key(task: NewTask) -> bytes | None:
    return None if task.idempotency_key is None else task.idempotency_key.encode()
