"""What the tests of an author's agents need: a server in one line, agents by script, a clock.

Nothing here is used by the server itself.
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

QUIET_TURNS: Final = 3  # of the loop without work: then what goes over a socket has arrived


@asynccontextmanager
async def serving(app: App, **settings: Any) -> AsyncIterator[Client]:
    """Serve ``app`` on a free port with a store in memory; yields a connected client.

    ``settings`` are fields of ``Settings``. On leaving, running tasks are given up at once.
    """
    fields: dict[str, Any] = {"port": 0, "store": "memory:"}
    fields |= {"drain_timeout": 0.01, "cancel_grace": 0.5}
    fields |= {"stall_warning": 3600.0}  # a clock that stands still is no blocked loop
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
    """An agent that does what it was told, attempt by attempt: register its ``run``.

    Each outcome is for one attempt, the last one for all that follow:

    - an exception is raised;
    - a ``list`` is streamed: its texts are pieces of output, its numbers seconds of waiting,
      and an exception in it is raised when it is reached;
    - a ``str`` is the output, and anything else the structured result.
    """

    def __init__(self, *outcomes: Any) -> None:
        self._outcomes = outcomes or ("",)
        self.calls: list[StepContext] = []
        """What the agent was handed, for each attempt of each step."""

    async def run(self, ctx: StepContext) -> AsyncIterator[str]:
        """Be the agent."""
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
    """A clock that stands still until it is wound: time-outs and back-offs without waiting.

    It is the clock of the event loop in which ``run`` runs a test. Sockets work as ever; threads
    and processes keep their own time, and ``advance`` does not wait for them. Where ``serving``
    ends, the clock goes as others do, so that nobody waits for ever.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        """What the clock shows."""

    def run(self, test: Coroutine[Any, Any, T]) -> T:
        """Run ``test`` to its end in a loop of this clock."""
        with asyncio.Runner(loop_factory=lambda: _ManualLoop(self)) as runner:
            return runner.run(test)

    async def advance(self, seconds: float) -> None:
        """Wind the clock: what falls due on the way happens at its time and in its order.

        Before it returns, all that can go on without more time has gone on.
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
        """Let everybody go on until all wait for time, or for something outside."""
        quiet = 0
        while quiet < QUIET_TURNS:
            await asyncio.sleep(0)
            quiet = 0 if self._ready else quiet + 1
