"""Turns plain functions into async ones that run them in a thread or in a separate process.

With ``isolation="thread"`` each call starts a new daemon thread, so that an agent that blocks for
ever occupies no thread of a shared pool and does not delay the exit. A thread cannot be stopped:
a cancellation sets ``ctx.cancelled``, and the call returns when the function does.

With ``isolation="process"`` each call runs in a new process, which can be killed; see
`process_function`.
"""

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
    """Return an async function with the same arguments that calls the plain function ``run``.

    Raises:
        ConfigurationError: Another process cannot find the function by its name, or the system has
            no ``fork``.
    """
    if isolation == "thread":
        return partial(_in_thread, run)
    if not hasattr(os, "fork"):
        raise ConfigurationError("isolation='process' needs Linux or macOS; expected 'thread'")
    name = getattr(run, "__qualname__", "<locals>")
    if "<" in name:  # <locals>, <lambda>
        raise ConfigurationError(
            f"isolation='process' got {run!r}; expected a function at the top of a module, "
            "which another process can find by its name"
        )
    return ProcessFunction(run)


async def _in_thread(run: PlainFunction, step: Step, ctx: StepContext, **params: Any) -> Any:
    """Call ``run`` in a new thread.

    A cancellation or a time-out sets ``ctx.cancelled`` and waits until the function has returned.
    A value that it returns after a cancellation is still its result.
    """
    ctx.asker, ctx.mailbox = _no_question, _no_message  # both need the loop's thread
    call = partial(copy_context().run, run, step, ctx, **params)  # for log fields and spans
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
