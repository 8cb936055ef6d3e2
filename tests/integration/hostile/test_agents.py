"""Runs the lines of ``agents.py`` on real servers."""

from __future__ import annotations

import inspect
import logging
from contextlib import suppress
from typing import Any

import pytest

from agentsrv import App, Step, StepContext
from agentsrv.client import Client
from agentsrv.errors import AgentsrvError, ConfigurationError, InvalidInputError, InvalidStateError
from agentsrv.models.events import Record
from agentsrv.testing import serving
from tests.integration.hostile import agents as a


async def story(client: Client, params: dict[str, Any]) -> list[Record]:
    """All events of a task of the agent ``it``."""
    task = await client.start("x", agent="it", params=params)
    return [record async for record in task.events()]


def of(records: list[Record], event_type: str) -> list[Any]:
    """The data of the events of one type."""
    return [record.data for record in records if record.event_type == event_type]


def differences(pairs: list[tuple[str, Any, Any]]) -> dict[str, Any]:
    """By the line's name, what was found instead of what was expected."""
    return {name: found for name, found, expected in pairs if not _fits(found, expected)}


def _fits(found: Any, expected: Any) -> bool:
    if isinstance(expected, a.Refused):
        return isinstance(found, AgentsrvError) and all(part in found.message for part in expected)
    return bool(found == expected) and isinstance(found, AgentsrvError) is False


def failed(records: list[Record]) -> AgentsrvError:
    """How a task failed."""
    return AgentsrvError(records[-1].data["error_message"])


async def test_results_are_what_pydantic_writes_or_are_refused_with_their_place():
    """A refused one is not tried again, and no reader's connection is closed by it."""
    app = App()

    @app.agent(retries=2, retry_base=0)
    async def it(step: Step, ctx: StepContext, number: int) -> Any:
        return a.RESULTS[number][1]()

    pairs = []
    async with serving(app) as client:
        for number, (name, _, expected) in enumerate(a.RESULTS):
            records = await story(client, {"number": number})
            completed = of(records, "step_completed")
            pairs.append((name, completed[0]["result"] if completed else failed(records), expected))
            assert len(of(records, "step_started")) == 1, name
    assert differences(pairs) == {}


async def test_progress_reports_are_made_valid():
    """A report never fails a step, and every client reads it."""
    app = App()

    @app.agent(retries=0)
    async def it(step: Step, ctx: StepContext, number: int) -> None:
        await ctx.progress(*a.PROGRESS[number][1])

    pairs = []
    async with serving(app) as client:
        for number, (name, _, expected) in enumerate(a.PROGRESS):
            records = await story(client, {"number": number})
            assert records[-1].event_type == "task_completed", name
            pairs += [
                (name, (data["done"], data["total"], data["message"]), expected)
                for data in of(records, "step_progress")
            ]
    assert differences(pairs) == {}
    assert len(pairs) == len(a.PROGRESS)


async def test_texts_are_joined_and_bounded(caplog):
    """Half a surrogate pair is replaced, and the log says so once for a step."""
    app = App()

    @app.agent(retries=0)
    async def it(step: Step, ctx: StepContext, number: int):
        for piece in a.TEXTS[number][1]:
            yield piece

    pairs = []
    async with serving(app) as client:
        for number, (name, _, expected) in enumerate(a.TEXTS):
            caplog.clear()
            records = await story(client, {"number": number})
            end = records[-1]
            text = end.data.get("final_output") if end.event_type == "task_completed" else None
            pairs.append((name, failed(records) if text is None else text, expected))
            pieces = of(records, "partial_output")
            if text is not None:
                assert "".join(data["output"] for data in pieces) == text, name
            assert max((len(data["output"]) for data in pieces), default=0) <= 64_000, name
            told = [line for line in caplog.messages if "surrogate" in line]
            assert len(told) == ("\ufffd" in (text or "")), name
    assert differences(pairs) == {}


async def test_errors_are_retried_where_another_attempt_may_help(caplog):
    """Groups count as what is in them; the events say where the error was raised."""
    caplog.set_level(logging.CRITICAL, "agentsrv.step")  # xdist cannot send half a surrogate pair
    app = App()

    @app.agent(retries=2, retry_base=0)
    async def it(step: Step, ctx: StepContext, number: int) -> Any:
        found = a.FAILURES[number][1]()
        return (await found) if inspect.isawaitable(found) else found

    attempts, texts = [], []
    async with serving(app) as client:
        for number, (name, _, expected, parts) in enumerate(a.FAILURES):
            records = await story(client, {"number": number})
            attempts.append((name, len(of(records, "step_started")), expected))
            texts.append((name, failed(records), a.Refused(*parts)))
            for data in of(records, "step_failed") + of(records, "step_retrying"):
                frames = data["traceback"]
                assert 0 < len(frames) <= 20, name
                assert any(frame["own"] for frame in frames), name
                assert not any(frame["file"].startswith("/") for frame in frames), name
                assert "verysecret" not in str(data), name
    assert differences(attempts) == {}
    assert differences(texts) == {}


async def test_a_service_is_left_alone_for_as_long_as_it_asks():
    """Also where its error is in a group; the wait itself is not sat out here."""
    app = App()

    @app.agent(retries=1, retry_base=0)
    async def it(step: Step, ctx: StepContext, number: int) -> None:
        found = a.WAITS[number][1]()
        if inspect.isawaitable(found):
            await found

    pairs = []
    async with serving(app) as client:
        for number, (name, _, expected) in enumerate(a.WAITS):
            task = await client.start("x", agent="it", params={"number": number})
            async for record in task.events():
                if record.event_type == "step_retrying":
                    pairs.append((name, record.data["retry_in"], expected))
                    await task.cancel()
    assert differences(pairs) == {}
    assert len(pairs) == len(a.WAITS)


async def test_what_is_registered_runs_or_is_refused_with_the_agent_named():
    """With a `ConfigurationError`; a task with wrong params is refused as it is created."""
    pairs: list[tuple[str, Any, Any]] = []
    for name, register, params, expected in a.REGISTRATIONS:
        app = App()
        try:
            register(app)
        except ConfigurationError as error:
            pairs.append((name, error, expected))
            continue
        async with serving(app) as client:
            try:
                records = await story(client, params)
            except AgentsrvError as error:
                pairs.append((name, error, expected))
                continue
        text = records[-1].data.get("final_output")
        pairs.append((name, failed(records) if text is None else text, expected))
    assert differences(pairs) == {}


async def test_questions_can_be_answered_or_are_refused():
    """The agent is given the answer as what it asked for."""
    app = App()

    @app.agent(retries=0)
    async def it(step: Step, ctx: StepContext, number: int) -> str:
        return repr(await ctx.ask(**{"prompt": "Which?", **a.QUESTIONS[number][1]}))

    pairs = []
    async with serving(app) as client:
        for number, (name, _, answer, expected) in enumerate(a.QUESTIONS):
            task = await client.start("x", agent="it", params={"number": number})
            records = []
            async for record in task.events():
                records.append(record)
                if record.event_type == "input_required":
                    input_id = record.data["input_id"]
                    if isinstance(answer, a.After):
                        with pytest.raises(InvalidInputError) as refusal:
                            await task.respond(input_id, answer.refused)
                        assert "secret 3" not in str(refusal.value)
                    with suppress(InvalidStateError):  # the step has failed
                        last = answer.answer if isinstance(answer, a.After) else answer
                        await task.respond(input_id, last)
            text = records[-1].data.get("final_output")
            pairs.append((name, failed(records) if text is None else text, expected))
    assert differences(pairs) == {}
