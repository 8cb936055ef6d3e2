"""Plain functions as agents: importable, so that a process can find them."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable

from agentsrv import PermanentError, Step, StepContext


def add(step: Step, ctx: StepContext, left: int = 1, right: int = 2) -> int:
    """Add two numbers, and tell where."""
    ctx.set_result({"pid": os.getpid(), "key": ctx.step_key})
    return left + right


def tell(step: Step, ctx: StepContext) -> None:
    """Give only a structured result."""
    ctx.set_result({"pid": os.getpid(), "key": ctx.step_key})


def has_model(step: Step, ctx: StepContext) -> str:
    """Tell whether there is a language model."""
    return str(bool(ctx.llm))


def fail(step: Step, ctx: StepContext) -> str:
    """Raise what is not retried."""
    raise PermanentError("out of paper")


def ask(step: Step, ctx: StepContext, message: bool = False) -> str:
    """Ask, or listen, where neither is possible."""

    async def speak() -> str:
        return str(await anext(ctx.messages()) if message else await ctx.confirm("May I?"))

    return asyncio.run(speak())


def polite(step: Step, ctx: StepContext) -> str:
    """Work until asked to stop."""
    while not ctx.cancelled.is_set():
        time.sleep(0.005)
    return "stopped when asked"


def deaf(step: Step, ctx: StepContext) -> str:
    """Never look whether anybody asks."""
    time.sleep(1.5)
    return "done at last"


class Own(BaseException):
    """An error of an author that is no `Exception`."""


RAISED: dict[str, type[BaseException]] = {
    kind.__name__: kind
    for kind in (
        ValueError,
        StopIteration,
        StopAsyncIteration,
        GeneratorExit,
        asyncio.CancelledError,
        KeyboardInterrupt,
        SystemExit,
        Own,
    )
}


def raises(step: Step, ctx: StepContext, error: str) -> str:
    """Raise what is asked for, as ``next`` does of an empty iterator."""
    raise RAISED[error]("own")


def _undefined() -> None:
    undefined_name  # type: ignore[name-defined]  # noqa: B018, F821


def _in_library() -> None:
    json.dumps(object())


def _group(*errors: Exception) -> None:
    raise ExceptionGroup("both", errors)


def _raised(work: Callable[[], object]) -> Exception:
    try:
        work()
    except Exception as error:  # noqa: BLE001 - whatever it is
        return error
    raise AssertionError


WRONG: dict[str, tuple[Callable[[], object], int]] = {
    # What is done, and the attempts that it has of three.
    "an undefined name": (_undefined, 1),
    "a missing attribute": (lambda: None.missing, 1),  # type: ignore[attr-defined]
    "a wrong type": (lambda: "a" + 1, 1),  # type: ignore[operator]
    "a wrong type in a library": (_in_library, 3),
    "a value": (lambda: int("a"), 3),
    "a wrong type in a group": (lambda: _group(ValueError("a"), _raised(_undefined)), 1),
    "a group of others": (lambda: _group(ValueError("a"), _raised(_in_library)), 3),
    "permanent in a group": (lambda: _group(ValueError("a"), PermanentError("b")), 1),
}


def wrong(step: Step, ctx: StepContext, what: str) -> None:
    """Do something wrong."""
    WRONG[what][0]()


def pair(left: int = 1) -> tuple[int, int]:
    """Return what JSON writes in another way."""
    return left, left + 1


def sums(ctx: StepContext) -> int:
    """Add up what `pair` has returned, by its function and by its name."""
    by_function = ctx.result_of(pair)
    assert isinstance(by_function, tuple)
    assert ctx.result_of("pair") == list(by_function)
    return sum(by_function)


def uses_state(ctx: StepContext) -> str:
    """Use the value of the application's lifespan."""
    return str(ctx.state)
