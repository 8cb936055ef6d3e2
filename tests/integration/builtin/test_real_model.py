"""The language model's side on a real server (llama.cpp), whose model has random weights."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import urllib.request
from contextlib import aclosing
from importlib.util import find_spec
from pathlib import Path

import pytest

from agentsrv import App
from agentsrv.agents.llm import Embedder, Endpoint, LanguageModel
from agentsrv.builtin import app as builtin_app
from agentsrv.builtin import plan, prompts
from agentsrv.builtin.planner import MAX_PLANNED, REQUIRED_AGENTS, plan_schema
from agentsrv.builtin.report import read, unescape
from agentsrv.builtin.validator import claims
from agentsrv.cli.demo import KNOWLEDGE
from agentsrv.client import Client, Record
from agentsrv.knowledge.markup import plain as plain_text
from agentsrv.knowledge.search import KnowledgeBase
from agentsrv.models.plan import ExecutionPlan, Step
from agentsrv.settings import Settings
from tests.integration.builtin.test_by_model import TASK, of
from tests.support.agent_contexts import make_context
from tests.support.clients import run_task

ROOT = Path(__file__).parents[3]
PLANS = 5
ENDLESS = 14_000  # tokens: some seconds, unless somebody hangs up

pytestmark = pytest.mark.skipif(
    find_spec("xllamacpp") is None, reason="platform: there is no build of xllamacpp for it"
)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A model that is served for all tests, by a process of its own."""
    command = [
        sys.executable,
        "-m",
        "tests.integration.agents.random_model",
        tmp_path_factory.mktemp("model"),
    ]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    yield process.stdout.readline().strip()
    process.stdin.close()
    process.stdout.close()
    process.wait(30)


@pytest.fixture
async def llm(address):
    """The model, ready to be asked."""
    async with Endpoint(f"{address}/v1", None, 30.0) as client:
        yield LanguageModel(client, "random", 4096)


def settings(address, tmp_path, **more):
    """Of a server that uses the model."""
    given = {
        "port": 0,
        "store": "memory:",
        "knowledge": KNOWLEDGE,
        "knowledge_index": tmp_path / "index.db",
        "llm_url": f"{address}/v1",
        "llm_model": "random",
        "llm_max_tokens": 60,
    }
    return Settings(**{**given, **more})


async def test_a_grammar_makes_a_random_model_write_plans(llm, capsys):
    """Each answer follows the schema; that ids are unique and known is beyond it."""
    agents = builtin_app.registry.described()
    names = {agent["name"] for agent in agents}
    valid = 0
    for number in range(PLANS):
        messages = prompts.planning(f"{TASK} {number}", agents, REQUIRED_AGENTS, MAX_PLANNED)
        made = json.loads(await llm.complete(messages, plan_schema(sorted(names))))
        assert 1 <= len(made["steps"]) <= MAX_PLANNED
        assert {Step.model_validate(step).agent for step in made["steps"]} <= names
        try:
            ExecutionPlan.model_validate(made)
        except ValueError:
            continue
        valid += 1
    with capsys.disabled():
        print(f"\n\nplans by grammar: {PLANS} of {PLANS} follow the schema, {valid} could be run")
    assert llm.usage.requests == PLANS


async def test_there_is_a_plan_whatever_the_model_says(llm):
    """The model's, or that of the rules; and it says which."""
    made = await plan(TASK, make_context(TASK, model=llm, registry=builtin_app.registry))
    assert made.planned_by in ("model", "rules")
    assert (made.reason is None) == (made.planned_by == "model")


async def test_a_report_is_streamed(address, tmp_path):
    """The whole plan; what the model writes means nothing, all around it is as it should be."""
    records: list[Record] = []
    plain = settings(address, tmp_path, default_plan="report")
    async with builtin_app.running(plain) as running, Client(running.url) as client:
        done = await run_task(client, TASK, on_event=records.append, params={"passages": 2})
    assert done.final_output.startswith(f"# {TASK}\n\n")
    assert "## Sources" in done.final_output
    for step_id in ("step_002", "step_003"):
        usage = of(records, "step_completed", step_id)[0]["result"]["usage"]
        assert usage["requests"] == 1
        assert usage["prompt_tokens"] > len(TASK)
        assert 0 < usage["completion_tokens"] <= 60
    assert len(of(records, "partial_output", "step_003")) > 1


async def test_of_nonsense_only_what_the_sources_say_is_left(address, tmp_path):
    """The research: a judgement by grammar, and a report without what the model has made up."""
    plain = settings(address, tmp_path, llm_max_tokens=300)
    params = {"plan": "research", "passages": 2}
    async with builtin_app.running(plain) as running, Client(running.url) as client:
        while True:  # now and then it has nothing to say
            records: list[Record] = []
            done = await run_task(client, TASK, on_event=records.append, params=params)
            findings = of(records, "step_completed", "step_004")[0]["result"]
            if findings["statements"]:
                break
    assert {"answered", "missing"} == findings["judgement"].keys()
    assert findings["supported"] == 0
    said = list(claims(read(done.final_output)))
    texts = [plain_text(path.read_text(encoding="utf-8")) for path in KNOWLEDGE.iterdir()]
    assert said
    assert all(any(unescape(one.text) in text for text in texts) for one in said)


async def slot(address):
    """What the model is doing."""

    def get():
        with urllib.request.urlopen(f"{address}/slots") as answer:  # noqa: S310 - our own
            return json.load(answer)

    (only,) = await asyncio.to_thread(get)
    return only


async def test_a_cancellation_stops_the_model(address, tmp_path):
    """In the middle of its stream: the server has stopped to generate."""
    app = App()

    @app.agent
    async def endless(step, ctx):
        """Write for as long as the model may."""
        ask = [{"role": "user", "content": ctx.task_description}]
        options = {"max_completion_tokens": ENDLESS, "extra_body": {"ignore_eos": True}}
        async with aclosing(ctx.llm.stream(ask, **options)) as pieces:
            async for piece in pieces:
                yield piece

    plain = settings(address, tmp_path)
    async with app.running(plain) as running, Client(running.url) as client:
        task = await client.start(TASK, agent="endless")
        busy: list[bool] = []
        records: list[Record] = []
        async with aclosing(task.events()) as events:
            async for record in events:
                records.append(record)
                if record.event_type == "partial_output" and not busy:
                    busy.append((await slot(address))["is_processing"])
                    await task.cancel()
    assert busy == [True]
    assert of(records, "task_cancelled")
    while (after := await slot(address))["is_processing"]:  # noqa: ASYNC110 - another process
        await asyncio.sleep(0.001)
    assert after["n_prompt_tokens"] < ENDLESS


async def test_passages_get_vectors(address, tmp_path):
    """In batches, of one dimension; random ones rank nothing, and spoil nothing."""
    async with Endpoint(f"{address}/v1", None, 30.0) as client:
        base = KnowledgeBase(KNOWLEDGE, tmp_path / "index.db", Embedder(client, "random"))
        report = await base.refresh()
        assert await base.embed() == report.passages
        found = await base.search(TASK)
        await base.close()
    assert "threads.md" in [passage.source for passage in found]
