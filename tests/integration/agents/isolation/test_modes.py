"""Plain functions in threads and processes: what they may do, and how they end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agentsrv import App
from agentsrv.agents.agent import Agent
from agentsrv.client import Client, Record, TaskFailedError
from agentsrv.errors import ConfigurationError
from agentsrv.settings import Settings
from tests.integration.agents import plain
from tests.support.clients import run_task


@asynccontextmanager
async def served(*agents: Any, **options: Any) -> AsyncIterator[Client]:
    """A client of a server that has these agents."""
    app = App()
    for agent in agents:
        app.agent(**options)(agent)
    settings = Settings(port=0, store="memory:", drain_timeout=0.1, cancel_grace=0.5, concurrency=1)
    async with app.running(settings) as running, Client(running.url) as client:
        yield client


async def begun(client: Client, agent: str, **params: Any) -> str:
    """A task of that agent whose step has started."""
    created = await client.start("x", agent=agent, params=params)
    async for record in created.events():
        if record.event_type == "step_started":
            break
    return created.id


async def last(client: Client, task: str) -> Record:
    """The task's terminal event."""
    return [record async for record in client.task(task).events()][-1]


async def until(path: Path) -> str:
    """What is in the file, as soon as something is."""
    async with asyncio.timeout(20):
        while not (path.exists() and path.read_text()):  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.01)
    return path.read_text()  # noqa: ASYNC240


async def an_async_agent(step, ctx):
    """An async function."""


def a_generator(step, ctx):
    """A generator."""
    yield "text"


@pytest.mark.parametrize(
    ("function", "isolation", "told"),
    [
        (plain.add, "task", "isolation='thread' or 'process'"),
        (an_async_agent, "thread", "takes a plain function"),
        (an_async_agent, "process", "takes a plain function"),
        (a_generator, "thread", "takes a plain function"),
        (plain.add, "cell", "expected 'task', 'thread' or 'process'"),
    ],
)
def test_a_function_must_fit_its_isolation(function, isolation, told):
    """What cannot be is refused at the registration, with what can."""
    with pytest.raises(ConfigurationError, match=told):
        Agent.of(function, isolation=isolation)


@pytest.mark.parametrize("isolation", ["thread", "process"])
async def test_a_plain_function_is_an_agent(isolation):
    """Its params are validated, its value is the result, and what it raises fails the step."""
    async with served(plain.add, plain.fail, isolation=isolation) as client:
        assert (await run_task(client, "x", agent="add", params={"left": 40})).final_output == "42"
        with pytest.raises(TaskFailedError, match="PermanentError: out of paper"):
            await run_task(client, "x", agent="fail")


@pytest.mark.parametrize(
    ("isolation", "message", "reason"),
    [
        ("thread", False, "no questions from a thread: 'May I"),
        ("thread", True, "no messages in a thread"),
        ("process", False, "ctx.confirm is not available"),
        ("process", True, "ctx.messages is not available"),
    ],
)
async def test_people_cannot_be_spoken_to_from_elsewhere(isolation, message, reason):
    """What belongs to the event loop is refused, instead of being used from outside of it."""
    async with served(plain.ask, isolation=isolation, retries=0) as client:
        with pytest.raises(TaskFailedError, match=reason):
            await run_task(client, "x", agent="ask", params={"message": message})


@pytest.mark.parametrize(("isolation", "same"), [("thread", True), ("process", False)])
async def test_a_result_comes_back_from_where_it_was_made(isolation, same):
    """A thread is of this process, a process is another."""
    async with served(plain.tell, isolation=isolation) as client:
        seen: list[Record] = []
        await run_task(client, "x", agent="tell", on_event=seen.append)
        [result] = [r.data["result"] for r in seen if r.event_type == "step_completed"]
        assert (result["pid"] == os.getpid()) is same
        assert result["key"] == f"{seen[0].task_id}/step_001"


@pytest.mark.parametrize(("isolation", "has_model"), [("thread", "True"), ("process", "False")])
async def test_the_language_model_stays_in_its_process(isolation, has_model, monkeypatch):
    """Its connections cannot be handed to another."""
    monkeypatch.setenv("AGENTSRV_LLM_URL", "http://127.0.0.1:1/v1")
    monkeypatch.setenv("AGENTSRV_LLM_MODEL", "m")
    async with served(plain.has_model, isolation=isolation) as client:
        assert (await run_task(client, "x", agent="has_model")).final_output == has_model


async def test_a_thread_is_asked_to_stop():
    """A function that looks at ctx.cancelled ends in time."""
    async with served(plain.polite, isolation="thread") as client:
        task = await begun(client, "polite")
        await client.task(task).cancel()
        end = await last(client, task)
        assert (end.event_type, end.data["stopped"]) == ("task_cancelled", True)


async def test_a_thread_that_does_not_stop_is_told_and_keeps_its_slot():
    """It cannot be killed: the event says so, and the next task waits until it has ended."""
    async with served(plain.deaf, plain.polite, isolation="thread") as client:
        task = await begun(client, "deaf")
        await client.task(task).cancel()
        end = await last(client, task)
        assert (end.event_type, end.data["stopped"]) == ("task_cancelled", False)
        behind = await client.start("x", agent="polite")
        assert (await behind.status()).status == "queued"
        async for record in behind.events():
            if record.event_type == "step_started":
                break
        await behind.cancel()
        assert (await last(client, behind.id)).event_type == "task_cancelled"


@pytest.mark.parametrize("error", plain.RAISED)
async def test_whatever_a_thread_raises_fails_the_attempt(error):
    """The attempts are counted, and the slot is free for the next task."""
    async with served(
        plain.raises, plain.add, isolation="thread", retries=1, retry_base=0
    ) as client:
        seen: list[Record] = []
        with pytest.raises(TaskFailedError, match=error):
            async with asyncio.timeout(20):
                await run_task(
                    client, "x", agent="raises", params={"error": error}, on_event=seen.append
                )
        assert [r.event_type for r in seen].count("step_started") == 2
        assert (await run_task(client, "x", agent="add")).final_output == "3"


@pytest.mark.parametrize("isolation", ["thread", "process"])
async def test_programming_errors_are_not_retried(isolation):
    """Wherever the function runs; unless the agent's option says so."""
    found: dict[str, int] = {}
    retried: dict[str, int] = {}
    for retry_on, attempts in (((), found), ((NameError, AttributeError, TypeError), retried)):
        options = {"isolation": isolation, "retries": 2, "retry_base": 0, "retry_on": retry_on}
        async with served(plain.wrong, **options) as client:
            for what in plain.WRONG:
                seen: list[Record] = []
                with pytest.raises(TaskFailedError):
                    await run_task(
                        client, "x", agent="wrong", params={"what": what}, on_event=seen.append
                    )
                attempts[what] = [r.event_type for r in seen].count("step_started")
    assert found == {what: expected for what, (_, expected) in plain.WRONG.items()}
    permanent = {"permanent in a group"}
    assert retried == {what: 1 if what in permanent else 3 for what in plain.WRONG}


def reporting(step, ctx):
    """Report from the thread's own loops, faster than the log is written."""
    for number in range(300):
        asyncio.run(ctx.progress(number, 300, "x" * 1000))
    return "done"


async def reporting_beside(step, ctx):
    """The same from several threads of an async agent."""
    await asyncio.gather(*(asyncio.to_thread(reporting, step, ctx) for _ in range(3)))
    return "done"


async def asking_beside(step, ctx):
    """Ask in a thread's loop."""
    return str(await asyncio.to_thread(lambda: asyncio.run(ctx.confirm("Sure?"))))


async def reading_beside(step, ctx):
    """Read a message in a thread's loop."""

    async def first():
        return await anext(ctx.messages())

    return str(await asyncio.to_thread(lambda: asyncio.run(first())))


@pytest.mark.parametrize(
    ("agent", "isolation", "output"),
    [
        (reporting, "thread", "done"),
        (reporting_beside, "task", "done"),
        (asking_beside, "task", "True"),
        (reading_beside, "task", "hello"),
    ],
)
async def test_the_context_may_be_used_in_another_loop(agent, isolation, output):
    """Its work is done in the server's loop: the log is whole, and answers arrive."""
    async with served(agent, isolation=isolation, retries=0) as client:
        task = (await client.start("x", agent=agent.__name__)).id
        seen = []
        async for record in client.task(task).events():
            seen.append(record)
            if record.event_type == "step_started" and agent is reading_beside:
                await client.task(task).send("hello")
            if record.event_type == "input_required":
                await client.task(task).respond(record.data["input_id"], True)
    assert seen[-1].data.get("final_output") == output
    assert [record.seq for record in seen] == list(range(1, len(seen) + 1))
    reports = [r.data["done"] for r in seen if r.event_type == "step_progress"]
    expected = {"reporting": 1, "reporting_beside": 3}.get(agent.__name__, 0)
    assert sorted(reports) == sorted([*range(300)] * expected)
