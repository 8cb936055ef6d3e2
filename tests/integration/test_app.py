"""Whole servers in one loop, above one store in memory that they share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from agentsrv import App, Step, StepContext
from agentsrv.client import Client
from agentsrv.engine.cluster.follower import CommitFollower
from agentsrv.errors import ConfigurationError
from agentsrv.resources import open_store
from agentsrv.settings import Settings
from agentsrv.wiring import Server
from tests.support.clients import run_task
from tests.support.shared_memory import Place

Serve = Callable[..., AbstractAsyncContextManager[Server]]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Starts servers above one place; they are named by the setting."""
    place = Place()
    monkeypatch.setattr("agentsrv.wiring.open_store", lambda _, node: place.door(node))

    @asynccontextmanager
    async def serve(name: str, **settings: object) -> AsyncIterator[Server]:
        app = App()

        @app.agent
        async def asker(step: Step, ctx: StepContext) -> str:
            return str(await ctx.ask("How many?", int))

        fields = {"port": 0, "node": name, "drain_timeout": 0.01} | settings
        async with app.running(Settings(**fields)) as running:  # type: ignore[arg-type]
            yield running

    return serve


async def test_a_gateway_runs_nothing_and_a_worker_takes_nobody(serve: Serve) -> None:
    """What people at the one want of a task, the other one does; both tell that they are well."""
    async with serve("gate", role="gateway") as gate, Client(gate.url) as client:
        task = (await client.start("x", agent="asker")).id
        await asyncio.sleep(0.1)
        assert (await client.task(task).status()).status == "queued"
        async with serve("work", role="worker") as work:
            async for record in client.task(task).events():
                if record.event_type == "task_started":
                    assert record.data["node"] == "work"
                if record.event_type == "input_required":
                    await client.task(task).respond(record.data["input_id"], 7)
                if record.is_terminal:
                    assert record.data["final_output"] == "7"
            with pytest.raises(InvalidStatus, match="503"):
                await connect(work.url)
            for running in (gate, work):
                reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
                writer.write(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert b" 200 " in await reader.readline()
                writer.close()


async def test_a_part_that_breaks_ends_the_server(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rather than that its clients are told nothing any more."""

    async def run(_: CommitFollower) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(CommitFollower, "run", run)
    async with serve("a") as running, asyncio.timeout(30):
        assert str(await running.broken) == "a fault of ours"
    assert "a part of the server broke" in caplog.messages


@pytest.mark.parametrize("setting", [{"role": "worker"}, {"processes": 2}, {"bus": "redis://x"}])
def test_what_is_for_shared_stores_needs_one(setting: dict[str, object]) -> None:
    """A single server must not believe that others share its file."""
    settings = Settings(store="memory:", **setting)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="for servers that share a store"):
        open_store(settings, "a")


def test_the_store_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error tells which."""
    monkeypatch.setattr("agentsrv.resources.find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'agentsrv\[postgres\]'"):
        open_store(Settings(store="postgresql://x/x"), "a")


async def test_without_a_knowledge_base_nothing_is_found() -> None:
    """A search of an agent returns an empty list."""
    app = App()

    @app.agent
    async def seeker(ctx: StepContext) -> str:
        return f"found {await ctx.search('threads')}"

    settings = Settings(port=0, store="memory:")
    async with app.running(settings) as running, Client(running.url) as client:
        assert (await run_task(client, "x", agent="seeker")).final_output == "found []"
