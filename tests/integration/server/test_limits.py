"""Each limit, reached over real sockets by one principal beside another."""

from __future__ import annotations

import asyncio
import gc
import json
import resource
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from agentsrv.server import batching, listener, requests
from agentsrv.server import open_files as files
from agentsrv.server.limits import MAX_LARGE_MESSAGES
from agentsrv.wiring import Server
from tests.integration.hostile.frames import dense_plan
from tests.support.principals import ADA_KEY, BOB_KEY, BOTH, bearer
from tests.support.talk import Talk, serving, talking

ADA: dict[str, Any] = {"additional_headers": bearer(ADA_KEY)}
BOB: dict[str, Any] = {"additional_headers": bearer(BOB_KEY)}
WAITER = {"command": "create", "task_description": "x", "agent": "waiter", "execute": True}
SLOW = 0.001  # commands a second: nothing comes back while a test runs


async def closed_with(server: Server, **options: Any) -> tuple[int, str]:
    """The code and the reason with which a new connection is closed."""
    async with connect(server.url, **options) as socket:
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code, closed.value.rcvd.reason


async def answered(server: Server) -> None:
    """Connect as ada, and be answered."""
    async with talking(server, **ADA) as talk:
        assert (await talk.ask("ping"))["type"] == "reply"


async def eventually(attempt: Callable[[], Awaitable[None]]) -> None:
    """Try again and again until there is room."""
    async with asyncio.timeout(30):
        while True:
            try:
                await attempt()
            except (OSError, EOFError, InvalidHandshake, ConnectionClosed):
                await asyncio.sleep(0.01)
            else:
                return


async def test_hello_tells_every_limit():
    """By the names of the settings; null is none."""
    async with serving(concurrency=6) as server, connect(server.url) as socket:
        limits = json.loads(await socket.recv())["limits"]
    assert limits == {
        "max_frame": 1 << 20,
        "max_depth": 32,
        "max_values": 20_000,
        "max_description": 32_768,
        "queue_limit": 10_000,
        "command_rate": None,
        "command_burst": 2000,
        "principal_connections": None,
        "principal_running": None,
        "principal_queued": 1000,
        "principal_subscriptions": 10_000,
    }
    async with serving(concurrency=6, api_keys=BOTH) as server, connect(server.url) as socket:
        guarded = json.loads(await socket.recv())["limits"]
    assert guarded == limits | {
        "command_rate": 500.0,
        "principal_connections": 100,
        "principal_running": 3,
        "auth_timeout": 5.0,
        "max_auth_frame": 16_384,
    }


@pytest.fixture(autouse=True)
def _short_rests(monkeypatch):
    """Let a connection over the rate be read again soon; its refusals stay."""
    for module in (batching, requests):
        monkeypatch.setattr(module, "MAX_READ_PAUSE", 0.05)


async def test_commands_over_the_rate_are_refused_and_others_are_not():
    """All connections of a principal share it; another one has its own."""
    async with (
        serving(api_keys=BOTH, command_rate=SLOW, command_burst=3) as server,
        talking(server, **ADA) as ada,
        talking(server, **ADA) as again,
        talking(server, **BOB) as bob,
    ):
        assert (await ada.ask({"command": "ping"}))["type"] == "reply"
        assert (await again.ask("ping"))["type"] == "reply"
        assert (await ada.ask("status 1234"))["code"] == "not_found"
        refused = await again.ask({"command": "list", "id": 7})
        assert (refused["code"], refused["command"], refused["id"]) == ("rate_limited", "list", 7)
        assert refused["retryable"]
        assert 900 < refused["retry_after"] <= 1000
        assert (await ada.ask({"command": "ping", "id": 8}))["code"] == "rate_limited"
        assert (await bob.ask("ping"))["type"] == "reply"
        async with talking(server, **ADA) as third:
            assert (await third.ask("ping"))["code"] == "rate_limited"


async def test_a_command_is_carried_out_again_when_some_time_has_passed():
    """As the refusal has told."""
    async with serving(command_rate=5, command_burst=1) as server, talking(server) as talk:
        for number in range(5):
            await talk.send({"command": "ping", "id": number})
        answers = [await talk.next() for _ in range(5)]
        refused = [answer for answer in answers if answer["type"] == "error"]
        assert answers[0]["type"] == "reply"
        assert {answer["code"] for answer in refused} == {"rate_limited"}
        assert 0.1 <= refused[0]["retry_after"] <= 0.2
        await asyncio.sleep(refused[0]["retry_after"])
        assert (await talk.ask("ping"))["type"] == "reply"


async def test_invalid_frames_count_and_are_not_parsed_above_the_rate():
    """Otherwise they would be a way around it."""
    async with (
        serving(command_rate=SLOW, command_burst=3) as server,
        talking(server) as talk,
        talking(server) as other,
    ):
        codes = [(await talk.ask("{"))["code"] for _ in range(4)]
        assert codes == ["invalid_json"] * 3 + ["rate_limited"]
        assert (await other.ask("ping"))["code"] == "rate_limited"


async def test_a_large_answer_counts_as_several_commands():
    """By its length; then nothing is read for a while."""
    async with (
        serving(command_rate=SLOW, command_burst=4) as server,
        talking(server) as talk,
    ):
        params = {"times": 50_000}
        task = {"task_description": "x", "agent": "echo", "params": params, "execute": True}
        created = await talk.ask({"command": "create"} | task)
        await talk.until("task_completed")
        status = await talk.ask({"command": "status", "task_id": created["task_id"]})
        assert len(json.dumps(status)) > 3 * 16_384
        assert (await talk.ask("ping"))["code"] == "rate_limited"


async def test_a_large_command_counts_as_several():
    """By its length and its values; it passes when there was nothing before it."""
    async with serving(command_rate=SLOW, command_burst=10) as server, talking(server) as talk:
        assert (await talk.ask(dense_plan()))["type"] == "reply"
        refused = await talk.ask(dense_plan())
        assert (refused["code"], refused["command"], refused["id"]) == ("rate_limited", "create", 7)
        assert (await talk.ask("ping"))["code"] == "rate_limited"


async def test_a_stranger_is_limited_too():
    """Before it says who it is, all connections of its address together."""
    async with (
        serving(api_keys=BOTH, command_rate=SLOW, command_burst=2) as server,
        connect(server.url) as first,
        connect(server.url) as second,
    ):
        talks = Talk(first), Talk(second)
        for talk in talks:
            assert (await talk.next())["type"] == "hello"
            assert (await talk.ask("ping"))["type"] == "reply"
        refused = await talks[0].ask({"command": "auth", "token": ADA_KEY})
        assert refused["code"] == "rate_limited"
        async with talking(server, **ADA) as ada:
            assert (await ada.ask("ping"))["type"] == "reply"


async def test_connections_over_the_limit_are_closed_with_1013():
    """By handshake and by command; when one leaves there is room; the other one never notices."""
    async with (
        serving(api_keys=BOTH, principal_connections=2) as server,
        talking(server, **ADA),
        AsyncExitStack() as stack,
    ):
        await stack.enter_async_context(talking(server, **ADA))
        code, reason = await closed_with(server, **ADA)
        assert (code, reason) == (1013, "connection limit reached (2 of yours are open)")
        async with talking(server) as late:
            refused = await late.ask({"command": "auth", "token": ADA_KEY})
            assert refused["code"] == "overloaded"
            with pytest.raises(ConnectionClosed) as closed:
                await late.next()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1013
        async with talking(server, **BOB) as bob:
            assert (await bob.ask("ping"))["type"] == "reply"
        await stack.aclose()
        await eventually(lambda: answered(server))


async def test_a_connection_that_was_dropped_gives_everything_back():
    """Its place and its subscriptions, whichever way it went."""
    limits: dict[str, Any] = {"principal_connections": 1, "principal_subscriptions": 2}
    async with serving(api_keys=BOTH, **limits) as server:

        async def use_up_and_drop() -> None:
            async with talking(server, **ADA) as ada:
                for _ in range(2):
                    assert (await ada.ask(WAITER))["type"] == "reply"
                assert (await ada.ask(WAITER))["code"] == "overloaded"
                ada.socket.transport.abort()

        for _ in range(5):
            await eventually(use_up_and_drop)


async def test_subscriptions_of_all_connections_count():
    """What takes another's place is none more, and what ends makes room."""
    async with (
        serving(api_keys=BOTH, principal_subscriptions=2) as server,
        talking(server, **ADA) as ada,
        talking(server, **ADA) as again,
        talking(server, **BOB) as bob,
    ):
        first = (await ada.ask(WAITER))["task_id"]
        second = (await again.ask(WAITER))["task_id"]
        refused = await ada.ask(WAITER)
        assert refused["code"] == "overloaded"
        assert "you follow 2 tasks" in refused["message"]
        assert (await ada.ask({"command": "list"}))["total"] == 2, "nothing was created"
        follow = {"command": "subscribe", "task_id": second}
        assert (await ada.ask(follow))["code"] == "overloaded"
        assert (await again.ask(follow))["type"] == "reply"
        assert (await bob.ask(WAITER))["type"] == "reply"
        await ada.ask({"command": "cancel", "task_id": first})
        await ada.until("task_cancelled")
        assert (await ada.ask(follow))["type"] == "reply"
        await again.ask({"command": "unsubscribe", "task_id": second})
        assert (await again.ask(WAITER))["type"] == "reply"


async def test_tasks_that_wait_are_limited_for_each():
    """The position counts one's own; another's full queue is no reason to be refused."""
    async with (
        serving(api_keys=BOTH, concurrency=1, principal_queued=2, queue_limit=2) as server,
        talking(server, **ADA) as ada,
        talking(server, **BOB) as bob,
    ):
        await ada.ask(WAITER)
        await ada.until("step_started")
        tasks = []
        for position in (1, 2):
            tasks.append((await ada.ask(WAITER))["task_id"])
            assert (await ada.until("task_queued"))["data"] == {"position": position}
        refused = await ada.ask(WAITER)
        assert (refused["code"], refused["retry_after"]) == ("overloaded", 1.0)
        assert "2 of your tasks are waiting" in refused["message"]
        assert (await bob.ask(WAITER))["type"] == "reply"
        assert (await bob.until("task_queued"))["data"] == {"position": 1}
        assert "3 tasks are waiting" in (await bob.ask(WAITER))["message"]
        await ada.ask({"command": "cancel", "task_id": tasks[0]})
        assert (await ada.ask(WAITER))["type"] == "error", "all have too many"
        await ada.ask({"command": "cancel", "task_id": tasks[1]})
        assert (await ada.ask(WAITER))["type"] == "reply"


@pytest.mark.parametrize("store", ["memory:", "sqlite"])
async def test_tasks_that_run_are_limited_for_each(store, tmp_path):
    """The rest waits, others are served beside, and the next one starts when one has ended."""
    name = f"sqlite:///{tmp_path}/t.db" if store == "sqlite" else store
    async with (
        serving(api_keys=BOTH, store=name, concurrency=4, principal_running=2) as server,
        talking(server, **ADA) as ada,
        talking(server, **BOB) as bob,
    ):
        tasks = [(await ada.ask(WAITER))["task_id"] for _ in range(5)]
        echo = WAITER | {"agent": "echo"}
        for _ in range(3):
            await bob.log((await bob.ask(echo))["task_id"])
        statuses = [(await ada.ask({"command": "status", "task_id": t}))["status"] for t in tasks]
        assert statuses == ["running"] * 2 + ["queued"] * 3
        await ada.ask({"command": "cancel", "task_id": tasks[0]})
        while (await ada.until("task_started"))["task_id"] != tasks[2]:
            pass


async def test_half_open_handshakes_of_one_address_are_limited():
    """They are cut off at once; when they end there is room, and the admitted go on."""
    async with serving(api_keys=BOTH, address_connections=2) as server:
        async with talking(server, **ADA) as ada, talking(server, **BOB), AsyncExitStack() as stack:
            for _ in range(2):
                _, writer = await asyncio.open_connection("127.0.0.1", server.port)
                stack.push_async_callback(writer.wait_closed)
                stack.callback(writer.close)
                writer.write(b"GET / HTTP/1.1\r\n")
            assert (await ada.ask("ping"))["type"] == "reply"
            with pytest.raises((OSError, EOFError, InvalidHandshake)):
                await answered(server)
        await eventually(lambda: answered(server))


async def test_strangers_behind_a_proxy_are_limited_by_their_own_address():
    """A stranger too many is told 429, and others by the same proxy are not."""
    limits: dict[str, Any] = {"behind_proxy": True, "address_connections": 1}
    async with serving(api_keys=BOTH, **limits) as server:

        def by(address: str) -> connect:
            return connect(server.url, additional_headers={"X-Forwarded-For": address})

        async with by("192.0.2.1") as first, by("192.0.2.2"):
            with pytest.raises(InvalidStatus) as refused:
                await by("192.0.2.1").__aenter__()
            assert refused.value.response.status_code == 429
            assert refused.value.response.headers["Retry-After"] == "1"
            talk = Talk(first)
            assert (await talk.next())["type"] == "hello"
            assert (await talk.ask({"command": "auth", "token": ADA_KEY}))["principal"] == "ada"
            async with by("192.0.2.1"):  # ada is no stranger any more
                pass


async def test_connections_stay_below_the_limit_of_open_files(monkeypatch, caplog):
    """It is raised as far as it goes; what then fits is taken, and said."""
    limits = [(50, files.OTHER_FILES + listener.PASSING + 1)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limits.append(limit))
    async with serving() as server, talking(server) as talk:
        assert (await closed_with(server))[0] == 1013
        assert (await talk.ask("ping"))["type"] == "reply"
    assert limits[-1][0] == limits[-1][1]
    assert "at most 1 connections are accepted" in caplog.text


async def test_sockets_of_all_kinds_are_bounded(monkeypatch):
    """Beyond, they are cut off when they are accepted; whoever is in goes on."""
    monkeypatch.setattr(listener, "PASSING", 2)
    async with serving(max_connections=1) as server, talking(server) as talk:
        async with AsyncExitStack() as stack:
            for _ in range(2):
                _, writer = await asyncio.open_connection("127.0.0.1", server.port)
                stack.push_async_callback(writer.wait_closed)
                stack.callback(writer.close)
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            stack.callback(writer.close)
            with suppress(ConnectionResetError):
                async with asyncio.timeout(30):
                    assert await reader.read() == b""
            assert (await talk.ask("ping"))["type"] == "reply"

        async def told_to_try_later() -> None:
            assert (await closed_with(server))[0] == 1013

        await eventually(told_to_try_later)


async def test_few_large_messages_are_received_side_by_side():
    """Half messages of many connections take little memory; in the end each is answered."""
    text = json.dumps({"command": "ping", "more": "x" * 900_000}).encode()
    frame = b"\x81\xff" + len(text).to_bytes(8) + bytes(4) + text  # masked with zeros

    def half() -> list[int]:
        """The sizes of the messages that the server has begun to receive."""
        found = [c for c in gc.get_objects() if issubclass(type(c), batching.BatchedConnection)]
        return [len(c.protocol.reader.buffer) for c in found]

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110 - bytes are on their way
                await asyncio.sleep(0.01)

    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(serving(api_keys=BOTH))
        talks = [
            await stack.enter_async_context(talking(server, **ADA))
            for _ in range(MAX_LARGE_MESSAGES * 2)
        ]
        for talk in talks:
            talk.socket.transport.write(frame[:-1])
        await until(
            lambda: (
                sum(size > batching.LARGE_MESSAGE + 4096 for size in half()) == MAX_LARGE_MESSAGES
            )
        )
        await until(lambda: sum(size > len(text) - 100 for size in half()) == MAX_LARGE_MESSAGES)
        assert sum(half()) < (MAX_LARGE_MESSAGES + 1) << 20

        async with talking(server, **BOB) as bob:  # another principal has its own
            assert (await bob.ask(text.decode()))["code"] == "invalid_command"

        await talks[-1].socket.close()  # of one that waits, or not
        for talk in talks[:-1]:
            talk.socket.transport.write(frame[-1:])
        for talk in talks[:-1]:
            assert (await talk.next())["code"] == "invalid_command"
