"""The loop's time is divided in portions; the loop is one that is turned by hand."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from websockets.server import ServerProtocol

from agentsrv.server.batching import BatchedConnection, connection_class
from agentsrv.server.limits import ConnectionLimiter, with_default_limits
from agentsrv.server.loop_scheduler import (
    BYTES_PER_UNIT,
    FRAMES_PER_UNIT,
    FREE_BYTES,
    SLICE_BYTES,
    TURNS_BETWEEN,
    UNITS_PER_TURN,
    VALUES_PER_UNIT,
    LoopScheduler,
    cost_of,
)
from agentsrv.settings import Settings
from agentsrv.telemetry.server_metrics import ServerMetrics
from tests.integration.hostile.frames import dense_plan, split
from tests.support.wire import PING, PONG, TEXT, framed

MIB = 1 << 20
REQUEST = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
LIMITS = Settings(command_burst=200)
EMPTY = 6  # bytes of an empty frame


class HandLoop:
    """Calls what was scheduled when it is told to."""

    def __init__(self) -> None:
        self._soon: list[Callable[[], None]] = []

    def call_soon(self, call: Callable[[], None]) -> None:
        """Call it in the next turn."""
        self._soon.append(call)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is scheduled."""
        return not self._soon

    def turn(self) -> int:
        """One turn; returns how much was called."""
        soon, self._soon = self._soon, []
        for call in soon:
            call()
        return len(soon)


@pytest.fixture
def loop() -> HandLoop:
    """Turned by hand."""
    return HandLoop()


@pytest.fixture
def turns(loop: HandLoop) -> LoopScheduler:
    """The portions of that loop."""
    return LoopScheduler(loop.call_soon)


def test_a_portion_is_done_at_once_until_the_turn_is_used_up(loop, turns):
    """And again in the next turn."""
    for _ in range(3):
        assert [turns.take(UNITS_PER_TURN / 4) for _ in range(6)] == [True] * 4 + [False] * 2
        assert loop.turn() == 1
    assert loop.turn() == 0  # nothing was counted, so there is nothing to reset


def test_a_portion_that_fails_holds_up_no_other(loop, turns):
    """It is one connection's; those behind it have their turn."""
    done: list[str] = []

    def fail() -> float:
        raise LookupError("a fault")

    def succeed() -> float:
        done.append("done")
        return 1.0

    turns.queue(fail)
    turns.queue(succeed)
    with pytest.raises(LookupError):
        loop.turn()
    while not loop.is_idle:
        loop.turn()
    assert done == ["done"]


def test_portions_wait_in_rotation(loop, turns):
    """Whoever has more to do goes to the end; one turn does not do more than its units."""
    done: list[str] = []
    left = Counter(a=9, b=9, c=1)

    def portion(name: str) -> Callable[[], float]:
        def begin() -> float:
            done.append(name)
            left[name] -= 1
            if left[name]:
                turns.queue(portion(name))
            return UNITS_PER_TURN / 4

        return begin

    for name in left:
        turns.queue(portion(name))
    assert not turns.take(1.0)  # others wait
    assert loop.turn() == 1
    assert "".join(done) == "abca"
    while not loop.is_idle:
        before = len(done)
        assert loop.turn() == 1
        assert len(done) - before <= 4
    assert "".join(done) == "abcabababababababab"
    assert turns.take(1.0)


def test_between_two_turns_of_portions_there_are_some_without(loop, turns):
    """In which others are read, carried out and answered."""
    done: list[int] = []

    def portion() -> float:
        done.append(len(done))
        turns.queue(portion)
        return UNITS_PER_TURN

    turns.queue(portion)
    found = []
    for _ in range(3 * (TURNS_BETWEEN + 1)):
        before = len(done)
        assert loop.turn() == 1
        assert not turns.take(1.0)
        found.append(len(done) - before)
    assert found == [1, *[0] * TURNS_BETWEEN] * 3


async def test_one_that_is_cancelled_takes_nothing_from_others(loop, turns):
    """Its place in the queue is passed over."""
    assert turns.take(UNITS_PER_TURN)
    first, second = (asyncio.create_task(turns.wait(UNITS_PER_TURN)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first})
    loop.turn()
    await second


def test_a_message_costs_by_its_length_and_its_values():
    """A small one is one unit, whatever is in it."""
    assert cost_of('{"command":"ping"}') == cost_of("," * 512) == 1
    assert cost_of(" " * MIB) == cost_of(b" " * MIB) == 1 + MIB // BYTES_PER_UNIT
    plan = dense_plan()
    assert cost_of(plan) == 1 + len(plan) // BYTES_PER_UNIT + plan.count(",") // VALUES_PER_UNIT
    assert 30 < cost_of(plan) < 100


class Transport:
    """Takes what is written, and knows whether it is read."""

    def __init__(self) -> None:
        self.is_reading = True
        self.writes: list[bytes] = []

    def pause_reading(self) -> None:
        """Stop."""
        self.is_reading = False

    def resume_reading(self) -> None:
        """Continue."""
        self.is_reading = True

    def write(self, data: bytes) -> None:
        """Take it."""
        self.writes.append(data)

    def is_closing(self) -> bool:
        """It is not."""
        return False

    def get_extra_info(self, name: str) -> Any:
        """Whom it leads to."""
        return ("192.0.2.1", 1) if name == "peername" else None

    def set_write_buffer_limits(self, *_: int | None) -> None:
        """As it likes."""


class Server:
    """What a connection needs of its server."""

    def __init__(self) -> None:
        self.handler_tasks: set[Any] = set()

    async def handler(self, _: Any) -> None:
        """Do nothing."""


class Peer:
    """A connection of that loop, and how many frames it has parsed."""

    def __init__(self, turns: LoopScheduler, *, is_guarded: bool) -> None:
        limiter = ConnectionLimiter(
            with_default_limits(LIMITS, is_guarded=is_guarded), 100, lambda: 100.0
        )
        kind = connection_class(limiter, ServerMetrics(), turns, stall_timeout=10, max_frame=MIB)
        self.connection: BatchedConnection = kind(
            ServerProtocol(max_size=MIB), Server(), ping_interval=None
        )
        self.transport = Transport()
        self.connection.connection_made(self.transport)
        self.connection.data_received(b"\r\n" + REQUEST)
        assert self.connection.request is not None
        accepted = self.connection.protocol.accept(self.connection.request)
        self.connection.protocol.send_response(accepted)
        self.connection.send_data()
        self.transport.writes.clear()
        self.frames = 0
        parse = self.connection.protocol.recv_frame

        def count(frame: Any) -> None:
            self.frames += 1
            parse(frame)

        self.connection.protocol.recv_frame = count  # type: ignore[method-assign]


async def test_few_bytes_are_parsed_at_once(loop, turns):
    """They are no portion."""
    peer = Peer(turns, is_guarded=False)
    loop.turn()
    peer.connection.data_received(framed(PONG, b"") * (FREE_BYTES // EMPTY))
    assert peer.frames == FREE_BYTES // EMPTY
    assert loop.is_idle
    assert peer.transport.is_reading


@pytest.mark.parametrize("count", [1, 20])
@pytest.mark.parametrize(
    "flood",
    [framed(PONG, b"") * 4_000, framed(PING, b"") * 4_000, split("x", 4_000), framed(TEXT, b"x") * 16],
    ids=["pongs", "pings", "fragments", "messages"],
)  # fmt: skip
async def test_a_turn_parses_only_so_many_frames(loop, turns, flood, count):
    """Of all connections together, whatever each has sent; and it is all parsed in the end."""
    peers = [Peer(turns, is_guarded=False) for _ in range(count)]
    most = UNITS_PER_TURN * FRAMES_PER_UNIT + SLICE_BYTES / EMPTY
    loop.turn()
    for peer in peers:
        peer.connection.data_received(flood)
        assert not (len(flood) > SLICE_BYTES and peer.transport.is_reading and not peer.frames)
    assert sum(peer.frames for peer in peers) <= most
    while not loop.is_idle:
        before = sum(peer.frames for peer in peers)
        assert loop.turn() == 1
        assert sum(peer.frames for peer in peers) - before <= most
        for peer in peers:
            peer.connection.recv_messages.frames.queue.clear()
            peer.connection.recv_messages.maybe_resume()
    assert {peer.frames for peer in peers} == {peers[0].frames}
    assert peers[0].frames > 0
    assert all(peer.transport.is_reading for peer in peers)


async def test_answers_to_pings_are_one_write(loop, turns):
    """A slice's, at least."""
    peer = Peer(turns, is_guarded=False)
    loop.turn()
    peer.connection.data_received(framed(PING, b"") * 40)
    assert peer.transport.writes == [b"\x8a\x00" * 40]


@pytest.mark.parametrize(
    ("flood", "frames"),
    [(framed(PONG, b""), 1), (framed(PING, b"x"), 1), (split("ping", 4_000), 4_000)],
    ids=["pongs", "pings", "fragments"],
)
async def test_frames_of_each_kind_are_charged(loop, turns, flood, frames):
    """When the rate is used up the connection is not read for a while."""
    peer = Peer(turns, is_guarded=True)
    allowed = LIMITS.command_burst * FRAMES_PER_UNIT
    while peer.frames < 2 * allowed and peer.connection._pause is None:
        peer.connection.data_received(flood * (4_000 // frames))
        while not loop.is_idle:
            loop.turn()
            peer.connection.recv_messages.frames.queue.clear()
            peer.connection.recv_messages.maybe_resume()
    rest = peer.connection._pause
    assert rest is not None
    assert not peer.transport.is_reading
    assert peer.frames < 2 * allowed
    rest.cancel()
    peer.connection._end_pause()
    while not loop.is_idle:
        loop.turn()
    assert peer.frames > allowed


async def test_a_connection_holds_few_messages(loop, turns):
    """No more are parsed while 16 frames or 256 KiB wait for the handler."""
    small, large = Peer(turns, is_guarded=False), Peer(turns, is_guarded=False)
    loop.turn()
    small.connection.data_received(framed(TEXT, b"x") * 20_000)
    large.connection.data_received(framed(TEXT, b"x" * 100_000) * 20)
    while not loop.is_idle:
        loop.turn()
    assert small.frames <= 16 + SLICE_BYTES // EMPTY
    assert large.frames == 3
    assert not small.transport.is_reading
    assert not large.transport.is_reading
