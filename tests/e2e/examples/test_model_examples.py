"""The examples that need a language model, against a scripted one on a real socket."""

import asyncio
import json

import pytest

from agentsrv.cli.demo import KNOWLEDGE
from agentsrv.client import Client, Record, TaskFailedError
from agentsrv.settings import Settings
from examples import framework_agent, llm_agent, map_reduce, tool_agent
from tests.support.agent_contexts import make_context
from tests.support.clients import run_task
from tests.support.fake_model import Calls, Hang, fake_model, refusal


@pytest.fixture
async def fake():
    """A scripted endpoint."""
    async with fake_model() as model:
        yield model


@pytest.fixture
def settings(fake, tmp_path):
    """Of a server with the examples' knowledge and this model."""
    return fake.settings(knowledge=KNOWLEDGE, knowledge_index=tmp_path / "index.db")


APPS = {
    "assistant": llm_agent.app,
    "researcher": tool_agent.app,
    "poet": framework_agent.app,
    "combine": map_reduce.app,
}


@pytest.mark.parametrize("name", APPS)
async def test_without_a_model_each_says_so(name):
    """At the first attempt, with the settings that it needs."""
    settings = Settings(port=0, store="memory:")
    async with APPS[name].running(settings) as running, Client(running.url) as client:
        with pytest.raises(TaskFailedError, match="llm_url and llm_model"):
            await run_task(client, "Why?", agent=name)


async def test_the_assistant_answers_from_what_was_found(fake, settings):
    """In the tone of its parameter; the tokens are in the result."""
    fake.script("Because of slow consumers.")
    records: list[Record] = []
    async with llm_agent.app.running(settings) as running, Client(running.url) as client:
        done = await run_task(
            client,
            "Why back-pressure?",
            agent="assistant",
            params={"tone": "friendly"},
            on_event=records.append,
        )
    assert done.final_output == "Because of slow consumers."
    assert "[back-pressure.md]" in fake.requests[0].prompt
    assert "friendly tone" in fake.requests[0].prompt
    (completed,) = (record for record in records if record.event_type == "step_completed")
    assert completed.data["result"]["usage"]["requests"] == 1


async def test_the_researcher_calls_tools(fake, settings):
    """Each result goes back to the model, and so does what was wrong with a call."""
    fake.script(
        Calls({"search": {"query": "memory of a thread"}, "calculate": {"operation": "divide"}}),
        Calls({"calculate": {"operation": "multiply", "left": 4000, "right": 64}, "fly": {}}),
        Calls({"calculate": {"operation": "divide", "left": 1, "right": 0}}),
        "They take 256000 KB.",
    )
    async with tool_agent.app.running(settings) as running, Client(running.url) as client:
        done = await run_task(client, "How much memory?", agent="researcher")
    assert done.final_output == "They take 256000 KB."
    told = [m["content"] for m in fake.requests[-1].body["messages"] if m["role"] == "tool"]
    assert "thread" in told[0]
    assert told[1].startswith("the call failed: 2 validation errors")
    assert told[2] == "256000.0"
    assert told[3] == "the call failed: 'fly'"
    assert "division by zero" in told[4]
    assert [tool["function"]["name"] for tool in fake.requests[0].body["tools"]] == [
        "search",
        "calculate",
    ]


@pytest.mark.parametrize(
    ("operation", "result"), [("add", "9.0"), ("subtract", "5.0"), ("divide", "3.5")]
)
async def test_the_calculator_calculates(operation, result):
    """Two numbers at a time."""
    arguments = json.dumps({"operation": operation, "left": 7, "right": 2})
    assert await tool_agent.call("calculate", arguments, make_context("x")) == result


async def test_the_researcher_does_not_call_tools_for_ever(fake, settings):
    """After some rounds its step fails for good."""
    fake.script(Calls({"search": {"query": "more"}}))
    async with tool_agent.app.running(settings) as running, Client(running.url) as client:
        with pytest.raises(TaskFailedError, match="no answer after 6 rounds"):
            await run_task(client, "Why?", agent="researcher")
    assert len(fake.requests) == tool_agent.MAX_ROUNDS


async def test_an_agent_of_another_framework_is_streamed(fake, settings):
    """With the server's model and connections."""
    fake.script("The sea is black.")
    async with framework_agent.app.running(settings) as running, Client(running.url) as client:
        done = await run_task(client, "The sea", agent="poet")
    assert done.final_output == "The sea is black."
    assert fake.requests[0].body["model"] == "fake"


async def test_an_agent_of_another_framework_is_cancelled(fake, settings):
    """It hangs up on the model like any other."""
    fake.script(Hang("The "))
    async with framework_agent.app.running(settings) as running, Client(running.url) as client:
        task = await client.start("The sea", agent="poet")
        await fake.asked.wait()
        await task.cancel()
        async with asyncio.timeout(30):
            await fake.hung_up.wait()


async def test_each_file_is_a_step_and_one_is_behind_them(fake, settings):
    """A file that fails is left out; the rest is combined."""

    def answer(request):
        if "Answer the task" in request.prompt:
            return "All in all."
        if "Back-pressure" in request.prompt:
            return refusal(400, "too long")
        return f"Summary of {len(request.prompt)} characters."

    fake.script(answer)
    async with map_reduce.app.running(settings) as running, Client(running.url) as client:
        done = await run_task(client, "What do these texts recommend?")
    files = map_reduce.files()
    assert done.final_output == "All in all."
    assert done.degraded
    assert len(fake.requests) == len(files) + 1
    combined = fake.requests[-1].prompt
    assert combined.count("Summary of ") == len(files) - len(done.missing_steps)


async def test_only_files_of_the_folder_are_read(fake, settings):
    """A plan of a client cannot name another."""
    step = {"step_id": "a", "agent": "summarize", "input": "../../pyproject.toml"}
    async with map_reduce.app.running(settings) as running, Client(running.url) as client:
        done = await run_task(client, "x", plan={"steps": [step]})
    assert done.degraded
    assert fake.requests == []
