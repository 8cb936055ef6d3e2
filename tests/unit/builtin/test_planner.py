import json

import pytest

from agentsrv import App
from agentsrv.agents.llm import Endpoint, LanguageModel
from agentsrv.builtin import agents, app
from agentsrv.builtin.planner import (
    check_needs,
    plan,
    plan_schema,
    report,
    research,
)
from agentsrv.errors import ModelError, PermanentError
from agentsrv.models.plan import ExecutionPlan
from tests.support.agent_contexts import make_context
from tests.support.fake_model import Raw, fake_model, refusal

TASK = "What are the costs of threads?"
AGENTS = {"retriever", "analyzer", "writer", "validator", "optimizer"}
SINGLE = {"step_id": "one", "agent": "retriever", "description": "Look", "depends_on": []}


WRITER = {"step_id": "two", "agent": "writer", "description": "Write", "depends_on": ["one"]}


@pytest.fixture
async def fake():
    """A scripted endpoint."""
    async with fake_model() as model:
        yield model


@pytest.fixture
async def ctx(fake):
    """The context of a planner with a language model."""
    async with Endpoint(fake.url, None, 5.0) as client:
        yield make_context(TASK, model=LanguageModel(client, "fake", 100), registry=app.registry)


def answer(*steps):
    """A plan as a model writes it."""
    return json.dumps({"steps": steps})


async def test_the_report_retrieves_analyzes_and_writes():
    """The writer sees both results; the descriptions say what is looked for."""
    made = await plan(TASK + " " * 50 + "x" * 500, make_context(TASK))
    assert [(step.agent, step.depends_on) for step in made.steps] == [
        ("retriever", ()),
        ("analyzer", ("step_001",)),
        ("writer", ("step_001", "step_002")),
    ]
    assert made.origin == ("rules", None)
    assert "costs, threads" in made.steps[0].description
    assert all(len(step.description) < 250 for step in made.steps)


async def test_a_plan_is_made_for_any_text():
    """Also for one without a word to search for."""
    assert len((await plan("?", make_context("?"))).steps) == 3


async def test_the_research_also_validates_and_mends():
    """If a task's params say so."""
    named = await plan(TASK, make_context(TASK), "research")
    assert [step.agent for step in named.steps[3:]] == ["validator", "optimizer"]
    assert [step.step_id for step in named.sinks] == ["step_005"]
    assert len((await plan(TASK, make_context(TASK), "report")).steps) == 3


async def test_a_model_plans(fake, ctx):
    """It is told the task and the agents, and bound to a schema with their names."""
    fake.script(answer(SINGLE))
    made = await plan(TASK, ctx)
    assert made.origin == ("model", None)
    assert [step.model_dump(exclude_defaults=True) for step in made.steps] == [
        {"step_id": "one", "agent": "retriever", "description": "Look"}
    ]
    (request,) = fake.requests
    assert TASK in request.prompt
    assert all(f"- {name}: " in request.prompt for name in AGENTS)
    assert "It depends on: retriever, analyzer." in request.prompt
    schema = request.body["response_format"]["json_schema"]["schema"]
    assert set(schema["properties"]["steps"]["items"]["properties"]["agent"]["enum"]) == AGENTS


@pytest.mark.parametrize("made", [report(TASK), research(TASK)])
def test_the_plans_of_the_rules_have_what_they_need(made):
    """Each agent depends on those that it works on."""
    check_needs(ExecutionPlan(steps=made))


async def test_a_named_plan_needs_no_model(fake, ctx):
    """The model is not asked."""
    assert (await plan(TASK, ctx, "report")).origin == ("rules", None)
    assert fake.requests == []


INVALID = {
    "no JSON": ("Gladly!", "Invalid JSON"),
    "an unknown agent": (answer(SINGLE | {"agent": "plumber"}), "plumber"),
    "an unknown dependency": (answer(SINGLE | {"depends_on": ["two"]}), "'two'"),
    "a cycle": (answer(SINGLE | {"depends_on": ["one"]}), "cycle"),
    "the same id twice": (answer(SINGLE, SINGLE), "occurs twice"),
    "no steps": (answer(), "steps"),
    "nothing to work on": (answer(SINGLE, WRITER), "'two' of writer has no step of analyzer"),
    "a field too many": (answer(SINGLE | {"mood": "good"}), "mood"),
}


WRAPPED = {
    "a fence": "```json\n{}\n```",
    "a fence without a language": "```\n{}\n```",
    "a fence between sentences": "Here is the plan:\n\n```json\n{}\n```\n\nAsk me for more.",
    "a fence that is not closed": "```json\n{}",
    "sentences": "Gladly! {} That is all.",
    "a thought": "<think>{{}} or [1]? Hm.</think>\n{}",
    "a thought and a fence": "<think>hm</think>\n```json\n{}\n```",
}


@pytest.mark.parametrize("form", WRAPPED.values(), ids=WRAPPED)
async def test_a_plan_may_be_wrapped(fake, ctx, form):
    """In a code fence, in sentences, after a thought."""
    fake.script(form.replace("{{}}", "{ }").replace("{}", answer(SINGLE)))
    made = await plan(TASK, ctx)
    assert made.origin == ("model", None)
    assert len(fake.requests) == 1


async def test_a_plan_that_was_cut_off_is_made_by_the_rules(fake, ctx):
    """Another answer would be cut off as well."""
    choice = {"index": 0, "message": {"content": '{"steps": ['}, "finish_reason": "length"}
    fake.script(Raw(json.dumps({"choices": [choice]})))
    by, reason = (await plan(TASK, ctx)).origin
    assert by == "rules"
    assert "cut off at the token limit" in str(reason)
    assert len(fake.requests) == 1


@pytest.mark.parametrize(("text", "problem"), INVALID.values(), ids=INVALID)
async def test_an_invalid_plan_is_told_to_the_model_once(fake, ctx, text, problem):
    """It sees its plan and what is wrong with it, and may mend it."""
    fake.script(text, answer(SINGLE))
    assert (await plan(TASK, ctx)).origin == ("model", None)
    assert len(fake.requests) == 2
    *_, own, told = fake.requests[1].body["messages"]
    assert own == {"role": "assistant", "content": text}
    assert problem in told["content"]


async def test_after_two_invalid_plans_the_rules_decide(fake, ctx):
    """And the plan says so."""
    fake.script(answer(SINGLE, SINGLE), "Sorry.")
    made = await plan(TASK, ctx)
    assert [step.agent for step in made.steps] == ["retriever", "analyzer", "writer"]
    planned_by, reason = made.origin
    assert planned_by == "rules"
    assert str(reason).startswith("the model's plan was invalid 2 times: Invalid JSON")
    assert len(fake.requests) == 2


@pytest.mark.parametrize(("status", "error"), [(500, ModelError), (401, PermanentError)])
async def test_an_endpoint_that_fails_is_not_an_invalid_plan(fake, ctx, status, error):
    """Whether to ask again is for the server's retries to say."""
    fake.script(refusal(status, "no"))
    with pytest.raises(error):
        await plan(TASK, ctx)
    assert len(fake.requests) == 1


async def test_agents_that_cannot_run_are_not_offered(fake, ctx):
    """One that misses a parameter would be refused afterwards."""
    own = App()
    own.include(agents)

    @own.agent
    async def translator(step, ctx, language: str) -> str:
        """Translate."""
        return language

    ctx.registry = own.registry
    fake.script(answer(SINGLE))
    await plan(TASK, ctx)
    assert "translator" not in fake.requests[0].prompt
    ctx.params = {"language": "French"}
    await plan(TASK, ctx)
    assert "translator" in fake.requests[1].prompt


def test_every_string_of_the_schema_is_bounded():
    """By a pattern of ASCII or by its values; nothing may be added, nothing left out."""

    def check(schema):
        if schema["type"] == "string":
            assert "enum" in schema or schema["pattern"].isascii()
        for inner in schema.get("properties", {}).values():
            check(inner)
        if schema["type"] == "object":
            assert schema["required"] == list(schema["properties"])
            assert schema["additionalProperties"] is False
        if schema["type"] == "array":
            assert schema["maxItems"]
            check(schema["items"])

    check(plan_schema(["retriever"]))
