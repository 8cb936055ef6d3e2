"""Turns: divides the event loop's time among connections that send more than a command at a time.

Theory of operation
===================
One iteration of the event loop, a *turn*, calls back every socket that has data, and each callback
gets all that the kernel holds: up to 128 KiB. That is one command of a plan, or 20,000 empty pong
frames that take 60 ms to parse, from each connection. Whoever sends one small command waits for
all of that, several times: its bytes, its handler and its answer are in different turns.

So what a connection sends is split into two kinds:

- *Ordinary* traffic is carried out at once and is not counted here: up to ``FREE`` bytes in a
  turn, and a message that is cheap and alone. Most clients never send anything else.
- *Everything else* is done in portions, and all connections together get ``PER_TURN`` units of
  work in a turn. A unit is about the work of one small command, less than 0.1 ms.

A portion is a slice of bytes to parse (``BatchedConnection``), or one message to carry out
(``next_request``). While nobody waits and units are left, a portion is done at once: a single
client that sends a thousand commands in one write loses no time. After that the portions wait in a
queue, in the order in which they came, and one that is not its connection's last goes to the end:
connections are served in rotation.

An ordinary command needs three turns: its bytes are read, its handler runs, its answer is written.
So after a turn of portions there are ``BETWEEN`` turns without, which are short: the command waits
for one turn of portions, and not for one at each of its steps.

A connection that waits is not read, so its client is slowed down by TCP. It holds at most one
portion of each kind here.

What a client may cause altogether is limited elsewhere, by ``gate``: this module only decides when.
It counts units in place of seconds, because they are the same on each machine and in each test.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

PER_TURN: Final = 16.0  # units of work in a turn, for all that is not ordinary
BETWEEN: Final = 3  # turns without portions between two with them
FREE: Final = 256  # bytes that are parsed at once; 42 empty frames
SLICE: Final = 1024  # bytes that are parsed as one portion; 170 empty frames
FRAMES_PER_UNIT: Final = 32  # frames that are parsed for a unit, whatever their kind
BYTES_PER_UNIT: Final = 16 << 10  # bytes of a message that are a unit
VALUES_PER_UNIT: Final = 128  # JSON values of a message that are a unit
SMALL: Final = 512  # characters of a message that is a unit whatever it contains
CHEAP: Final = 4  # units of a message that is ordinary if it is alone


def cost_of(text: str | bytes) -> int:
    """Units of work for a message: 1, and more for its length and its number of JSON values.

    Commas in strings are counted as separators of values; a page of prose has about 100.
    """
    size = len(text)
    if size <= SMALL:
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
        self._left = PER_TURN
        self._waiting: deque[Callable[[], float]] = deque()
        self._is_scheduled = False
        self._between = 0

    def take(self, units: float) -> bool:
        """Whether a portion may be done now. If not, nothing is counted, and it has to wait."""
        if self._waiting or self._left <= 0:
            return False
        self.count(units)
        return True

    def count(self, units: float) -> None:
        """Count work that was done."""
        self._left -= units
        if not self._is_scheduled:
            self._schedule()

    def queue(self, portion: Callable[[], float]) -> None:
        """Call ``portion`` when it is its turn; it returns the units that it was."""
        self._waiting.append(portion)
        if not self._is_scheduled:
            self._schedule()

    async def wait(self, units: float) -> None:
        """Wait for the turn of a portion of so many units. Nothing is counted if cancelled."""
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
        """Begin a turn: do what waits, as far as the units of the turn go."""
        if self._between:
            self._between -= 1
            self._schedule()
            return
        left = PER_TURN
        waiting = self._waiting
        try:
            while waiting and left > 0:
                left -= waiting.popleft()()
        finally:  # a portion that raises is that of one connection; the others must not wait for it
            self._left = left
            # Portions queue others, so this is looked at once, after all of them.
            self._is_scheduled = False
            if waiting:
                self._between = BETWEEN
                self._schedule()
