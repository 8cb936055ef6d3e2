"""The lifespan of an application around a server, ``ctx.state``, and ``app.run``."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from agentsrv import App, ConfigurationError, ExecutionPlan, LifespanError, Step, TaskContext
from agentsrv.agents.agent import StepContext
from agentsrv.client import Client, TaskFailedError
from agentsrv.errors import UnavailableError
from agentsrv.settings import Settings
from agentsrv.store.memory import MemoryStore
from agentsrv.testing import serving
from tests.integration.agents import plain
from tests.support.clients import run_task


class Pool:
    """Stands for a pool of connections."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.opened = asyncio.Event()


def an_app(pool: Pool) -> App:
    """An application whose lifespan opens and closes the pool."""

    @asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[Pool]:
        pool.events.append(f"open, port {app.settings.port}")
        pool.opened.set()
        yield pool
        pool.events.append("closed")

    app = App(lifespan=lifespan)

    @app.agent
    async def worker(ctx: StepContext, seconds: float = 0.0) -> str:
        ctx.state.events.append("begun")
        await asyncio.sleep(seconds)
        ctx.state.events.append("done")
        return "worked"

    @app.planner
    async def plan(ctx: TaskContext) -> ExecutionPlan:
        ctx.state.events.append("planned")
        return ExecutionPlan(steps=(Step(step_id="a", agent="worker"),))

    return app


async def test_it_is_entered_before_work_and_left_after_the_drain():
    """Agents and the planner use what it yields."""
    pool = Pool()
    settings = Settings(port=0, store="memory:", drain_timeout=10)
    async with an_app(pool).running(settings) as running, Client(running.url) as client:
        assert pool.events == ["open, port 0"]
        assert (await run_task(client, "x")).final_output == "worked"
        task = await client.start("x", agent="worker", params={"seconds": 0.1})
        async for record in task.events():
            if record.event_type == "step_started":
                break
    assert pool.events == [
        "open, port 0",
        "planned",
        "begun",
        "done",
        "begun",
        "done",
        "closed",
    ]


@pytest.mark.parametrize("isolation", ["thread", "process"])
async def test_threads_share_the_state_and_processes_have_none(isolation: Any):
    """A process has not entered the lifespan; the error says what it has."""

    @asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[str]:
        yield "the state"

    app = App(lifespan=lifespan)
    app.agent(isolation=isolation)(plain.uses_state)
    async with serving(app) as client:
        if isolation == "thread":
            assert (await run_task(client, "x", agent="uses_state")).final_output == "the state"
        else:
            with pytest.raises(
                TaskFailedError, match=r"ctx\.state is not available with isolation="
            ):
                await run_task(client, "x", agent="uses_state")


async def test_a_process_reads_the_results_of_dependencies():
    """By the agent's function, as its return annotation says, and by its name."""
    app = App()
    for function in (plain.pair, plain.sums):
        app.agent(isolation="process", retries=0)(function)
    steps = [
        {"step_id": "a", "agent": "pair", "params": {"left": 20}},
        {"step_id": "b", "agent": "sums", "depends_on": ["a"]},
    ]
    async with serving(app) as client:
        assert (await run_task(client, "x", plan={"steps": steps})).final_output == "41"


async def test_without_a_lifespan_there_is_no_state():
    """It is ``None``."""
    app = App()

    @app.agent
    async def teller(ctx: StepContext) -> str:
        return str(ctx.state)

    async with serving(app) as client:
        assert (await run_task(client, "x", agent="teller")).final_output == "None"


async def test_an_error_in_it_stops_the_start(tmp_path):
    """Nothing listens, and the store is free for the next start."""
    fails = [True]

    @asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[None]:
        if fails.pop() if fails else False:
            raise ConnectionRefusedError("no database")
        yield

    app = App(lifespan=lifespan)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    settings = Settings(port=port, store=f"sqlite:///{tmp_path}/log.db")
    with pytest.raises(LifespanError, match="failed at the start: ConnectionRefusedError: no data"):
        async with app.running(settings):
            pytest.fail("started")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port)).close()
    async with app.running(settings):
        pass


async def test_an_error_at_its_end_comes_after_the_drain():
    """The server has been closed."""

    @asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[None]:
        yield
        raise OSError("the pool does not close")

    settings = Settings(port=0, store="memory:")
    with pytest.raises(LifespanError, match="failed at the end: OSError: the pool does not close"):
        async with App(lifespan=lifespan).running(settings) as running:
            port = running.port
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port)).close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_run_serves_until_a_signal(number: signal.Signals):
    """Then it returns, and the program's own handlers are back."""
    pool, heard = Pool(), []
    before = signal.signal(number, lambda *_: heard.append("own"))
    try:
        served = asyncio.create_task(an_app(pool).run(port=0, store="memory:"))
        await pool.opened.wait()
        os.kill(os.getpid(), number)
        await served
        assert heard == []
        os.kill(os.getpid(), number)
        assert heard == ["own"]
    finally:
        signal.signal(number, before)
    assert pool.events == ["open, port 0", "closed"]


async def test_run_serves_until_it_is_cancelled():
    """It drains, then raises the cancellation again."""
    pool = Pool()
    served = asyncio.create_task(an_app(pool).run(port=0, store="memory:"))
    await pool.opened.wait()
    served.cancel()
    with pytest.raises(asyncio.CancelledError):
        await served
    assert pool.events == ["open, port 0", "closed"]


async def test_run_ends_with_an_error_if_the_store_fails(monkeypatch):
    """The program learns why."""

    async def purge(*_: Any) -> int:
        raise OSError("the disk is gone")

    monkeypatch.setattr(MemoryStore, "purge", purge)
    pool = Pool()
    with pytest.raises(UnavailableError, match="cannot be trusted any more: the disk is gone"):
        await an_app(pool).run(port=0, store="memory:", retention=1)
    assert pool.events == ["open, port 0", "closed"]


async def test_run_refuses_a_setting_that_is_unknown():
    """With the nearest name."""
    with pytest.raises(ConfigurationError, match=r"unknown setting 'prot'; did you mean port\?"):
        await App().run(prot=1)
