import asyncio
from collections.abc import AsyncIterator

import pytest

from agentsrv import App, PermanentError, StepContext
from agentsrv.app import Running
from agentsrv.client import Client, Options, Reconnect
from agentsrv.settings import Settings

app = App(builtin=False)


@app.agent
async def chatter(step, ctx: StepContext, pieces: int = 20):
    """Tell a number of pieces, and the progress before each."""
    for number in range(pieces):
        await ctx.progress(number, pieces, "")
        yield f"{number} "


@app.agent(retries=0)
async def broken(step, ctx):
    """Fail for good."""
    raise PermanentError("the machine is out of paper")


@app.agent
async def endless(step, ctx):
    """Write something, and then nothing for ever."""
    yield "so far"
    await asyncio.Event().wait()


@pytest.fixture
def application() -> App:
    """The agents above."""
    return app


@pytest.fixture
async def server(application: App) -> AsyncIterator[Running]:
    """A real server in this loop."""
    settings = Settings(port=0, store="memory:", drain_timeout=0.01, queue_limit=1000)
    async with application.running(settings) as running:
        yield running


@pytest.fixture
async def client(server: Running) -> AsyncIterator[Client]:
    """A client of it."""
    async with Client(server.url) as client:
        yield client


@pytest.fixture
def hasty() -> Options:
    """Options of a client that connects again without waiting, for ever."""
    return Options(reconnect=Reconnect(base=0.0, attempts=10_000, first_attempts=10_000))


@pytest.fixture(autouse=True)
async def nothing_left_running() -> AsyncIterator[None]:
    """No test leaves a task behind."""
    before = asyncio.all_tasks()
    yield
    await asyncio.sleep(0)
    left = {task for task in asyncio.all_tasks() - before if "client" in task.get_name()}
    assert not left
