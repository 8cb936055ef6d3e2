"""Isolation: plain functions as agents, in a thread or in a process of their own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from agentsrv.agents.isolation.process_function import ProcessFunction
from agentsrv.errors import ConfigurationError
from agentsrv.threads import in_own_thread

if TYPE_CHECKING:
    from agentsrv.agents.agent import StepContext
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
    call = partial(copy_context().run, run, step, ctx, **params)  # with its log and its spans
    done = in_own_thread(call, f"agent {ctx.step_key}")
    cancelled: asyncio.CancelledError | None = None
    try:
        await asyncio.wait({done})
    except asyncio.CancelledError as error:
        cancelled = error
        ctx.cancelled.set()
        await asyncio.wait({done})
    outcome = done.result()
    if cancelled and outcome.exception():
        raise cancelled
    return outcome.result()


async def _no_question(question: Question) -> InputReceived:
    raise RuntimeError(f"no questions from a thread: {question.prompt[:40]!r}")


async def _no_message(number: int) -> Any:
    raise RuntimeError(f"no messages in a thread: number {number}")
