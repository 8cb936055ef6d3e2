"""The spans of real servers, in the SDK's exporter in memory."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

from agentsrv import App, PermanentError
from agentsrv.models.plan import ExecutionPlan
from agentsrv.models.plan import Step as PlannedStep
from tests.support.fake_model import fake_model, refusal
from tests.support.talk import serving, talking

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"
ASK = [{"role": "user", "content": "the secret plan"}]


def traced_app():
    """Agents with spans of their own, with a model, and with troubles."""
    app = App()
    tracer = trace.get_tracer("mine")

    @app.agent
    async def own(step, ctx):
        with tracer.start_as_current_span("own work"):
            yield "pieces "
            await asyncio.sleep(0)
            yield "of text"

    @app.agent(isolation="thread")
    def threaded(step, ctx):
        with tracer.start_as_current_span("threaded work"):
            return "done"

    @app.agent(retries=1, retry_base=0.001)
    async def stumbling(step, ctx):
        if ctx.attempt == 1:
            raise KeyError("first")
        return "second"

    @app.agent(retries=0)
    async def asking(step, ctx):
        await ctx.llm.complete(ASK, temperature=0.5)
        async with aclosing(ctx.llm.stream(ASK)) as pieces:
            return "".join([piece async for piece in pieces])

    @app.agent
    async def broken(step, ctx):
        raise PermanentError("out of paper")

    @app.agent
    async def waiter(step, ctx):
        await asyncio.Event().wait()

    @app.planner
    async def plan(task_description, ctx):
        with tracer.start_as_current_span("planning"):
            steps = (PlannedStep(step_id=name, agent="own") for name in ("a", "b"))
            last = PlannedStep(step_id="c", agent="own", depends_on=("a", "b"))
            return ExecutionPlan(steps=(*steps, last))

    return app


async def run(talk, agent=None, **fields):
    """Run a task to its end; return its log."""
    command = {"command": "create", "task_description": "x", "agent": agent, "execute": True}
    reply = await talk.ask(command | {"traceparent": TRACEPARENT} | fields)
    return await talk.log(reply["task_id"])


async def settled(talk, server):
    """Wait until what ran has ended: its last event comes a moment before that."""
    while server.worker.running:
        assert (await talk.ask("ping"))["type"] == "reply"


def tree(spans):
    """Each finished span's name, with that of its parent."""
    finished = spans.get_finished_spans()
    names = {span.context.span_id: span.name for span in finished}
    return sorted(
        (span.name, names.get(span.parent.span_id, span.parent.span_id) if span.parent else None)
        for span in finished
    )


def named(spans, name):
    """The finished spans of that name, in the order in which they ended."""
    return [span for span in spans.get_finished_spans() if span.name == name]


async def test_a_task_is_part_of_its_clients_trace(spans):
    """Its attempts are children of it, and what agents and planners do are children of theirs."""
    async with serving(traced_app()) as server, talking(server) as talk:
        log = await run(talk)
        await settled(talk, server)
    assert tree(spans) == sorted([
        ("invoke_workflow", int(SPAN, 16)),
        ("planning", "invoke_workflow"),
        *[("invoke_agent own", "invoke_workflow")] * 3,
        *[("own work", "invoke_agent own")] * 3,
    ], key=lambda row: row[0])  # fmt: skip
    assert {f"{span.context.trace_id:032x}" for span in spans.get_finished_spans()} == {TRACE}
    (task,) = named(spans, "invoke_workflow")
    assert task.kind is SpanKind.CONSUMER
    assert task.attributes == {
        "gen_ai.operation.name": "invoke_workflow",
        "agentsrv.task.id": log[0]["task_id"],
        "agentsrv.task.status": "completed",
    }
    assert log[0]["data"]["traceparent"] == TRACEPARENT
    (started,) = (event for event in log if event["event_type"] == "task_started")
    assert started["data"]["traceparent"] == f"00-{TRACE}-{task.context.span_id:016x}-01"


async def test_each_attempt_is_a_span(spans):
    """With its number and how it ended; a thread's own work is a child of it."""
    async with serving(traced_app()) as server, talking(server) as talk:
        await run(talk, "stumbling")
        await run(talk, "threaded")
        await settled(talk, server)
    first, second = named(spans, "invoke_agent stumbling")
    assert first.attributes["agentsrv.step.attempt"] == 1
    assert first.attributes["agentsrv.attempt.outcome"] == "error"
    assert first.attributes["error.type"] == "KeyError"
    assert first.status.status_code is StatusCode.ERROR
    assert second.attributes["agentsrv.step.attempt"] == 2
    assert second.attributes["agentsrv.attempt.outcome"] == "completed"
    assert second.status.status_code is StatusCode.UNSET
    assert ("threaded work", "invoke_agent threaded") in tree(spans)


async def test_requests_to_a_model_are_spans_without_what_was_said(spans):
    """By the names of the conventions for generative AI; a refusal is an error by its status."""
    async with fake_model() as fake:
        fake.script("first answer", "second answer", refusal(429, "slow down"))
        model = {"llm_url": fake.url, "llm_model": "fake-1", "llm_max_tokens": 77}
        async with serving(traced_app(), **model) as server, talking(server) as talk:
            await run(talk, "asking")
            await run(talk, "asking")
            await settled(talk, server)
    whole, streamed, refused = named(spans, "chat fake-1")
    port = int(fake.url.split(":")[2].split("/")[0])
    assert dict(whole.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "fake-1",
        "gen_ai.request.max_tokens": 77,
        "gen_ai.request.temperature": 0.5,
        "server.address": "127.0.0.1",
        "server.port": port,
        "gen_ai.response.id": whole.attributes["gen_ai.response.id"],
        "gen_ai.response.model": whole.attributes["gen_ai.response.model"],
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": whole.attributes["gen_ai.usage.input_tokens"],
        "gen_ai.usage.output_tokens": whole.attributes["gen_ai.usage.output_tokens"],
    }
    assert whole.attributes["gen_ai.usage.input_tokens"] > 0
    assert whole.kind is SpanKind.CLIENT
    assert streamed.attributes["gen_ai.request.stream"] is True
    assert streamed.attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert refused.attributes["error.type"] == "429"
    assert refused.status.status_code is StatusCode.ERROR
    assert ("chat fake-1", "invoke_agent asking") in tree(spans)
    told = "".join(span.to_json() for span in spans.get_finished_spans())
    assert "secret plan" not in told
    assert "first answer" not in told


async def test_a_task_that_fails_or_is_cancelled_says_so(spans):
    """A failure is an error; a cancellation is none."""
    async with serving(traced_app()) as server, talking(server) as talk:
        await run(talk, "broken")
        command = {"command": "create", "task_description": "x", "agent": "waiter"}
        task = (await talk.ask(command | {"execute": True}))["task_id"]
        await talk.until("step_started")
        await talk.send({"command": "cancel", "task_id": task})
        await talk.log(task)
        await settled(talk, server)
    failed, cancelled = named(spans, "invoke_workflow")
    assert failed.attributes["agentsrv.task.status"] == "failed"
    assert failed.status.status_code is StatusCode.ERROR
    assert cancelled.attributes["agentsrv.task.status"] == "cancelled"
    assert cancelled.status.status_code is StatusCode.UNSET
    assert cancelled.parent is None
    (attempt,) = named(spans, "invoke_agent waiter")
    assert attempt.attributes["agentsrv.attempt.outcome"] == "cancelled"


@pytest.mark.parametrize("traceparent", [TRACEPARENT, None])
async def test_over_a_restart_the_new_run_has_a_link_to_the_old_one(spans, tmp_path, traceparent):
    """It is a child of the client's span as the old one was, or begins a trace of its own."""
    store = f"sqlite:///{tmp_path / 'agentsrv.db'}"
    options = {"store": store, "drain_timeout": 0.01, "cancel_grace": 0.01}
    async with serving(traced_app(), **options) as server, talking(server) as talk:
        command = {"command": "create", "task_description": "x", "agent": "waiter"}
        given = {"execute": True} | ({"traceparent": traceparent} if traceparent else {})
        task = (await talk.ask(command | given))["task_id"]
        await talk.until("step_started")
    async with serving(traced_app(), **options) as server, talking(server) as talk:
        await talk.send({"command": "subscribe", "task_id": task})
        recovered = await talk.until("task_recovered")
        await talk.until("step_started")
        await talk.send({"command": "cancel", "task_id": task})
        await talk.log(task)
        await settled(talk, server)
    old, new = named(spans, "invoke_workflow")
    assert old.attributes["agentsrv.task.status"] == "running"
    (link,) = new.links
    assert link.context.span_id == old.context.span_id
    assert link.context.trace_id == old.context.trace_id
    assert recovered["data"]["traceparent"].split("-")[2] == f"{new.context.span_id:016x}"
    if traceparent:
        assert old.parent.span_id == new.parent.span_id == int(SPAN, 16)
    else:
        assert new.parent is None
        assert new.context.trace_id != old.context.trace_id


async def test_a_trace_that_is_not_sampled_is_not_recorded(spans):
    """The client's flag decides, and it is passed on in the log."""
    async with serving(traced_app()) as server, talking(server) as talk:
        log = await run(talk, "own", traceparent=f"{TRACEPARENT[:-2]}00")
        await settled(talk, server)
    assert spans.get_finished_spans() == ()
    (started,) = (event for event in log if event["event_type"] == "task_started")
    assert started["data"]["traceparent"].endswith("-00")


async def test_without_a_provider_the_clients_span_is_kept_and_nothing_else():
    """It stands in the log for whoever looks, and the same key with another span is no conflict."""
    async with serving(traced_app()) as server, talking(server) as talk:
        log = await run(talk, "own", idempotency_key="k")
        command = {"command": "create", "task_description": "x", "agent": "own", "execute": True}
        other = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "idempotency_key": "k"}
        assert (await talk.ask(command | other))["replayed"] is True
        refused = await talk.ask(command | {"traceparent": "00-x"})
    assert log[0]["data"]["traceparent"] == TRACEPARENT
    (started,) = (event for event in log if event["event_type"] == "task_started")
    assert started["data"]["traceparent"] is None
    assert refused["code"] == "invalid_command"
