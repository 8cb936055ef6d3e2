"""What one client sends costs a bounded amount of work and memory, and another one is answered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError
from websockets.asyncio.client import connect

from agentsrv.errors import InvalidCommandError
from agentsrv.protocol import session, strict_json
from agentsrv.protocol.session import Refusal, Session
from agentsrv.server.batching import STRANGER_FRAME
from tests.integration.hostile.floods import Measured, measure, measuring
from tests.integration.hostile.frames import CLIENT, FLOODS, FRAMES, STRANGER, Flood, Hostile
from tests.support.figures import BAD_INPUT
from tests.support.measure import MIB, needs_proc
from tests.support.principals import ADA_KEY
from tests.support.wire import TEXT, ConnectionLost, Wire, framed

MAX_ERRORS = 64  # objects that pydantic makes for one frame
MAX_ANSWER = 8 << 10  # bytes of an error
MAX_GROWTH = 50.0  # MiB of the server's memory
UNBOUNDED = {"command_rate": 1e9, "command_burst": 10**9}  # else the rate would refuse most of them
SOME = [("pongs", STRANGER), ("fragments", STRANGER), ("pings", CLIENT), ("4,950 dependencies", CLIENT)]  # fmt: skip
COMMANDS = [frame for frame in FRAMES if frame.answer != 1009]

pytestmark = pytest.mark.timeout(120)


def named(entry: Hostile | Flood) -> str:
    """A test's id."""
    return f"{entry.sender}: {entry.name}"


def count_values(value: Any) -> int:
    """How many JSON values it has."""
    if isinstance(value, dict):
        return 1 + sum(map(count_values, value.values()))
    return 1 + sum(map(count_values, value)) if isinstance(value, list) else 1


class Work:
    """What is done to read a frame."""

    def __init__(self) -> None:
        self.values = 0
        self.errors = 0


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """Counts the values that are parsed and the errors that are made."""
    counted = Work()
    make = session._invalid

    class Decoder(json.JSONDecoder):
        def decode(self, text: str, *more: Any) -> Any:
            value = strict_json_decoder.decode(text, *more)
            counted.values += count_values(value)
            return value

    def invalid(name: str, error: ValidationError) -> InvalidCommandError:
        counted.errors += error.error_count()
        return make(name, error)

    strict_json_decoder = strict_json._DECODER
    monkeypatch.setattr(strict_json, "_DECODER", Decoder())
    monkeypatch.setattr(session, "_invalid", invalid)
    return counted


@pytest.mark.parametrize("entry", COMMANDS, ids=named)
def test_the_work_for_a_frame_is_bounded(entry, work):
    """Values that are parsed, errors that are made and bytes of the answer."""
    text = entry.make()
    found = Session(is_authenticated=entry.sender == CLIENT).receive(text)
    most = (
        strict_json.MAX_VALUES if entry.sender == CLIENT else 2 * session.MAX_UNAUTHENTICATED_VALUES
    )
    assert work.values <= most
    assert work.errors <= MAX_ERRORS
    if isinstance(found, Refusal):
        assert len(found.frame) <= MAX_ANSWER
        assert json.loads(found.frame)["code"] == entry.answer
    else:
        assert entry.is_command or entry.answer in ("reply", "not_found")


def test_the_counters_see_what_is_done(work):
    """They are not zero where there is work."""
    Session(is_authenticated=True).receive('{"command":"create","a":[1,2],"agent":1}')
    assert (work.values, work.errors) == (6, 3)


@pytest.fixture(scope="module")
def server() -> Iterator[Measured]:
    """A server without a rate, for all frames."""
    with measuring(**UNBOUNDED) as measured:
        with Wire(measured.port, token=ADA_KEY) as wire:  # what is made once is made
            wire.send({"command": "help"})
            next(wire.bodies())
        yield measured


def answer(wire: Wire) -> str | int | None:
    """``reply``, an error's code, or a close code."""
    try:
        for body in wire.bodies():
            frame = json.loads(body)
            if frame["type"] in ("reply", "error"):
                assert frame["type"] == "reply" or len(body) <= MAX_ANSWER
                return str(frame.get("code", frame["type"]))
    except ConnectionLost as lost:
        return lost.code
    raise AssertionError("no answer")


@needs_proc
@pytest.mark.parametrize("entry", FRAMES, ids=named)
def test_a_hostile_frame_is_answered_and_costs_little_memory(entry, server, record_property):
    """By a server that answers the next client."""
    text = entry.make()
    token = ADA_KEY if entry.sender == CLIENT else None
    with Wire(server.port, token=token, timeout=30) as wire:
        server.report()
        wire.socket.sendall(framed(TEXT, text.encode()))
        assert answer(wire) == entry.answer
    found = server.report()
    assert found["memory"] < MAX_GROWTH
    line = f"{named(entry)}: {len(text)} characters, {entry.answer}"
    record_property(
        BAD_INPUT, f"{line}, longest block {found['block']:.1f} ms, {found['memory']:.1f} MiB"
    )


@needs_proc
@pytest.mark.faults
@pytest.mark.parametrize(("name", "sender"), SOME)
def test_another_client_is_answered_during_a_flood(name, sender, record_property):
    """Its latencies are printed, because they depend on the machine."""
    (kind,) = (kind for kind in FLOODS if (kind.name, kind.sender) == (name, sender))
    with measuring() as measured:
        found = measure(measured, kind, 10, seconds=1.0)
    assert found.pings > 0
    assert found.memory < MAX_GROWTH
    record_property(
        BAD_INPUT,
        f"{named(kind)} on 10 connections: another client's {found.pings} pings: "
        f"median {found.median:.1f} ms, p99 {found.p99:.1f} ms, longest {found.longest:.1f} ms",
    )


@needs_proc
@pytest.mark.soak
@pytest.mark.faults
@pytest.mark.parametrize("connections", [1, 50])
@pytest.mark.parametrize("kind", FLOODS, ids=named)
def test_another_client_is_answered_during_any_flood(kind, connections, record_property):
    """The table of ``python -m tests.integration.hostile.floods`` as a test."""
    with measuring() as measured:
        found = measure(measured, kind, connections)
    assert found.pings > 0
    assert found.memory < MAX_GROWTH + connections * 2  # a frame in the making on each
    record_property(BAD_INPUT, f"{named(kind)} on {connections} connections: {found}")


def test_a_stranger_becomes_a_client(server):
    """After ``auth`` it may send as much as any client."""
    with Wire(server.port) as wire:
        wire.send({"command": "auth", "token": ADA_KEY})
        assert answer(wire) == "reply"
        wire.socket.sendall(framed(TEXT, b'{"command":"ping"' + b" " * (MIB // 2) + b"}"))
        assert answer(wire) == "reply"


def test_the_largest_frame_of_a_stranger_is_read(server):
    """16 KiB are allowed."""
    with Wire(server.port) as wire:
        body = b'{"command":"ping"' + b" " * (STRANGER_FRAME - 18) + b"}"
        wire.socket.sendall(framed(TEXT, body))
        assert answer(wire) == "reply"


async def test_compression_is_not_negotiated(server):
    """So a message is never larger than what was received."""
    async with connect(f"ws://127.0.0.1:{server.port}", compression="deflate") as socket:
        assert socket.protocol.extensions == []
