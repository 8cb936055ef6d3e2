"""Isolation: plain functions as agents, in a thread or in a process of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Literal

from agentsrv.errors import ConfigurationError

if TYPE_CHECKING:
    from agentsrv.agents.base import StepContext
    from agentsrv.agents.questions import Question
    from agentsrv.models.events import InputReceived
    from agentsrv.models.plan import Step

Isolation = Literal["task", "thread", "process"]
PlainFunction = Callable[..., Any]

MISSING: Final = "isolation='process' needs the extra: pip install agentsrv[process]"


def isolated(run: PlainFunction, isolation: Isolation) -> Callable[..., Awaitable[Any]]:
    """The plain function ``run`` as an async one that takes the same arguments.

    Raises:
        ConfigurationError: Processes are asked for, and what they need is not installed.
    """
    if isolation == "thread":
        return partial(_in_thread, run)
    if find_spec("anyio") is None:
        raise ConfigurationError(MISSING)
    return partial(_in_process, run)


async def _in_thread(run: PlainFunction, step: Step, ctx: StepContext, **params: Any) -> Any:
    """Call ``run`` in a thread of its own.

    A thread cannot be stopped: cancelling this, or a time-out, sets ``ctx.cancelled`` and waits
    until the function has returned. What it returns then is its result all the same.
    """
    ctx.asker, ctx.mailbox = _no_question, _no_message  # they belong to this loop
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)

    def work() -> None:
        result, failure = None, None
        try:
            result = run(step, ctx, **params)
        except BaseException as error:  # noqa: BLE001 - it is raised again in the loop
            failure = error
        with suppress(RuntimeError):  # the loop is gone, and with it whoever waited
            loop.call_soon_threadsafe(settle, result, failure)

    # A daemon, so that a function that never returns does not keep the process from its exit.
    name, run_here = f"agent {ctx.step_key}", copy_context().run  # its log and its spans
    threading.Thread(target=run_here, args=(work,), name=name, daemon=True).start()
    try:
        await asyncio.wait({done})
    except asyncio.CancelledError:
        ctx.cancelled.set()
        await asyncio.wait({done})
        if done.exception() is not None:
            raise
    return done.result()


async def _in_process(run: PlainFunction, step: Step, ctx: StepContext, **params: Any) -> Any:
    """Call ``run`` in a process; cancelling this kills the process.

    The function is found by its module and name there, and what goes to and fro is pickled. The
    context has no knowledge base, no language model, no progress, no questions and no messages
    there.
    """
    from anyio import CapacityLimiter, to_process  # noqa: PLC0415 - an extra

    there = replace(
        ctx,
        searcher=_no_search,
        model=None,
        reporter=_no_report,
        asker=_no_question,
        mailbox=_no_message,
    )
    value, result = await to_process.run_sync(
        partial(_call, run, step, there, **params),
        cancellable=True,
        limiter=CapacityLimiter(1),  # the worker's slots are the limit
    )
    ctx.set_result(result)
    return value


def _call(run: PlainFunction, step: Step, ctx: StepContext, **params: Any) -> tuple[Any, Any]:
    return run(step, ctx, **params), ctx.result


async def _no_search(query: str, limit: int) -> list[Any]:
    raise RuntimeError(f"no search in a process of its own: {query[:40]!r}, {limit}")


async def _no_report(done: float, total: float | None, message: str) -> None:
    raise RuntimeError(f"no progress from a process of its own: {done}/{total} {message}")


async def _no_question(question: Question) -> InputReceived:
    raise RuntimeError(f"no questions from a thread or process: {question.prompt[:40]!r}")


async def _no_message(number: int) -> Any:
    raise RuntimeError(f"no messages in a thread or process: number {number}")
