"""The way in, and the way out, of a server that asks who everybody is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from agentsrv.client import Client
from agentsrv.errors import UnauthenticatedError
from agentsrv.server.auth import handshake as server_handshake
from agentsrv.server.auth.keys import add_key, make_key, parse_keys, revoke_key
from tests.support.clients import run_task
from tests.support.handshakes import handshake
from tests.support.principals import ADA, ADA_KEY, BOB_KEY, BOTH, TODAY, bearer
from tests.support.talk import Talk, serving, talking

PAST = {"command": "auth", "token": ADA_KEY}


async def closing_code(
    talk: Talk, do: Callable[[], Awaitable[object]] | None = None
) -> tuple[int, str]:
    """How the server closes a connection that only reads, or does something again and again."""

    async def go_on() -> None:
        while True:
            await (do or talk.next)()

    with pytest.raises(ConnectionClosed) as closed:
        await go_on()
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code, closed.value.rcvd.reason


@pytest.mark.parametrize(
    "handshake",
    [
        {"additional_headers": bearer(ADA_KEY)},
        {"subprotocols": [Subprotocol("agentsrv.v1"), Subprotocol(f"bearer.{ADA_KEY}")]},
    ],
)
async def test_a_handshake_may_say_who_it_is(handshake):
    """Then the greeting says so, nothing of the token comes back, and tasks are that principal's."""
    async with serving(api_keys=ADA) as server, connect(server.url, **handshake) as socket:
        talk = Talk(socket)
        hello = await talk.next()
        assert hello["authenticated"] is True
        assert "auth_timeout" not in hello["limits"]
        assert socket.response is not None
        assert ADA_KEY not in f"{hello} {socket.response.headers}"
        assert socket.subprotocol == ("agentsrv.v1" if "subprotocols" in handshake else None)
        reply = await talk.ask({"command": "create", "task_description": "x", "agent": "waiter",
                                "execute": True})  # fmt: skip
        await talk.until("step_started")
        await talk.ask({"command": "cancel", "task_id": reply["task_id"]})
        assert (await talk.until("task_cancelled"))["data"]["by"] == "ada"


@pytest.mark.parametrize("line", [PAST, f"auth {ADA_KEY}"], ids=["JSON", "line"])
async def test_the_first_command_may_say_who_it_is(line):
    """Before it, only ping and help are answered; behind it, everything is."""
    async with serving(api_keys=ADA) as server, connect(server.url) as socket:
        talk = Talk(socket)
        hello = await talk.next()
        assert hello["authenticated"] is False
        assert hello["limits"]["auth_timeout"] == 5.0
        for name in hello["commands"]:
            if name in ("auth", "ping", "help"):
                continue
            answer = await talk.ask({"command": name, "id": name} | FIELDS.get(name, {}))
            assert (answer["code"], answer["command"], answer["id"]) == (
                "unauthenticated", name, name,
            )  # fmt: skip
        assert (await talk.ask("ping"))["type"] == "reply"
        assert "auth" in (await talk.ask("help"))["commands"]
        assert await talk.ask(line) == {
            "type": "reply", "command": "auth", "id": None, "principal": "ada",
        }  # fmt: skip
        assert (await talk.ask("list"))["tasks"] == []


FIELDS: dict[str, dict[str, Any]] = {
    name: {"task_id": "0123456789abcdef"}
    for name in ("execute", "status", "cancel", "subscribe", "unsubscribe")
} | {
    "create": {"task_description": "x"},
    "respond": {"input_id": "0123456789abcdef/a/1", "value": 1},
    "send": {"task_id": "0123456789abcdef", "message": 1},
}


async def test_commands_may_follow_auth_at_once():
    """A client need not wait for its answer."""
    async with serving(api_keys=ADA) as server, talking(server) as talk:
        await talk.send(PAST)
        await talk.send("list")
        assert [(await talk.next())["command"] for _ in range(2)] == ["auth", "list"]


async def test_a_wrong_token_in_a_command_ends_the_connection():
    """The answer says so first; the token is in neither."""
    async with serving(api_keys=ADA) as server, talking(server) as talk:
        answer = await talk.ask({"command": "auth", "id": 1, "token": BOB_KEY})
        assert (answer["code"], answer["message"], answer["id"]) == (
            "unauthenticated", "the token is not accepted", 1,
        )  # fmt: skip
        assert await closing_code(talk) == (4401, "the token is not accepted")


async def test_who_does_not_say_who_it_is_must_leave():
    """Also where it keeps the connection busy with what is allowed."""
    async with serving(api_keys=ADA, auth_timeout=0.05) as server:
        async with talking(server) as talk:
            await talk.send("ping")
            assert await closing_code(talk) == (4401, "no token within 0.05 s")
        async with talking(server) as talk:
            assert (await closing_code(talk, lambda: talk.ask("ping")))[0] == 4401


async def test_a_connection_stays_with_its_principal():
    """Another token of it may take over; one of somebody else, or of nobody, changes nothing."""
    async with (
        serving(api_keys=BOTH) as server,
        talking(server, additional_headers=bearer(ADA_KEY)) as talk,
    ):
        assert (await talk.ask(PAST))["principal"] == "ada"
        other = await talk.ask({"command": "auth", "token": BOB_KEY})
        assert other["code"] == "invalid_state"
        assert "bob" not in str(other)
        wrong = await talk.ask({"command": "auth", "token": "nonsense"})
        assert wrong["code"] == "unauthenticated"
        assert (await talk.ask("list"))["type"] == "reply"


async def test_a_server_that_asks_nobody_looks_at_no_token():
    """A client with a token works there too."""
    async with (
        serving() as server,
        talking(server, additional_headers=bearer("nonsense")) as talk,
    ):
        assert (await talk.ask(PAST))["principal"] == "anonymous"
        assert (await talk.ask("list"))["type"] == "reply"


async def test_a_key_that_is_revoked_ends_its_connections(tmp_path, monkeypatch):
    """Those of other keys go on; the key opens no other."""
    monkeypatch.setattr(server_handshake, "RECHECK_INTERVAL", 0.02)
    file = tmp_path / "keys"
    second, key = make_key("ada", TODAY)
    file.write_text(f"{ADA}\n")
    async with serving(key_file=file) as server:
        add_key(file, key)
        async with (
            talking(server, additional_headers=bearer(ADA_KEY)) as first,
            talking(server, additional_headers=bearer(second)) as other,
        ):
            (revoked,) = parse_keys(ADA, "")
            revoke_key(file, revoked, TODAY)
            code, reason = await closing_code(first)
            assert (code, reason) == (4401, "the token is no longer valid")
            assert (await other.ask("list"))["type"] == "reply"
            with pytest.raises(InvalidStatus):
                await connect(server.url, additional_headers=bearer(ADA_KEY))


async def test_a_key_that_was_renewed_in_time_ends_nothing(tmp_path, monkeypatch):
    """By auth with another key of the same principal."""
    monkeypatch.setattr(server_handshake, "RECHECK_INTERVAL", 0.02)
    file = tmp_path / "keys"
    second, key = make_key("ada", TODAY)
    file.write_text(f"{ADA}\n{key.line()}")
    async with (
        serving(key_file=file) as server,
        talking(server, additional_headers=bearer(ADA_KEY)) as talk,
        talking(server, additional_headers=bearer(ADA_KEY)) as other,
    ):
        await talk.ask({"command": "auth", "token": second})
        (revoked,) = parse_keys(ADA, "")
        revoke_key(file, revoked, TODAY)
        assert (await closing_code(other))[0] == 4401
        assert (await talk.ask("list"))["type"] == "reply"


async def test_the_python_client_says_who_it_is():
    """Without a token, or with a wrong one, it is told at once that it may not."""
    async with serving(api_keys=ADA) as server:
        async with Client(server.url, token=ADA_KEY) as client:
            assert client.hello.authenticated
            assert (await run_task(client, "x", agent="echo")).final_output == "x"
        for token, sentence in ((None, "requires authentication"), (BOB_KEY, "rejects the token")):
            with pytest.raises(UnauthenticatedError, match=sentence) as refused:
                async with Client(server.url, token=token):
                    pass
            assert "agentsrv_" not in str(refused.value)


async def test_no_token_is_logged(caplog):
    """Not by the library either, whatever level is set, for tokens that are right and wrong."""
    caplog.set_level(logging.DEBUG)
    wrong = make_key("ada", TODAY)[0]
    async with serving(api_keys=ADA) as server:
        async with Client(server.url, token=ADA_KEY) as client:
            await client.ping()
        async with talking(server) as talk:
            await talk.ask(PAST)
        async with talking(server) as talk:
            await talk.ask({"command": "auth", "token": wrong})
        offered = [Subprotocol("agentsrv.v1"), Subprotocol(f"bearer.{wrong}")]
        with pytest.raises(InvalidStatus):
            await connect(server.url, subprotocols=offered)
    ours = [record for record in caplog.records if record.name.startswith("agentsrv")]
    assert any("refused 127.0.0.1" in record.getMessage() for record in ours)
    told = " ".join(f"{record.getMessage()} {record.exc_text}" for record in ours)
    assert ADA_KEY not in told
    assert wrong not in told


async def test_who_goes_on_sending_after_the_end_is_not_heard(tmp_path, monkeypatch):
    """A client may leave the closing handshake unanswered; its key does not count all the same."""
    monkeypatch.setattr(server_handshake, "RECHECK_INTERVAL", 0.02)
    file = tmp_path / "keys"
    second, key = make_key("ada", TODAY)
    file.write_text(f"{ADA}\n{key.line()}")
    command = b'{"command": "create", "task_description": "x", "agent": "echo"}'
    frame = bytes((0x81, 0x80 | len(command))) + bytes(4) + command  # masked with zeros
    async with serving(key_file=file) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(handshake())
        async with asyncio.timeout(30):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(frame)
            await reader.readuntil(b'"replayed":false}')
            (revoked,) = parse_keys(ADA, "")
            revoke_key(file, revoked, TODAY)
            await reader.readuntil(b"no longer valid")  # the reason in the close frame
            writer.write(frame)
            writer.write(bytes((0x88, 0x80)) + bytes(4))
            await reader.read()
        writer.close()
        async with talking(server, additional_headers=bearer(second)) as talk:
            assert (await talk.ask("list"))["total"] == 1
