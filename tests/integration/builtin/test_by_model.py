"""The built-in agents with a language model: a real server, a real socket to a scripted endpoint."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from contextlib import aclosing, asynccontextmanager, suppress

import pytest

from agentsrv import App
from agentsrv.builtin import app as builtin_app
from agentsrv.cli.demo import KNOWLEDGE
from agentsrv.client import Client, Record, TaskCancelledError, TaskFailedError
from agentsrv.errors import ConfigurationError, InvalidCommandError
from agentsrv.settings import Settings
from tests.support.clients import run_task
from tests.support.fake_model import Hang, Raw, fake_model, refusal

TASK = "What are the costs of threads?"
KEY = "sk-very-secret-0123456789"
NOTES = "- Threads cost memory [1] and switches [2]."
REPORT = "Threads cost memory. [1]\n\n## Switching\n\n- Switches cost time [2]. Cows fly [99]."


@pytest.fixture
async def fake():
    """A scripted endpoint."""
    async with fake_model() as model:
        yield model


@asynccontextmanager
async def served(fake, tmp_path, app=builtin_app, **more):
    """A client of a server with the examples' knowledge and this model."""
    index = tmp_path / "index.db"
    given = {"knowledge": KNOWLEDGE, "knowledge_index": index, "llm_key": KEY, "drain_timeout": 0.1}
    settings = fake.settings(**{"default_plan": "report", **given, **more})
    async with app.running(settings) as running, Client(running.url) as client:
        yield client


async def log_of(client, **fields):
    """Run a task to its end, whatever that is, and return its log."""
    records: list[Record] = []
    with suppress(TaskFailedError, TaskCancelledError):
        await run_task(client, TASK, on_event=records.append, **fields)
    return records


def of(records, event_type, step_id=None):
    """The data of the events of a type, of one step."""
    return [
        record.data
        for record in records
        if record.event_type == event_type and step_id in (None, record.data.get("step_id"))
    ]


async def test_the_model_analyzes_and_writes(fake, tmp_path, caplog):
    """Both are streamed; the sources are listed by the server; the tokens are in the results."""
    caplog.set_level(logging.DEBUG)
    fake.script(NOTES, REPORT)
    async with served(fake, tmp_path) as client:
        records = await log_of(client)
    final = of(records, "task_completed")[0]["final_output"]
    assert final.startswith(f"# {TASK}\n\n{REPORT}\n\n## Sources\n\n1. `threads.md`")
    assert "99. " not in final
    assert "## Not covered" in final
    analysis, report = (
        of(records, "step_completed", step_id)[0]["result"] for step_id in ("step_002", "step_003")
    )
    used = {"requests": 1, "prompt_tokens": 11, "completion_tokens": 7, "truncated": 0}
    assert analysis["usage"] == report["usage"] == used
    assert analysis["statements"]
    assert (report["statements"], report["quoted"]) == (3, False)
    assert [source["number"] for source in report["sources"]] == [1, 2]
    assert KEY not in caplog.text + json.dumps([record.data for record in records])
    asked, told = fake.requests
    assert all('<passage id="1">' in request.prompt for request in fake.requests)
    assert TASK in asked.prompt
    assert f"<notes>\n{NOTES}\n</notes>" in told.prompt
    assert asked.headers["authorization"] == f"Bearer {KEY}"


async def test_reasoning_and_a_fence_are_no_part_of_a_report(fake, tmp_path):
    """Wherever they are cut into pieces."""
    fake.script(f"<think>hm</think>{NOTES}", f"<think>so</think>\n```markdown\n{REPORT}\n```\n")
    async with served(fake, tmp_path) as client:
        records = await log_of(client)
    final = of(records, "task_completed")[0]["final_output"]
    assert final.startswith(f"# {TASK}\n\n{REPORT}\n\n\n## Sources")
    assert f"<notes>\n{NOTES}\n</notes>" in fake.requests[1].prompt


async def test_a_report_that_was_cut_off_says_so(fake, tmp_path):
    """The text so far is kept: another attempt would be cut off as well."""
    delta = {"index": 0, "delta": {"content": "Threads cost memory [1] and"}}
    cut = f"data: {json.dumps({'choices': [delta | {'finish_reason': 'length'}]})}\n\n"
    fake.script(NOTES, Raw(cut, kind="text/event-stream"))
    async with served(fake, tmp_path) as client:
        records = await log_of(client)
    final = of(records, "task_completed")[0]["final_output"]
    assert "Threads cost memory [1] and\n\n(Cut off here: the model's answer" in final
    assert of(records, "step_completed", "step_003")[0]["result"]["usage"]["truncated"] == 1


async def test_the_plan_says_who_made_it(fake, tmp_path):
    """The model, or the rules and why."""
    plan = {"step_id": "a", "agent": "retriever", "description": "Look", "depends_on": []}
    async with served(fake, tmp_path, default_plan="auto") as client:
        fake.script(json.dumps({"steps": [plan]}))
        made = of(await log_of(client), "plan_created")[0]
        assert (made["planned_by"], made["reason"]) == ("model", None)
        assert [step["step_id"] for step in made["steps"]] == ["a"]

        fake.script("no plan", "no plan", NOTES, REPORT)
        made = of(await log_of(client), "plan_created")[0]
        assert made["planned_by"] == "rules"
        assert "invalid 2 times" in made["reason"]

        fake.script(NOTES, REPORT)
        made = of(await log_of(client, params={"plan": "report"}), "plan_created")[0]
        assert (made["planned_by"], made["reason"]) == ("rules", None)


async def test_a_plan_is_named_by_the_params(fake, tmp_path):
    """A name that there is not is refused before anything runs."""
    fake.script(NOTES, REPORT, '{"unsupported": [], "answered": true, "missing": ""}')
    async with served(fake, tmp_path) as client:
        records = await log_of(client, params={"plan": "research"})
        final = of(records, "task_completed")[0]["final_output"]
        assert "Threads cost memory. [1]" in final
        assert "Cows fly" not in final
        assert len(of(records, "plan_created")[0]["steps"]) == 5
        with pytest.raises(InvalidCommandError, match=r"params\.plan"):
            await client.create(TASK, params={"plan": "reserch"})


@pytest.mark.parametrize(
    "bad",
    [
        refusal(500, "out of order"),
        refusal(429, "too many", retry_after="0"),
        Raw('data: {"choices"', kind="text/event-stream"),
        Raw("<html>", kind="text/html"),
    ],
    ids=["500", "429", "invalid JSON", "no stream"],
)
async def test_what_passes_is_retried_by_the_server_alone(fake, tmp_path, bad):
    """One request an attempt, and the reason in the log."""
    fake.script(NOTES, bad, REPORT)
    async with served(fake, tmp_path) as client:
        records = await log_of(client)
    (retry,) = of(records, "step_retrying")
    assert retry["step_id"] == "step_003"
    assert "ModelError: " in retry["error_message"]
    assert of(records, "task_completed")
    assert len(fake.requests) == 3


async def test_the_text_of_a_broken_stream_is_no_output(fake, tmp_path):
    """A stream that breaks in the middle is begun anew."""
    piece = '{"choices": [{"index": 0, "delta": {"content": "Half a rep"}}]}'
    fake.script(NOTES, Raw(f"data: {piece}\n\n", kind="text/event-stream", cut=True), REPORT)
    async with served(fake, tmp_path) as client:
        records = await log_of(client)
    assert "Half a rep" in "".join(piece["output"] for piece in of(records, "partial_output"))
    assert "Half a rep" not in of(records, "task_completed")[0]["final_output"]


async def test_an_overloaded_endpoint_is_left_alone(fake, tmp_path):
    """For as long as it wants; a cancellation does not wait for it."""
    fake.script(NOTES, refusal(429, "too many", retry_after="50"))
    async with served(fake, tmp_path) as client:
        task = await client.start(TASK)
        async with aclosing(task.events()) as events:
            async for record in events:
                if record.event_type == "step_retrying":
                    assert record.data["retry_in"] == 50.0
                    reply = await task.cancel()
                    assert reply.status == "cancelled"


async def test_silence_is_retried(fake, tmp_path):
    """The timeout of the endpoint counts as an error of the attempt."""
    replies = iter([Hang("Threads")])

    def answer(request):
        return next(replies, REPORT) if "Write the report." in request.prompt else NOTES

    fake.script(answer)
    async with served(fake, tmp_path, llm_timeout=0.1) as client:
        records = await log_of(client)
    errors = {retry["error_message"] for retry in of(records, "step_retrying", "step_003")}
    (error,) = errors
    assert "was silent for too long (llm_timeout is 0.1 s)" in error
    assert of(records, "task_completed")


@pytest.mark.parametrize("status", [400, 401, 404])
async def test_what_no_retry_mends_fails_the_task(fake, tmp_path, status):
    """At the first attempt."""
    fake.script(refusal(status, "not like this"))
    async with served(fake, tmp_path) as client:
        (failed,) = of(await log_of(client), "task_failed")
    assert (failed["failed_step"], failed["retry_count"]) == ("step_002", 0)
    assert f"ModelRefusedError: the model's endpoint answered {status}" in failed["error_message"]
    assert len(fake.requests) == 1


async def test_a_model_that_cannot_be_asked_for_a_plan_fails_the_task(fake, tmp_path):
    """A wrong key is told, and not papered over by the rules."""
    fake.script(refusal(401, "who are you"))
    async with served(fake, tmp_path, default_plan="auto") as client:
        (failed,) = of(await log_of(client), "task_failed")
    assert "planning failed: the model's endpoint answered 401" in failed["error_message"]


async def test_a_cancellation_hangs_up_on_the_model(fake, tmp_path):
    """What it had written is kept, and the endpoint sees the end of the connection."""
    fake.script(NOTES, Hang("Threads"))
    async with served(fake, tmp_path) as client:
        task = await client.start(TASK)
        records = []
        async with aclosing(task.events()) as events:
            async for record in events:
                records.append(record)
                if "Threads" in str(of([record], "partial_output", "step_003")):
                    await task.cancel()
    await fake.hung_up.wait()
    (end,) = of(records, "task_cancelled")
    assert end["stopped"] is True
    assert end["partial_output"] == f"# {TASK}\n\nThreads"


async def test_without_passages_the_model_is_not_asked(fake, tmp_path):
    """There is nothing to write from: the report says so."""
    async with served(fake, tmp_path, knowledge=None) as client:
        (done,) = of(await log_of(client), "task_completed")
    assert "The knowledge base has nothing on this." in done["final_output"]
    assert fake.requests == []


async def test_a_retriever_that_is_down_leaves_nothing_to_write_from(fake, tmp_path):
    """The degraded plan ends with a report, without the model."""
    async with served(fake, tmp_path, knowledge_index=KNOWLEDGE / "threads.md") as client:
        (done,) = of(await log_of(client), "task_completed")
    assert done["degraded"] is True
    assert "could not be searched" in done["final_output"]
    assert fake.requests == []


@pytest.mark.parametrize(
    "given",
    [
        {"llm_model": "m"},
        {"embedding_model": "m"},
        {"llm_url": "http://127.0.0.1:1/v1"},
        {"llm_url": "http://127.0.0.1:1/v1", "llm_key": KEY},
    ],
)
async def test_half_a_configuration_is_refused(given):
    """A model without an endpoint, or an endpoint without a model; without telling the key."""
    with pytest.raises(ConfigurationError, match="expected llm_url together") as caught:
        async with builtin_app.running(Settings(port=0, store="memory:", **given)):
            pass
    assert KEY not in str(caught.value)


def test_nothing_of_the_extra_is_needed_without_a_model():
    """Neither to import the server nor to run its agents."""
    program = """if True:
        import asyncio, sys
        sys.modules.update(openai=None, numpy=None)
        import agentsrv.cli
        from agentsrv.builtin import app
        from agentsrv.client import Client
        from agentsrv.settings import Settings

        async def main():
            settings = Settings(port=0, store="memory:")
            async with app.running(settings) as running, Client(running.url) as client:
                task = await client.start("What is a thread?", params={"plan": "research"})
                done = await task.result()
                print(done.final_output.partition("\\n")[0])

        asyncio.run(main())
    """
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False
    )
    assert (ran.stdout, ran.stderr) == ("# What is a thread?\n", "")


async def test_without_the_extra_the_server_says_which(monkeypatch):
    """It is needed only where a model is configured."""
    monkeypatch.setattr("agentsrv.resources.find_spec", lambda name: None)
    settings = Settings(port=0, store="memory:", llm_url="http://127.0.0.1:1/v1", llm_model="m")
    with pytest.raises(ConfigurationError, match=r"pip install 'agentsrv\[llm\]'"):
        async with builtin_app.running(settings):
            pass


async def test_the_connections_end_with_the_server(fake, tmp_path):
    """The client is opened and closed by the application, and shared by its steps."""
    fake.script(NOTES, REPORT)
    app, seen = App(), []

    @app.agent
    async def looker(step, ctx):
        """Keep the client."""
        seen.append(ctx.llm)

    async with served(fake, tmp_path, app) as client:
        await run_task(client, "x", agent="looker")
        await run_task(client, "x", agent="looker")
        assert seen[0].client is seen[1].client
        assert seen[0].usage is not seen[1].usage
        assert not seen[0].client.is_closed()
    assert seen[0].client.is_closed()
