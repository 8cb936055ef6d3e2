"""Threads for work of the server and of the built-in agents.

The loop's default executor belongs to authors: their calls may block all its threads for as long
as they like. What the server itself and its agents do in threads must not wait for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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


def shut_down() -> None:
    """Take no more work, and wait for what runs; for the end of the process."""
    _executor.shutdown(cancel_futures=True)
