"""Isolation: plain functions as agents, in a thread or in a process of their own."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from agentsrv.agents.process import ProcessFunction
from agentsrv.errors import ConfigurationError

if TYPE_CHECKING:
    from agentsrv.agents.base import StepContext
    from agentsrv.agents.questions import Question
    from agentsrv.models.events import InputReceived
    from agentsrv.models.plan import Step

Isolation = Literal["task", "thread", "process"]
PlainFunction = Callable[..., Any]


def isolated(run: PlainFunction, isolation: Isolation) -> Callable[..., Awaitable[Any]]:
    """The plain function ``run`` as an async one that takes the same arguments.

    Raises:
        ConfigurationError: Another process could not find the function by its name, or the
            system has no ``fork``.
    """
    if isolation == "thread":
        return partial(_in_thread, run)
    if not hasattr(os, "fork"):
        raise ConfigurationError("isolation='process' needs Linux or macOS; expected 'thread'")
    name = getattr(run, "__qualname__", "<locals>")
    if "<" in name:  # <locals>, <lambda>
        raise ConfigurationError(
            f"isolation='process' was given {run!r}; expected a function at the top of a module, "
            "which another process finds by its name"
        )
    return ProcessFunction(run)


async def _in_thread(run: PlainFunction, step: Step, ctx: StepContext, **params: Any) -> Any:
    """Call ``run`` in a thread of its own.

    A thread cannot be stopped: cancelling this, or a time-out, sets ``ctx.cancelled`` and waits
    until the function has returned. What it returns then is its result all the same.
    """
    ctx.asker, ctx.mailbox = _no_question, _no_message  # they belong to this loop
    loop = asyncio.get_running_loop()
    # The error is not the future's own: a future refuses a StopIteration, and would not be done.
    done: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()

    def work() -> None:
        result, failure = None, None
        try:
            result = run(step, ctx, **params)
        except BaseException as error:  # noqa: BLE001 - it is raised again in the loop
            failure = error
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(done.set_result, (result, failure))

    # A daemon, so that a function that never returns does not keep the process from its exit.
    name, run_here = f"agent {ctx.step_key}", copy_context().run  # its log and its spans
    threading.Thread(target=run_here, args=(work,), name=name, daemon=True).start()
    cancelled: asyncio.CancelledError | None = None
    try:
        await asyncio.wait({done})
    except asyncio.CancelledError as error:
        cancelled = error
        ctx.cancelled.set()
        await asyncio.wait({done})
    result, failure = done.result()
    if failure is not None:
        raise cancelled or failure
    return result


async def _no_question(question: Question) -> InputReceived:
    raise RuntimeError(f"no questions from a thread: {question.prompt[:40]!r}")


async def _no_message(number: int) -> Any:
    raise RuntimeError(f"no messages in a thread: number {number}")
