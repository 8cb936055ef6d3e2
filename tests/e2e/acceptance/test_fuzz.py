"""What hypothesis thinks of: any text, and any bytes, to a session and to a server from outside."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentsrv.models.commands import COMMANDS
from agentsrv.protocol.session import MAX_BAD_FRAMES, Request, Session
from agentsrv.protocol.strict_json import parse_object
from agentsrv.server.requests import BAD_FRAMES
from tests.e2e.acceptance.conftest import LENGTHS, faults
from tests.e2e.acceptance.nearly import TEXTS, broken_bytes
from tests.e2e.acceptance.probe import ALIVE, PATIENCE, text
from tests.support.handshakes import handshake
from tests.support.published_schema import complaints, name_of
from tests.support.wire import ConnectionLost, Wire, command, framed

TEXTS_TO_A_SESSION: Final = {"short": 500, "long": 10_000}
TEXTS_TO_A_SERVER: Final = {"short": 100, "long": 2_000}
BYTES_TO_A_SERVER: Final = {"short": 100, "long": 5_000}
OF_A_SESSION: Final = {
    *("invalid_json", "unknown_command", "invalid_command", "unauthenticated", "too_large")
}
LATEST: Final = "3f2a9c0d1b7e4a65"
MESSAGES: Final = st.lists(TEXTS.map(text), min_size=1, max_size=4).map(b"".join)
FRAMES: Final = MESSAGES | st.builds(framed, st.integers(0, 15), st.binary(max_size=200))


def fuzz(examples: int) -> settings:
    """So many of them, however long one takes."""
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))


def ending(wire: Wire, frames: list[dict[str, Any]]) -> int | None:
    """Read until the ping that was sent last is answered, or the end; return its close code."""
    try:
        for body in wire.bodies():
            frames.append(json.loads(body))
            if frames[-1].get("id") == ALIVE["id"]:
                break
    except ConnectionLost as lost:
        if isinstance(lost.__cause__, TimeoutError):
            raise
        return lost.code
    return 0


def check(frame: dict[str, Any]) -> None:
    """Whether it is as published, and no fault of the server."""
    assert complaints(name_of(frame), frame) == []
    assert frame.get("code") != "internal", frame


@pytest.mark.parametrize("length", LENGTHS)
def test_any_text_is_a_request_or_has_an_answer(note, length):
    """A command that its schema takes, or an error that says what a correct one looks like."""
    tried = 0

    @fuzz(TEXTS_TO_A_SESSION[length])
    @given(st.lists(TEXTS, min_size=1, max_size=25), st.booleans(), st.none() | st.just(LATEST))
    def receive(texts: list[str], is_authenticated: bool, latest: str | None) -> None:
        nonlocal tried
        session = Session(is_authenticated=is_authenticated)
        session.latest_task = latest
        bad_in_a_row = 0
        for content in texts:
            tried += 1
            found = session.receive(content)
            if isinstance(found, Request):
                bad_in_a_row = 0
                assert type(found.command) is COMMANDS[found.name]
                if content.lstrip()[:1] == "{":
                    assert complaints(found.name, parse_object(content.strip())) == []
                continue
            frame = json.loads(found.frame)
            check(frame)
            assert frame["code"] in OF_A_SESSION
            bad_in_a_row = 0 if frame["code"] == "unauthenticated" else bad_in_a_row + 1
            assert found.is_last is (bad_in_a_row >= MAX_BAD_FRAMES)
            if "example" in frame:
                example = json.dumps(frame["example"])
                assert isinstance(Session(is_authenticated=True).receive(example), Request)

    receive()
    note(f"{tried} texts to a session, each understood or answered as published")


@pytest.mark.parametrize("length", LENGTHS)
def test_any_text_to_a_server_has_its_answer(server, note, length):
    """What comes back is as published, and the connection or its close code tells the rest."""
    tried, answered = 0, 0

    @fuzz(TEXTS_TO_A_SERVER[length])
    @given(st.lists(TEXTS, min_size=1, max_size=25))
    def talk(texts: list[str]) -> None:
        nonlocal tried, answered
        frames: list[dict[str, Any]] = []
        with Wire(server.port, timeout=PATIENCE, request=handshake()) as wire:
            with suppress(ConnectionError):
                wire.socket.sendall(b"".join(map(text, texts)))
                wire.socket.sendall(command(ALIVE))
            assert ending(wire, frames) in (0, BAD_FRAMES)
        for frame in frames:
            check(frame)
        tried += len(texts)
        answered += len(frames)

    talk()
    assert faults(server) == []
    note(f"{tried} texts to a server, {answered} frames back as published, faults = 0")


@pytest.mark.parametrize("length", LENGTHS)
def test_any_bytes_to_a_server_end_well(server, note, length):
    """With frames as published, then a close code, or the end of what the client had to say."""
    tried, answered = 0, 0

    @fuzz(BYTES_TO_A_SERVER[length])
    @given(broken_bytes(FRAMES))
    def pour(data: bytes) -> None:
        nonlocal tried, answered
        frames: list[dict[str, Any]] = []
        with Wire(server.port, timeout=PATIENCE, request=handshake()) as wire:
            with suppress(ConnectionError):
                wire.socket.sendall(data)
                wire.socket.shutdown(socket.SHUT_WR)
            code = ending(wire, frames)
        assert (
            code is None or code == 0 or 1000 <= code < 5000
        )  # a close frame of its own comes back
        for frame in frames:
            check(frame)
        tried += 1
        answered += len(frames)

    pour()
    with Wire(server.port, timeout=PATIENCE, request=handshake()) as wire:
        assert wire.ask(ALIVE)["type"] == "reply"
    assert faults(server) == []
    note(f"{tried} times any bytes, {answered} frames back as published, faults = 0")
