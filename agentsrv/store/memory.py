"""MemoryStore: a store in dictionaries, for tests and for runs that need not outlive the process.

It is the simplest implementation of the contract in `base`, and the model that the conformance and
equivalence tests compare the others with. There are no transactions: every method finishes its
work before it first yields to the event loop, so no other operation sees half of it. A task is one
``_Task``; whether it can be claimed is decided by `TaskQueue` alone, which takes the role of the
columns ``ready`` and ``node`` of the SQL stores.

``open`` may be called again, as by the next process: leases end, and how the last one ended is
kept (`LeaseEnd`), so that tests can simulate a crash or an announced stop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from agentsrv.errors import OverloadedError
from agentsrv.models.states import TaskStatus
from agentsrv.store import base
from agentsrv.store.attempt_marks import AttemptMarks
from agentsrv.store.base import (
    Append,
    Commit,
    Created,
    Head,
    Lease,
    LeaseEnd,
    NewTask,
    Page,
    Row,
    Span,
    StoreListener,
)
from agentsrv.store.queue import QueueLimits, TaskQueue


@dataclass(slots=True)
class _Task:
    number: int
    new: NewTask
    head: Head
    log: list[bytes] = field(default_factory=list)
    state: bytes | None = None
    lease_end: LeaseEnd = LeaseEnd.ORDERLY
    working: Sequence[str] = ()
    ended_at: float | None = None

    def row(self) -> tuple[int, Row]:
        """The task's row in a list, with its number."""
        head, new = self.head, self.new
        return self.number, Row(head.task_id, head.status, new.user_input, new.created_at)


class MemoryStore:
    """A store of one process and one event loop; see the module."""

    def __init__(self, limits: QueueLimits | None = None) -> None:
        self._queue = TaskQueue(limits or QueueLimits())
        self._tasks: dict[str, _Task] = {}
        self._owned: dict[str, list[_Task]] = {}
        self._keys: dict[tuple[str, str], _Task] = {}
        self._number = 0
        self._is_stopping = False
        self.marks: AttemptMarks | None = None  # not needed: nothing outlives the process
        self.commits_starts = False
        self._listener = base.SILENT
        self.damage: dict[str, str] = {}
        self.trouble: str | None = None

    async def open(self, listener: StoreListener = base.SILENT) -> None:
        """See ``Store.open``."""
        self._listener = listener
        for task_id in self._queue.lose_all():
            task = self._tasks[task_id]
            end = task.lease_end
            task.lease_end = end.declared() if self._is_stopping else end.crashed()
        self._is_stopping = False

    async def announce_stop(self) -> None:
        """See ``Store.announce_stop``."""
        self._is_stopping = True

    async def close(self) -> None:
        """See ``Store.close``."""

    async def check(self) -> None:
        """See ``Store.check``."""

    async def create(self, task: NewTask) -> Created:
        """See ``Store.create``."""
        base.check_texts(task)
        if task.idempotency_key is not None:
            first = self._keys.get((task.owner, task.idempotency_key))
            if first and task.created_at - first.new.created_at < base.IDEMPOTENCY_TTL:
                if first.new.spec != task.spec:
                    raise base.key_conflict(task.idempotency_key)
                return Created(first.head, replayed=True)
        if task.status is TaskStatus.QUEUED:
            self._queue.check(task.owner)
        if task.task_id in self._tasks:
            raise base.id_taken(task.task_id)
        self._number += 1
        entry = _Task(self._number, task, Head(task.task_id, task.owner, task.status, 0, 0))
        self._tasks[task.task_id] = entry
        self._owned.setdefault(task.owner, []).append(entry)
        if task.idempotency_key is not None:
            self._keys[task.owner, task.idempotency_key] = entry
        self._write(entry, task.events, task.status)
        return Created(entry.head, replayed=False)

    async def head(self, task_id: str) -> Head | None:
        """See ``Store.head``."""
        task = self._tasks.get(task_id)
        return None if task is None else task.head

    async def find(self, owner: str, prefix: str) -> Sequence[str]:
        """See ``Store.find``."""
        ids = (task.head.task_id for task in self._owned.get(owner, ()))
        return [task_id for task_id in ids if task_id.startswith(prefix)][:2]

    async def find_key(self, owner: str, idempotency_key: str) -> str | None:
        """See ``Store.find_key``."""
        task = self._keys.get((owner, idempotency_key))
        return None if task is None else task.head.task_id

    async def read(self, task_id: str, after: int, limit: int) -> Sequence[bytes]:
        """See ``Store.read``."""
        task = self._tasks.get(task_id)
        return () if task is None else task.log[after : after + limit]

    async def read_each(self, spans: Sequence[Span]) -> Sequence[Sequence[bytes]]:
        """See ``Store.read_each``."""
        return [await self.read(*span) for span in spans]

    async def spec(self, task_id: str) -> bytes | None:
        """See ``Store.spec``."""
        task = self._tasks.get(task_id)
        return None if task is None else task.new.spec

    async def state(self, task_id: str) -> bytes | None:
        """See ``Store.state``."""
        task = self._tasks.get(task_id)
        return None if task is None else task.state

    async def list(
        self, owner: str, status: TaskStatus | None, limit: int, cursor: str | None
    ) -> Page:
        """See ``Store.list``."""
        before = base.parse_cursor(cursor)
        found = [
            task
            for task in reversed(self._owned.get(owner, ()))
            if status is None or task.head.status is status
        ]
        rest = found if before is None else [task for task in found if task.number < before]
        rows = [task.row() for task in rest[: limit + 1]]
        return base.page_of(rows, limit, len(found))

    def append(self, append: Append) -> asyncio.Future[None]:
        """See ``Store.append``."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = self._tasks.get(append.task_id)
        head = None if task is None else task.head
        if task is None or (task.head.epoch, task.head.seq) != (append.epoch, append.expected):
            done.set_exception(base.fenced(append, head))
            return done
        try:
            if append.status is TaskStatus.QUEUED:
                self._queue.check(append.owner)
        except OverloadedError as refusal:
            done.set_exception(refusal)
            return done
        if append.status.is_terminal:
            task.state, task.ended_at = append.state, append.at
        done.set_result(None)
        if self._queue.is_leased(append.task_id):
            task.lease_end = LeaseEnd.OPEN
            task.working = append.working
        if append.events:
            self._write(task, append.events, append.status)
        return done

    async def claim(self, node: str, limit: int) -> Sequence[Lease]:  # noqa: ARG002 - part of the protocol
        """See ``Store.claim``."""
        leases = []
        for task_id in self._queue.claim(limit):
            task = self._tasks[task_id]
            old = task.head
            head = Head(old.task_id, old.owner, old.status, old.seq, old.epoch + 1)
            task.head = head
            leases.append(
                Lease(
                    task_id=head.task_id,
                    epoch=head.epoch,
                    seq=head.seq,
                    spec=task.new.spec,
                    owner=head.owner,
                    interrupted=None if task.lease_end is LeaseEnd.CRASH else (),
                    working=task.working,
                )
            )
        return leases

    async def release(self, task_id: str, epoch: int) -> None:
        """See ``Store.release``."""
        task = self._tasks.get(task_id)
        if task is not None and task.head.epoch == epoch and self._queue.is_leased(task_id):
            task.lease_end = task.lease_end.declared()
            self._queue.lose(task_id, task.head.owner)
            base.notify(self._listener.ready)

    async def purge(self, before: float, limit: int) -> int:
        """See ``Store.purge``."""
        old = [
            task
            for task in self._tasks.values()
            if task.ended_at is not None and task.ended_at < before
        ][:limit]
        for task in old:
            del self._tasks[task.head.task_id]
            self._owned[task.head.owner].remove(task)
            key = (task.head.owner, task.new.idempotency_key or "")
            if self._keys.get(key) is task:
                del self._keys[key]
        return len(old)

    @property
    def queued(self) -> int:
        """See ``Store.queued``."""
        return len(self._queue)

    def queued_by(self, owner: str) -> int:
        """See ``Store.queued_by``."""
        return self._queue.waiting(owner)

    def _write(self, task: _Task, events: Sequence[bytes], status: TaskStatus) -> None:
        head = task.head
        task.log.extend(events)
        task.head = Head(head.task_id, head.owner, status, head.seq + len(events), head.epoch)
        is_ready = False
        if status is TaskStatus.QUEUED:
            self._queue.put(head.task_id, head.owner)
            self._queue.commit_new()
            is_ready = True
        elif status.is_terminal:
            is_ready = self._queue.drop(head.task_id, head.owner)
        base.notify(self._listener.committed, Commit(head.task_id, head.owner, head.seq, events))
        if is_ready:
            base.notify(self._listener.ready)
