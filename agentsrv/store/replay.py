"""Operations on whole logs: folding one into a state, and purging old tasks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import orjson

from agentsrv.error_text import describe
from agentsrv.errors import AgentsrvError, InvalidStateError, NotFoundError
from agentsrv.models.task import TaskState
from agentsrv.store.base import Store, damaged

READ_BATCH = 500  # events read at once
MIN_SNAPSHOT_EVENTS = 64  # a snapshot of a shorter log is not stored: folding it is fast
PURGE_BATCH = 100  # tasks deleted in one transaction, for which other commits wait
PURGE_INTERVAL = 60.0  # seconds

_log = logging.getLogger("agentsrv.retention")
_store_log = logging.getLogger("agentsrv.store")


def forgotten(task_id: str) -> NotFoundError:
    """The error for a task that was purged."""
    return NotFoundError(f"task {task_id} was deleted: it ended too long ago")


async def load_state(store: Store, task_id: str) -> TaskState:
    """Fold a task's whole log.

    Raises:
        NotFoundError: The task was purged.
        DamagedError: Its log cannot be read, or is not a valid sequence of events.
    """
    log: list[bytes] = []
    while page := await store.read(task_id, len(log), READ_BATCH):
        log.extend(page)
        if len(page) < READ_BATCH:
            break
    if not log:
        raise forgotten(task_id)
    try:
        return TaskState.fold(task_id, log)
    except (InvalidStateError, ValueError, TypeError, LookupError) as error:
        refusal = damaged(task_id)
        _store_log.error(
            "the log of task %s is damaged: %s; run `agentsrv doctor` to find other damaged tasks, "
            "and restore a copy that `agentsrv backup` made",
            task_id,
            describe(error),
        )
        raise refusal from error


def kept_snapshot(state: TaskState) -> bytes | None:
    """The snapshot to store with the terminal event; ``None`` if the log is short."""
    if not state.status.is_terminal or state.seq < MIN_SNAPSHOT_EVENTS:
        return None
    return orjson.dumps(state.snapshot())


async def forget_old(store: Store, retention: float, now: Callable[[], float]) -> None:
    """Purge tasks that ended more than ``retention`` seconds ago, until cancelled.

    If the wall clock is set forward while the server runs, recent tasks must not be deleted. So
    the time since the start is measured by the loop's clock, if that is less.
    """
    interval, loop = min(PURGE_INTERVAL, retention), asyncio.get_running_loop()
    started = now() - loop.time()
    while True:
        try:
            before = min(now(), started + loop.time()) - retention
            while await store.purge(before, PURGE_BATCH) == PURGE_BATCH:  # noqa: ASYNC110 - other commits come in between
                await asyncio.sleep(0)
        except AgentsrvError as error:
            _log.error("old tasks could not be deleted: %s", error)
        await asyncio.sleep(interval)
