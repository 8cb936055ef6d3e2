import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import pytest

from agentsrv import App, PermanentError
from agentsrv.cli import main
from agentsrv.settings import Settings
from tests.support.fake_model import fake_model

app = App()


@app.agent
async def greeter(step, ctx, name: str, times: int = 1):
    """Greet somebody."""
    for _ in range(times):
        yield f"Hello {name}\n"


@app.agent(retries=1, retry_base=0.001)
async def broken(step, ctx):
    """Fail for good."""
    yield "I begin"
    raise PermanentError("the machine is out of paper")


@app.agent
async def endless(step, ctx):
    """Write something, and then nothing for ever."""
    yield "so far"
    await asyncio.Event().wait()


@app.agent(retries=0)
async def careful(step, ctx, options: list[str] | None = None):
    """Ask before anything is done."""
    if options is not None:
        return await ctx.ask("Which?", options=options, default=options[-1])
    return "done" if await ctx.confirm("Shall I?") else "not done"


@dataclass
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str


def in_a_thread(serving: Callable[[], AbstractAsyncContextManager[str]]) -> Iterator[str]:
    """Serve in a thread and yield the URL; commands run in this one, where signals arrive."""
    told: list[str] = []
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        async with serving() as url:
            told.append(url)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(30)
    yield told[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(30)
    loop.close()


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """A real server."""

    @asynccontextmanager
    async def serving() -> AsyncIterator[str]:
        settings = Settings(port=0, store="memory:", drain_timeout=0.01)
        async with app.running(settings) as running:
            yield running.url

    yield from in_a_thread(serving)


@pytest.fixture
def model_url() -> Iterator[str]:
    """A scripted endpoint that gives vectors."""

    @asynccontextmanager
    async def serving() -> AsyncIterator[str]:
        async with fake_model() as fake:
            fake.embed = lambda text: [float(len(text)), 1.0]
            yield fake.url

    yield from in_a_thread(serving)


@pytest.fixture
def agentsrv(url, monkeypatch, capfd) -> Callable[..., Result]:
    """Runs a command line against the server."""
    monkeypatch.setenv("AGENTSRV_URL", url)

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["agentsrv", *arguments])
        capfd.readouterr()
        code: object = 0
        try:
            main()
        except SystemExit as leaving:
            code = leaving.code
        out, err = capfd.readouterr()
        return Result(int(str(code or 0)), out, err)

    return run
