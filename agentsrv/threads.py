"""Threads for work of the server.

The loop's default executor belongs to authors, whose calls may block all its threads for any time.
The server's own work uses the separate executor of this module, so it does not wait for them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

NAME: Final = "agentsrv-work"
THREADS: Final = 4  # few, because the work is Python code and one thread runs at a time

_executor: Final = ThreadPoolExecutor(THREADS, thread_name_prefix=NAME)  # starts threads on use


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call ``function`` in a thread of this module's executor, in a copy of the caller's context.

    A cancellation returns at once; the function continues to its end.
    """
    call = partial(copy_context().run, function, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_executor, call)


def in_own_thread(function: Callable[[], T], name: str) -> asyncio.Future[Future[T]]:
    """Call ``function`` in a new daemon thread, which does not delay the exit of the process.

    Returns:
        A future that completes when the thread ends, with the outcome as a second future: a result
        or any exception. asyncio's own future would reject ``StopIteration``, and would log an
        exception that is never retrieved.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[Future[T]] = loop.create_future()

    def work() -> None:
        outcome = Future[T]()
        try:
            outcome.set_result(function())
        except BaseException as error:  # noqa: BLE001 - the caller raises it
            outcome.set_exception(error)
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(ended.set_result, outcome)

    threading.Thread(target=work, name=name, daemon=True).start()
    return ended


def within(seconds: float, work: Callable[[], object]) -> None:
    """Run ``work`` in a new daemon thread and wait at most ``seconds`` for it; used before exit."""
    thread = threading.Thread(target=work, name="agentsrv-last-words", daemon=True)
    thread.start()
    thread.join(seconds)


def shut_down() -> None:
    """Reject new work and wait for running calls; called at the end of the process."""
    _executor.shutdown(cancel_futures=True)
