"""Updates of tasks that no worker runs: read the head, decide, append; repeat after a conflict."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from agentsrv.errors import FencedError, NotFoundError, UnavailableError
from agentsrv.models import events as e
from agentsrv.models.task import TaskState
from agentsrv.store.base import Append, Head, Store
from agentsrv.store.replay import kept_snapshot, load_state
from agentsrv.telemetry.server_metrics import ServerMetrics

MAX_DECISIONS: Final = 20  # times a decision is made again because another writer was first
COMMIT_TIMEOUT: Final = 15.0  # seconds that a client waits for a commit: longer than a lease

Result = dict[str, Any]
T = TypeVar("T")


class IdleTaskWriter:
    """Reads heads and appends to tasks that nobody runs, for whoever decides."""

    def __init__(self, store: Store, now: Callable[[], float], measures: ServerMetrics) -> None:
        self._store = store
        self._now = now
        self._measures = measures

    def check_writable(self) -> None:
        """Return unless the store is known to take no writes.

        Raises:
            UnavailableError: It takes none; nothing was changed.
        """
        if self._store.trouble is not None:
            raise UnavailableError(self._store.trouble)

    async def decide(
        self,
        principal: str,
        task_id: str,
        decide: Callable[[Head], Awaitable[T]],
        what: str | None = None,
    ) -> T:
        """Call ``decide`` with the task's head, and again as long as it is fenced off.

        Raises:
            NotFoundError: The principal has no such task; ``what`` is what it looked for.
            UnavailableError: Others were first each time.
        """
        for _ in range(MAX_DECISIONS):
            try:
                return await decide(await self.head(principal, task_id, what))
            except FencedError:
                self._measures.fenced += 1
        raise UnavailableError(f"task {task_id} is written by too many at once; try again")

    async def head(self, principal: str, task_id: str, what: str | None = None) -> Head:
        """Where a task of the principal stands.

        Raises:
            NotFoundError: There is none; ``what`` is what it looked for.
        """
        head = await self._store.head(task_id)
        if head is None or head.owner != principal:
            raise NotFoundError(f"there is no {what or f'task {task_id!r}'}; list shows your tasks")
        return head

    async def load(self, head: Head) -> TaskState:
        """The state of a task that nobody runs.

        Raises:
            FencedError: It is not where ``head`` says any more.
        """
        state = await load_state(self._store, head.task_id)
        if state.seq != head.seq:
            raise FencedError(f"task {head.task_id} went on from event {head.seq} to {state.seq}")
        return state

    async def latest(self, task_id: str) -> TaskState:
        """The state of a task as far as it is committed now; others may be writing it."""
        return await load_state(self._store, task_id)

    async def append(self, head: Head, state: TaskState, *events: e.Event) -> Result:
        """Append to a task that nobody runs, behind the state that was decided on.

        Returns:
            The task's id, status and last number.

        Raises:
            FencedError: Another writer was first, or a worker has claimed the task.
            OverloadedError: The task would be queued and the queue is full.
        """
        now = self._now()
        bodies = write(state, events, now)
        append = Append(
            task_id=head.task_id,
            owner=head.owner,
            epoch=head.epoch,
            expected=head.seq,
            events=bodies,
            status=state.status,
            at=now,
            state=kept_snapshot(state),
        )
        await self._store.append(append)
        if state.status.is_terminal:
            self._measures.end(state.agent, state.status.value)
        return {"task_id": head.task_id, "status": state.status.value, "seq": state.seq}


@asynccontextmanager
async def committing() -> AsyncIterator[None]:
    """Wait for a running task's commit within the block, but not for ever.

    Raises:
        UnavailableError: The store has not committed; it may still do so.
    """
    try:
        async with asyncio.timeout(COMMIT_TIMEOUT):
            yield
    except TimeoutError:
        raise UnavailableError(
            f"the store has not committed within {COMMIT_TIMEOUT:g} s; the outcome is unknown"
        ) from None


def write(state: TaskState, events: Sequence[e.Event], now: float) -> list[bytes]:
    """Fold, number and encode events that follow ``state``."""
    stamp = e.format_timestamp(now)
    bodies = []
    for event in events:
        state.apply(event, stamp)
        bodies.append(e.encode(event, state.task_id, state.seq, stamp))
    return bodies
