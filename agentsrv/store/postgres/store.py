"""PostgresStore: one database, used by several nodes.

The store combines four parts, each with its own connections: the `Flusher` writes, the `NodeLease`
renews the lease, the notifier listens, and a pool of ``connections.POOL_SIZE`` reads. A sweep every
``Timing.sweep_interval`` seconds finds everything of which a notification was lost, and takes the
tasks of lost nodes.

PostgreSQL may go away and come back. Nothing that was acknowledged is lost, and no restart is
needed; the listener's ``broken`` is called only if one of the store's own tasks ends with an error.

Damaged pages. A statement about one task that meets a damaged page fails with ``DamagedError``. A
statement that searches for tasks fails without naming the task. A search (`damage`) then finds the
damaged tasks, and ``_flusher.queries`` is replaced by statements that leave them out.
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
from agentsrv.store.postgres.damage import DamagedTask, TooMuchDamageError, search
from agentsrv.store.postgres.flush import Flusher, PendingRequest
from agentsrv.store.postgres.lease import DEFAULT_TIMING, NodeLease, Timing, boot_clock
from agentsrv.store.postgres.notifier import open_notifier
from agentsrv.store.postgres.schema import migrate
from agentsrv.store.postgres.sql import Queries, Query, queries
from agentsrv.store.postgres.writer import Claim, FlushResult, Release, Reply, count_queue
from agentsrv.store.queue import QueueLimits
from agentsrv.store.shared import Message, Node

T = TypeVar("T")

OPEN_TIMEOUT: Final = 20.0  # seconds that ``open`` waits; a supervisor then restarts the node
SWEEPS_PER_CLEANUP: Final = 600  # a cleanup deletes old rows of nodes, writers and messages
DAMAGE_SEARCH_INTERVAL: Final = 60.0  # seconds after a search that found no damaged task

_log = logging.getLogger("agentsrv.store")


class PostgresStore:
    """A ``SharedStore`` in one schema of a PostgreSQL database.

    ``open`` starts the asyncio tasks that write, renew the lease, sweep and listen; ``close`` ends
    them.

    Args:
        dsn: ``postgresql://user@host/database``; several hosts for a failover.
        node: The name that ``nodes`` lists; it should be unique.
        bus: Carries notifications: a `Notifier`, a URL of Redis, or PostgreSQL itself (``None``).
        role: The node's role, which ``nodes`` lists.
        limits: Tasks that may wait and run, in the whole cluster. Nodes that queue or claim at the
            same moment may exceed them by one flush each.
        timing: The lease and the sweep.
        clock: The node's own clock, in seconds.
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
            self._flushed,
            note_damage=self._note_damage,
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._left_out: dict[int, DamagedTask] = {}
        """Damaged tasks that the statements leave out, by number."""
        self._search: asyncio.Task[None] | None = None
        """The last search for damaged tasks."""
        self._searched = -math.inf
        """When a search last found no new damage, by the clock."""
        self._pool: asyncpg.Pool
        self._notifications: Notifications
        self.marks: AttemptMarks | None = None  # another node must see the start of an attempt
        self.commits_starts = True
        self._listener = base.SILENT
        self.damage: dict[str, str] = {}
        self.trouble: str | None = None

    @property
    def queued(self) -> int:
        """See ``Store.queued``; changes of other nodes are counted at the next sweep."""
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
        """See ``Store.open``. The schema is created or migrated.

        Raises:
            ConfigurationError: The URL is not valid, or the server rejects the node or is too old.
                The message contains host and port, but no password.
            UnavailableError: The server was not reached within ``OPEN_TIMEOUT`` seconds.
        """
        self._listener = listener
        notifier = open_notifier(self._notifier, self._dsn)
        name = await self._reach()
        self._pool = await connections.connect_pool(self._dsn)
        channel = f"agentsrv_{name}"
        self._notifications = Notifications(
            notifier, self._lease.writer, channel, self._notified, self._missed
        )
        self._own(self._flusher.run(), "flusher")
        self._own(self._lease.run(), "lease")
        self._own(self._sweep(), "sweep")
        self._own(self._notifications.run(), "notifications")

    async def _reach(self) -> str:
        """Connect and migrate; repeat for ``OPEN_TIMEOUT`` seconds while the server is away."""
        give_up, is_logged = self._clock() + OPEN_TIMEOUT, False
        while True:
            try:
                return await self._migrate()
            except (*connections.FAILED, ConfigurationError) as error:
                reason = f"cannot open the PostgreSQL store{connections.explain(error, self._dsn)}"
                if not may_pass(error):
                    raise ConfigurationError(reason) from None
                if self._clock() > give_up:
                    raise UnavailableError(reason) from None
                if not is_logged:
                    _log.warning("%s; waiting up to %g s for it", reason, OPEN_TIMEOUT)
                is_logged = True
            await asyncio.sleep(connections.MAX_RETRY_DELAY)

    async def _migrate(self) -> str:
        """Migrate the schema, insert the node's rows, and return the store's name."""
        connection = await connections.connect(self._dsn)
        try:
            name = await migrate(connection)
            async with connection.transaction():
                self._lease.writer = await self._flusher.open(connection)
                await self._lease.open(connection)
            try:
                _, self._queued = await self._reclaim(connection, self._flusher.queries)
            except connections.DAMAGED as error:  # the next sweep searches for the damage
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
        """See ``Store.close``. Other nodes can claim the remaining tasks at once."""
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
            _log.warning("leases were not released; they expire: %r", error)
        self._pool.terminate()

    async def check(self) -> None:
        """See ``Store.check``."""
        if self._flusher.trouble is None:
            await self._read(partial(reader.head, task_id=""))
        else:
            await self._flusher.submit(Claim(0))  # claims nothing, but writes

    async def create(self, task: NewTask) -> Created:
        """See ``Store.create``."""
        base.check_texts(task)  # here, so that it cannot fail the flush of other requests
        created: Created = await self._submit(task)
        return created

    async def head(self, task_id: str) -> Head | None:
        """See ``Store.head``."""
        if not base.is_name(task_id):
            return None
        await self._flusher.wait_for_writes(task_id)
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
        await self._flusher.wait_for_writes(task_id)
        spans = [Span(task_id, after, limit)]
        (log,) = await self._read(partial(reader.read_each, spans=spans), task_id)
        return log

    async def read_each(self, spans: Sequence[Span]) -> Sequence[Sequence[bytes] | None]:
        """See ``Store.read_each``."""
        if not all(base.is_name(span.task_id) for span in spans):
            return await self._read_singly(spans)
        for span in spans:
            await self._flusher.wait_for_writes(span.task_id)
        try:
            return await self._try_read(partial(reader.read_each, spans=spans))
        except connections.DAMAGED:
            return await self._read_singly(spans)

    async def _read_singly(self, spans: Sequence[Span]) -> Sequence[Sequence[bytes] | None]:
        """Read one log after another; ``None`` for a damaged one."""
        found: list[Sequence[bytes] | None] = []
        for span in spans:
            try:
                found.append(await self.read(*span))
            except DamagedError:
                found.append(None)
        return found

    async def spec(self, task_id: str) -> bytes | None:
        """See ``Store.spec``."""
        return await self._column(queries().read_spec, task_id)

    async def state(self, task_id: str) -> bytes | None:
        """See ``Store.state``."""
        return await self._column(queries().read_state, task_id)

    async def _column(self, query: Query, task_id: str) -> bytes | None:
        if not base.is_name(task_id):
            return None
        value: bytes | None = await self._read(partial(query.fetch_value, task_id=task_id), task_id)
        return value

    async def list(
        self, owner: str, status: TaskStatus | None, limit: int, cursor: str | None
    ) -> Page:
        """See ``Store.list``."""
        before = base.parse_cursor(cursor)
        if not base.is_name(owner):
            return Page([], 0, None)
        return await self._find(
            lambda db, queries: reader.page(db, queries, owner, status, limit, before)
        )

    def append(self, append: Append) -> asyncio.Future[None]:
        """See ``Store.append``."""
        return self._submit(append)

    async def claim(self, node: str, limit: int) -> Sequence[Lease]:  # noqa: ARG002 - see below
        """See ``Store.claim``. ``node`` is ignored: tasks are leased to this node.

        Without a lease of its own the node gets no tasks. A cancelled claim is given back.
        """
        leases: Sequence[Lease] = await self._flusher.submit(Claim(limit))
        return leases

    async def release(self, task_id: str, epoch: int) -> None:
        """See ``Store.release``."""
        await self._flusher.submit(Release(task_id, epoch))

    async def purge(self, before: float, limit: int) -> int:
        """See ``Store.purge``."""
        return await self._find(lambda db, queries: reader.purge(db, queries, before, limit))

    async def news(self, task_ids: Sequence[str], owners: Sequence[str]) -> Sequence[LogHead]:
        """See ``SharedStore.news``."""
        return await self._find(lambda db, queries: reader.news(db, queries, task_ids, owners))

    async def post(self, task_id: str, body: bytes) -> int:
        """See ``SharedStore.post``."""
        number = await self._read(reader.next_number)
        poster = self._lease.id
        holder = await self._read(
            lambda db: reader.post(db, number, task_id, poster, body), task_id
        )
        if holder is not None:
            if holder == self._lease.id:
                base.notify(self._listener.inbox)
            else:
                self._notifications.add(inbox=[holder])
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
        return await self._find(lambda db, queries: reader.inbox(db, queries, lease))

    async def reply(self, number: int, body: bytes) -> None:
        """See ``SharedStore.reply``."""
        await self._flusher.submit(Reply(number, body))

    async def share(self, uses: Mapping[str, Use]) -> Sequence[Mapping[str, Use]]:
        """See ``SharedStore.share``."""
        return await self._read(lambda db: reader.share(db, self._lease.writer, uses))

    async def nodes(self) -> Sequence[Node]:
        """See ``SharedStore.nodes``."""
        return await self._find(reader.nodes)

    def _submit(self, request: NewTask | Append) -> asyncio.Future[Any]:
        """Submit a request; a claim by the listener's ``ready`` joins the same flush."""
        done = self._flusher.submit(request)
        if request.status is TaskStatus.QUEUED:
            base.notify(self._listener.ready)
        return done

    # The store's own tasks.

    def _own(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=f"agentsrv-postgres {name}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Called when one of the tasks ends. Only ``close`` ends them; an error is a bug."""
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("the store broke", exc_info=error)
            self._flusher.closed = True
            base.notify(self._listener.broken, error)

    async def _read(self, work: Callable[[Any], Awaitable[T]], task_id: str | None = None) -> T:
        """Execute a read, of one task if ``task_id`` is given.

        Raises:
            DamagedError: A page of the task cannot be read.
            UnavailableError: The server cannot be reached, or another page cannot be read.
        """
        try:
            return await self._try_read(work)
        except connections.DAMAGED as error:
            if task_id is None:
                _log.error("PostgreSQL cannot read a page: %s", describe(error))
                raise connections.store_damaged(error) from error
            self._note_damage(task_id, error)
            raise base.damaged(task_id) from error

    async def _find(self, work: Callable[[Any, Queries], Awaitable[T]]) -> T:
        """Execute a statement that searches for tasks; repeat it if damage was found meanwhile.

        Raises:
            UnavailableError: The server cannot be reached, or a page cannot be read.
        """
        while True:
            current = self._flusher.queries
            try:
                return await self._try_read(lambda db: work(db, current))  # noqa: B023 - awaited here
            except connections.DAMAGED as error:
                if current is self._flusher.queries:
                    _log.error("PostgreSQL cannot read a page: %s", describe(error))
                    self._note_damage(None, error)
                    raise connections.store_damaged(error) from error

    async def _try_read(self, work: Callable[[Any], Awaitable[T]]) -> T:
        if not self._tasks:
            raise UnavailableError("the store is closed")
        return await connections.read(self._pool, self._clock, work)

    def _note_damage(self, task_id: str | None, error: object) -> None:
        """Record and log a damaged task once; for an unknown one, start a search."""
        if task_id is None:
            if self._clock() > self._searched + DAMAGE_SEARCH_INTERVAL:
                self._begin_search(is_periodic=False)
        elif task_id not in self.damage:
            self.damage[task_id] = str(error)
            _log.error(
                "task %s cannot be read from PostgreSQL: %s; the other tasks run. Check the "
                "server's disk and log, and restore the table from a standby or a backup",
                task_id,
                error,
                extra={"about": {"task_id": task_id}},
            )

    def _begin_search(self, *, is_periodic: bool) -> None:
        if self._search is None or self._search.done():
            self._search = asyncio.create_task(self._search_damage(is_periodic=is_periodic))

    async def _search_damage(self, *, is_periodic: bool) -> None:
        """Find the unreadable tasks, and leave them out of statements that search for tasks.

        A search that is not periodic was caused by a failed statement: then no new damage means
        that an index is damaged.
        """
        found = dict[int, DamagedTask]()
        try:
            async for searched in search(self._try_read):
                found |= {task.number: task for task in searched.damaged}
        except (TooMuchDamageError, AgentsrvError, *connections.DAMAGED) as error:
            _log.error("the damaged tasks of PostgreSQL were not found: %s", describe(error))
            self._searched = self._clock()
            return
        if not is_periodic and found.keys() <= self._left_out.keys():
            _log.error(
                "PostgreSQL cannot read a page, but every task that is not known to be damaged can "
                "be read: the page may be of an index; try REINDEX TABLE task"
            )
            self._searched = self._clock()
        for number in self._left_out.keys() - found.keys():  # repaired
            self.damage.pop(self._left_out[number].name, None)
        self._left_out = found
        self._flusher.queries = queries(tuple(sorted(found)))
        for task in found.values():
            self._note_damage(task.name, task.reason)
        base.notify(self._listener.ready)

    def _flushed(self, flushed: Sequence[tuple[PendingRequest, Any]], flush: FlushResult) -> None:
        """Resolve the callers' futures; report commits here, and announce them to other nodes."""
        news: list[LogHead] = []
        is_ready = False
        is_left = bool(flush.queued)  # this node did not claim all of them in the same flush
        for pending, result in flushed:
            request, done = pending.request, pending.done
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
                    # The owner may have been at its limit of running tasks.
                    ends = self._limits.running is not None and request.status.is_terminal
                    is_ready |= ends and self.queued_by(request.owner) > 0
                case Release():
                    is_ready = True
                case Claim() if done.cancelled():
                    self._give_back(result)
        base.notify(self._listener.durable, flush.seconds)
        if flush.queued is not None:
            self._queued = flush.queued
        if is_ready:
            base.notify(self._listener.ready)
        if self._lease.id in flush.posters:
            base.notify(self._listener.inbox)
        self._notifications.add(news, is_ready=is_ready, replies=flush.posters)

    def _give_back(self, leases: Sequence[Lease]) -> None:
        """Release the tasks of a claim whose caller was cancelled."""
        for lease in leases:
            # If that fails, another node takes them after this node's lease ends.
            self._flusher.submit(Release(lease.task_id, lease.epoch)).add_done_callback(
                lambda done: done.cancelled() or done.exception()
            )

    def _leases_lost(self) -> None:
        base.notify(self._listener.leases_lost)

    def _notified(self, notification: Notification) -> None:
        if notification.news:
            base.notify(self._listener.news, notification.news)
        if notification.is_ready:
            base.notify(self._listener.ready)
        if self._lease.id in notification.inbox or self._lease.id in notification.replies:
            base.notify(self._listener.inbox)

    def _missed(self) -> None:
        """Notifications may have been lost: let the listeners ask."""
        base.notify(self._listener.ready)
        base.notify(self._listener.inbox)

    async def _reclaim(self, db: Any, queries: Queries) -> tuple[int, Mapping[str, int]]:
        """Take the tasks of lost nodes; return how many, and the length of the queue per owner."""
        return await queries.reclaim_tasks.fetch_value(db), await count_queue(db, queries)

    async def _sweep(self) -> None:
        """Periodically take the tasks of lost nodes, and let the listeners ask for changes."""
        sweeps = 0
        while True:
            await asyncio.sleep(self._timing.sweep_interval)
            base.notify(self._listener.ready)
            base.notify(self._listener.inbox)
            try:
                reclaimed, self._queued = await self._find(self._reclaim)
                if sweeps % SWEEPS_PER_CLEANUP == 0:
                    if self._left_out:  # a damaged task may refer to a row that would be deleted
                        self._begin_search(is_periodic=True)
                    else:
                        await self._read(queries().delete_old_rows.execute)
            except (*connections.FAILED, UnavailableError) as error:
                level = logging.ERROR if isinstance(error, connections.DAMAGED) else logging.DEBUG
                _log.log(level, "the sweep failed: %s", describe(error))
                continue
            sweeps += 1
            if reclaimed:
                _log.warning("%d tasks of lost nodes can be claimed", reclaimed)
                base.notify(self._listener.ready)
                self._notifications.add(is_ready=True)


def may_pass(error: BaseException) -> bool:
    """Whether a later attempt to open the store may succeed with the same settings."""
    if isinstance(error, ConfigurationError | ssl.SSLCertVerificationError | PermissionError):
        return False
    return isinstance(error, connections.AWAY)
