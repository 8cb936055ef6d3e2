"""Store: the contract of a task log with leases, and the values that cross it.

A store keeps, for each task, an append-only log numbered from 1, a status that is a column of
its own so that queues and lists need not read logs, and a lease. All writes are durable when
their awaitable is done. A store speaks in encoded events, which are single lines; it never looks
into one.

The values are named tuples: each task makes a dozen, and a frozen dataclass takes several times
as long to make.
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

IDEMPOTENCY_TTL: Final = 86_400.0  # seconds that a key stands for the task it created
MAX_CURSOR: Final = 18  # digits; what fits 64 bits for certain
MAX_PAGE: Final = 1_040_000  # bytes of a page as JSON: its frame has at most 1 MiB
ROW_BYTES: Final = 160  # what a row has as JSON, without its text
QUEUE_RETRY_AFTER: Final = 1.0  # seconds that a refused client should wait

_log = logging.getLogger("agentsrv.store")


class LeaseEnd(IntEnum):
    """How the last lease of a task ended, in stores without ``AttemptMarks``."""

    ORDERLY = 0
    """It was given back, its worker's process had declared that it stops, or there was none."""
    CRASH = 1
    """Its worker's process is gone."""
    OPEN = 2
    """It has written, and has not ended."""

    def crashed(self) -> LeaseEnd:
        """How it has ended, now that its worker's process is gone."""
        return LeaseEnd.CRASH if self is LeaseEnd.OPEN else self

    def declared(self) -> LeaseEnd:
        """How it has ended, now that it is given back."""
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
    """The ``create`` command as JSON: what a worker needs beside the log."""
    events: Sequence[bytes]
    idempotency_key: str | None = None


class Head(NamedTuple):
    """Where a task stands: what a decision is made on."""

    task_id: str
    owner: str
    status: TaskStatus
    seq: int
    epoch: int
    """Raised at each claim; an append with an older one is refused."""
    node: str | None = None
    """Who holds the lease, in a store that several nodes share; else nobody needs to know."""


class Created(NamedTuple):
    """The answer to ``create``; ``replayed`` where the idempotency key had been used."""

    head: Head
    replayed: bool


class Lease(NamedTuple):
    """The right to append to one task, until somebody else claims it."""

    task_id: str
    epoch: int
    seq: int
    """Where the log ended at the claim."""
    spec: bytes
    owner: str
    interrupted: Sequence[tuple[str, int]] | None = ()
    """The attempts that a crash of the last worker's process interrupted: step ids (empty where
    the plan was made) with attempts. ``None``: there was a crash, and code ran of each step that
    is running by the log, and of those in ``working``. Kept until the first append of the lease
    is committed."""
    working: Sequence[str] = ()
    """Steps whose code ran at that crash although the log has an open question of theirs."""


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
    """The finished task's snapshot, with the terminal event, where it is worth keeping."""
    replies: Sequence[tuple[int, bytes]] = ()
    """In a store that several nodes share: messages that the events answer, and how."""
    working: Sequence[str] = ()
    """In such a store: steps with an open question whose code runs all the same. It replaces what
    the last append of the lease said; an append without events changes nothing else."""


class Span(NamedTuple):
    """A part of a task's log: up to ``limit`` events that follow number ``after``."""

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
    """Some of an owner's tasks, the newest first."""

    rows: list[Row]
    total: int
    next_cursor: str | None


class Commit(NamedTuple):
    """Tells of events that became durable: ``events`` follow number ``after``."""

    task_id: str
    owner: str
    after: int
    events: Sequence[bytes]


class LogHead(NamedTuple):
    """Where a task's log ends."""

    task_id: str
    owner: str
    seq: int


class StoreListener(Protocol):
    """Receives what happens in a store. Given to ``Store.open``.

    A store calls it in the event loop, by ``notify``: an error is logged and changes nothing in
    the store. The calls must not wait. Only a ``SharedStore`` has the last three.
    """

    def committed(self, commit: Commit, /) -> None:
        """Events of a task are durable; the awaitable of their append or create is done."""

    def ready(self) -> None:
        """``claim`` may have something to give."""

    def durable(self, seconds: float, /) -> None:
        """A transaction was committed, and took so long."""

    def resumed(self) -> None:
        """``trouble`` is over: logs that could not be read can be."""

    def broken(self, error: BaseException, /) -> None:
        """The store cannot be trusted to write any more. Called once."""

    def news(self, heads: Sequence[LogHead], /) -> None:
        """Other nodes are said to have committed up to these events."""

    def inbox(self) -> None:
        """``inbox`` or ``replies`` may have something new."""

    def leases_lost(self) -> None:
        """This node's leases may belong to others: all that it runs must stop.

        It is called by the node's own clock, before the store gives a task to another node.
        """


class _Silent:
    """Ignores everything."""

    def _ignore(self, *_: object) -> None:
        pass

    committed = ready = durable = resumed = broken = news = inbox = leases_lost = _ignore


SILENT: Final[StoreListener] = _Silent()


class Store(Protocol):
    """Task logs with leases.

    Any method but ``open`` and ``close`` may raise ``UnavailableError``: the outcome is unknown and
    the store may have stopped for good. Cancelling a call withdraws the caller, not the write:
    it happens whole or not at all.
    """

    marks: AttemptMarks | None
    """Where attempts are marked as long as their code runs, so that a crash can be counted as
    their loss; ``None`` where the log tells which attempts run."""

    commits_starts: bool
    """Whether the start of an attempt must be committed before its code runs: what ends the
    process would otherwise be nobody's loss."""

    trouble: str | None
    """Why nothing can be written now; ``None`` while all is well, or as long as that is unknown.

    While it is set, running tasks wait for their appends, and clients should be refused.
    """

    @property
    def damage(self) -> Mapping[str, str]:
        """Tasks that cannot be read, and why, as far as this process has met them."""

    async def open(self, listener: StoreListener = SILENT) -> None:
        """Make the store ready; tasks that an earlier process had leased can be claimed.

        ``listener`` is called from now on, also while the store is being closed.

        Raises:
            ConfigurationError: The place cannot be used, or another server uses it.
        """

    async def announce_stop(self) -> None:
        """Declare that this process stops: whatever ends it from now on is not a crash.

        Raises nothing where the store cannot be written; then the attempts that run when the
        process ends get a loss, as after a crash.
        """

    async def close(self) -> None:
        """Finish the writes under way and let go of the place."""

    async def check(self) -> None:
        """Return when all that was handed over before is answered, if writes would be taken.

        Nothing is written; all the same a disk that hangs is noticed.

        Raises:
            Unavailable: None would be.
        """

    async def create(self, task: NewTask) -> Created:
        """Create a task, or find the one of the same owner and idempotency key.

        Raises:
            Conflict: The key was used with another ``spec``.
            Overloaded: The task would be queued, and the queue or the owner's part of it is full.
            Unavailable: The id is taken.
        """

    async def head(self, task_id: str) -> Head | None:
        """Where the task stands, ``None`` where there is none."""

    async def find(self, owner: str, prefix: str) -> Sequence[str]:
        """Up to two ids of the owner's tasks that begin with ``prefix``."""

    async def find_key(self, owner: str, idempotency_key: str) -> str | None:
        """The id of the owner's task with that idempotency key."""

    async def read(self, task_id: str, after: int, limit: int) -> Sequence[bytes]:
        """Up to ``limit`` events that follow number ``after``, in order and without a hole.

        Raises:
            Damaged: The log cannot be read.
        """

    async def read_each(self, spans: Sequence[Span]) -> Sequence[Sequence[bytes] | None]:
        """Read from several logs at once, each as ``read`` does; ``None`` for a damaged one."""

    async def spec(self, task_id: str) -> bytes | None:
        """The command that created the task."""

    async def state(self, task_id: str) -> bytes | None:
        """The snapshot that was appended with the terminal event, if one was."""

    async def list(
        self, owner: str, status: TaskStatus | None, limit: int, cursor: str | None
    ) -> Page:
        """A page of the owner's tasks behind ``cursor``, the newest first.

        Raises:
            InvalidCommandError: The cursor is none of this store's.
        """

    def append(self, append: Append) -> asyncio.Future[None]:
        """Hand ``append`` over; the awaitable is done when it is durable, all or none of it.

        Appends of one task must be awaited one after the other.

        Raises:
            Fenced: The epoch is stale, the log is not at ``expected``, or a message that is
                answered was answered or taken back before. Write nothing more.
            Overloaded: The task would be queued, and the queue or the owner's part of it is full.
        """

    async def claim(self, node: str, limit: int) -> Sequence[Lease]:
        """Lease up to ``limit`` tasks: those that lost their worker, then the queued ones.

        Owners take turns with what is queued, one task each, and those of one owner go in the
        order of queueing: behind an owner's first task, nobody else has two claimed before it. An
        owner with as many leases as it may have is passed over; its lost tasks are not.

        The listener's ``ready`` is called when there are more, after a claim that got fewer than
        ``limit``.

        A cancelled claim may leave tasks leased to ``node`` until the store is opened again.
        """

    async def release(self, task_id: str, epoch: int) -> None:
        """Give a lease back, so that the task can be claimed; without effect if it is stale."""

    async def purge(self, before: float, limit: int) -> int:
        """Forget up to ``limit`` tasks that ended before ``before`` (seconds since the epoch).

        A task goes whole, with its log and its idempotency key; one that has not ended stays.

        Returns:
            How many tasks were forgotten.
        """

    @property
    def queued(self) -> int:
        """How many tasks wait for their first worker."""

    def queued_by(self, owner: str) -> int:
        """How many of them are the owner's, as far as this process knows."""


def notify(call: Callable[..., None], *values: object) -> None:
    """Call a method of a store's listener; an error that it raises is logged."""
    try:
        call(*values)
    except Exception:  # noqa: BLE001 - one listener's fault keeps nobody waiting
        task_ids = [value.task_id for value in values if isinstance(value, Commit)]
        about = {"task_id": task_ids[0]} if task_ids else {}
        _log.exception("a listener of the store failed", extra={"about": about})


def is_text(text: str) -> bool:
    """Whether a text can be stored: whether it has no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def page_of(found: Sequence[tuple[int, Row]], limit: int, total: int) -> Page:
    """The page that begins with ``found``: rows with the numbers of their tasks.

    It has at most ``limit`` rows, and fewer if they have more than ``MAX_PAGE`` bytes as JSON.
    There are more pages if ``found`` has more rows than that.
    """
    rows: list[Row] = []
    room = MAX_PAGE
    for _, row in found[:limit]:
        room -= len(orjson.dumps(row.user_input)) + ROW_BYTES
        if room < 0:
            break
        rows.append(row)
    more = len(found) > len(rows)
    return Page(rows, total, str(found[len(rows) - 1][0]) if more else None)


def is_name(*names: str) -> bool:
    """Whether there can be tasks or owners with these names: texts without U+0000."""
    return all("\0" not in name and is_text(name) for name in names)


def check_texts(task: NewTask) -> None:
    """Refuse a task that one of the stores could not keep.

    Raises:
        InvalidCommandError: U+0000 in a name, or half a surrogate pair anywhere.
    """
    names, texts = task.task_id + task.owner, task.user_input + (task.idempotency_key or "")
    if "\0" in names or not is_text(names) or not is_text(texts):
        raise InvalidCommandError(
            "found U+0000 in a name, or half a surrogate pair in a text; expected neither"
        )


def key_conflict(key: str) -> ConflictError:
    """The refusal of an idempotency key that stands for another command."""
    return ConflictError(
        f"idempotency_key {key!r} was used with other parameters; expected the same"
    )


def queue_full(found: str) -> OverloadedError:
    """The refusal of a task that would wait; ``found`` are those that do."""
    return OverloadedError(
        f"{found} are waiting already, which is the limit; try again later",
        retry_after=QUEUE_RETRY_AFTER,
    )


def damaged(task_id: str) -> DamagedError:
    """The refusal of a task whose part of the store cannot be read."""
    return DamagedError(
        f"task {task_id} cannot be read: its part of the store is damaged; the operator is told by "
        "the server's log and by `agentsrv doctor`"
    )


def id_taken(task_id: str) -> UnavailableError:
    """The refusal of a task whose random id is another's: trying again draws another one."""
    return UnavailableError(f"the task id {task_id} is taken; try again")


def fenced(append: Append, head: Head | None) -> FencedError:
    """The refusal of an append that another writer was ahead of."""
    found = "no task" if head is None else f"epoch {head.epoch} at event {head.seq}"
    return FencedError(
        f"task {append.task_id} has {found}; "
        f"expected epoch {append.epoch} at event {append.expected}"
    )


def parse_cursor(cursor: str | None) -> int | None:
    """The position that a list goes on behind.

    Raises:
        InvalidCommandError: It is no cursor that a list has given.
    """
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= MAX_CURSOR):
        raise InvalidCommandError(f"cursor is {cursor!r}; expected the next_cursor of another list")
    return int(cursor)
