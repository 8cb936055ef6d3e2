"""Telling what an author's code raised from what was done to it."""

from __future__ import annotations

import asyncio


def is_cancelled() -> bool:
    """Whether somebody has cancelled the running task from outside and not taken it back."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def is_authors(error: BaseException) -> bool:
    """Whether the author's code raised ``error`` of its own accord.

    Then it is a failure, whatever its class: SystemExit must not end the server, and a
    CancelledError that nobody caused cancels nothing. A cancellation from outside is not the
    author's, nor is the closing of a coroutine whose loop is gone.
    """
    if isinstance(error, asyncio.CancelledError):
        return not is_cancelled()
    if isinstance(error, GeneratorExit):
        return _in_task()
    return True


def _in_task() -> bool:
    try:
        return asyncio.current_task() is not None
    except RuntimeError:
        return False  # no loop runs
