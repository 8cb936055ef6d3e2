"""Divides the event loop's time among connections that send more than single commands.

Theory of operation
===================
In one iteration of the event loop, a *turn*, every socket with data is called back, and each
callback gets all bytes that the kernel holds: up to 128 KiB. From each connection, that is one
command with a plan, or 20,000 empty pong frames that take 60 ms to parse. A client that sends one
small command waits for all of that several times, because its bytes, its handler and its answer
are processed in different turns.

Traffic is therefore divided into two kinds:

- *Ordinary* traffic is processed at once and not counted here: up to ``FREE_BYTES`` in a turn, and
  a cheap message without another one after it. Most clients send nothing else.
- *Other* traffic is processed in portions, for which all connections together get
  ``UNITS_PER_TURN`` units of work in a turn. A unit is about the work of one small command, less
  than 0.1 ms.

A portion is a slice of bytes to parse (``BatchedConnection``), or one message to execute
(``next_request``). While no portion waits and units are left, a portion is processed at once: a
single client that sends a thousand commands in one write loses no time. After that, portions wait
in a queue. A connection has at most one portion of each kind in the queue, and its next portion is
appended at the end, so connections are served in rotation.

An ordinary command needs three turns: its bytes are read, its handler runs, its answer is written.
A turn with portions is therefore followed by ``TURNS_BETWEEN`` turns without portions, which are
short: the command waits for one turn with portions, and not for one at each of its steps.

A connection that waits is not read, so TCP slows its client down.

This module decides only when work is done; `limits` decides how much a client may cause. Work is
counted in units instead of seconds, because units are the same on each machine and in each test.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

UNITS_PER_TURN: Final = 16.0  # units of work in a turn for traffic that is not ordinary
TURNS_BETWEEN: Final = 3  # turns without portions between two turns with portions
FREE_BYTES: Final = 256  # bytes that are parsed at once; 42 empty frames
SLICE_BYTES: Final = 1024  # bytes that are parsed as one portion; 170 empty frames
FRAMES_PER_UNIT: Final = 32  # parsed frames that count as one unit
BYTES_PER_UNIT: Final = 16 << 10  # bytes of a message that count as one unit
VALUES_PER_UNIT: Final = 128  # JSON values of a message that count as one unit
SMALL_MESSAGE: Final = 512  # characters of a message that counts as one unit, with any content
CHEAP_UNITS: Final = 4  # units of a message that is ordinary if no other one waits


def cost_of(text: str | bytes) -> int:
    """Return the units of work of a message: 1, plus units for its length and its JSON values.

    Values are counted by commas, including those in strings; a page of prose has about 100.
    """
    size = len(text)
    if size <= SMALL_MESSAGE:
        return 1
    values = text.count(",") if isinstance(text, str) else 0
    return 1 + size // BYTES_PER_UNIT + values // VALUES_PER_UNIT


class LoopScheduler:
    """The portions of work of one event loop.

    Args:
        call_soon: Calls a function in the loop's next turn.
    """

    def __init__(self, call_soon: Callable[[Callable[[], None]], object]) -> None:
        self._call_soon = call_soon
        self._left = UNITS_PER_TURN
        self._waiting: deque[Callable[[], float]] = deque()
        self._is_scheduled = False
        self._between = 0

    def take(self, units: float) -> bool:
        """Return whether a portion may be processed now, and count it if so."""
        if self._waiting or self._left <= 0:
            return False
        self.count(units)
        return True

    def count(self, units: float) -> None:
        """Count work that has been done."""
        self._left -= units
        if not self._is_scheduled:
            self._schedule()

    def queue(self, portion: Callable[[], float]) -> None:
        """Call ``portion`` in its turn; it returns the units of work that it did."""
        self._waiting.append(portion)
        if not self._is_scheduled:
            self._schedule()

    async def wait(self, units: float) -> None:
        """Wait for the turn of a portion of ``units``. A cancelled wait counts nothing."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def begin() -> float:
            if turn.done():
                return 0.0
            turn.set_result(None)
            return units

        self.queue(begin)
        await turn

    def _schedule(self) -> None:
        self._is_scheduled = True
        self._call_soon(self._begin)

    def _begin(self) -> None:
        """Begin a turn: process portions as long as the turn has units."""
        if self._between:
            self._between -= 1
            self._schedule()
            return
        left = UNITS_PER_TURN
        waiting = self._waiting
        try:
            while waiting and left > 0:
                left -= waiting.popleft()()
        finally:  # if one connection's portion raises, the portions of the others must still run
            self._left = left
            # Portions queue others, so the queue is checked once, after all of them.
            self._is_scheduled = False
            if waiting:
                self._between = TURNS_BETWEEN
                self._schedule()
