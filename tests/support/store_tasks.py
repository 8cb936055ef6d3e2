"""What the stores are given: tasks and appends with as few words as a test needs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from agentsrv.models.states import TaskStatus
from agentsrv.store.base import Append, Head, Lease, NewTask, Store
from agentsrv.store.postgres.lease import Timing

PENDING, QUEUED, RUNNING = TaskStatus.PENDING, TaskStatus.QUEUED, TaskStatus.RUNNING
COMPLETED, CANCELLED = TaskStatus.COMPLETED, TaskStatus.CANCELLED
NOW = 1_767_225_600.0
HOUR = 3600.0
STILL = Timing(ttl=HOUR, sweep_interval=HOUR)  # of a store to which nothing happens by itself


def new_task(
    task_id: str = "t1",
    status: TaskStatus = PENDING,
    *,
    owner: str = "ann",
    at: float = NOW,
    spec: bytes = b'{"n":1}',
    key: str | None = None,
    events: Sequence[bytes] = (b"1",),
) -> NewTask:
    """A task whose events are their own numbers."""
    return NewTask(task_id, owner, status, f"do {task_id}", at, spec, events, key)


def following(
    of: Head | Lease, status: TaskStatus = RUNNING, count: int = 1, state: bytes | None = None
) -> Append:
    """An append behind a head or lease; its events are their own numbers."""
    events = [b"%d" % seq for seq in range(of.seq + 1, of.seq + 1 + count)]
    return Append(of.task_id, of.owner, of.epoch, of.seq, events, status, NOW, state)


def numbers(first: int, last: int) -> list[bytes]:
    """The events from ``first`` to ``last`` of a log without a hole."""
    return [b"%d" % seq for seq in range(first, last + 1)]


async def head_of(store: Store, task_id: str) -> Head:
    """Where a task stands that is known to be there, whoever holds its lease."""
    head = await store.head(task_id)
    assert head is not None
    return head._replace(node=None)


async def log_of(store: Store, task_id: str, limit: int = 1000) -> list[bytes]:
    """A task's whole log, read page by page."""
    log: list[bytes] = []
    while page := await store.read(task_id, len(log), limit):
        assert len(page) <= limit
        log += page
    return log


class DeafBus:
    """A bus that loses everything."""

    async def listen(self, *_: object) -> None:
        """Hear nothing."""
        await asyncio.Event().wait()

    async def publish(self, channel: str, payloads: Sequence[bytes]) -> None:
        """Tell nobody."""


async def claim(store: Store, node: str, limit: int) -> list[Lease]:
    """What a node gets."""
    return list(await store.claim(node, limit))


async def leased(store: Store, task_id: str = "t1") -> Lease:
    """A new task's lease, the only one to be had."""
    await store.create(new_task(task_id, QUEUED))
    (lease,) = await store.claim("node", 1)
    assert lease.task_id == task_id
    return lease
