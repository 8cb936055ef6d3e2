"""The port: HTTP, doors, and how the server goes."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin, Subprotocol

from agentsrv.protocol import PROTOCOL
from agentsrv.store.base import Append
from agentsrv.store.sqlite.log import SqliteLog
from agentsrv.store.sqlite.store import SqliteStore
from agentsrv.wiring import Server
from tests.support.principals import ADA, ADA_KEY
from tests.support.talk import serving, talking


async def get(server: Server, request: str) -> tuple[str, str]:
    """Send a raw HTTP request; return the status line and everything."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request.replace("\n", "\r\n").encode())
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    return answer.partition("\r\n")[0], answer


@pytest.mark.parametrize("path", ["/healthz", "/asyncapi.json", "/nothing"])
async def test_nothing_follows_the_headers_of_an_answer_to_head(path):
    """A client that knows HTTP would not look for it."""
    async with serving() as server:
        _, answer = await get(server, f"HEAD {path} HTTP/1.1\nHost: localhost\n\n")
    assert answer.endswith("\r\n\r\n")
    assert answer.count("\r\n\r\n") == 1


async def test_pages_of_this_server_may_connect_and_others_may_not():
    """The Origin must be the Host."""
    async with serving() as server:
        own = Origin(f"http://127.0.0.1:{server.port}")
        async with connect(server.url, origin=own) as socket:
            await socket.recv()
        with pytest.raises(InvalidStatus) as refused:
            await connect(server.url, origin=Origin("http://evil.example"))
        assert refused.value.response.status_code == 403


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("agents.example", None, "200"),
        ("AGENTS.example:443", None, "200"),
        ("evil.example", None, "403"),
        ("agents.example.evil.example", None, "403"),
        ("127.0.0.1", "https://app.example", "200"),
        ("127.0.0.1", "HTTPS://APP.example", "200"),
        ("127.0.0.1", "http://app.example", "403"),
        ("127.0.0.1", "https://app.example.evil.example", "403"),
        ("127.0.0.1", "null", "403"),
        ("second.example", None, "200"),  # set with a port
        ("127.0.0.1", "https://second.example", "200"),  # set with the port of https
        ("127.0.0.1", "https://second.example:443", "200"),
        ("127.0.0.1", "https://second.example:444", "403"),
    ],
)
async def test_further_names_and_origins_are_those_that_are_set(host, origin, status):
    """A host or origin counts as a whole; its case does not."""
    lines = [f"Host: {host}"] + ([f"Origin: {origin}"] if origin is not None else [])
    names: dict[str, Any] = {
        "allowed_hosts": "agents.example,second.example:443",
        "allowed_origins": "https://app.example,https://second.example:443/",
    }
    async with serving(**names) as server:
        line, _ = await get(server, "\n".join(["GET /healthz HTTP/1.1", *lines, "\n"]))
    assert line.split()[1] == status


@pytest.mark.parametrize(
    ("host", "status"), [("127.0.0.1", "200"), ("192.0.2.1:80", "200"), ("[::1]", "200"),
                         ("evil.example", "403")]
)  # fmt: skip
async def test_a_server_at_all_addresses_takes_addresses_and_no_names(host, status):
    """A name may be one that somebody else lets point here."""
    async with serving(host="0.0.0.0", behind_proxy=True, api_keys=ADA) as server:
        line, _ = await get(server, f"GET /healthz HTTP/1.1\nHost: {host}\n\n")
    assert line.split()[1] == status


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("agents.example:443", "https://agents.example", "200"),
        ("agents.example", "https://agents.example:443", "200"),
        ("agents.example:80", "http://agents.example", "200"),
        ("agents.example:8443", "https://agents.example:8443", "200"),
        ("AGENTS.example:443", "https://agents.example", "200"),
        ("agents.example:8443", "https://agents.example", "403"),
        ("agents.example:80", "https://agents.example", "403"),
        ("agents.example:443", "http://agents.example", "403"),
        ("agents.example:443", "https://evil.example", "403"),
    ],
)
async def test_the_port_of_a_scheme_may_be_left_out(host, origin, status):
    """Some proxies add it to ``Host``; browsers leave it out of ``Origin``."""
    settings: dict[str, Any] = {
        "behind_proxy": True, "api_keys": ADA, "allowed_hosts": "agents.example"
    }  # fmt: skip
    async with serving(**settings) as server:
        request = f"GET /healthz HTTP/1.1\nHost: {host}\nOrigin: {origin}\n\n"
        line, _ = await get(server, request)
    assert line.split()[1] == status


@pytest.mark.parametrize("before", ["\n", "\n\n\n", "\r"])
async def test_empty_lines_before_a_request_are_ignored(before):
    """As RFC 9112, section 2.2, wants it."""
    async with serving() as server:
        line, _ = await get(server, f"{before}GET /healthz HTTP/1.1\nHost: localhost\n\n")
    assert line.split()[1] == "200"


async def test_an_empty_line_may_come_alone():
    """In a packet before the request."""
    async with serving() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for part in (b"\r", b"\n", b"GET /healthz HT", b"TP/1.1\r\nHost: localhost\r\n\r\n"):
            writer.write(part)
            await asyncio.sleep(0.02)
        assert b" 200 OK" in await reader.readline()
        writer.close()


async def test_credentials_for_a_proxy_in_front_are_ignored():
    """The browser sends them along; the client authenticates in another way, or by ``auth``."""
    basic = {"Authorization": "Basic YWRhOmxvdmVsYWNl"}
    async with serving(api_keys=ADA) as server:
        async with talking(server, additional_headers=basic) as talk:
            answer = await talk.ask({"command": "auth", "token": ADA_KEY})
            assert answer["principal"] == "ada"
        tokens = [Subprotocol(PROTOCOL), Subprotocol(f"bearer.{ADA_KEY}")]
        async with talking(server, additional_headers=basic, subprotocols=tokens) as talk:
            assert (await talk.ask("list"))["type"] == "reply"


async def test_a_refused_origin_is_logged_with_the_setting_that_allows_it(caplog):
    """What is no origin is not quoted."""
    remedy = (
        ", because pages of https://app.example are not allowed; to allow them: "
        "allowed_origins (--allowed-origins=https://app.example)"
    )
    caplog.set_level("INFO", "agentsrv.listener")
    async with serving() as server:
        for origin in ("https://App.example:443", "forged \x85 line"):
            upgrade = f"GET / HTTP/1.1\nHost: localhost\nUpgrade: websocket\nOrigin: {origin}\n\n"
            line, answer = await get(server, upgrade)
            assert line.split()[1] == "403"
            assert "\r\nAccess-Control-Allow-Origin: *\r\n" in answer  # the page may see why
    assert caplog.messages == [
        f"refused 127.0.0.1: HTTP 403{remedy}",
        "refused 127.0.0.1: HTTP 403",
    ]


async def test_a_refusal_is_logged_with_the_address_that_our_proxy_tells(caplog):
    """Others' X-Forwarded-For is not believed, and what a stranger wrote is not logged."""
    request = "GET / HTTP/1.1\nHost: evil.example\nX-Forwarded-For: 203.0.113.7\n\n"
    caplog.set_level("INFO", "agentsrv.listener")
    settings: list[dict[str, Any]] = [{"behind_proxy": True, "api_keys": ADA}, {}]
    for given in settings:
        async with serving(**given) as server:
            await get(server, request)
    assert caplog.messages == ["refused 203.0.113.7: HTTP 403", "refused 127.0.0.1: HTTP 403"]


async def test_too_many_connections_are_told_to_try_later():
    """The one beyond the limit is closed with 1013, and there is room when one leaves."""
    async with serving(max_connections=2) as server:
        async with talking(server), talking(server):
            async with connect(server.url) as third:
                with pytest.raises(ConnectionClosed) as closed:
                    await third.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1013
        await asyncio.sleep(0.05)
        async with talking(server) as talk:
            assert (await talk.ask("ping"))["type"] == "reply"


async def test_a_server_that_stops_says_goodbye():
    """Clients hear goaway, then 1012; new work is refused in between; the task goes on later."""
    frames = []
    async with serving(drain_timeout=0.3) as server:
        socket = await connect(server.url)
        await socket.send(
            '{"command":"create","id":1,"task_description":"x","agent":"waiter","execute":true}'
        )

        async def listen() -> None:
            async for frame in socket:
                frames.append(frame)
                if "goaway" in str(frame):
                    await socket.send(
                        '{"command":"create","id":2,"task_description":"x","agent":"echo"}'
                    )

        listening = asyncio.create_task(listen())
        await asyncio.sleep(0.1)
    with pytest.raises(ConnectionClosed) as closed:
        await listening
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012
    assert '"goaway"' in frames[-2]
    assert '"shutting_down"' in frames[-1]
    assert not any("task_cancelled" in frame for frame in frames)


async def test_a_server_that_stops_is_not_ready():
    """A request on a connection that was there before is told so."""
    async with serving() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.sleep(0.05)  # accepted
        socket = await connect(server.url)  # keeps the server until it closes it

        async def ask() -> bytes:
            async for frame in socket:
                if "goaway" in str(frame):
                    writer.write(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    return await reader.read()
            raise AssertionError("no goaway")

        async with talking(server) as talk:  # something to wait for
            await talk.ask({"command": "create", "task_description": "x", "agent": "waiter",
                            "execute": True})  # fmt: skip
        asking = asyncio.create_task(ask())
        await asyncio.sleep(0)
    answer = (await asking).decode()
    assert answer.startswith("HTTP/1.1 503"), answer
    assert "not ready: the server is about to stop" in answer
    writer.close()


async def test_a_server_whose_disk_hangs_is_not_ready(tmp_path, monkeypatch):
    """It is again when the commit has come to its end."""
    hanging, committing = threading.Event(), threading.Event()
    commit = SqliteLog.commit

    def slow(log: SqliteLog) -> None:
        committing.set()
        hanging.wait(30)
        commit(log)

    monkeypatch.setattr("agentsrv.engine.commands.READY_WITHIN", 0.05)
    async with serving(store=f"sqlite:///{tmp_path}/t.db") as server, talking(server) as talk:
        monkeypatch.setattr(SqliteLog, "commit", slow)
        await talk.send({"command": "create", "task_description": "x", "agent": "echo"})
        assert await asyncio.to_thread(committing.wait, 10)
        line, answer = await get(server, "GET /readyz HTTP/1.1\nHost: localhost\n\n")
        assert (line.split()[1], "does not answer" in answer) == ("503", True)
        hanging.set()
        assert (await talk.next())["type"] == "reply"
        line, _ = await get(server, "GET /readyz HTTP/1.1\nHost: localhost\n\n")
        assert line.split()[1] == "200"


async def test_a_server_whose_store_fails_by_a_fault_is_not_ready(tmp_path, monkeypatch):
    """Once the appends of two tasks have failed, until something is committed."""
    append, failing = SqliteLog.append, True

    def faulty(log: SqliteLog, wanted: Append) -> None:
        if failing:
            raise OverflowError("a number is too large")
        append(log, wanted)

    async def ready() -> tuple[str, str]:
        line, answer = await get(server, "GET /readyz HTTP/1.1\nHost: localhost\n\n")
        return line.split()[1], answer

    monkeypatch.setattr(SqliteLog, "append", faulty)
    create = {"command": "create", "task_description": "x", "agent": "echo", "execute": True}
    async with serving(store=f"sqlite:///{tmp_path}/t.db") as server, talking(server) as talk:
        await talk.ask(create)
        while not server.worker.measures.store_faults.total:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)
        assert (await ready())[0] == "200", "what one task writes may be the cause"
        await talk.ask(create)
        while (found := await ready())[0] == "200":  # noqa: ASYNC110 - nor has this
            await asyncio.sleep(0.01)
        assert "not ready: the store fails to commit the events of 2 tasks" in found[1]
        assert "OverflowError: a number is too large" in found[1]
        failing = False
        await talk.ask(create)
        while (await ready())[0] != "200":  # noqa: ASYNC110 - nor this
            await asyncio.sleep(0.01)


async def test_a_task_survives_a_restart(tmp_path):
    """What was running when the server stopped is finished by the next one."""
    store = f"sqlite:///{tmp_path}/t.db"
    async with serving(store=store, drain_timeout=0.05) as server, talking(server) as talk:
        reply = await talk.ask(
            {"command": "create", "task_description": "x", "agent": "talker",
             "params": {"pieces": 5, "pause": 0.1}, "execute": True}
        )  # fmt: skip
        while (await talk.next()).get("event_type") != "partial_output":
            pass
    async with serving(store=store) as server, talking(server) as talk:
        await talk.ask({"command": "subscribe", "task_id": reply["task_id"]})
        log = await talk.log(reply["task_id"])
    kinds = [event["event_type"] for event in log]
    assert "task_recovered" in kinds
    assert kinds[-1] == "task_completed"
    assert [event["seq"] for event in log] == list(range(1, len(log) + 1))


async def test_a_store_that_breaks_is_told(tmp_path, monkeypatch):
    """Commands are answered unavailable, and whoever runs the server learns of it."""
    async with serving(store=f"sqlite:///{tmp_path}/t.db") as server, talking(server) as talk:

        def broken(self: SqliteStore, batch: object) -> None:
            raise OSError("the disk is gone")

        monkeypatch.setattr("agentsrv.store.sqlite.log.SqliteLog.create", broken)
        answer = await talk.ask({"command": "create", "task_description": "x", "agent": "echo"})
        assert (answer["code"], answer["retryable"]) == ("unavailable", True)
        async with asyncio.timeout(30):
            assert "the disk is gone" in str(await server.broken)
        assert (await talk.ask("list"))["code"] == "unavailable"
        _, told = await get(server, "GET /readyz HTTP/1.1\nHost: localhost\n\n")
        assert "not ready: " in told
        assert "the store cannot write: the disk is gone" in told
        assert (await talk.ask("ping"))["type"] == "reply"
