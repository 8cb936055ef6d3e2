"""The lifespan of an application, without a server around it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from agentsrv import App, ConfigurationError, InvalidStateError, LifespanError
from agentsrv.agents.lifespan import entered


@asynccontextmanager
async def good(app: Any) -> AsyncIterator[str]:
    """Note when it is entered and left."""
    app.append("entered")
    try:
        yield "state"
    finally:
        app.append("left")


async def generator(app: Any) -> AsyncIterator[None]:
    """Lack the decorator."""
    yield


async def coroutine(app: Any) -> None:
    """Be no context manager."""


@asynccontextmanager
async def without_parameter() -> AsyncIterator[None]:
    """Take no application."""
    yield


@pytest.mark.parametrize(
    ("lifespan", "message"),
    [
        (generator, "expected a function with @asynccontextmanager"),
        (coroutine, "expected a function with @asynccontextmanager"),
        (without_parameter, "expected a function that takes the application: too many"),
        (good([]), "expected a function that takes the application and returns"),
        ("good", "the lifespan is 'good'; expected a function"),
    ],
)
def test_what_is_no_lifespan_is_refused(lifespan, message):
    """Where the application is made."""
    with pytest.raises(ConfigurationError, match=message):
        App(lifespan=lifespan)


async def test_its_value_is_that_of_the_block_whatever_ends_it():
    """An error of the block does not reach the lifespan, and is raised after it."""
    events: list[str] = []
    async with entered(good, events) as state:
        assert (state, events) == ("state", ["entered"])
    assert events == ["entered", "left"]
    with pytest.raises(ZeroDivisionError):
        async with entered(good, events):
            raise ZeroDivisionError
    assert events == ["entered", "left"] * 2
    async with entered(None, events) as state:
        assert state is None


@contextmanager
def synchronous(app: Any):
    """Be a context manager of the other kind."""
    yield


@asynccontextmanager
async def empty(app: Any) -> AsyncIterator[None]:
    """Never yield."""
    if app is None:
        yield


@asynccontextmanager
async def refused(app: Any) -> AsyncIterator[None]:
    """Fail before it yields."""
    if app == []:
        raise ConnectionRefusedError("no database at postgresql://ada:secret@db/x")
    yield


@asynccontextmanager
async def exits(app: Any) -> AsyncIterator[None]:
    """Exit before it yields."""
    if app == []:
        raise SystemExit("no database")
    yield


@pytest.mark.parametrize(
    ("lifespan", "message"),
    [
        (synchronous, "expected an async context manager: is @asynccontextmanager missing?"),
        (empty, "generator didn't yield"),
        (
            refused,
            r"ConnectionRefusedError: no database at .*\*\*\*@db.* \(.*test_lifespan.py:\d+\)",
        ),
        (exits, "SystemExit: no database"),
    ],
)
async def test_an_error_at_the_start_is_one_sentence(lifespan, message):
    """With the place in the author's file, and without credentials."""
    with pytest.raises(LifespanError, match=message) as caught:
        async with entered(lifespan, []):
            pytest.fail("entered")
    assert caught.value.message.startswith("the application's lifespan failed at the start: ")
    assert "secret" not in caught.value.message
    assert "\n" not in caught.value.message


async def test_an_error_at_the_end_is_raised_after_the_block():
    """As an error of its own."""

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        yield
        raise OSError("the pool does not close")

    with pytest.raises(LifespanError, match="failed at the end: OSError: the pool does not close"):
        async with entered(lifespan, None):
            pass


async def test_a_start_that_is_cancelled_cancels_the_lifespan():
    """At its ``await``; what it has opened is closed."""
    events: list[str] = []

    @asynccontextmanager
    async def slow(app: Any) -> AsyncIterator[None]:
        try:
            await asyncio.Event().wait()
            yield
        finally:
            events.append("closed")

    async def start() -> None:
        async with entered(slow, None):
            events.append("entered")

    task = asyncio.create_task(start())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert events == ["closed"]


def test_settings_are_those_of_a_server():
    """Before the first start there is no server."""
    with pytest.raises(InvalidStateError, match="expected it in the lifespan"):
        _ = App().settings
