"""PostgresStore: many nodes, one truth.

Each node has a few connections: the flusher writes by one, the lease beats by another, the bus
listens on a third, and a small pool reads. What they write and ask is told in their modules; here
is what they make together.

Unlike an SQLite file, the server may go away and come back. Nothing that was acknowledged is lost
by that, and nobody has to be started again; ``broken`` is called for a fault of this store only.
"""

from __future__ import annotations

import asyncio
import logging
import math
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import asyncpg

from agentsrv.error_text import describe
from agentsrv.errors import AgentsrvError, ConfigurationError, DamagedError, UnavailableError
from agentsrv.models.states import TaskStatus
from agentsrv.models.usage import Use
from agentsrv.store import base
from agentsrv.store.attempt_marks import AttemptMarks
from agentsrv.store.base import (
    Append,
    Commit,
    Created,
    Head,
    Lease,
    LogHead,
    NewTask,
    Page,
    Span,
    StoreListener,
)
from agentsrv.store.notifier import Notification, Notifications, Notifier
from agentsrv.store.postgres import connections, reader
from agentsrv.store.postgres.damage import Damage, TooMuchDamageError, search
from agentsrv.store.postgres.flush import Flusher, Operation
from agentsrv.store.postgres.lease import (
    DEFAULT_TIMING,
    FORGET,
    NodeLease,
    Timing,
    boot_clock,
)
from agentsrv.store.postgres.notifier import open_bus
from agentsrv.store.postgres.schema import migrate
from agentsrv.store.postgres.statements import Statements, statements
from agentsrv.store.postgres.writer import Claim, Outcome, Release, Settle, queue
from agentsrv.store.queue import QueueLimits
from agentsrv.store.shared import Message, Node

T = TypeVar("T")

OPEN_PATIENCE: Final = 20.0  # seconds that ``open`` waits; a supervisor then starts the node again
FORGETTING: Final = 600  # sweeps between looks at what nobody needs any more
SEARCH_AGAIN: Final = 60.0  # seconds after a search for damaged tasks that found nothing

_log = logging.getLogger("agentsrv.store")


class PostgresStore:
    """A ``SharedStore`` in a PostgreSQL database, which may have other schemas beside.

    Owns the tasks of asyncio in which it writes, beats, sweeps and listens: born in ``open``,
    ended in ``close``.

    Args:
        dsn: ``postgresql://user@host/database``; several hosts where one takes over from another.
        node: The name that others see; two nodes should not have the same.
        bus: Where hints go: PostgreSQL itself, or ``redis://host``.
        role: What the node is for; others see it.
        limits: Tasks that may wait and run, in the whole cluster. Nodes that queue or claim at the
            same moment may overshoot them by what they flush then.
        timing: How long leases are.
        clock: Seconds of the node's own clock.
    """

    def __init__(
        self,
        dsn: str,
        *,
        node: str,
        bus: Notifier | str | None = None,
        role: str = "all",
        limits: QueueLimits | None = None,
        timing: Timing = DEFAULT_TIMING,
        clock: Callable[[], float] = boot_clock,
    ) -> None:
        self.node = node
        self._limits = limits or QueueLimits()
        self._queued: Mapping[str, int] = {}
        self._dsn = dsn
        self._notifier = bus
        self._timing = timing
        self._clock = clock
        self._lease = NodeLease(dsn, node, role, timing, clock, on_lost=self._leases_lost)
        self._flusher = Flusher(
            dsn,
            self._lease,
            self._limits,
            clock,
            self._settled,
            note_damage=self._note_damage,
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._left_out: dict[int, Damage] = {}  # damaged tasks, by their numbers
        self._search: asyncio.Task[None] | None = None  # for damaged tasks
        self._searched = -math.inf  # when the last search found nothing, by the clock
        self._pool: asyncpg.Pool
        self._hints: Notifications
        self.marks: AttemptMarks | None = None  # another node must learn of a start
        self.commits_starts = True
        self._listener = base.SILENT
        self.damage: dict[str, str] = {}
        self.trouble: str | None = None

    @property
    def queued(self) -> int:
        """See ``Store.queued``; other nodes' changes are noticed within a sweep."""
        return sum(self._queued.values())

    def queued_by(self, owner: str) -> int:
        """See ``Store.queued_by``."""
        return self._queued.get(owner, 0)

    @property
    def lag(self) -> float:
        """See ``SharedStore.lag``."""
        return self._lease.lag

    @lag.setter
    def lag(self, seconds: float) -> None:
        self._lease.lag = seconds

    async def open(self, listener: StoreListener = base.SILENT) -> None:
        """See ``Store.open``. The schema is made, or brought up to date.

        Raises:
            ConfigurationError: The URL is not valid, the server does not let the node in, or it
                is too old. The message has host and port, and no password.
            Unavailable: The server was not reached within ``OPEN_PATIENCE`` seconds.
        """
        self._listener = listener
        bus = open_bus(self._notifier, self._dsn)
        name = await self._reach()
        self._pool = await connections.connect_pool(self._dsn)
        channel = f"agentsrv_{name}"
        self._hints = Notifications(bus, self._lease.writer, channel, self._heard, self._missed)
        self._own(self._flusher.run(), "flusher")
        self._own(self._lease.run(), "lease")
        self._own(self._sweep(), "sweep")
        self._own(self._hints.run(), "hints")

    async def _reach(self) -> str:
        """Wait until the server can be reached; see ``open`` for how long and what is raised."""
        give_up, is_told = self._clock() + OPEN_PATIENCE, False
        while True:
            try:
                return await self._migrate()
            except (*connections.FAILED, ConfigurationError) as error:
                reason = f"cannot open the PostgreSQL store{connections.explain(error, self._dsn)}"
                if not may_pass(error):
                    raise ConfigurationError(reason) from None
                if self._clock() > give_up:
                    raise UnavailableError(reason) from None
                if not is_told:
                    _log.warning("%s; waiting up to %g s for it", reason, OPEN_PATIENCE)
                is_told = True
            await asyncio.sleep(connections.LONGEST_PAUSE)

    async def _migrate(self) -> str:
        """Make what the node needs in the database, and return the store's name."""
        connection = await connections.connect(self._dsn)
        try:
            name = await migrate(connection)
            async with connection.transaction():
                self._lease.writer = await self._flusher.open(connection)
                await self._lease.open(connection)
            try:
                await connection.execute(self._flusher.statements.reap)
                self._queued = await queue(connection, self._flusher.statements)
            except connections.DAMAGED as error:  # the sweeps say so again and again
                _log.error("PostgreSQL cannot read a page: %s", describe(error))
            return name
        finally:
            connection.terminate()

    async def announce_stop(self) -> None:
        """See ``Store.announce_stop``."""
        try:
            async with connections.borrowed(self._pool) as connection:
                await self._lease.announce_stop(connection)
        except connections.FAILED as error:
            _log.warning("the stop could not be announced: %r", error)

    async def close(self) -> None:
        """See ``Store.close``. What is still leased can be claimed by others at once."""
        if not self._tasks:
            return
        await self._flusher.close()
        if self._search is not None:
            self._tasks.add(self._search)
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        self._tasks.clear()
        try:
            async with connections.borrowed(self._pool) as connection:
                await self._lease.give_back(connection)
        except connections.FAILED as error:
            _log.warning("leases were not given back; they expire: %r", error)
        self._pool.terminate()

    async def check(self) -> None:
        """See ``Store.check``."""
        if self._flusher.trouble is None:
            await self._read(partial(reader.head, task_id=""))
        else:
            await self._flusher.submit(Claim(0))  # which claims nothing, and finds out

    async def create(self, task: NewTask) -> Created:
        """See ``Store.create``."""
        base.check_texts(task)  # here, not amid others in a flush
        created: Created = await self._submit(task)
        return created

    async def head(self, task_id: str) -> Head | None:
        """See ``Store.head``."""
        if not base.is_name(task_id):
            return None
        await self._flusher.settled(task_id)
        return await self._read(partial(reader.head, task_id=task_id), task_id)

    async def find(self, owner: str, prefix: str) -> Sequence[str]:
        """See ``Store.find``."""
        if not base.is_name(owner, prefix):
            return ()
        return await self._find(partial(reader.find, owner=owner, prefix=prefix))

    async def find_key(self, owner: str, idempotency_key: str) -> str | None:
        """See ``Store.find_key``."""
        if not base.is_name(owner) or not base.is_text(idempotency_key):
            return None
        return await self._read(lambda db: reader.find_key(db, owner, idempotency_key))

    async def read(self, task_id: str, after: int, limit: int) -> Sequence[bytes]:
        """See ``Store.read``."""
        if not base.is_name(task_id):
            return ()
        await self._flusher.settled(task_id)
        spans = [Span(task_id, after, limit)]
        (log,) = await self._read(partial(reader.read_each, spans=spans), task_id)
        return log

    async def read_each(self, spans: Sequence[Span]) -> Sequence[Sequence[bytes] | None]:
        """See ``Store.read_each``."""
        if not all(base.is_name(span.task_id) for span in spans):
            return await self._read_singly(spans)
        for span in spans:
            await self._flusher.settled(span.task_id)
        try:
            return await self._try_read(partial(reader.read_each, spans=spans))
        except connections.DAMAGED:
            return await self._read_singly(spans)

    async def _read_singly(self, spans: Sequence[Span]) -> Sequence[Sequence[bytes] | None]:
        """Read one log after the other; ``None`` for a damaged one."""
        found: list[Sequence[bytes] | None] = []
        for span in spans:
            try:
                found.append(await self.read(*span))
            except DamagedError:
                found.append(None)
        return found

    async def spec(self, task_id: str) -> bytes | None:
        """See ``Store.spec``."""
        if not base.is_name(task_id):
            return None
        return await self._read(lambda db: reader.column(db, "spec", task_id), task_id)

    async def state(self, task_id: str) -> bytes | None:
        """See ``Store.state``."""
        if not base.is_name(task_id):
            return None
        return await self._read(lambda db: reader.column(db, "state", task_id), task_id)

    async def list(
        self, owner: str, status: TaskStatus | None, limit: int, cursor: str | None
    ) -> Page:
        """See ``Store.list``."""
        before = base.parse_cursor(cursor)
        if not base.is_name(owner):
            return Page([], 0, None)
        return await self._find(
            lambda db, find: reader.page(db, find, owner, status, limit, before)
        )

    def append(self, append: Append) -> asyncio.Future[None]:
        """See ``Store.append``."""
        return self._submit(append)

    async def claim(self, node: str, limit: int) -> Sequence[Lease]:  # noqa: ARG002 - see below
        """See ``Store.claim``. The node is this one, whatever it is called.

        While it has no lease of its own, it gets nothing. A cancelled claim gives back what it got.
        """
        leases: Sequence[Lease] = await self._flusher.submit(Claim(limit))
        return leases

    async def release(self, task_id: str, epoch: int) -> None:
        """See ``Store.release``."""
        await self._flusher.submit(Release(task_id, epoch))

    async def purge(self, before: float, limit: int) -> int:
        """See ``Store.purge``."""
        return await self._find(lambda db, find: reader.purge(db, find, before, limit))

    async def news(self, task_ids: Sequence[str], owners: Sequence[str]) -> Sequence[LogHead]:
        """See ``SharedStore.news``."""
        return await self._find(lambda db, find: reader.news(db, find, task_ids, owners))

    async def post(self, task_id: str, body: bytes) -> int:
        """See ``SharedStore.post``.

        Raises:
            NotFoundError: There is no such task.
        """
        number = await self._read(reader.next_number)
        poster = self._lease.id
        holder = await self._read(
            lambda db: reader.post(db, number, task_id, poster, body), task_id
        )
        if holder is not None:
            if holder == self._lease.id:
                base.notify(self._listener.inbox)
            else:
                self._hints.add(inbox=[holder])
        return number

    async def withdraw(self, number: int) -> bytes | None:
        """See ``SharedStore.withdraw``."""
        return await self._read(lambda db: reader.withdraw(db, number))

    async def replies(self, numbers: Sequence[int]) -> Mapping[int, bytes]:
        """See ``SharedStore.replies``."""
        return await self._read(lambda db: reader.replies(db, numbers))

    async def inbox(self) -> Sequence[Message]:
        """See ``SharedStore.inbox``."""
        lease = self._lease.id
        if lease is None:
            return ()
        return await self._find(lambda db, find: reader.inbox(db, find, lease))

    async def settle(self, number: int, reply: bytes) -> None:
        """See ``SharedStore.settle``."""
        await self._flusher.submit(Settle(number, reply))

    async def share(self, uses: Mapping[str, Use]) -> Sequence[Mapping[str, Use]]:
        """See ``SharedStore.share``."""
        return await self._read(lambda db: reader.share(db, self._lease.writer, uses))

    async def nodes(self) -> Sequence[Node]:
        """See ``SharedStore.nodes``."""
        return await self._find(reader.nodes)

    def _submit(self, request: NewTask | Append) -> asyncio.Future[Any]:
        """Hand a request over; who claims at once gets what it queues by the same flush."""
        done = self._flusher.submit(request)
        if request.status is TaskStatus.QUEUED:
            base.notify(self._listener.ready)
        return done

    # What happens by itself.

    def _own(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=f"agentsrv-postgres {name}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """None of these tasks ends by itself: if one does, this store is at fault."""
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("the store broke", exc_info=error)
            self._flusher.closed = True
            base.notify(self._listener.broken, error)

    async def _read(self, work: Callable[[Any], Awaitable[T]], task_id: str | None = None) -> T:
        """Do ``work``, which concerns one task if ``task_id`` is given.

        Raises:
            Damaged: A page of the task cannot be read.
            Unavailable: The server cannot be reached, or another page cannot be read.
        """
        try:
            return await self._try_read(work)
        except connections.DAMAGED as error:
            if task_id is None:
                _log.error("PostgreSQL cannot read a page: %s", describe(error))
                raise connections.damage(error) from error
            self._note_damage(task_id, error)
            raise base.damaged(task_id) from error

    async def _find(self, work: Callable[[Any, Statements], Awaitable[T]]) -> T:
        """Do ``work``, which looks for tasks by these statements.

        Raises:
            Unavailable: The server cannot be reached, or a page cannot be read.
        """
        while True:
            found = self._flusher.statements
            try:
                return await self._try_read(lambda db: work(db, found))  # noqa: B023 - awaited here
            except connections.DAMAGED as error:
                if found is self._flusher.statements:  # they do not leave the page out
                    _log.error("PostgreSQL cannot read a page: %s", describe(error))
                    self._note_damage(None, error)
                    raise connections.damage(error) from error

    async def _try_read(self, work: Callable[[Any], Awaitable[T]]) -> T:
        if not self._tasks:
            raise UnavailableError("the store is closed")
        return await connections.reading(self._pool, self._clock, work)

    def _note_damage(self, task_id: str | None, error: object) -> None:
        """Remember that a task cannot be used, and log it once; search for it if it is unknown."""
        if task_id is None:
            if self._clock() > self._searched + SEARCH_AGAIN:
                self._begin_search(is_due=False)
        elif task_id not in self.damage:
            self.damage[task_id] = str(error)
            _log.error(
                "task %s cannot be read from PostgreSQL: %s; the other tasks run. Look at the "
                "server's disk and log, and restore the table from a standby or a backup",
                task_id,
                error,
                extra={"about": {"task_id": task_id}},
            )

    def _begin_search(self, *, is_due: bool) -> None:
        if self._search is None or self._search.done():
            self._search = asyncio.create_task(self._search_damage(is_due=is_due))

    async def _search_damage(self, *, is_due: bool) -> None:
        """Find the tasks that cannot be read, so that they are left out where tasks are looked for.

        A search that ``is_due`` was not caused by a statement that failed.
        """
        found = dict[int, Damage]()
        try:
            async for piece in search(self._try_read):
                found |= {damage.number: damage for damage in piece.damage}
        except (TooMuchDamageError, AgentsrvError, *connections.DAMAGED) as error:
            _log.error("the damaged tasks of PostgreSQL were not found: %s", describe(error))
            self._searched = self._clock()
            return
        if not is_due and found.keys() <= self._left_out.keys():
            _log.error(
                "PostgreSQL cannot read a page, but every task that is not known to be damaged can "
                "be read: the page may be of an index; try REINDEX TABLE task"
            )
            self._searched = self._clock()
        for number in self._left_out.keys() - found.keys():  # was repaired
            self.damage.pop(self._left_out[number].name, None)
        self._left_out = found
        self._flusher.statements = statements(tuple(sorted(found)))
        for damage in found.values():
            self._note_damage(damage.name, damage.reason)
        base.notify(self._listener.ready)

    def _settled(self, settled: Sequence[tuple[Operation, Any]], outcome: Outcome) -> None:
        """Tell everybody, here and elsewhere, what a flush has written."""
        news: list[LogHead] = []
        is_ready = False
        is_left = bool(outcome.queued)  # by whoever claims here
        for operation, result in settled:
            request, done = operation.request, operation.done
            if isinstance(result, Exception):
                if not done.cancelled():
                    done.set_exception(result)
                continue
            if not done.cancelled():
                done.set_result(result)
            match request:
                case NewTask() if not result.replayed:
                    commit = Commit(request.task_id, request.owner, 0, request.events)
                    base.notify(self._listener.committed, commit)
                    news.append(LogHead(request.task_id, request.owner, len(request.events)))
                    is_ready |= is_left and request.status is TaskStatus.QUEUED
                case Append() if request.events:
                    commit = Commit(
                        request.task_id, request.owner, request.expected, request.events
                    )
                    base.notify(self._listener.committed, commit)
                    seq = request.expected + len(request.events)
                    news.append(LogHead(request.task_id, request.owner, seq))
                    is_ready |= is_left and request.status is TaskStatus.QUEUED
                    # Its owner may have been at the limit of running tasks.
                    ends = self._limits.running is not None and request.status.is_terminal
                    is_ready |= ends and self.queued_by(request.owner) > 0
                case Release():
                    is_ready = True
                case Claim() if done.cancelled():
                    self._give_back(result)
        base.notify(self._listener.durable, outcome.seconds)
        if outcome.queued is not None:
            self._queued = outcome.queued
        if is_ready:
            base.notify(self._listener.ready)
        if self._lease.id in outcome.posters:
            base.notify(self._listener.inbox)
        self._hints.add(news, is_ready=is_ready, replies=outcome.posters)

    def _give_back(self, leases: Sequence[Lease]) -> None:
        """Let others have what was claimed for somebody who went away meanwhile."""
        for lease in leases:
            # If that fails, the sweep of another node finds them when this one is gone.
            self._flusher.submit(Release(lease.task_id, lease.epoch)).add_done_callback(
                lambda done: done.cancelled() or done.exception()
            )

    def _leases_lost(self) -> None:
        base.notify(self._listener.leases_lost)

    def _heard(self, hint: Notification) -> None:
        if hint.news:
            base.notify(self._listener.news, hint.news)
        if hint.is_ready:
            base.notify(self._listener.ready)
        if self._lease.id in hint.inbox or self._lease.id in hint.replies:
            base.notify(self._listener.inbox)

    def _missed(self) -> None:
        """Hints were lost: there may be anything."""
        base.notify(self._listener.ready)
        base.notify(self._listener.inbox)

    async def _reap(self, db: Any, find: Statements) -> tuple[int, Mapping[str, int]]:
        """Take the tasks of nodes that died; return how many, and the queue."""
        return await db.fetchval(find.reap), await queue(db, find)

    async def _sweep(self) -> None:
        """Find what no hint has told of, and the tasks of nodes that died."""
        sweeps = 0
        while True:
            await asyncio.sleep(self._timing.sweep)
            base.notify(self._listener.ready)
            base.notify(self._listener.inbox)
            try:
                reaped, self._queued = await self._find(self._reap)
                if sweeps % FORGETTING == 0:
                    if self._left_out:  # a damaged task may need a row that would be forgotten
                        self._begin_search(is_due=True)
                    else:
                        await self._read(lambda db: db.execute(FORGET))
            except (*connections.FAILED, UnavailableError) as error:
                level = logging.ERROR if isinstance(error, connections.DAMAGED) else logging.DEBUG
                _log.log(level, "nothing was swept: %s", describe(error))
                continue
            sweeps += 1
            if reaped:
                _log.warning("%d tasks of nodes that are gone can be claimed", reaped)
                base.notify(self._listener.ready)
                self._hints.add(is_ready=True)


def may_pass(error: BaseException) -> bool:
    """Whether a server that cannot be opened now may be opened later, with the same settings."""
    if isinstance(error, ConfigurationError | ssl.SSLCertVerificationError | PermissionError):
        return False
    return isinstance(error, connections.AWAY)
