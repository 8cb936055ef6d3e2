"""A loop whose time stands still until everybody waits, and whose order of work is a seed's."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

EPOCH = 1_800_000_000.0  # seconds; what the wall clock shows when the loop starts


class SimulatedLoop(asyncio.SelectorEventLoop):
    """Virtual time; with a seed, ready callbacks run in a shuffled order.

    It serves no sockets and no threads: when nothing is ready and nothing is scheduled, nobody
    will ever wake anybody, and the loop says so instead of hanging.
    """

    _ready: Any
    _scheduled: Any

    def __init__(self, seed: int | None = None) -> None:
        super().__init__()
        self._now = 0.0
        self.chance = random.Random(seed)
        """Decides the order of work, if there is a seed."""
        self._shuffles = seed is not None

    def time(self) -> float:
        """Seconds since the loop was made."""
        return self._now

    def wall(self) -> float:
        """Seconds since the epoch, by the same clock."""
        return EPOCH + self._now

    def _run_once(self) -> None:
        if not self._ready:
            waiting = [handle for handle in self._scheduled if not handle.cancelled()]
            if not waiting:
                raise RuntimeError("deadlock: everybody waits for somebody else")
            self._now = max(self._now, min(handle.when() for handle in waiting))
        elif self._shuffles:
            order = list(self._ready)
            self.chance.shuffle(order)
            self._ready.clear()
            self._ready.extend(order)
        super()._run_once()  # type: ignore[misc]


def simulate(work: Coroutine[Any, Any, T], seed: int | None = None) -> T:
    """Run ``work`` to its end in a simulated loop; what it leaves running is cancelled.

    With a seed, the same happens in each run and in each process. Therefore the seed also decides
    what ``random`` gives, and no garbage is collected amid the run: it closes coroutines that an
    earlier run has left behind, and their ``finally`` blocks would run in this loop.
    """
    if seed is None:
        return _run(work, None)
    gc.collect()
    was_enabled, state = gc.isenabled(), random.getstate()
    gc.disable()
    random.seed(seed)
    try:
        return _run(work, seed)
    finally:
        random.setstate(state)
        if was_enabled:
            gc.enable()


def _run(work: Coroutine[Any, Any, T], seed: int | None) -> T:
    with asyncio.Runner(loop_factory=lambda: SimulatedLoop(seed)) as runner:
        return runner.run(work)


def now() -> float:
    """The wall clock of the simulated loop that runs."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimulatedLoop)
    return loop.wall()
