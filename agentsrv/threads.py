"""Threads for work of the server and of the built-in agents.

The loop's default executor belongs to authors: their calls may block all its threads for as long
as they like. What the server itself and its agents do in threads must not wait for them.
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
THREADS: Final = 4  # the work is Python code, of which one thread runs at a time

_executor: Final = ThreadPoolExecutor(THREADS, thread_name_prefix=NAME)  # threads start when used


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call ``function`` in one of these threads, in a copy of the caller's context.

    A cancellation returns at once; the function runs on to its end.
    """
    call = partial(copy_context().run, function, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_executor, call)


def in_own_thread(function: Callable[[], T], name: str) -> asyncio.Future[Future[T]]:
    """Call ``function`` in a new thread, which may be left behind: it holds up no exit.

    Returns:
        What the thread has given, when it has ended: a result, or any exception. asyncio's own
        future would refuse ``StopIteration``, and complain of an exception that nobody asks for.
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
    """Do ``work`` in a new thread, and wait for it for at most ``seconds``: before an exit."""
    thread = threading.Thread(target=work, name="agentsrv-last-words", daemon=True)
    thread.start()
    thread.join(seconds)


def shut_down() -> None:
    """Take no more work, and wait for what runs; for the end of the process."""
    _executor.shutdown(cancel_futures=True)
