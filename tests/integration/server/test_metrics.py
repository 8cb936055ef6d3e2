"""``/metrics`` of a real server, read by Prometheus' own parser."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agentsrv import PermanentError, Step, StepContext
from agentsrv.server import metrics
from agentsrv.server.auth.keys import make_key
from tests.integration.server.test_static_files import request
from tests.support.fake_model import fake_model
from tests.support.principals import ADA_KEY, BOTH, TODAY, bearer
from tests.support.talk import make_app, serving, talking

SCRAPER_KEY, _SCRAPER = make_key("metrics", TODAY)
SCRAPER = _SCRAPER.line().strip()


async def scraped(server, **headers):
    """Each sample's value by its name and the values of its labels."""
    status, told, body = await request(server, "GET", "/metrics", **headers)
    assert status == 200, body
    assert told["content-type"].startswith("text/plain")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def working_app():
    """Agents that fail, stumble, will not stop, and ask a model."""
    app = make_app()

    @app.agent
    async def broken(step: Step, ctx: StepContext) -> str:
        raise PermanentError("no")

    @app.agent(retries=2, retry_base=0.001, timeout=0.05)
    async def stumbling(step: Step, ctx: StepContext) -> str:
        if ctx.attempt == 1:
            raise ValueError("first")
        if ctx.attempt == 2:
            await asyncio.Event().wait()
        return "third"

    @app.agent(retries=0, on_failure="degrade")
    async def dispensable(step: Step, ctx: StepContext) -> str:
        raise ValueError("no")

    @app.agent
    async def stubborn(step: Step, ctx: StepContext) -> str:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.sleep(0.3)
        await ctx.progress(1)
        return "late"

    @app.agent
    async def modeller(step: Step, ctx: StepContext) -> str:
        return await ctx.llm.complete([{"role": "user", "content": "Hello"}])

    return app


async def run(talk, agent, **fields):
    """Run a task to its end."""
    command = {"command": "create", "task_description": "x", "agent": agent, "execute": True}
    reply = await talk.ask(command | fields)
    return await talk.log(reply["task_id"])


async def test_what_was_done_is_what_is_told(tmp_path):
    """Three tasks complete, one fails, one is cancelled while it runs and one before."""
    store = f"sqlite:///{tmp_path / 'agentsrv.db'}"
    async with serving(working_app(), store=store) as server, talking(server) as talk:
        for _ in range(3):
            await run(talk, "echo")
        await run(talk, "broken")
        begin = {"command": "create", "task_description": "x", "agent": "waiter"}
        task = (await talk.ask(begin | {"execute": True}))["task_id"]
        await talk.until("step_started")
        await talk.send({"command": "cancel", "task_id": task})
        await talk.log(task)
        pending = (await talk.ask(begin))["task_id"]
        await talk.ask({"command": "cancel", "task_id": pending})
        assert (await talk.ask({"command": "status", "task_id": "f" * 16}))["type"] == "error"
        found = await scraped(server)
    assert {key[1:]: found[key] for key in found if key[0] == "agentsrv_tasks_ended_total"} == {
        ("echo", "completed"): 3,
        ("broken", "failed"): 1,
        ("waiter", "cancelled"): 2,
    }
    attempts = "agentsrv_step_attempt_duration_seconds_count"
    assert {key[1:]: found[key] for key in found if key[0] == attempts} == {
        ("echo", "completed"): 3,
        ("broken", "error"): 1,
        ("waiter", "cancelled"): 1,
    }
    assert found["agentsrv_cancel_stop_duration_seconds_count",] == 1
    assert found["agentsrv_cancel_duration_seconds_count",] == 1
    assert found["agentsrv_commands_total", "create", "ok"] == 6
    assert found["agentsrv_commands_total", "status", "not_found"] == 1
    assert found["agentsrv_connections",] == 1
    assert found["agentsrv_connections_opened_total",] == 1
    assert found["agentsrv_tasks_queued",] == found["agentsrv_tasks_running",] == 0
    # Each of the tasks waits for more than one commit.
    assert found["agentsrv_commit_duration_seconds_count",] >= 12
    assert found["agentsrv_commit_duration_seconds_sum",] > 0
    assert found["agentsrv_event_loop_lag_seconds_count",] >= 1
    assert found["agentsrv_sent_bytes_total",] > found["agentsrv_received_bytes_total",] > 1000


async def test_what_goes_wrong_is_told():
    """Retries by their reason, plans that go on without a step, steps that do not stop."""
    async with (
        serving(working_app(), cancel_grace=0.05) as server,
        talking(server) as talk,
    ):
        await run(talk, "stumbling")
        await run(talk, "dispensable")
        await talk.ask("run without a planner")
        command = {"command": "create", "task_description": "x", "agent": "stubborn"}
        task = (await talk.ask(command | {"execute": True}))["task_id"]
        await talk.until("step_started")
        await talk.send({"command": "cancel", "task_id": task})
        (*_, end) = await talk.log(task)
        assert end["data"]["stopped"] is False
        found = await scraped(server)
        assert found["agentsrv_steps_orphaned_total",] == 1
        assert found["agentsrv_tasks_running",] == 1
        assert found["agentsrv_tasks_ended_total", "stubborn", "cancelled"] == 1
        while found["agentsrv_tasks_running",]:
            found = await scraped(server)
    assert found["agentsrv_late_writes_refused_total",] >= 1
    assert found["agentsrv_step_retries_total", "stumbling", "error"] == 1
    assert found["agentsrv_step_retries_total", "stumbling", "timeout"] == 1
    assert found["agentsrv_steps_degraded_total", "dispensable"] == 1
    assert found["agentsrv_commands_total", "create", "invalid_command"] == 1


async def test_a_plan_counts_for_no_agent(tmp_path):
    """Its steps count for theirs."""
    plan = {"steps": [{"step_id": name, "agent": "echo"} for name in "ab"]}
    async with serving() as server, talking(server) as talk:
        await run(talk, None, plan=plan)
        found = await scraped(server)
    assert found["agentsrv_tasks_ended_total", "(plan)", "completed"] == 1
    assert found["agentsrv_step_attempt_duration_seconds_count", "echo", "completed"] == 2


async def test_what_a_model_was_asked_is_told():
    """Answers and tokens, by the endpoint's account, over all tasks."""
    async with fake_model() as fake:
        fake.script("Hello you")
        named = {"llm_url": fake.url, "llm_model": "fake"}
        async with serving(working_app(), **named) as server, talking(server) as talk:
            for _ in range(2):
                await run(talk, "modeller")
            found = await scraped(server)
    assert found["agentsrv_model_answers_total",] == 2
    assert found["agentsrv_model_tokens_total", "input"] > 0
    assert found["agentsrv_model_tokens_total", "output"] > 0


@pytest.mark.parametrize(
    ("name", "stall_timeout"),
    [("agentsrv_connections_behind", 30.0), ("agentsrv_connections_stalled_total", 0.2)],
)
async def test_a_client_that_takes_nothing_is_told(name, stall_timeout):
    """It is behind, and then it is dropped."""
    async with (
        serving(stall_timeout=stall_timeout) as server,
        talking(server, max_queue=1) as slow,
    ):
        slow.socket.transport.pause_reading()
        command = {"command": "create", "task_description": "x", "agent": "talker"}
        params = {"pieces": 400, "size": 20_000}
        await slow.send(command | {"execute": True, "params": params})
        while not (found := await scraped(server))[name,]:
            pass
        slow.socket.transport.abort()
    assert found[name,] == 1
    assert found["agentsrv_sent_bytes_total",] > 100_000


async def test_where_tokens_are_asked_for_one_principal_sees_it():
    """Others, and nobody, do not; a refusal tells nothing of what was measured."""
    async with serving(api_keys=f"{BOTH}, {SCRAPER}") as server:
        found = await scraped(server, **bearer(SCRAPER_KEY))
        assert found["agentsrv_tasks_running",] == 0
        for headers, expected in (
            ({}, 401),
            (bearer("agentsrv_0_wrong"), 401),
            ({"Authorization": "Basic YTpi"}, 401),
            (bearer(ADA_KEY), 403),
        ):
            status, told, body = await request(server, "GET", "/metrics", **headers)
            assert status == expected
            assert ("www-authenticate" in told) == (expected == 401)
            assert b"agentsrv_tasks" not in body


async def test_which_principal_is_a_setting():
    """Ada may be the one that looks."""
    async with serving(api_keys=f"{BOTH}, {SCRAPER}", metrics_principal="ada") as server:
        assert await scraped(server, **bearer(ADA_KEY))
        assert (await request(server, "GET", "/metrics", **bearer(SCRAPER_KEY)))[0] == 403


async def test_the_head_has_no_body():
    """As that of every page."""
    async with serving() as server:
        status, headers, body = await request(server, "HEAD", "/metrics")
    assert (status, body) == (200, b"")
    assert int(headers["content-length"]) > 1000


async def test_without_the_extra_the_page_tells_which(monkeypatch):
    """It is not implemented here, and the server does without."""
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    async with serving() as server:
        status, _, body = await request(server, "GET", "/metrics")
    assert status == 501
    assert b"agentsrv[metrics]" in body


@pytest.mark.parametrize("origin", ["http://elsewhere.example"])
async def test_pages_of_elsewhere_do_not_see_it(origin):
    """As for everything on the port."""
    async with serving() as server:
        assert (await request(server, "GET", "/metrics", Origin=origin))[0] == 403
