"""Threads for the computations of the built-in agents.

The event loop's default executor may be full of blocking calls of other agents.
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

THREADS: Final = 2  # the work is Python code, of which one thread runs at a time

_executor: Final = ThreadPoolExecutor(THREADS, thread_name_prefix="agentsrv-builtin")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call ``function`` in one of the threads, in a copy of the caller's context.

    A cancellation returns at once; the function runs on to its end.
    """
    call = partial(copy_context().run, function, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_executor, call)
