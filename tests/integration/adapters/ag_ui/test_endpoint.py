"""A front end that speaks AG-UI, on the port of a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from agentsrv import App, Step, StepContext
from agentsrv.wiring import Server
from tests.support.agui_front import Front
from tests.support.principals import ADA, ADA_KEY, BOB_KEY, BOTH, bearer
from tests.support.talk import make_app, serving, talking

AG_UI = [Subprotocol("ag-ui")]


@asynccontextmanager
async def fronting(server: Server, **options: Any) -> AsyncIterator[ClientConnection]:
    """A connection that speaks AG-UI."""
    async with connect(server.url, **{"subprotocols": AG_UI, **options}) as socket:
        assert socket.subprotocol == "ag-ui"
        yield socket


async def send(socket: ClientConnection, frame: dict[str, Any] | str) -> None:
    """Send one frame."""
    await socket.send(frame if isinstance(frame, str) else json.dumps(frame))


async def take(socket: ClientConnection, front: Front, until: str = "") -> dict[str, Any]:
    """Show the front end what comes, until the end of the run or an event of that type or name."""
    async with asyncio.timeout(30):
        while True:
            front.take([await socket.recv()])
            if until in (front.last["type"], front.last.get("name")) or (
                front.is_over and not until
            ):
                return front.last


async def reading(socket: ClientConnection) -> AsyncIterator[str | bytes]:
    """What comes until the connection is closed."""
    with suppress(ConnectionClosed):
        while True:
            yield await socket.recv()


def by(agent: str, **params: Any) -> dict[str, Any]:
    """What a front end forwards so that an agent does it."""
    return {"forwardedProps": {"agentsrv": {"agent": agent, "params": params}}}


async def test_a_front_end_runs_a_task_after_another():
    """On one connection, without a greeting; what it has of the first stays."""
    async with serving() as server, fronting(server) as socket:
        front = Front("Hello. ")
        await send(socket, front.run_input("r1", **by("echo", times=2)))
        assert (await take(socket, front))["result"] == "Hello. Hello. "
        front.messages.append({"id": "u2", "role": "user", "content": "Bye."})
        await send(socket, front.run_input("r2", **by("echo")))
        await take(socket, front)
        assert front.texts == ["Hello. Hello. ", "Bye."]
        assert [each["role"] for each in front.messages] == ["user", "assistant"] * 2


async def test_both_protocols_show_the_same_task():
    """What the front end has started is an ordinary task, with the front end's ids in it."""
    async with serving() as server, fronting(server) as socket, talking(server) as talk:
        front = Front("Hello.")
        await send(socket, front.run_input("r1", **by("echo")))
        await take(socket, front)
        task_id = front.state["agentsrv"]["task_id"]
        await talk.send({"command": "subscribe", "task_id": task_id})
        log = await talk.log(task_id)
        assert log[0]["data"]["metadata"] == {"ag-ui.threadId": "t", "ag-ui.runId": "r1"}
        assert log[-1]["data"]["final_output"] == "Hello."


@pytest.mark.parametrize(
    ("entry", "end"),
    [
        ({"status": "resolved", "payload": True}, "step_001: True"),
        ({"status": "cancelled"}, "InputDeclined: anonymous declined"),
    ],
)
async def test_a_question_is_answered_by_another_run(entry, end):
    """By its value, or by its being abandoned, which declines it."""
    async with serving() as server, fronting(server) as socket:
        front = Front()
        await send(socket, front.run_input("r1", **by("asker")))
        (interrupt,) = (await take(socket, front))["outcome"]["interrupts"]
        resume = [{"interruptId": interrupt["id"], **entry}]
        await send(socket, front.run_input("r2", resume=resume))
        last = await take(socket, front)
        assert end in str(last.get("result", last.get("message")))
        await send(socket, front.run_input("r2", resume=resume))
        assert (await take(socket, front))["type"] == last["type"]  # it is settled, and followed


async def test_an_answer_that_does_not_fit_leaves_the_question_open():
    """The run that brought it is refused, the next one may bring another."""
    async with serving() as server, fronting(server) as socket:
        front = Front()
        await send(socket, front.run_input("r1", **by("asker")))
        (interrupt,) = (await take(socket, front))["outcome"]["interrupts"]
        for payload, end in ("perhaps", "RUN_ERROR"), (False, "RUN_FINISHED"):
            resume = [{"interruptId": interrupt["id"], "status": "resolved", "payload": payload}]
            front.events = []
            await send(socket, front.run_input("r2", resume=resume))
            last = await take(socket, front)
            assert last["type"] == end
            assert last.get("code", "invalid_input") == "invalid_input"


async def test_two_questions_may_be_answered_one_by_one():
    """The run that answers one ends with the other."""
    plan = {"steps": [{"step_id": name, "agent": "asker"} for name in ("a", "b")]}
    async with serving() as server, fronting(server) as socket:
        front, given = Front(), {"forwardedProps": {"agentsrv": {"plan": plan}}}
        await send(socket, front.run_input("r0", **given))
        last, answered = await take(socket, front), 0
        while last.get("outcome", {}).get("type") == "interrupt":
            interrupt = last["outcome"]["interrupts"][0]
            resume = [{"interruptId": interrupt["id"], "status": "resolved", "payload": True}]
            answered += 1
            await send(socket, front.run_input(f"r{answered}", resume=resume))
            last = await take(socket, front)
        assert answered == 2
        assert sorted(front.texts) == ["a: True", "b: True"]


async def test_a_run_goes_on_behind_a_lost_connection():
    """The same run on another connection starts nothing, and shows nothing twice."""
    async with serving() as server:
        front = Front()
        given = by("talker", pieces=20, size=5, pause=0.01)
        async with fronting(server) as socket:
            await send(socket, front.run_input("r1", **given))
            await take(socket, front, "TEXT_MESSAGE_CONTENT")
        task_id = front.state["agentsrv"]["task_id"]
        front.events = []
        async with fronting(server) as socket, talking(server) as talk:
            await send(socket, front.run_input("r1", **given))
            await take(socket, front)
            assert (await talk.ask({"command": "list"}))["total"] == 1
        assert front.state["agentsrv"]["task_id"] == task_id
        assert front.texts == ["".join(f"{number:.>5}" for number in range(20))]


async def test_a_run_is_cancelled():
    """By a command of ours, with its reason; the reply comes before the events."""
    async with serving() as server, fronting(server) as socket:
        front = Front()
        await send(socket, front.run_input("r1", **by("waiter")))
        await take(socket, front, "STEP_STARTED")
        await send(socket, {"command": "cancel", "reason": "too slow"})
        last = await take(socket, front)
        assert last["outcome"] == {"type": "cancelled"}
        assert front.of("agentsrv.reply")[0]["value"]["status"] == "cancelling"
        assert front.of("agentsrv.task_cancelling")[0]["value"]["reason"] == "too slow"


async def test_a_task_that_asks_can_be_cancelled_though_its_run_is_over():
    """It is the connection's latest."""
    async with serving() as server, fronting(server) as socket:
        front = Front()
        await send(socket, front.run_input("r1", **by("asker")))
        await take(socket, front)
        await send(socket, {"command": "cancel"})
        reply = json.loads(await socket.recv())
        assert reply["name"] == "agentsrv.reply"
        assert reply["value"]["status"] == "cancelling"


async def test_what_cannot_be_is_a_run_error_and_the_connection_lives():
    """Before, behind and between runs; within one it is an event of our own."""
    other = {"interruptId": "0000/step_001/1", "status": "resolved", "payload": True}
    async with serving() as server, fronting(server) as socket:
        for frame, code in (
            ({"command": "cancel"}, "invalid_state"),
            (Front().run_input("r0", **by("nobody")), "invalid_command"),
            (Front().run_input("r0", **by("echo", times="two")), "invalid_command"),
            (Front().run_input("r0", resume=[other]), "not_found"),
            ("help", "invalid_json"),
        ):
            await send(socket, frame)
            front = Front()
            assert (await take(socket, front))["code"] == code
        front = Front()
        await send(socket, front.run_input("r1", **by("waiter")))
        await take(socket, front, "STEP_STARTED")
        for frame, code in (
            (front.run_input("r2", **by("echo")), "invalid_state"),
            ("help", "invalid_json"),
        ):
            await send(socket, frame)
            assert (await take(socket, front, "agentsrv.error"))["value"]["code"] == code
        await send(socket, {"command": "cancel"})
        assert (await take(socket, front))["outcome"]["type"] == "cancelled"


async def test_the_same_run_with_another_text_is_a_conflict():
    """A run is its thread and its id."""
    async with serving() as server, fronting(server) as socket:
        front = Front("One.")
        await send(socket, front.run_input("r1", **by("echo")))
        await take(socket, front)
        front = Front("Two.")
        await send(socket, front.run_input("r1", **by("echo")))
        assert (await take(socket, front))["code"] == "conflict"


async def test_a_failed_attempt_is_taken_back():
    """Also where it was shown as it happened."""
    app, shown = App(), asyncio.Event()

    @app.agent(retries=1, retry_base=0.01)
    async def moody(step: Step, ctx: StepContext) -> AsyncIterator[str]:
        """Fail once, behind a piece that was seen."""
        yield f"attempt {ctx.attempt}"
        if ctx.attempt == 1:
            await shown.wait()
            raise ConnectionError("no route")

    async with serving(app) as server, fronting(server) as socket:
        front = Front()
        await send(socket, front.run_input("r1", **by("moody")))
        await take(socket, front, "TEXT_MESSAGE_CONTENT")
        shown.set()
        await take(socket, front)
        assert front.of("MESSAGES_SNAPSHOT")
        assert front.texts == ["attempt 2"]


async def test_a_token_is_asked_for_as_in_the_other_protocol():
    """In the handshake, or by the command ``auth`` first, whose answers are that protocol's."""
    offered = [*AG_UI, Subprotocol(f"bearer.{ADA_KEY}")]
    async with serving(api_keys=BOTH, auth_timeout=5) as server:
        for options in ({"additional_headers": bearer(ADA_KEY)}, {"subprotocols": offered}):
            async with fronting(server, **options) as socket:
                await send(socket, {"command": "auth", "token": ADA_KEY})
                assert json.loads(await socket.recv())["value"]["principal"] == "ada"
                await send(socket, {"command": "auth", "token": BOB_KEY})
                assert json.loads(await socket.recv())["code"] == "invalid_state"
        async with fronting(server) as socket:
            await send(socket, {"command": "auth", "token": ADA_KEY})
            assert json.loads(await socket.recv())["principal"] == "ada"
            front = Front()
            await send(socket, front.run_input("r1", **by("waiter")))
            await take(socket, front, "STEP_STARTED")
            async with talking(server, additional_headers=bearer(BOB_KEY)) as talk:
                assert (await talk.ask({"command": "list"}))["total"] == 0
        async with fronting(server) as socket:
            await send(socket, Front().run_input("r1"))
            assert json.loads(await socket.recv())["code"] == "unknown_command"


async def test_another_principal_s_run_of_the_same_id_is_another_task():
    """And its question is not found."""
    async with serving(api_keys=BOTH) as server:
        interrupts = {}
        for name, key in (("ada", ADA_KEY), ("bob", BOB_KEY)):
            async with fronting(server, additional_headers=bearer(key)) as socket:
                front = Front()
                await send(socket, front.run_input("r1", **by("asker")))
                (interrupts[name],) = (await take(socket, front))["outcome"]["interrupts"]
                if name == "bob":
                    given = {"interruptId": interrupts["ada"]["id"], "status": "cancelled"}
                    front.events = []
                    await send(socket, front.run_input("r2", resume=[given]))
                    assert (await take(socket, front))["code"] == "not_found"
        assert interrupts["ada"]["id"] != interrupts["bob"]["id"]


async def test_bad_frames_close_the_connection():
    """As in the other protocol."""
    async with serving(api_keys=ADA) as server:
        for frames, code in ((["x"] * 20, 4400), ([b"x"], 1003)):
            async with fronting(server, additional_headers=bearer(ADA_KEY)) as socket:
                for frame in frames:
                    await socket.send(frame)
                async with asyncio.timeout(30):
                    told = [json.loads(frame) async for frame in reading(socket)]
                assert all(event["type"] == "RUN_ERROR" for event in told)
                assert socket.close_code == code


async def test_a_server_that_stops_closes_without_a_word_that_ag_ui_has_not():
    """The front end begins the same run again, and is shown the rest."""
    async with serving() as server:
        socket = await connect(server.url, subprotocols=AG_UI)
        front = Front()
        await send(socket, front.run_input("r1", **by("waiter")))
        await take(socket, front, "STEP_STARTED")
    front.take([frame async for frame in reading(socket)])
    assert socket.close_code == 1012


async def test_a_front_end_that_does_not_read_loses_nothing():
    """The cursor waits for it, as everybody's does."""
    async with serving(make_app()) as server, fronting(server) as socket:
        front = Front()
        given = by("talker", pieces=300, size=3000)
        await send(socket, front.run_input("r1", **given))
        await take(socket, front, "TEXT_MESSAGE_START")
        async with talking(server) as talk:
            await talk.send({"command": "subscribe", "task_id": front.state["agentsrv"]["task_id"]})
            await talk.log(front.state["agentsrv"]["task_id"])
        await take(socket, front)
        assert len(front.texts[0]) == 300 * 3000


LONG = "x" * 257
NULLS: list[dict[str, Any]] = [
    {"resume": None},
    {"state": None, "forwardedProps": None},
    {"tools": None, "context": None},
]
FIELDS = [
    ({"threadId": LONG}, "threadId"),
    ({"runId": ""}, "runId"),
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user", "content": "x" * 40_000}]}, "messages"),
    ({"messages": [{"role": "user", "content": ""}]}, "messages"),
    ({"resume": 1}, "resume"),
    ({"resume": [{"status": "resolved"}]}, "resume.0.interruptId"),
    ({"resume": [{"interruptId": "a/b/1", "status": "no"}]}, "resume.0.status"),
    (
        {
            "resume": [
                {"interruptId": "a/b/1", "status": "resolved"},
                {"interruptId": LONG, "status": "resolved"},
            ]
        },
        "resume.1.interruptId",
    ),
    (by("nobody"), "forwardedProps.agentsrv.agent"),
    (by("echo", times="many"), "forwardedProps.agentsrv.params.times"),
    ({"forwardedProps": {"agentsrv": 1}}, "forwardedProps.agentsrv"),
    ({"forwardedProps": {"agentsrv": {"deadline": "soon"}}}, "forwardedProps.agentsrv.deadline"),
    (
        {"forwardedProps": {"agentsrv": {"plan": {"steps": []}}}},
        "forwardedProps.agentsrv.plan.steps",
    ),
    (
        {"forwardedProps": {"agentsrv": {"plan": {"steps": [{"step_id": "a"}]}}}},
        "forwardedProps.agentsrv.plan.steps.0.agent",
    ),
    ({"forwardedProps": {"agentsrv": {"colour": 1}}}, "forwardedProps.agentsrv.colour"),
]


@pytest.mark.parametrize("fields", [*NULLS, {"forwardedProps": {"agentsrv": None}}])
async def test_null_is_what_is_left_out(fields):
    """Front ends write all fields that AG-UI has."""
    async with serving() as server, fronting(server) as socket:
        front = Front("Hello.")
        given = front.run_input("r1", **({} if "forwardedProps" in fields else by("echo")))
        await send(socket, given | fields)
        if "forwardedProps" in fields:
            first = json.loads(await socket.recv())
            assert first["type"] != "RUN_ERROR" or "null" not in first["message"]
            return
        assert (await take(socket, front))["result"] == "Hello."


@pytest.mark.parametrize(("fields", "named"), FIELDS)
async def test_a_refusal_names_the_field_that_the_front_end_wrote(fields, named):
    """In the message and in the details, wherever it was found."""
    async with serving() as server, fronting(server) as socket:
        await send(socket, Front("Hello.").run_input("r1") | fields)
        refused = json.loads(await socket.recv())
    assert refused["type"] == "RUN_ERROR"
    assert refused["code"] == "invalid_command"
    details = refused["metadata"]["agentsrv"].get("details")
    assert not details or details[0]["field"] == named
    assert details or named in refused["message"]
    assert "task_description" not in json.dumps(refused)


async def test_an_answer_that_does_not_fit_names_the_payload():
    """By the place of its entry."""
    async with serving() as server, fronting(server) as socket:
        front = Front()
        await send(socket, front.run_input("r1", **by("asker")))
        (interrupt,) = (await take(socket, front))["outcome"]["interrupts"]
        resume = [{"interruptId": interrupt["id"], "status": "resolved", "payload": "perhaps"}]
        await send(socket, front.run_input("r2", resume=resume))
        refused = json.loads(await socket.recv())
    assert refused["code"] == "invalid_input"
    assert refused["metadata"]["agentsrv"]["details"][0]["field"] == "resume.0.payload"
