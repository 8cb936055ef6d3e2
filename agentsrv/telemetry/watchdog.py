"""Watchdog: reports in the log what blocks the event loop."""

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

BEATS = 4  # looks per time limit

_log = logging.getLogger("agentsrv.watchdog")


class Blocker(NamedTuple):
    """What a thread does at this moment."""

    what: str
    """A step, or else a line of code."""
    about: Mapping[str, object]
    """Fields of the log that name the step; empty if no step is on the stack."""
    stack: str


def blocker(thread_id: int) -> Blocker:
    """Return what the thread does; callable from any other thread."""
    innermost = frame = sys._current_frames().get(thread_id)  # noqa: SLF001 - the only way
    if innermost is None:
        return Blocker("a thread that has ended", {}, "")
    stack = "".join(traceback.format_stack(innermost))
    about: Mapping[str, object] = {}
    while frame is not None and not about:
        if frame.f_globals.get("__name__") == "agentsrv.engine.steps":
            about = getattr(frame.f_locals.get("self"), "about", about)
        frame = frame.f_back
    if about:
        what = f"task {about['task_id']}, step {about['step_id']}"
    else:
        what = f"{innermost.f_code.co_filename}:{innermost.f_lineno}"
    return Blocker(what, about, stack)


class Watchdog:
    """A thread that looks whether the event loop still turns.

    A blocked loop answers no ping, so clients drop; an agent that computes or calls something
    slow without ``await`` is the usual reason, and its stack is in the log.

    Args:
        limit: Seconds without a turn of the loop that are worth a warning.
        lag: Where it is counted how late the loop comes to each look.
    """

    def __init__(self, limit: float, lag: Histogram) -> None:
        self.stalls = 0
        """How often the loop was blocked for longer than the limit."""
        self._limit = limit
        self._lag = lag
        self._beaten = time.monotonic()
        self._due = self._beaten
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="agentsrv-watchdog", daemon=True)
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        """Watch the running loop; enter it in the loop's thread."""
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
        self._due = self._beaten + self._limit / BEATS
        self._timer = self._loop.call_later(self._limit / BEATS, self._beat)

    def _watch(self) -> None:
        told = 0.0  # the beat after which a stall was told
        while not self._stopped.wait(self._limit / BEATS):
            beaten = self._beaten
            blocked = time.monotonic() - beaten
            if blocked > self._limit and beaten != told:
                told = beaten
                self.stalls += 1
                found = blocker(self._loop_thread)
                _log.warning(
                    "the event loop is blocked for %.1f s by:\n%s",
                    blocked,
                    found.stack,
                    extra={"about": found.about},
                )
