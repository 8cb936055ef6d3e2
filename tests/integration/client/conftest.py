import asyncio
from collections.abc import AsyncIterator

import pytest

from agentsrv import App, PermanentError, StepContext
from agentsrv.client import Client
from agentsrv.settings import Settings
from agentsrv.wiring import Server
from tests.support.clients import hasty, nothing_left_running

__all__ = ["hasty", "nothing_left_running"]  # fixtures, too

app = App()


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
async def server(application: App) -> AsyncIterator[Server]:
    """A real server in this loop."""
    settings = Settings(port=0, store="memory:", drain_timeout=0.01, queue_limit=1000)
    async with application.running(settings) as running:
        yield running


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    """A client of it."""
    async with Client(server.url) as client:
        yield client
