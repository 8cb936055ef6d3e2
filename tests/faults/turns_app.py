"""The application of ``pouring_app``, in a server that notes the order of its queue.

The file that ``TURNS`` names gets a line for each task that can be claimed from now on, and one for
each that is claimed: ``queued OWNER TASK`` and ``claimed OWNER TASK``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from agentsrv.store.queue import TaskQueue
from tests.faults.pouring_app import app

__all__ = ["app"]

_commit_new, _claim = TaskQueue.commit_new, TaskQueue.claim
_file = os.open(os.environ["TURNS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def _note(what: str, tasks: Iterable[tuple[str, str]]) -> None:
    lines = [f"{what} {owner} {task_id}\n" for task_id, owner in tasks]
    os.write(_file, "".join(lines).encode())


def _noted_commit(queue: TaskQueue) -> None:
    _note("queued", queue._new.items())
    _commit_new(queue)


def _noted_claim(queue: TaskQueue, limit: int) -> list[str]:
    claimed = _claim(queue, limit)
    _note("claimed", [(task_id, queue._leased[task_id]) for task_id in claimed])
    return claimed


TaskQueue.commit_new = _noted_commit  # type: ignore[method-assign, assignment]
TaskQueue.claim = _noted_claim  # type: ignore[method-assign, assignment]
