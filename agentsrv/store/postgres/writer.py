"""One flush of the PostgreSQL store: a transaction that writes what many callers wait for.

Appends, answers and leases that are given back go in one statement, which commits by itself:
one round trip, one ``fsync``. Where tasks are created, queued or claimed, a transaction around it
takes some round trips more.

The last statement also writes which flush this is, and what in it was refused, to the writer's
row. After a lost connection that row tells whether the flush came through, and how it went; and
a flush that comes late, because its connection only seemed lost, finds another number there and
writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import asyncpg

from agentsrv.errors import OverloadedError
from agentsrv.models.states import TaskStatus
from agentsrv.store import base
from agentsrv.store.base import Append, Created, Head, Lease, LeaseEnd, NewTask
from agentsrv.store.postgres import statements as sql
from agentsrv.store.queue import QueueLimits

ANY_NUMBER: Final = 1 << 31  # more tasks than run anywhere


class Claim(NamedTuple):
    """Asks for leases."""

    limit: int


class Release(NamedTuple):
    """Gives a lease back."""

    task_id: str
    epoch: int


class Settle(NamedTuple):
    """Answers a message that caused no event."""

    number: int
    reply: bytes


Request = NewTask | Append | Claim | Release | Settle


class Mark(NamedTuple):
    """Which flush this is: ``number`` follows ``last`` in the row of ``writer``."""

    writer: int
    last: int
    number: int


class VersionConflict(Exception):
    """The writer's row is not at the flush that was thought to be the last: read it again."""


@dataclass(slots=True)
class Outcome:
    """What became of the requests, by their place; all others are done."""

    results: dict[int, Any] = field(default_factory=dict)
    refusals: dict[int, Exception] = field(default_factory=dict)
    again: list[int] = field(default_factory=list)
    """Wrote nothing and must be asked again: somebody else was writing the same."""
    queued: dict[str, int] | None = None
    """How many tasks of each owner wait, where the flush may have changed that."""
    posters: Sequence[int] = ()
    """The leases of the nodes whose messages were answered."""
    seconds: float = 0.0
    """How long it took until it was durable."""

    def forget_claims(self, requests: Sequence[Request]) -> None:
        """Give out none of the claimed tasks: the lease that they hang on is no more."""
        for place in self.results:
            if isinstance(requests[place], Claim):
                self.results[place] = []


class Flush:
    """One transaction for some requests, of which no two are about the same task.

    ``node`` is the lease that claimed tasks hang on; without one nothing is claimed.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        node: int | None,
        limits: QueueLimits,
        statements: sql.Statements,
    ) -> None:
        self._requests = requests
        self.statements = statements
        self._node = node
        self._limits = limits
        self._outcome = Outcome()
        self._claimed: list[int] = []
        self._ready: dict[int, int] = {}  # the places in the queue that appends take
        self._changes_queue = any(map(may_change_queue, requests))

    async def write(self, connection: asyncpg.Connection, mark: Mark) -> Outcome:
        """Write it; it is durable when this returns.

        Raises:
            Stale: Another flush came in between; nothing was written.
        """
        if not self._changes_queue and not self._all(NewTask):
            await self._conclude(connection, mark)
            return self._outcome
        async with connection.transaction():
            await self._create(connection)
            await self._claim(connection)
            await self._conclude(connection, mark)
        return self._outcome

    async def recall(self, connection: asyncpg.Connection, mark: Mark) -> Outcome:
        """What became of it, where the writer's row says that it came through."""
        outcome = self._outcome = Outcome()
        refused, claimed = await connection.fetchrow(
            "SELECT refused, claimed FROM writer WHERE id = $1", mark.writer
        )
        outcome.again = refused  # as they wrote nothing, they may be asked again
        for place, request in self._all(NewTask):
            if place not in refused:
                outcome.results[place] = _created(request)
        rows = await connection.fetch(sql.CLAIMED, claimed, self._node)
        for place, _ in self._all(Claim):
            outcome.results[place] = [_lease(*row) for row in rows]
        if self._changes_queue:
            outcome.queued = await queue(connection, self.statements)
        return outcome

    def _all(self, kind: type) -> list[tuple[int, Any]]:
        """The requests of a kind, with their places."""
        return [each for each in enumerate(self._requests) if isinstance(each[1], kind)]

    async def _create(self, connection: asyncpg.Connection) -> None:
        """Give out places in the queue, and make the tasks that are to be made."""
        outcome = self._outcome
        creates = dict(self._all(NewTask))
        keyed = [
            (place, task.owner, _key(task), task.created_at)
            for place, task in creates.items()
            if task.idempotency_key is not None
        ]
        queueing = self._queueing()
        expired: dict[int, int] = {}
        if keyed or queueing:
            first, owners, counts, *used = await connection.fetchrow(
                self.statements.look, *_columns(keyed, 4)
            )
            expired = self._replay(creates, used)
            self._give_places(queueing, first, _counts(owners, counts))
        for place in creates.keys() & outcome.refusals.keys():
            del creates[place]
        if not creates:
            return
        expired = {place: found for place, found in expired.items() if place in creates}
        if expired:
            successors = [creates[place].task_id for place in expired]
            await connection.execute(sql.EXPIRE, list(expired.values()), successors)
        rows = [
            (
                place,
                task.task_id,
                task.owner,
                task.status.value,
                len(task.events),
                self._ready.get(place),
                task.user_input.encode(),
                task.created_at,
                _key(task),
                task.spec,
                _body(task.events),
            )
            for place, task in creates.items()
        ]
        made = {place for (place,) in await connection.fetch(sql.CREATE, *_columns(rows, 11))}
        for place in made:
            outcome.results[place] = _created(creates[place])
        left = {place: task.task_id for place, task in creates.items() if place not in made}
        if left:
            found = await connection.fetch(sql.TAKEN, list(left.values()))
            taken = {task_id for (task_id,) in found}
            for place, task_id in left.items():
                if task_id in taken:
                    outcome.refusals[place] = base.id_taken(task_id)
                else:  # the key was used by another node just now
                    outcome.again.append(place)

    def _replay(
        self, creates: dict[int, NewTask], used: Sequence[Sequence[Any] | None]
    ) -> dict[int, int]:
        """Answer creates whose key was used; return who must give up the key for which others."""
        expired: dict[int, int] = {}
        for place, found, spec, is_fresh, *head in zip(
            *(column or () for column in used), strict=True
        ):
            task = creates[place]
            if not is_fresh:
                expired[place] = found
                continue
            del creates[place]
            if spec == task.spec:
                self._outcome.results[place] = Created(to_head(*head), replayed=True)
            else:
                self._outcome.refusals[place] = base.key_conflict(task.idempotency_key or "")
        return expired

    def _queueing(self) -> list[tuple[int, str]]:
        """Who is to be queued: places with their owners."""
        return [
            (place, request.owner)
            for place, request in enumerate(self._requests)
            if isinstance(request, NewTask | Append) and request.status is TaskStatus.QUEUED
        ]

    def _give_places(
        self, queueing: Sequence[tuple[int, str]], first: int, queued: dict[str, int]
    ) -> None:
        """Give places in the queue behind ``first``; refuse those for whom there is no room."""
        outcome, total = self._outcome, sum(queued.values())
        for place, owner in queueing:
            if place in outcome.results or place in outcome.refusals:
                continue
            try:
                self._limits.check(queued.get(owner, 0), total)
            except OverloadedError as refusal:
                outcome.refusals[place] = refusal
                continue
            self._ready[place] = first + place
            queued[owner] = queued.get(owner, 0) + 1
            total += 1

    async def _claim(self, connection: asyncpg.Connection) -> None:
        for place, claim in self._all(Claim):
            if self._node is None or claim.limit <= 0:
                self._outcome.results[place] = []
                continue
            running = ANY_NUMBER if self._limits.running is None else self._limits.running
            rows = sorted(
                await connection.fetch(self.statements.claim, self._node, claim.limit, running)
            )
            self._claimed = [row[2] for row in rows]
            self._outcome.results[place] = [_lease(*row[3:]) for row in rows]

    async def _conclude(self, connection: asyncpg.Connection, mark: Mark) -> None:
        """Write everything else, and that this flush was written."""
        outcome = self._outcome
        appends = [each for each in self._all(Append) if each[0] not in outcome.refusals]
        # Locked in this order by every node: so they do not deadlock.
        appends.sort(key=lambda each: each[1].task_id)
        rows = [_append_row(place, append, self._ready.get(place)) for place, append in appends]
        answers = [(place, *reply) for place, append in appends for reply in append.replies] + [
            (None, *settle) for _, settle in self._all(Settle)
        ]
        refused = [*outcome.refusals, *outcome.again]
        refused += [place for place, made in outcome.results.items() if _is_replay(made)]
        row = await connection.fetchrow(
            self.statements.write,
            *mark[:2],
            mark.number,
            refused,
            self._claimed,
            *_columns(rows, 11),
            *_columns(answers, 3),
            *_columns([release for _, release in self._all(Release)], 2),
            self._changes_queue,
            self._node,
        )
        if row is None:
            raise VersionConflict
        found, posters, owners, counts = row
        outcome.posters = [poster for poster in posters if poster is not None]
        if self._changes_queue:
            outcome.queued = _counts(owners, counts)
        fenced = set(found) - set(refused)
        if fenced:
            await self._explain(connection, fenced)

    async def _explain(self, connection: asyncpg.Connection, fenced: set[int]) -> None:
        """Tell those whose appends did not match where their tasks are."""
        appends = {place: append for place, append in self._all(Append) if place in fenced}
        task_ids = [append.task_id for append in appends.values()]
        rows = await connection.fetch(sql.HEADS, task_ids)
        heads = {row[0]: to_head(*row) for row in rows}
        for place, append in appends.items():
            self._outcome.refusals[place] = base.fenced(append, heads.get(append.task_id))


async def queue(connection: asyncpg.Connection, statements: sql.Statements) -> dict[str, int]:
    """How many tasks of each owner wait for their first worker."""
    return dict(map(tuple, await connection.fetch(statements.queue)))


def _counts(owners: Sequence[str] | None, counts: Sequence[int] | None) -> dict[str, int]:
    """Two columns as one; ``None`` is what PostgreSQL makes of no rows."""
    return dict(zip(owners or (), counts or (), strict=True))


def to_head(  # noqa: PLR0917 - a row of the columns HEAD
    task_id: str, owner: str, status: str, seq: int, epoch: int, node: str | None
) -> Head:
    """A row of the columns ``HEAD``."""
    return Head(task_id, owner, TaskStatus(status), seq, epoch, node)


def _lease(  # noqa: PLR0917 - a row of the columns LEASE
    task_id: str,
    epoch: int,
    seq: int,
    spec: bytes,
    owner: str,
    lease_end: int,
    working: str | None,
) -> Lease:
    interrupted = None if lease_end == LeaseEnd.CRASH else ()
    return Lease(task_id, epoch, seq, spec, owner, interrupted, tuple((working or "").split()))


def _append_row(place: int, append: Append, ready: int | None) -> tuple[Any, ...]:
    ends = append.status.is_terminal
    return (
        place,
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
    """Whether the flush of a request counts the queue, and so reads rows of other tasks."""
    match request:
        case NewTask():
            return request.status is TaskStatus.QUEUED
        case Append():  # one that was never claimed may have stood in the queue
            ends_early = request.status.is_terminal and not request.epoch
            return request.status is TaskStatus.QUEUED or ends_early
    return isinstance(request, Claim)


def _body(events: Sequence[bytes]) -> bytes | None:
    return b"\n".join(events) if events else None


def _key(task: NewTask) -> bytes | None:
    return None if task.idempotency_key is None else task.idempotency_key.encode()


def _columns(rows: Sequence[Sequence[Any]], count: int) -> Sequence[Sequence[Any]]:
    """What ``unnest`` makes these rows of."""
    return list(zip(*rows, strict=True)) if rows else [()] * count
