"""Whole logs: folding one into a state, and forgetting the old ones."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import orjson

from agentsrv.error_text import describe
from agentsrv.errors import AgentsrvError, InvalidStateError, NotFoundError
from agentsrv.models.task import TaskState
from agentsrv.store.base import Store, damaged

PAGE = 500  # events read at once when a log is folded
SNAPSHOT_FROM = 64  # events; the snapshot of an ended task with fewer is folded when asked for
PURGE_BATCH = 100  # tasks forgotten in one transaction: others' commits wait for it
PURGE_EVERY = 60.0  # seconds between looks at what is old

_log = logging.getLogger("agentsrv.retention")
_store_log = logging.getLogger("agentsrv.store")


def forgotten(task_id: str) -> NotFoundError:
    """The refusal of a task whose log was there and is not any more."""
    return NotFoundError(f"task {task_id} is not kept any more: it ended too long ago")


async def load_state(store: Store, task_id: str) -> TaskState:
    """Fold a task's whole log.

    Raises:
        NotFoundError: There is no such task any more.
        Damaged: Its log cannot be read, or does not hold what was written.
    """
    log: list[bytes] = []
    while page := await store.read(task_id, len(log), PAGE):
        log.extend(page)
        if len(page) < PAGE:
            break
    if not log:
        raise forgotten(task_id)
    try:
        return TaskState.fold(task_id, log)
    except (InvalidStateError, ValueError, TypeError, LookupError) as error:
        refusal = damaged(task_id)
        _store_log.error(
            "the log of task %s does not hold what was written: %s; `agentsrv doctor` looks for "
            "more, `agentsrv backup` is where copies come from",
            task_id,
            describe(error),
        )
        raise refusal from error


def kept_snapshot(state: TaskState) -> bytes | None:
    """The snapshot to keep beside the log, where the task has ended and its log is long."""
    if not state.status.is_terminal or state.seq < SNAPSHOT_FROM:
        return None
    return orjson.dumps(state.snapshot())


async def forget_old(store: Store, retention: float, now: Callable[[], float]) -> None:
    """Purge tasks that ended more than ``retention`` seconds ago, until cancelled.

    A wall clock that is set forward while the server runs must not delete what is young: no more
    time counts than has passed by the loop's clock since the start.
    """
    pause, loop = min(PURGE_EVERY, retention), asyncio.get_running_loop()
    started = now() - loop.time()
    while True:
        try:
            before = min(now(), started + loop.time()) - retention
            while await store.purge(before, PURGE_BATCH) == PURGE_BATCH:  # noqa: ASYNC110 - lets others commit
                await asyncio.sleep(0)
        except AgentsrvError as error:
            _log.error("old tasks are kept: %s", error)
        await asyncio.sleep(pause)
