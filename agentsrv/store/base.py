"""Store: the contract of a task log with leases, and the values that its methods exchange.

Theory of operation
===================
For each task a store keeps a log of events, numbered from 1; a *head* (owner, status, number of the
last event, epoch); and whether the task can be claimed. Events are encoded single lines, which a
store does not parse.

A worker claims a task, appends to its log until the terminal event, or releases it. A task that no
worker runs is appended to by commands (``epoch`` stays that of its head). The store serializes
them all: an append states the epoch and the number that it was decided on, and is refused if the
head has moved.

Invariants, for every implementation:

    durable      a write is durable when its awaitable is done; it is never written in part
    numbers      the events of a task are numbered 1, 2, 3, ... without gaps
    fencing      an append is written only if its ``epoch`` and ``expected`` equal the head's
    epoch        rises with each claim and whenever a lease is taken from a lost node; never falls
    order        ``committed`` reports the commits of a task in the order of their numbers; the
                 future of an append is done by then
    keys         an owner's idempotency key names one task for ``IDEMPOTENCY_TTL`` seconds
    cancelling   cancelling a call abandons its result; the write happens as a whole or not at all
    isolation    a refused or damaged task does not affect the operations on other tasks

Each task is in one of these states, which SQL stores keep in the columns ``ready`` and ``node``:

    ready   node    the task                                    leaves the state by
    NULL    NULL    is pending (status PENDING), or has ended   an append that queues it; purge
    > 0     NULL    is queued; the number is its place          claim; an append that ends it
    NULL    set     is leased to a worker                       release; loss of the node; the
                                                                terminal append
    0       NULL    lost its worker, or was released; it is     claim; an append that ends it
                    claimed before queued tasks

What ``claim`` returns of a crash: how the process of the last lease ended decides which attempts
count as lost. Stores with ``AttemptMarks`` (SQLite) list the attempts whose code ran
(``Lease.interrupted``); the others record a `LeaseEnd`, and the log shows which attempts ran.

The values are named tuples: each task makes a dozen, and a frozen dataclass takes several times
as long to construct.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import Final, NamedTuple, Protocol

import orjson

from agentsrv.errors import (
    ConflictError,
    DamagedError,
    FencedError,
    InvalidCommandError,
    OverloadedError,
    UnavailableError,
)
from agentsrv.models.states import TaskStatus
from agentsrv.store.attempt_marks import AttemptMarks

IDEMPOTENCY_TTL: Final = 86_400.0  # seconds for which a key names the task that it created
MAX_CURSOR_DIGITS: Final = 18  # always fits 64 bits
MAX_PAGE_BYTES: Final = 1_040_000  # of a page as JSON; its frame has at most 1 MiB
ROW_BYTES: Final = 160  # of a row as JSON, without its text
QUEUE_RETRY_AFTER: Final = 1.0  # seconds that a client should wait after a refusal

_log = logging.getLogger("agentsrv.store")


class LeaseEnd(IntEnum):
    """How the last lease of a task ended, in stores without ``AttemptMarks``."""

    ORDERLY = 0
    """It was released, its process had announced its stop, or there was no lease."""
    CRASH = 1
    """Its process crashed."""
    OPEN = 2
    """It has written, and has not ended yet."""

    def crashed(self) -> LeaseEnd:
        """The value after a crash of the process."""
        return LeaseEnd.CRASH if self is LeaseEnd.OPEN else self

    def declared(self) -> LeaseEnd:
        """The value after a release or an announced stop."""
        return LeaseEnd.ORDERLY if self is LeaseEnd.OPEN else self


class NewTask(NamedTuple):
    """A task to be created, with its first events."""

    task_id: str
    owner: str
    status: TaskStatus
    user_input: str
    created_at: float
    """Seconds since the epoch."""
    spec: bytes
    """The ``create`` command as JSON, which a worker needs in addition to the log."""
    events: Sequence[bytes]
    idempotency_key: str | None = None


class Head(NamedTuple):
    """The current version of a task, on which a decision is based."""

    task_id: str
    owner: str
    status: TaskStatus
    seq: int
    epoch: int
    """Raised by each claim; an append with an older epoch is refused."""
    node: str | None = None
    """The holder of the lease, in a store that several nodes share; otherwise ``None``."""


class Created(NamedTuple):
    """The result of ``create``; ``replayed`` if the idempotency key named an existing task."""

    head: Head
    replayed: bool


class Lease(NamedTuple):
    """The right to append to a task, until the task is claimed again."""

    task_id: str
    epoch: int
    seq: int
    """The number of the last event at the claim."""
    spec: bytes
    owner: str
    interrupted: Sequence[tuple[str, int]] | None = ()
    """The attempts that a crash of the last worker's process interrupted: step ids (empty for the
    planner) with attempts. ``None``: there was a crash, which interrupted each step that is running
    according to the log, and those in ``working``. Returned by each claim until an append of a
    later lease is committed."""
    working: Sequence[str] = ()
    """Steps whose code ran at the crash although they have an open question in the log."""


class Append(NamedTuple):
    """Events that follow number ``expected``, written by the holder of ``epoch``."""

    task_id: str
    owner: str
    epoch: int
    expected: int
    events: Sequence[bytes]
    status: TaskStatus
    at: float
    """Seconds since the epoch."""
    state: bytes | None = None
    """With the terminal event: a snapshot of the task, if it is to be kept."""
    replies: Sequence[tuple[int, bytes]] = ()
    """In a store that several nodes share: messages that the events answer, with the replies."""
    working: Sequence[str] = ()
    """In such a store: steps with an open question whose code runs nevertheless. It replaces the
    list of the last append. An append without events changes nothing else."""


class Span(NamedTuple):
    """A range of a task's log: up to ``limit`` events after number ``after``."""

    task_id: str
    after: int
    limit: int


class Row(NamedTuple):
    """A task in a list."""

    task_id: str
    status: TaskStatus
    user_input: str
    created_at: float


class Page(NamedTuple):
    """A page of an owner's tasks, newest first."""

    rows: list[Row]
    total: int
    next_cursor: str | None


class Commit(NamedTuple):
    """Events that became durable; they follow number ``after``."""

    task_id: str
    owner: str
    after: int
    events: Sequence[bytes]


class LogHead(NamedTuple):
    """The number of the last event of a task's log."""

    task_id: str
    owner: str
    seq: int


class StoreListener(Protocol):
    """Receives the events of a store; it is passed to ``Store.open``.

    The store calls it in the event loop, by ``notify``, which logs an exception and continues. The
    methods must not block. Only a ``SharedStore`` calls the last three.
    """

    def committed(self, commit: Commit, /) -> None:
        """Events of a task are durable; the future of their append is done."""

    def ready(self) -> None:
        """There may be tasks to claim."""

    def durable(self, seconds: float, /) -> None:
        """A transaction was committed; it took ``seconds``."""

    def resumed(self) -> None:
        """``trouble`` is over: the store can write, and all logs can be read again."""

    def broken(self, error: BaseException, /) -> None:
        """The store cannot write any more. Called once."""

    def news(self, heads: Sequence[LogHead], /) -> None:
        """Other nodes have announced commits up to these events."""

    def inbox(self) -> None:
        """The results of ``inbox`` or ``replies`` may have changed."""

    def leases_lost(self) -> None:
        """This node has lost its lease: all its tasks must stop.

        By the node's own clock, this is before the store gives one of the tasks to another node.
        """


class _Silent:
    """Ignores everything."""

    def _ignore(self, *_: object) -> None:
        pass

    committed = ready = durable = resumed = broken = news = inbox = leases_lost = _ignore


SILENT: Final[StoreListener] = _Silent()


class Store(Protocol):
    """Task logs with leases; the head of the module states the invariants.

    Every method except ``open`` and ``close`` may raise ``UnavailableError``: the store cannot be
    used now, or no longer. A write that raises it may have happened.
    """

    marks: AttemptMarks | None
    """Records which attempts are running, so that a crash counts as their loss. ``None`` if the
    store uses the log for that."""

    commits_starts: bool
    """Whether the start of an attempt must be committed before its code runs. Otherwise a crash in
    its first lines would not count as a loss of the attempt."""

    trouble: str | None
    """Why the store cannot write now; ``None`` if it can, or if that is not known yet.

    While it is set, appends of running tasks wait, and clients should be refused.
    """

    @property
    def damage(self) -> Mapping[str, str]:
        """Damaged tasks that this process has found, with the reasons."""

    async def open(self, listener: StoreListener = SILENT) -> None:
        """Open the store. Leases of an earlier process end, so that their tasks can be claimed.

        ``listener`` is called from now on, also while the store is being closed.

        Raises:
            ConfigurationError: The store cannot be used, or another server uses it.
        """

    async def announce_stop(self) -> None:
        """Record that this process stops: its end is not a crash.

        Does not raise. If the store cannot be written, the end counts as a crash.
        """

    async def close(self) -> None:
        """Finish the pending writes, and close the store."""

    async def check(self) -> None:
        """Return after all earlier operations, if the store can write. Nothing is written.

        On a disk that hangs, this waits.

        Raises:
            UnavailableError: The store cannot write.
        """

    async def create(self, task: NewTask) -> Created:
        """Create a task, or return the one with the same owner and idempotency key.

        Raises:
            ConflictError: The key was used with another ``spec``.
            OverloadedError: The task would be queued, and the queue is full or the owner is at its
                limit of waiting tasks.
            UnavailableError: The task id exists.
        """

    async def head(self, task_id: str) -> Head | None:
        """The task's head; ``None`` if there is no such task."""

    async def find(self, owner: str, prefix: str) -> Sequence[str]:
        """Up to two ids of the owner's tasks that begin with ``prefix``."""

    async def find_key(self, owner: str, idempotency_key: str) -> str | None:
        """The id of the owner's task with this idempotency key."""

    async def read(self, task_id: str, after: int, limit: int) -> Sequence[bytes]:
        """Up to ``limit`` events after number ``after``, in order and without gaps.

        Raises:
            DamagedError: The log cannot be read.
        """

    async def read_each(self, spans: Sequence[Span]) -> Sequence[Sequence[bytes] | None]:
        """Read from several logs, each like ``read``; ``None`` for a damaged log."""

    async def spec(self, task_id: str) -> bytes | None:
        """The command that created the task, as in ``NewTask.spec``."""

    async def state(self, task_id: str) -> bytes | None:
        """The snapshot that was appended with the terminal event, if there was one."""

    async def list(
        self, owner: str, status: TaskStatus | None, limit: int, cursor: str | None
    ) -> Page:
        """A page of the owner's tasks after ``cursor``, newest first.

        Raises:
            InvalidCommandError: The cursor was not returned by this store.
        """

    def append(self, append: Append) -> asyncio.Future[None]:
        """Append events and change the status; the future is done when they are durable.

        A caller awaits each append of a task before the next.

        Raises:
            FencedError: The epoch or the number is not that of the head, or one of the answered
                messages is no longer open. The caller must stop writing to the task.
            OverloadedError: The task would be queued, and the queue is full or the owner is at its
                limit of waiting tasks.
        """

    async def claim(self, node: str, limit: int) -> Sequence[Lease]:
        """Lease up to ``limit`` tasks: first those that lost their worker, then queued tasks.

        The order of queued tasks is fair between owners, see `queue.TaskQueue`. Owners at their
        limit of running tasks are skipped; their lost tasks are not.

        After a claim that returned fewer than ``limit`` tasks, the listener's ``ready`` reports new
        ones.

        A cancelled claim may leave tasks leased to ``node`` until the store is opened again.
        """

    async def release(self, task_id: str, epoch: int) -> None:
        """End a lease, so that the task can be claimed. An outdated epoch has no effect."""

    async def purge(self, before: float, limit: int) -> int:
        """Delete up to ``limit`` tasks that ended before ``before`` (seconds since the epoch).

        A task is deleted with its log and its idempotency key.

        Returns:
            The number of deleted tasks.
        """

    @property
    def queued(self) -> int:
        """The number of tasks that wait for their first worker."""

    def queued_by(self, owner: str) -> int:
        """How many of them are the owner's; changes of other nodes are counted with a delay."""


def notify(call: Callable[..., None], *values: object) -> None:
    """Call a method of a store's listener; log an exception, so that the caller continues."""
    try:
        call(*values)
    except Exception:  # noqa: BLE001 - the other callers must be answered
        task_ids = [value.task_id for value in values if isinstance(value, Commit)]
        about = {"task_id": task_ids[0]} if task_ids else {}
        _log.exception("a listener of the store failed", extra={"about": about})


def is_text(text: str) -> bool:
    """Whether a text can be stored: it contains no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def page_of(found: Sequence[tuple[int, Row]], limit: int, total: int) -> Page:
    """A page of the first rows of ``found``, which are given with the numbers of their tasks.

    It has at most ``limit`` rows and ``MAX_PAGE_BYTES`` as JSON. It has a cursor if ``found`` has
    more rows than fit.
    """
    rows: list[Row] = []
    room = MAX_PAGE_BYTES
    for _, row in found[:limit]:
        room -= len(orjson.dumps(row.user_input)) + ROW_BYTES
        if room < 0:
            break
        rows.append(row)
    has_more = len(found) > len(rows)
    return Page(rows, total, str(found[len(rows) - 1][0]) if has_more else None)


def is_name(*names: str) -> bool:
    """Whether tasks or owners can have these names: storable texts without U+0000."""
    return all("\0" not in name and is_text(name) for name in names)


def check_texts(task: NewTask) -> None:
    """Refuse a task that one of the stores cannot keep.

    Raises:
        InvalidCommandError: U+0000 in a name, or half a surrogate pair anywhere.
    """
    names, texts = task.task_id + task.owner, task.user_input + (task.idempotency_key or "")
    if "\0" in names or not is_text(names) or not is_text(texts):
        raise InvalidCommandError(
            "found U+0000 in a name, or half a surrogate pair in a text; expected neither"
        )


def key_conflict(key: str) -> ConflictError:
    """The error for an idempotency key that was used for another command."""
    return ConflictError(
        f"idempotency_key {key!r} was used with other parameters; expected the same"
    )


def queue_full(waiting: str) -> OverloadedError:
    """The error for a task that cannot be queued; ``waiting`` describes the tasks that are."""
    return OverloadedError(
        f"{waiting} are waiting already, which is the limit; try again later",
        retry_after=QUEUE_RETRY_AFTER,
    )


def damaged(task_id: str) -> DamagedError:
    """The error for a task whose part of the store cannot be read."""
    return DamagedError(
        f"task {task_id} cannot be read: its part of the store is damaged; for details, see the "
        "server's log or run `agentsrv doctor`"
    )


def id_taken(task_id: str) -> UnavailableError:
    """The error for a task whose random id exists; another attempt draws another id."""
    return UnavailableError(f"the task id {task_id} is taken; try again")


def fenced(append: Append, head: Head | None) -> FencedError:
    """The error for an append whose epoch or number differs from the head's."""
    found = "no task" if head is None else f"epoch {head.epoch} at event {head.seq}"
    return FencedError(
        f"task {append.task_id} has {found}; "
        f"expected epoch {append.epoch} at event {append.expected}"
    )


def parse_cursor(cursor: str | None) -> int | None:
    """The number of the last task of the previous page.

    Raises:
        InvalidCommandError: The cursor was not returned by ``list``.
    """
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= MAX_CURSOR_DIGITS):
        raise InvalidCommandError(f"cursor is {cursor!r}; expected the next_cursor of another list")
    return int(cursor)
