"""Distinguishes what an author's code raised from what the server did to it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any


def is_authors(error: BaseException, *, stopped: bool) -> bool:
    """Whether the author's code raised ``error`` of its own accord.

    Then it is a failure, whatever its class: SystemExit must not end the server, and a
    CancelledError that the server did not cause cancels nothing. ``asyncio.Task.cancelling()``
    does not tell the two apart: an agent can cancel its own asyncio task, and before Python 3.13
    a TaskGroup that failed leaves the count raised.

    Args:
        error: What was raised.
        stopped: Whether the server has cancelled the code, because its task is stopped. The
            closing of a coroutine whose loop is gone is not the author's either.
    """
    if isinstance(error, asyncio.CancelledError):
        return not stopped
    if isinstance(error, GeneratorExit):
        return _in_task()
    return True


async def take_back(task: asyncio.Task[Any]) -> None:
    """Undo the cancellations of the running ``task`` that an author's code left behind.

    The server's own code is the next that awaits in this task; a cancellation that is still to
    be delivered is delivered here.
    """
    while task.cancelling():
        task.uncancel()
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(0)


def _in_task() -> bool:
    try:
        return asyncio.current_task() is not None
    except RuntimeError:
        return False  # no loop runs
