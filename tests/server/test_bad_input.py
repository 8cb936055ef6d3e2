"""Handshakes that nobody should send: each has its answer, and the server lives on."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import pytest

from agentsrv.app import Running
from tests.server.handshakes import handshake
from tests.server.people import ADA, ADA_KEY, BOB_KEY, bearer
from tests.server.talk import serving, talking

HANDSHAKES: Final[dict[str, tuple[bytes, int | None]]] = {
    "good": (handshake(), 101),
    "good, at the other path": (handshake(line="GET /ws HTTP/1.1"), 101),
    "good, by subprotocol": (
        handshake(f"Sec-WebSocket-Protocol: agentsrv.v1, bearer.{ADA_KEY}", Authorization=None), 101,
    ),
    "good, with a token to come": (handshake(Authorization=None), 101),
    "good, of the same origin": (handshake("Origin: http://127.0.0.1"), 101),
    "no Host": (handshake(Host=None), 400),
    "two Hosts": (handshake("Host: 127.0.0.1"), 400),
    "empty Host": (handshake(Host=""), 403),
    "foreign Host": (handshake(Host="evil.example"), 403),
    "foreign Host with our address in front": (handshake(Host="127.0.0.1.evil.example"), 403),
    "Host with a user": (handshake(Host="127.0.0.1@evil.example"), 403),
    "Host that is none": (handshake(Host="[::"), 403),
    "other address as Host": (handshake(Host="192.0.2.1"), 403),
    "foreign Origin": (handshake("Origin: https://evil.example"), 403),
    "Origin null": (handshake("Origin: null"), 403),
    "empty Origin": (handshake("Origin:"), 403),
    "Origin of another scheme": (handshake("Origin: https://127.0.0.1"), 403),
    "Origin on another port": (handshake("Origin: http://127.0.0.1:1"), 403),
    "Origin with our name in front": (handshake("Origin: http://127.0.0.1.evil.example"), 403),
    "Origin that is none": (handshake("Origin: http://["), 403),
    "two Origins": (handshake("Origin: http://127.0.0.1", "Origin: http://127.0.0.1"), 400),
    "two Origins in one": (handshake("Origin: http://127.0.0.1, http://evil.example"), 403),
    "unknown path": (handshake(line="GET /chat HTTP/1.1"), 404),
    "path above": (handshake(line="GET /ws/../chat HTTP/1.1"), 404),
    "path of another case": (handshake(line="GET /WS HTTP/1.1"), 404),
    "path that is long": (handshake(line=f"GET /{'a' * 9000} HTTP/1.1"), None),
    "other version": (handshake(Sec_WebSocket_Version="8"), 400),
    "version no number": (handshake(Sec_WebSocket_Version="new"), 400),
    "no version": (handshake(Sec_WebSocket_Version=None), 400),
    "no key": (handshake(Sec_WebSocket_Key=None), 400),
    "short key": (handshake(Sec_WebSocket_Key="AAEC"), 400),
    "key no base64": (handshake(Sec_WebSocket_Key="$"), 400),
    "two keys": (handshake("Sec-WebSocket-Key: AAECAwQFBgcICQoLDA0ODw=="), 400),
    "no Connection": (handshake(Connection=None), 426),
    "Upgrade to something else": (handshake(line="GET /ws HTTP/1.1", Upgrade="h2c"), 426),
    "POST": (handshake(line="POST / HTTP/1.1"), None),
    "HTTP/1.0": (handshake(line="GET / HTTP/1.0"), None),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", None),
    "a TLS greeting": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64), None),
    "no HTTP": (b"hello\r\n\r\n", None),
    "a header that is long": (handshake(f"X-Long: {'a' * 9000}"), None),
    "a thousand headers": (handshake(*["X-Many: a"] * 1000), None),
    "a header without a name": (handshake(": a"), None),
    "a header with a null": (handshake("X-Null: \0"), None),
    "a header over two lines": (handshake("X-Folded: a\r\n b"), None),
    "a subprotocol that is none": (handshake("Sec-WebSocket-Protocol: a b", Authorization=None), 400),
    "a wrong token": (handshake(Authorization=f"Bearer {BOB_KEY}"), 401),
    "a token cut": (handshake(Authorization=f"Bearer {ADA_KEY[:-1]}"), 401),
    "a token and more": (handshake(Authorization=f"Bearer {ADA_KEY} x"), 401),
    "a token without a scheme": (handshake(Authorization=ADA_KEY), 401),
    "a scheme without a token": (handshake(Authorization="Bearer"), 401),
    "another scheme": (handshake(Authorization="Basic YWRhOmFkYQ=="), 401),
    "an empty Authorization": (handshake(Authorization=""), 401),
    "a token that is no text": (handshake(Authorization="Bearer \xff\xfe"), 401),
    "two tokens": (handshake(f"Authorization: Bearer {ADA_KEY}"), 401),
    "a token in each place": (
        handshake(f"Sec-WebSocket-Protocol: agentsrv.v1, bearer.{ADA_KEY}"), 401,
    ),
    "a wrong token as subprotocol": (
        handshake(f"Sec-WebSocket-Protocol: agentsrv.v1, bearer.{BOB_KEY}", Authorization=None), 401,
    ),
    "an empty token as subprotocol": (
        handshake("Sec-WebSocket-Protocol: agentsrv.v1, bearer.", Authorization=None), 401,
    ),
}  # fmt: skip
"""By what is wrong: the bytes and the status; ``None``: refused in whatever way, or cut off."""


async def status_of(server: Running, data: bytes) -> tuple[int | None, str]:
    """The status that the server answers, and its words; ``None`` where it just hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        async with asyncio.timeout(5):
            writer.write(data)
            head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None, ""
    finally:
        writer.transport.abort()
    text = head.decode("latin-1")
    return int(text.split()[1]), text


async def test_each_handshake_has_its_answer(caplog):
    """No token comes back, nothing is told as a fault, and the server lives on."""
    caplog.set_level(logging.DEBUG)
    wrong = []
    async with serving(api_keys=ADA, open_timeout=0.3) as server:
        for name, (data, expected) in HANDSHAKES.items():
            status, words = await status_of(server, data)
            is_right = status == expected or (
                expected is None and (status is None or 400 <= status < 600)
            )
            if not is_right or "agentsrv_" in words:
                wrong.append((name, status))
        async with talking(server, additional_headers=bearer(ADA_KEY)) as talk:
            assert (await talk.ask("list"))["type"] == "reply"
    print(f"{len(HANDSHAKES)} handshakes tried, wrongly answered = {len(wrong)}")
    assert wrong == []
    ours = [record for record in caplog.records if record.name.startswith("agentsrv")]
    assert [record for record in ours if record.levelno >= logging.ERROR] == []
    assert not [r for r in ours if ADA_KEY in r.getMessage() or BOB_KEY in r.getMessage()]


@pytest.mark.parametrize("path", ["/", "/ws", "/chat", "/healthz", "/metrics", "/.env", "//"])
async def test_without_an_upgrade_no_token_is_needed_and_none_is_looked_at(path):
    """Plain HTTP tells health, and nothing that is anybody's."""
    answers = set()
    async with serving(api_keys=ADA) as server:
        for token in (ADA_KEY, BOB_KEY):
            data = handshake(
                line=f"GET {path} HTTP/1.1", Upgrade=None, Authorization=f"Bearer {token}"
            )
            answers.add((await status_of(server, data))[0])
    assert answers == {{"/": 200, "/ws": 426, "/healthz": 200}.get(path, 404)}
