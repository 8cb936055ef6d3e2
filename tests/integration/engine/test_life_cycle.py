"""What holds in each phase of a task, over every store, with real time and real commits.

Agents record what happens to them; a story stops their task and the record is compared with the
log. Nothing of the task may run after its terminal event that says ``stopped``, and no step is
cancelled twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import asyncpg
import pytest

from agentsrv.app import App
from agentsrv.client import Client
from agentsrv.models.plan import ExecutionPlan
from agentsrv.settings import Settings
from tests.support.postgres import QUICK, postgres
from tests.support.world import step

_schemas = count(1)


@pytest.fixture(scope="module")
def database():
    """A PostgreSQL for the stores of this module."""
    with postgres(*QUICK) as server:
        yield server


@pytest.fixture(params=["memory", "sqlite", "postgres"])
async def store(request, tmp_path):
    """Each store's URL; the place is empty."""
    if request.param != "postgres":
        return "memory:" if request.param == "memory" else f"sqlite:///{tmp_path / 'tasks.db'}"
    server = request.getfixturevalue("database")
    connection = await asyncpg.connect(server.dsn())
    schema = f"s{next(_schemas)}"
    await connection.execute(f"CREATE SCHEMA {schema}")
    await connection.close()
    return server.dsn(schema)


@dataclass
class Life:
    """What happened to the code of a task, in its order."""

    record: list[str] = field(default_factory=list)
    cancels: dict[str, int] = field(default_factory=dict)
    """Cancellations that reached each piece of code."""
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    """The code is where it is to be stopped."""
    cleaning: asyncio.Event = field(default_factory=asyncio.Event)
    """The code cleans up."""
    clean: asyncio.Event = field(default_factory=asyncio.Event)
    """The code may finish cleaning up."""

    @asynccontextmanager
    async def cleans_up(self, name: str) -> AsyncIterator[None]:
        """Take part in the record: clean up for as long as the story wants."""
        self.record.append(f"{name} begins")
        try:
            yield
        except asyncio.CancelledError:
            self.cancels[name] = self.cancels.get(name, 0) + 1
            raise
        finally:
            self.cleaning.set()
            try:
                await self.clean.wait()
            except asyncio.CancelledError:
                self.cancels[name] += 1
                raise
            finally:
                self.record.append(f"{name} ends")


Agent = Callable[[Life, Any], Awaitable[object]]


async def sleeps(life: Life, ctx: Any) -> None:
    """Code that waits for something of its own."""
    async with life.cleans_up("main"):
        life.begun.set()
        await asyncio.sleep(600)


async def asks(life: Life, ctx: Any) -> None:
    """Code that waits for an answer."""
    async with life.cleans_up("main"):
        life.begun.set()
        await ctx.confirm("go on?")


async def asks_beside_work(life: Life, ctx: Any) -> None:
    """A question, and other code of the same step that works meanwhile."""

    async def work() -> None:
        async with life.cleans_up("work"):
            life.begun.set()
            await asyncio.sleep(600)

    async with asyncio.TaskGroup() as group:
        group.create_task(work())
        await ctx.confirm("go on?")


async def waits_for_a_message(life: Life, ctx: Any) -> None:
    """Code that reads messages."""
    async with life.cleans_up("main"):
        life.begun.set()
        async for _ in ctx.messages():
            pass


async def asks_in_a_child(life: Life, ctx: Any) -> None:
    """A question in a coroutine beside the main one."""

    async def ask() -> None:
        async with life.cleans_up("child"):
            life.begun.set()
            await ctx.confirm("go on?")

    await asyncio.gather(ask())


AGENTS: list[Agent] = [sleeps, asks, asks_beside_work, waits_for_a_message, asks_in_a_child]
ids = pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.__name__)


@dataclass
class Story:
    """One task with one step on a server, and what clients see of it."""

    client: Client
    life: Life
    task: str = ""
    events: list[str] = field(default_factory=list)
    stopped: bool | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    seen: dict[str, asyncio.Event] = field(default_factory=dict)

    async def follow(self) -> None:
        """Take down the events of the task beside what its code does."""
        async for record in self.client.task(self.task).events():
            self.events.append(record.event_type)
            self.life.record.append(record.event_type)
            self.seen.setdefault(record.event_type, asyncio.Event()).set()
            self.stopped = record.data.get("stopped", self.stopped)
        self.ended.set()

    async def until(self, event_type: str) -> None:
        """Wait for an event."""
        await self.seen.setdefault(event_type, asyncio.Event()).wait()


@asynccontextmanager
async def told(store: str, agent: Agent, drain_timeout: float = 0.05) -> AsyncIterator[Story]:
    """A server on which the task has come to the place where it is to be stopped."""
    app, life = App(), Life()

    @app.agent(name="it")
    async def run(step: Any, ctx: Any) -> None:
        await agent(life, ctx)

    limits = Settings(port=0, store=store, drain_timeout=drain_timeout, cancel_grace=60)
    async with app.running(limits) as running, Client(running.url) as client:
        story = Story(client, life)
        plan = ExecutionPlan(steps=(step("a", "it"),)).model_dump(mode="json")
        created = await client.start("x", plan=plan)
        story.task = created.id
        following = asyncio.create_task(story.follow())
        await life.begun.wait()
        await story.until("input_required" if "asks" in agent.__name__ else "step_started")
        try:
            yield story
        except BaseException:
            life.clean.set()
            raise
        finally:
            following.cancel()
            await asyncio.wait({following})


@ids
async def test_nothing_of_a_task_runs_after_its_cancelled_end(store, agent):
    """The reply is ``cancelling`` while code runs; the end comes after the last of it."""
    async with told(store, agent) as story:
        life = story.life
        reply = await story.client.task(story.task).cancel("enough")
        assert (reply.status, reply.already) == ("cancelling", False)
        await life.cleaning.wait()
        await story.until("task_cancelling")
        assert "task_cancelled" not in story.events
        life.clean.set()
        await asyncio.wait_for(story.ended.wait(), 20)
        assert story.stopped is True
        last = max(place for place, what in enumerate(life.record) if what.endswith(" ends"))
        assert life.record.index("task_cancelled") > last
        assert all(times == 1 for times in life.cancels.values())
        assert life.cancels


@ids
async def test_a_step_is_cancelled_once(store, agent):
    """Neither a second cancel nor a drain within the grace period interrupts the clean-up."""
    async with told(store, agent) as story:
        life = story.life
        await story.client.task(story.task).cancel("enough")
        await life.cleaning.wait()
        assert (await story.client.task(story.task).cancel()).already is True
        asyncio.get_running_loop().call_later(0.3, life.clean.set)  # after the drain's time
    assert life.cancels
    assert all(times == 1 for times in life.cancels.values())
    assert [what for what in life.record if what.endswith(" ends")]


@ids
async def test_a_drain_gives_code_its_time(store, agent):
    """The code is not cancelled before the drain's time is over, then once."""
    async with told(store, agent, drain_timeout=0.5) as story:
        life = story.life
        life.clean.set()
        loop = asyncio.get_running_loop()
        early: list[int] = []
        loop.call_later(0.25, lambda: early.append(sum(life.cancels.values())))
    assert early == [0]
    assert life.cancels
    assert all(times == 1 for times in life.cancels.values())
    assert "task_cancelled" not in life.record
