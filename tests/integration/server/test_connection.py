"""Commands and events over a real socket."""

from __future__ import annotations

import asyncio
import gc
import json
from contextlib import suppress
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from agentsrv.adapters.ag_ui.events import AguiRun
from agentsrv.adapters.ag_ui.messages import RunAgentInput
from agentsrv.models.commands import MIN_PREFIX, TASK_ID_LENGTH
from agentsrv.server.batching import BatchedConnection
from tests.support.talk import Talk, serving, talking


async def test_hello_tells_what_the_server_is():
    """Its fields are the protocol's."""
    async with serving() as server, connect(server.url) as socket:
        hello = await Talk(socket).next()
    assert set(hello) == {
        "type", "protocol", "server", "connection_id", "authenticated", "limits", "commands",
    }  # fmt: skip
    assert hello["protocol"] == "agentsrv.v1"


async def test_the_subprotocol_is_echoed_and_not_required():
    """A client that offers it is given it; one that offers another is served without."""
    async with serving() as server:
        async with connect(server.url, subprotocols=[Subprotocol("agentsrv.v1")]) as socket:
            assert socket.subprotocol == "agentsrv.v1"
        async with connect(server.url, subprotocols=[Subprotocol("graphql-ws")]) as socket:
            assert socket.subprotocol is None


@pytest.mark.parametrize("store", ["memory:", "sqlite"])
async def test_the_reply_comes_before_the_events(store, tmp_path):
    """Create and execute in one command: reply, then the whole log in order."""
    name = f"sqlite:///{tmp_path}/t.db" if store == "sqlite" else store
    async with serving(store=name) as server, talking(server) as talk:
        await talk.send(
            {"command": "create", "id": 7, "task_description": "hi", "agent": "echo",
             "execute": True}
        )  # fmt: skip
        reply = await talk.next()
        assert (reply["type"], reply["id"], reply["status"]) == ("reply", 7, "queued")
        log = await talk.log(reply["task_id"])
    assert [event["seq"] for event in log] == list(range(1, len(log) + 1))
    assert log[-1]["data"]["final_output"] == "hi"


async def test_two_tasks_share_a_socket_and_a_second_client_sees_the_same():
    """Events are interleaved; each task's are numbered without a hole; late comers see them too."""
    async with serving() as server, talking(server) as talk, talking(server) as other:
        for number in range(2):
            await talk.send(
                {
                    "command": "create",
                    "id": number,
                    "task_description": "x",
                    "agent": "talker",
                    "params": {"pause": 0.002},
                    "execute": True,
                }
            )
        events, ended = [], 0
        while ended < 2:
            frame = await talk.next()
            if frame["type"] == "event":
                events.append(frame)
                ended += frame["event_type"] == "task_completed"
        for task in {event["task_id"] for event in events}:
            own = [event for event in events if event["task_id"] == task]
            assert [event["seq"] for event in own] == list(range(1, len(own) + 1))
            await other.ask({"command": "subscribe", "task_id": task})
            assert await other.log(task) == own
        order = [event["task_id"] for event in events]
        changes = sum(order[place] != order[place + 1] for place in range(len(order) - 1))
        assert changes > 10


async def test_control_commands_pass_a_stream():
    """A ping is answered while a task of many events is being delivered."""
    async with serving() as server, talking(server) as talk:
        await talk.ask(
            {"command": "create", "task_description": "x", "agent": "talker",
             "params": {"pieces": 20000, "size": 200}, "execute": True}
        )  # fmt: skip
        await talk.send({"command": "ping", "id": "p"})
        before = 0
        while (frame := await talk.next()).get("id") != "p":
            before += frame["type"] == "event"
        assert before < 2000
        status = await talk.ask("status")
        assert status["status"] == "running"
        assert (await talk.ask("cancel"))["status"] == "cancelling"


async def test_commands_get_a_turn_beside_a_stream_that_is_read_slowly():
    """A client that is always behind with its events still has its commands answered."""
    async with serving() as server, talking(server, max_queue=1, max_size=None) as talk:
        await talk.ask(
            {"command": "create", "task_description": "x", "agent": "talker", "execute": True,
             "params": {"pieces": 5000, "size": 1000}}
        )  # fmt: skip
        waited = []
        for number in range(5):
            await talk.send({"command": "ping", "id": f"p{number}"})
            characters = 0
            while (frame := await talk.next()).get("id") != f"p{number}":
                characters += len(frame.get("data", {}).get("output", ""))
                await asyncio.sleep(0.001)
            waited.append(characters)
        assert max(waited) < 2_500_000  # what the buffers hold, of a stream of 5,000,000


async def test_cancel_reaches_the_coroutine_over_the_wire():
    """Reply, task_cancelling, step_cancelled, task_cancelled; nothing after."""
    async with serving() as server, talking(server) as talk:
        reply = await talk.ask(
            {"command": "create", "task_description": "x", "agent": "waiter", "execute": True}
        )
        task = reply["task_id"]
        while (await talk.next()).get("event_type") != "step_started":
            pass
        answer = await talk.ask({"command": "cancel", "id": 1, "task_id": task, "reason": "no"})
        assert (answer["status"], answer["already"]) == ("cancelling", False)
        log = await talk.log(task)
        assert [event["event_type"] for event in log] == [
            "task_cancelling", "step_cancelled", "task_cancelled",
        ]  # fmt: skip
        assert (await talk.ask("ping"))["type"] == "reply"


async def test_a_dropped_connection_is_no_cancel():
    """The task goes on, and a new connection reads on from where the old one was."""
    async with serving() as server:
        async with talking(server) as talk:
            reply = await talk.ask(
                {"command": "create", "task_description": "x", "agent": "talker",
                 "params": {"pause": 0.005}, "execute": True}
            )  # fmt: skip
            task = reply["task_id"]
            seen = [await talk.next() for _ in range(6)]
            talk.socket.transport.abort()
        last = max(frame.get("seq", 0) for frame in seen if frame["type"] == "event")
        async with talking(server) as talk:
            await talk.ask({"command": "subscribe", "task_id": task, "after_seq": last})
            log = await talk.log(task)
        assert log[0]["seq"] == last + 1
        assert log[-1]["event_type"] == "task_completed"


@pytest.mark.parametrize("how", ["create", "execute"])
async def test_a_task_may_end_with_its_connection(how):
    """on_disconnect: cancel; the log says who and why. Without it the task goes on."""
    async with serving() as server, talking(server) as other:
        tasks = []
        async with talking(server) as talk:
            for on_disconnect in ("cancel", "continue"):
                created = await talk.ask(
                    {
                        "command": "create",
                        "task_description": "x",
                        "agent": "waiter",
                        "on_disconnect": on_disconnect,
                        "execute": how == "create",
                    }
                )
                tasks.append(created["task_id"])
                if how == "execute":
                    await talk.ask({"command": "execute", "task_id": tasks[-1]})
        await other.ask({"command": "subscribe", "task_id": tasks[0]})
        log = await other.log(tasks[0])
        assert log[-1]["event_type"] == "task_cancelled"
        assert log[-1]["data"]["reason"] == "the client disconnected"
        assert (await other.ask({"command": "status", "task_id": tasks[1]}))["status"] == "running"


async def test_a_create_is_cancelled_by_its_key_before_it_is_answered():
    """Both are sent at once; whatever the order of the answers, the task is cancelled."""
    async with serving() as server, talking(server) as talk:
        await talk.send(
            {"command": "create", "id": 1, "task_description": "x", "agent": "waiter",
             "idempotency_key": "k", "execute": True}
        )  # fmt: skip
        await talk.send({"command": "cancel", "id": 2, "idempotency_key": "k"})
        answers = {}
        events: list[str] = []
        while not (events and events[-1] == "task_cancelled"):
            frame = await talk.next()
            if frame["type"] == "reply":
                answers[frame["id"]] = frame
            elif frame["type"] == "event":
                events.append(frame["event_type"])
        assert answers[1]["task_id"] == answers[2]["task_id"]


async def test_commands_with_ids_are_carried_out_together():
    """A hundred at once are all answered, each with its id."""
    async with serving() as server, talking(server) as talk:
        for number in range(100):
            await talk.send(
                {"command": "create", "id": number, "task_description": "x", "agent": "echo"}
            )
        answers = [await talk.next() for _ in range(100)]
        assert sorted(answer["id"] for answer in answers) == list(range(100))
        assert len({answer["task_id"] for answer in answers}) == 100


async def test_lines_for_people():
    """Each line typed in wscat is answered with what to do next."""
    async with serving() as server, talking(server) as talk:
        assert "needs a task id" in (await talk.ask("status"))["message"]
        assert "run" in (await talk.ask("hello"))["message"]
        assert "run TEXT" in (await talk.ask("help"))["lines"]
        created = await talk.ask('{"command":"create","task_description":"x","agent":"waiter"}')
        task = created["task_id"]
        assert (await talk.ask("execute"))["status"] == "queued"
        assert (await talk.ask(f"status {task[:6]}…"))["task_id"] == task
        assert (await talk.ask("list queued"))["type"] == "reply"
        assert (await talk.ask(f"subscribe {task[:8]} 2"))["task_id"] == task
        assert (await talk.ask("cancel"))["task_id"] == task


async def test_a_prefix_names_a_task_in_json_too():
    """In each command with a `task_id`, from four characters on; the reply has the whole id."""
    async with serving() as server, talking(server) as talk:
        create = {"command": "create", "task_description": "x", "agent": "listener"}
        task = (await talk.ask(create))["task_id"]
        assert len(task) == TASK_ID_LENGTH
        execute = {"command": "execute", "task_id": task[:MIN_PREFIX]}
        assert (await talk.ask(execute))["task_id"] == task
        await talk.until("step_started")
        for command, fields in (
            ("status", {}),
            ("send", {"message": "x"}),
            ("subscribe", {}),
            ("cancel", {}),
        ):
            reply = await talk.ask({"command": command, "task_id": task[:8], **fields})
            assert reply["task_id"] == task, reply
        assert (await talk.ask({"command": "unsubscribe", "task_id": task[:8]}))["type"] == "reply"
        refusal = await talk.ask({"command": "status", "task_id": task[:3]})
        assert (refusal["code"], refusal["command"]) == ("not_found", "status")


async def test_a_prefix_of_several_tasks_is_refused_with_two_of_them():
    """Likewise one of a task of nobody."""
    async with serving() as server, talking(server) as talk:
        create = {"command": "create", "id": 1, "task_description": "x", "agent": "echo"}
        prefixes: set[str] = set()
        while True:  # until two of the random ids begin alike
            task = (await talk.ask(create))["task_id"]
            if task[:MIN_PREFIX] in prefixes:
                break
            prefixes.add(task[:MIN_PREFIX])
        refusal = await talk.ask({"command": "status", "task_id": task[:MIN_PREFIX]})
        assert refusal["code"] == "invalid_command"
        assert task in refusal["message"]
        refusal = await talk.ask({"command": "status", "task_id": "ghost"})
        assert refusal["code"] == "not_found"


async def test_all_follows_the_life_cycle_of_tasks_from_other_connections():
    """One connection creates, the other watches."""
    async with serving() as server, talking(server) as talk, talking(server) as watcher:
        await watcher.ask("subscribe all")
        reply = await talk.ask(
            {"command": "create", "task_description": "x", "agent": "echo", "execute": True}
        )
        log = await watcher.log(reply["task_id"])
        assert [event["event_type"] for event in log] == [
            "task_created", "task_queued", "task_started", "task_completed",
        ]  # fmt: skip
        assert (await watcher.ask("unsubscribe all"))["type"] == "reply"


async def test_all_tells_of_questions_too():
    """As long as one is open, its task has another status."""
    async with serving() as server, talking(server) as talk, talking(server) as watcher:
        await watcher.ask("subscribe all")
        create = {"command": "create", "task_description": "x", "agent": "asker", "execute": True}
        task_id = (await talk.ask(create))["task_id"]
        asked = await watcher.until("input_required")
        assert asked["task_id"] == task_id
        await talk.ask({"command": "respond", "input_id": asked["data"]["input_id"], "value": True})
        assert (await watcher.until("input_received"))["task_id"] == task_id
        assert (await watcher.until("task_completed"))["task_id"] == task_id


async def test_a_client_that_does_not_read_is_dropped_and_loses_nothing():
    """It costs a bounded buffer, it is dropped after the stall time-out, and the log waits."""
    async with serving(stall_timeout=0.3) as server:
        async with talking(server, ping_interval=None, max_queue=1, max_size=None) as talk:
            reply = await talk.ask(
                {"command": "create", "task_description": "x", "agent": "talker",
                 "params": {"pieces": 10_000, "size": 500}, "execute": True}
            )  # fmt: skip
            async with talking(server, max_size=None) as other:
                await other.ask({"command": "subscribe", "task_id": reply["task_id"]})
                whole = await other.log(reply["task_id"])
                await asyncio.sleep(0.8)
            seen = 0
            with suppress(ConnectionClosed):
                while True:
                    seen += (await talk.next())["type"] == "event"
        assert seen < len(whole)
        async with talking(server, max_size=None) as talk:
            await talk.ask({"command": "subscribe", "task_id": reply["task_id"], "after_seq": seen})
            rest = await talk.log(reply["task_id"])
        assert rest == whole[seen:]


RUN_ASKER = {"command": "create", "task_description": "x", "agent": "asker", "execute": True}


@pytest.mark.parametrize("store", ["memory:", "sqlite"])
async def test_a_question_is_answered_over_the_socket(store, tmp_path):
    """The wrong answer is told, the right one is replied to before its event, a third is late."""
    name = f"sqlite:///{tmp_path}/t.db" if store == "sqlite" else store
    async with serving(store=name) as server, talking(server) as talk, talking(server) as other:
        task_id = (await talk.ask(RUN_ASKER))["task_id"]
        asked = (await talk.until("input_required"))["data"]
        respond = {"command": "respond", "input_id": asked["input_id"], "id": 1}
        wrong = await other.ask(respond | {"value": "yes"})
        assert (wrong["code"], wrong["retryable"]) == ("invalid_input", False)
        assert wrong["message"] == 'found "yes"; value: Input should be a valid boolean'
        assert wrong["details"] == [{"field": "value", "reason": "Input should be a valid boolean"}]
        await talk.send(respond | {"value": True})
        frames = [await talk.next() for _ in range(2)]
        assert frames[0] == {
            "type": "reply", "command": "respond", "id": 1,
            "task_id": task_id, "input_id": asked["input_id"],
        }  # fmt: skip
        assert frames[1]["event_type"] == "input_received"
        assert (await other.ask(respond | {"value": False}))["code"] == "conflict"
        unknown = await other.ask(respond | {"input_id": f"{task_id}/step_001/2"})
        assert unknown["code"] == "not_found"
        assert (await talk.log(task_id))[-1]["data"]["final_output"] == "step_001: True"


async def test_a_question_is_answered_by_typing():
    """Of the connection's latest task, or of the one that is named; what it means is asked for."""
    async with serving() as server, talking(server) as talk:
        for line, output in (
            ("respond yes", "step_001: True"),
            ("respond {} no", "step_001: False"),
        ):
            task_id = (await talk.ask(RUN_ASKER))["task_id"]
            input_id = (await talk.until("input_required"))["data"]["input_id"]
            assert (await talk.ask("respond perhaps"))["code"] == "invalid_input"
            reply = await talk.ask(line.format(input_id))
            assert (reply["task_id"], reply["input_id"]) == (task_id, input_id)
            assert (await talk.log(task_id))[-1]["data"]["final_output"] == output
        refusal = await talk.ask("respond yes")
        assert (refusal["code"], refusal["message"][-16:]) == ("not_found", "asks nothing now")
        task_id = (await talk.ask(RUN_ASKER))["task_id"]
        await talk.until("input_required")
        await talk.ask("respond decline")
        assert (await talk.log(task_id))[-1]["event_type"] == "task_failed"


async def test_a_message_is_sent_over_the_socket():
    """As JSON or by typing; the reply has its number."""
    async with serving() as server, talking(server) as talk:
        for send in ({"command": "send", "message": {"a": 1}}, "send … a 1"):
            create = RUN_ASKER | {"agent": "listener"}
            task_id = (await talk.ask(create))["task_id"]
            await talk.until("step_started")
            reply = await talk.ask(send | {"task_id": task_id} if isinstance(send, dict) else send)
            log = await talk.log(task_id)
            assert log[0]["event_type"] == "message_received"
            assert (reply["task_id"], reply["seq"]) == (task_id, log[0]["seq"])
            assert log[-1]["data"]["final_output"] == json.dumps(log[0]["data"]["message"])


async def test_a_task_that_waits_for_an_answer_is_cancelled():
    """It ends when its code has; then the status has no open question."""
    async with serving() as server, talking(server) as talk:
        task_id = (await talk.ask(RUN_ASKER))["task_id"]
        await talk.until("input_required")
        status = await talk.ask({"command": "status", "task_id": task_id})
        assert (status["status"], len(status["inputs"])) == ("input_required", 1)
        assert (await talk.ask("cancel"))["status"] == "cancelling"
        await talk.until("task_cancelled")
        assert (await talk.ask("status"))["inputs"] == []


MARK = "held-by-an-idle-connection"
LARGE: dict[str, dict[str, Any]] = {
    "a command with an id": {"command": "send", "id": 1, "task_id": "x", "message": [MARK]},
    "a command without one": {"command": "send", "task_id": "x", "message": [MARK]},
    "one that is answered in its turn": {"command": "list", "id": 1, "cursor": MARK},
    "a run of a front end": {
        "threadId": "t",
        "runId": "r",
        "messages": [
            {"id": MARK, "role": "tool", "content": MARK},
            {"id": "u", "role": "user", "content": "hi"},
        ],
        "forwardedProps": {"agentsrv": {"agent": "echo"}},
    },
}


@pytest.mark.parametrize("name", LARGE)
async def test_an_idle_connection_keeps_nothing_of_its_last_command(name):
    """Many connections may each have sent a large one."""
    frame = LARGE[name]
    protocol = "ag-ui" if "runId" in frame else "agentsrv.v1"
    async with (
        serving() as server,
        connect(server.url, subprotocols=[Subprotocol(protocol)]) as socket,
    ):
        await socket.send(
            json.dumps(frame | {"padding": "x" * 300_000} if "runId" in frame else frame)
        )
        async for answer in socket:
            kind = json.loads(answer)["type"]
            if kind in {"reply", "error", "RUN_FINISHED"}:
                break
        await asyncio.sleep(0.05)
        gc.collect()
        held = [
            one
            for one in gc.get_objects()
            if type(one).__module__ == "agentsrv.models.commands"
            or isinstance(one, AguiRun | RunAgentInput)
        ]
        assert [one for one in held if MARK in repr(vars(one))] == []
        unread = [one._unread for one in gc.get_objects() if isinstance(one, BatchedConnection)]
        assert [view.obj for view in unread] == [b""] * len(unread)
