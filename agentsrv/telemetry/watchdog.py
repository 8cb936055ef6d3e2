"""Watchdog: logs the code that blocks the event loop."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from typing import NamedTuple, Self

from agentsrv.telemetry.server_metrics import Histogram

CHECKS_PER_LIMIT = 4

_log = logging.getLogger("agentsrv.watchdog")


class Blocker(NamedTuple):
    """The code that a thread is executing."""

    description: str
    """A step, or a line of code if no step is on the stack."""
    about: Mapping[str, object]
    """Log fields that name the step; empty if no step is on the stack."""
    stack: str


def blocker(thread_id: int) -> Blocker:
    """Return the code that a thread is executing; callable from any other thread."""
    innermost = frame = sys._current_frames().get(thread_id)  # noqa: SLF001 - the only way
    if innermost is None:
        return Blocker("a thread that has ended", {}, "")
    stack = "".join(traceback.format_stack(innermost))
    about: Mapping[str, object] = {}
    while frame is not None and not about:
        if frame.f_globals.get("__name__") == "agentsrv.engine.steps":
            about = getattr(frame.f_locals.get("self"), "log_context", about)
        frame = frame.f_back
    if about:
        description = f"task {about['task_id']}, step {about['step_id']}"
    else:
        description = f"{innermost.f_code.co_filename}:{innermost.f_lineno}"
    return Blocker(description, about, stack)


class Watchdog:
    """A thread that checks whether the event loop is running.

    A timer in the loop stores the time of its last run, ``CHECKS_PER_LIMIT`` times per limit; the
    thread compares it with the clock. A blocked loop answers no pings, so clients disconnect. The
    usual cause is an agent that computes or blocks without ``await``; its stack is logged.

    Args:
        limit: Seconds without a turn of the loop after which a warning is logged.
        lag: Counts the delay of each timer.
    """

    def __init__(self, limit: float, lag: Histogram) -> None:
        self.stalls = 0
        """The number of times the loop was blocked for longer than the limit."""
        self._limit = limit
        self._lag = lag
        self._beaten = time.monotonic()
        self._due = self._beaten
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="agentsrv-watchdog", daemon=True)
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        """Start watching the running loop; call it in the loop's thread."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._due = time.monotonic()
        self._beat()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        if self._timer is not None:
            self._timer.cancel()
        self._thread.join()

    def _beat(self) -> None:
        self._beaten = time.monotonic()
        self._lag.observe(max(0.0, self._beaten - self._due))
        self._due = self._beaten + self._limit / CHECKS_PER_LIMIT
        self._timer = self._loop.call_later(self._limit / CHECKS_PER_LIMIT, self._beat)

    def _watch(self) -> None:
        logged = 0.0  # the last run of the timer before a stall that was logged
        while not self._stopped.wait(self._limit / CHECKS_PER_LIMIT):
            beaten = self._beaten
            blocked = time.monotonic() - beaten
            if blocked > self._limit and beaten != logged:
                logged = beaten
                self.stalls += 1
                found = blocker(self._loop_thread)
                _log.warning(
                    "the event loop is blocked for %.1f s by:\n%s",
                    blocked,
                    found.stack,
                    extra={"about": found.about},
                )
