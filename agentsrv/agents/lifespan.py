"""An application's lifespan: what it opens before the server accepts work, and closes after it."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

from agentsrv.agents.params import base_function
from agentsrv.error_text import describe
from agentsrv.errors import ConfigurationError, LifespanError

A = TypeVar("A")

Lifespan = Callable[[A], AbstractAsyncContextManager[Any]]
"""Takes the application; the value of its ``async with`` block becomes ``ctx.state``."""


def check_lifespan(lifespan: Any) -> None:
    """Refuse a lifespan that is not a function of one argument that makes a context manager.

    Raises:
        ConfigurationError: The message says what to write instead.
    """
    if lifespan is None:
        return
    function = base_function(lifespan)
    if inspect.isasyncgenfunction(lifespan) or inspect.iscoroutinefunction(function):
        raise ConfigurationError(
            f"the lifespan is {lifespan!r}; expected a function with @asynccontextmanager "
            "(of contextlib) and one yield"
        )
    if not callable(lifespan) or hasattr(lifespan, "__aenter__"):  # called already
        raise ConfigurationError(
            f"the lifespan is {lifespan!r}; expected a function that takes the application and "
            "returns an async context manager"
        )
    try:
        inspect.signature(lifespan).bind(None)
    except TypeError as error:
        raise ConfigurationError(
            f"the lifespan is {lifespan!r}; expected a function that takes the application: {error}"
        ) from None
    except ValueError:  # a callable without a signature
        pass


@asynccontextmanager
async def entered(lifespan: Lifespan[A] | None, app: A) -> AsyncIterator[Any]:
    """Enter ``lifespan`` for the block; yields its value, ``None`` without a lifespan.

    The lifespan is left in the ordinary way whatever ends the block, so that an error of the
    server does not skip what follows its ``yield``. Cancelling the start cancels the lifespan at
    its ``await``.

    Raises:
        LifespanError: It failed before its ``yield``, or after the block.
    """
    if lifespan is None:
        yield None
        return
    try:
        manager = _made(lifespan, app)
        state = await manager.__aenter__()
    except (Exception, SystemExit) as error:
        raise _failed(lifespan, error, "at the start") from error
    try:
        yield state
    except GeneratorExit:  # the event loop is being taken apart: nothing can be awaited
        raise
    except BaseException:
        await _left(lifespan, manager)
        raise
    await _left(lifespan, manager)


def _made(lifespan: Lifespan[A], app: A) -> AbstractAsyncContextManager[Any]:
    manager = lifespan(app)
    if not hasattr(manager, "__aenter__"):
        raise TypeError(
            f"it returned {type(manager).__name__}; expected an async context manager: is "
            "@asynccontextmanager missing?"
        )
    return manager


async def _left(lifespan: Lifespan[A], manager: AbstractAsyncContextManager[Any]) -> None:
    try:
        await manager.__aexit__(None, None, None)
    except (Exception, SystemExit) as error:
        raise _failed(lifespan, error, "at the end") from error


def _failed(lifespan: Any, error: BaseException, when: str) -> LifespanError:
    """One sentence with the last line of the lifespan's own file, where there is one."""
    code = getattr(base_function(lifespan), "__code__", None)
    lines = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if code is not None and frame.filename == code.co_filename
    ]
    where = f" ({lines[-1].filename}:{lines[-1].lineno})" if lines else ""
    return LifespanError(f"the application's lifespan failed {when}: {describe(error)}{where}")
