"""Helpers for the tests of an author's agents: a server, scripted agents and a manual clock.

The server itself does not use this module.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from agentsrv.agents.agent import StepContext
from agentsrv.app import App
from agentsrv.client import Client
from agentsrv.settings import read_settings

T = TypeVar("T")

QUIET_TURNS: Final = 3  # idle turns of the loop after which data on a socket has arrived


@asynccontextmanager
async def serving(app: App, **settings: Any) -> AsyncIterator[Client]:
    """Serve ``app`` on a free port with a store in memory; yield a connected client.

    ``settings`` are fields of ``Settings``. On exit, running tasks are stopped at once.
    """
    fields: dict[str, Any] = {"port": 0, "store": "memory:"}
    fields |= {"drain_timeout": 0.01, "cancel_grace": 0.5}
    fields |= {"stall_warning": 3600.0}  # a manual clock looks like a blocked loop
    async with (
        app.running(read_settings(**(fields | settings))) as running,
        Client(running.url) as client,
    ):
        try:
            yield client
        finally:
            loop = asyncio.get_running_loop()
            if isinstance(loop, _ManualLoop):
                loop.let_go()


class Script:
    """An agent with scripted outcomes: register its ``run`` method.

    Each outcome is for one attempt; the last one is repeated for all further attempts:

    - an exception is raised;
    - a ``list`` is streamed: its strings are pieces of output, its numbers are seconds to wait,
      and an exception in it is raised at its position;
    - a ``str`` is the output, any other value the structured result.
    """

    def __init__(self, *outcomes: Any) -> None:
        self._outcomes = outcomes or ("",)
        self.calls: list[StepContext] = []
        """The context that the agent received, for each attempt of each step."""

    async def run(self, ctx: StepContext) -> AsyncIterator[str]:
        """Run the agent's next outcome."""
        self.calls.append(ctx)
        outcome = self._outcomes[min(ctx.attempt, len(self._outcomes)) - 1]
        for piece in outcome if isinstance(outcome, list) else [outcome]:
            if isinstance(piece, BaseException):
                raise piece
            if isinstance(piece, str):
                yield piece
            elif isinstance(outcome, list):
                await asyncio.sleep(piece)
            else:
                ctx.set_result(piece)


class ManualClock:
    """A clock that moves only by ``advance``, for tests of time-outs and back-offs.

    It is the clock of the event loop in which ``run`` runs a test. Sockets work as usual; threads
    and processes keep real time, and ``advance`` does not wait for them. When ``serving`` exits,
    the clock follows real time, so that the shutdown ends.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        """The current time of the clock."""

    def run(self, test: Coroutine[Any, Any, T]) -> T:
        """Run ``test`` to its end in an event loop with this clock."""
        with asyncio.Runner(loop_factory=lambda: _ManualLoop(self)) as runner:
            return runner.run(test)

    async def advance(self, seconds: float) -> None:
        """Move the clock forward; timers on the way fire at their time and in their order.

        Returns when no callback is left that can run without more time.
        """
        loop = asyncio.get_running_loop()
        assert isinstance(loop, _ManualLoop), "advance needs a test that ManualClock.run runs"
        end = self.seconds + seconds
        await loop.settle()
        while (due := loop.next_timer()) is not None and due <= end:
            self.seconds = max(self.seconds, due)
            await loop.settle()
        self.seconds = end
        await loop.settle()


class _ManualLoop(asyncio.SelectorEventLoop):
    _ready: Any
    _scheduled: Any

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self._let_go: float | None = None
        super().__init__()

    def time(self) -> float:
        gone = 0.0 if self._let_go is None else time.monotonic() - self._let_go
        return self._clock.seconds + gone

    def let_go(self) -> None:
        self._let_go = time.monotonic()

    def next_timer(self) -> float | None:
        timers = [handle.when() for handle in self._scheduled if not handle.cancelled()]
        return min(timers, default=None)

    async def settle(self) -> None:
        """Run the loop until all tasks wait for a timer or for something outside."""
        quiet = 0
        while quiet < QUIET_TURNS:
            await asyncio.sleep(0)
            quiet = 0 if self._ready else quiet + 1
