import asyncio
import datetime as dt
from contextlib import aclosing

import orjson
import pytest

from agentsrv import App, InputDeclined, StepContext
from agentsrv.client import Client, ReplyLostError, TaskFailedError, TaskHandle
from agentsrv.errors import (
    ConflictError,
    InvalidInputError,
    InvalidStateError,
    NotFoundError,
    UnavailableError,
)
from tests.support.clients import run_task
from tests.support.fake_server import T1, FakeServer, event, idle

app = App()


@app.agent(retries=0)
async def clerk(step, ctx: StepContext, questions: int = 1, patience: float | None = None):
    """Ask how many, as often as wanted, at the same time."""
    asks = [ctx.ask(f"{n}?", int, default=7, timeout=patience) for n in range(questions)]
    return str(await asyncio.gather(*asks))


@app.agent
async def listener(step, ctx: StepContext, messages: int = 1):
    """Repeat what is sent."""
    heard = ctx.messages()
    return repr([await anext(heard) for _ in range(messages)])


@pytest.fixture
def application() -> App:
    """The agents above."""
    return app


async def ask(client, **params):
    """Start a task that asks; return it and its first question."""
    task = await client.start("Ask", agent="clerk", params=params)
    async with aclosing(task.events()) as events:
        async for record in events:
            if record.event_type == "input_required":
                return task, record.event
    raise AssertionError("it asked nothing")


async def end(task):
    """The last event of the task."""
    return [record async for record in task.events()][-1]


async def test_a_question_is_answered_once(client):
    """A wrong answer is told, the right one taken, another one is late."""
    task, asked = await ask(client)
    assert [question.input_id for question in (await task.status()).inputs] == [asked.input_id]
    with pytest.raises(
        InvalidInputError, match='found "3"; value: Input should be a valid integer'
    ):
        await task.respond(asked.input_id, "3")
    await task.respond(asked.input_id, 3)
    assert (await end(task)).data["final_output"] == "[3]"
    with pytest.raises(ConflictError):
        await task.respond(asked.input_id, 3)
    with pytest.raises(NotFoundError):
        await client.task("no").respond("no/such/question", 3)


async def test_a_question_is_declined(client):
    """The agent is told."""
    task, asked = await ask(client)
    await task.respond(asked.input_id, decline=True)
    assert "InputDeclined" in (await end(task)).data["error_message"]


async def test_messages_are_sent(client):
    """Text, JSON, and null."""
    task = await client.start("x", agent="listener", params={"messages": 3})
    async with aclosing(task.events()) as events:
        async for record in events:
            if record.event_type == "step_started":
                break
    numbers = [await task.send(message) for message in ("a", {"b": 1}, None)]
    records = [record async for record in task.events()]
    sent = [record.seq for record in records if record.event_type == "message_received"]
    assert numbers == sent
    assert records[-1].data["final_output"] == "['a', {'b': 1}, None]"
    with pytest.raises(InvalidStateError):
        await task.send("late")


@pytest.mark.parametrize("is_async", [True, False])
async def test_run_answers_what_is_asked(client, is_async):
    """Each question by a call of its own, and once more where the answer was none."""
    refusals = []

    def answer(asked, refusal):
        refusals.append(refusal and refusal.message)
        return int(asked.prompt[0]) * 10 if refusal or asked.prompt != "1?" else "ten"

    async def slowly(asked, refusal):
        await asyncio.sleep(0)
        return answer(asked, refusal)

    on_input = slowly if is_async else answer
    completed = await run_task(
        client, "Ask", agent="clerk", params={"questions": 3}, on_input=on_input
    )
    assert completed.final_output == "[0, 10, 20]"
    assert refusals.count(None) == 3
    [told] = [refusal for refusal in refusals if refusal]
    assert told.startswith('found "ten"; value: ')


@pytest.mark.parametrize("is_async", [True, False])
async def test_run_may_decline(client, is_async):
    """By raising what the agent is raised."""

    def refuse(asked, refusal):
        raise InputDeclined("not today")

    async def refuse_slowly(asked, refusal):
        refuse(asked, refusal)

    with pytest.raises(TaskFailedError, match="InputDeclined: anonymous declined"):
        await run_task(client, "Ask", agent="clerk", on_input=refuse_slowly if is_async else refuse)


async def test_a_fault_of_the_function_ends_the_run(client):
    """As itself; the task goes on at the server."""

    async def broken(asked, refusal):
        await asyncio.sleep(0)
        raise ZeroDivisionError("a fault")

    with pytest.raises(ZeroDivisionError, match="a fault"):
        await run_task(client, "Ask", agent="clerk", on_input=broken)
    page = await client.list(status="input_required")
    assert page.total == 1


async def test_who_thinks_too_long_is_stopped(client):
    """The question took its default: nobody need think about it any more."""
    stopped = []

    async def thinker(asked, refusal):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            stopped.append(asked.prompt)
            raise

    completed = await run_task(
        client, "Ask", agent="clerk", params={"questions": 2, "patience": 0.05}, on_input=thinker
    )
    assert completed.final_output == "[7, 7]"
    assert sorted(stopped) == ["0?", "1?"]


async def test_somebody_else_may_be_quicker(client, server):
    """Their answer counts, and the run goes on."""

    async def late(asked, refusal):
        async with Client(server.url) as other:
            await other.task(asked.input_id.partition("/")[0]).respond(asked.input_id, 1)
        return 2

    completed = await run_task(client, "Ask", agent="clerk", on_input=late)
    assert completed.final_output == "[1]"


async def slowly(record):
    """Let other tasks run after each event."""
    await asyncio.sleep(0)


@pytest.mark.parametrize("on_event", [None, slowly])
async def test_an_existing_task_is_asked_for_its_open_questions_only(client, on_event):
    """Those that were settled before are not asked again, also if all events are read."""
    task, first = await ask(client, questions=2)
    [second] = [asked for asked in (await task.status()).inputs if asked != first]
    await task.respond(first.input_id, 1)
    questions = []

    def answer(asked, refusal):
        questions.append(asked.input_id)
        return 2

    async with asyncio.timeout(20):
        result = await client.task(task.id).result(on_input=answer, on_event=on_event)
    assert sorted(result.final_output) == sorted("[1, 2]")
    assert questions == [second.input_id]


RESPOND = {"input_id": f"{T1}/a/1", "value": 4, "action": "accept"}


@pytest.mark.parametrize(
    ("given", "action", "value", "is_same"),
    [
        (4, "accept", 4, True),
        (4, "accept", 5, False),
        (4, "accept", "4", False),
        (4, "decline", None, False),
        ((1, 2), "accept", [1, 2], True),
        ([1, 2], "accept", [2, 1], False),
        ({"a": 1, "b": 2}, "accept", {"b": 2, "a": 1}, True),
        (dt.date(2026, 1, 2), "accept", "2026-01-02", True),
        (1, "accept", True, False),
        ("hidden", "accept", {"sealed": "x"}, True),
        ("hidden", "decline", None, False),
    ],
)
async def test_an_answer_counts_once_over_a_lost_connection(hasty, given, action, value, is_same):
    """Asked again, the server has an answer already: the log tells whether it is this one."""

    async def lose(peer):
        await peer.receive()
        await peer.socket.close(1011)

    async def refuse(peer):
        command = await peer.receive()
        await peer.send(
            {"type": "error", "command": "respond", "id": command["id"], "code": "conflict",
             "message": "settled", "retryable": False}
        )  # fmt: skip
        await peer.reply(await peer.receive(), seq=3, status="running")
        await peer.subscribed(after=0, seq=3)
        received = {"input_id": f"{T1}/a/1", "step_id": "a", "by": "x"}
        other = received | {"input_id": f"{T1}/a/0", "action": "accept", "value": 4}
        mine = received | {"action": action, "value": value}
        for seq, data in enumerate((other, mine, other), start=1):
            await peer.send(event(seq, "input_received", **data))
        await idle(peer)

    async with FakeServer(lose, refuse).running() as server, Client(server.url, hasty) as client:
        if is_same:
            await client.task(T1).respond(f"{T1}/a/1", given)
        else:
            with pytest.raises(ConflictError):
                await client.task(T1).respond(f"{T1}/a/1", given)
    asked = [command for command in server.asked if command["command"] == "respond"]
    sent = RESPOND | {"value": orjson.loads(orjson.dumps(given))}
    assert [{key: command[key] for key in RESPOND} for command in asked] == [sent] * 2


async def test_a_message_is_not_sent_twice(hasty):
    """Where its answer is lost, the caller is told; nobody knows whether it has arrived."""

    async def lose(peer):
        await peer.receive()
        await peer.socket.close(1011)

    async with FakeServer(lose, idle).running() as server, Client(server.url, hasty) as client:
        with pytest.raises(ReplyLostError):
            await client.task(T1).send("once")
    assert [command["command"] for command in server.asked] == ["send"]


async def test_an_answer_that_cannot_be_taken_yet_is_given_again(client, monkeypatch):
    """What is refused as retryable is not asked for again, but sent again."""
    asked: list[str] = []
    refused: list[object] = []

    def answer(question, refusal):
        asked.append(question.input_id)
        return 3

    respond = TaskHandle.respond

    async def unavailable(*arguments, **options):
        if not refused:
            refused.append(arguments)
            raise UnavailableError("not yet", retry_after=0.001)
        await respond(*arguments, **options)

    monkeypatch.setattr(TaskHandle, "respond", unavailable)
    assert (await run_task(client, "Ask", agent="clerk", on_input=answer)).final_output == "[3]"
    assert (len(asked), len(refused)) == (1, 1)
