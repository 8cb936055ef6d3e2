"""Writes the output of agents' processes to the server's log: limited lines at a limited rate.

Theory of operation
===================

An `OutputReader` reads one pipe (stdout or stderr) without blocking and logs each complete line. An
agent may write without limit, so three things are bounded:

- The length of a line: bytes after ``MAX_LINE_BYTES`` are counted and dropped. ``REACH`` more bytes
  are kept until credentials are replaced, because a credential that is cut is not recognised.
- The number of lines: a `LogBudget` is a token bucket; each attempt's budget also takes from the
  budget that all attempts share. Lines without a token are counted and dropped.
- The loop's time: after a dropped line the pipe is not read for ``PAUSE_SECONDS``, so that the
  agent blocks in its write and not the server.

A process may leave the pipe open in a child. `close` therefore reads at most ``LAST_BYTES`` and
closes the pipe without waiting for its end.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Final, Self

from agentsrv.credentials import REACH
from agentsrv.error_text import redact

MAX_LINE_BYTES: Final = 4096  # bytes of a line that are logged
CHUNK_BYTES: Final = 16 << 10
PAUSE_SECONDS: Final = 0.01
"""Time between two reads without budget: output is then read at 1.6 MB/s and dropped."""
LAST_BYTES: Final = 1 << 20
"""Maximum bytes that are read at the end of an attempt; a pipe holds 64 KiB."""
LINES_AT_ONCE: Final = 500  # capacity of the bucket
LINES_PER_SECOND: Final = 50

_log = logging.getLogger("agentsrv.agent")


class LogBudget:
    """A token bucket for lines of the log, with counters of dropped output.

    Args:
        now: The clock, in seconds.
        at_once: The capacity: lines that may be logged at once.
        per_second: Lines that are added per second, up to ``at_once``.
        parent: A budget that several attempts share.
    """

    def __init__(
        self,
        now: Callable[[], float],
        at_once: int = LINES_AT_ONCE,
        per_second: float = LINES_PER_SECOND,
        parent: LogBudget | None = None,
    ) -> None:
        self._now = now
        self._at_once = at_once
        self._per_second = per_second
        self._parent = parent
        self._left: float = at_once
        self._filled = now()
        self.dropped_lines = 0
        self.dropped_bytes = 0

    def take(self) -> bool:
        """Return whether one more line may be logged, and count it."""
        now = self._now()
        added = (now - self._filled) * self._per_second
        self._left, self._filled = min(self._at_once, self._left + added), now
        if self._left < 1 or (self._parent is not None and not self._parent.take()):
            return False
        self._left -= 1
        return True

    def drop(self, lines: int, size: int) -> None:
        """Count output that is not logged."""
        self.dropped_lines += lines
        self.dropped_bytes += size

    def report(self) -> None:
        """Log how much was dropped."""
        if self.dropped_lines or self.dropped_bytes:
            _log.warning(
                "%d lines (%d bytes) of the agent's output were dropped; expected at most %d lines "
                "at once and %d per second",
                self.dropped_lines,
                self.dropped_bytes,
                self._at_once,
                self._per_second,
            )


class OutputReader:
    """Reads a pipe line by line into the log, until it ends or `close` is called.

    The log lines have the fields (task, step, attempt) of the context in which it was created.
    """

    def __init__(self, descriptor: int, stream: str, budget: LogBudget) -> None:
        self._descriptor = descriptor
        self._stream = stream
        self._budget = budget
        self._line = bytearray()
        self._cut = 0  # bytes of the line that were dropped
        self._is_open = True
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        os.set_blocking(descriptor, False)
        self._loop.add_reader(descriptor, self._readable)

    @classmethod
    def of_pipe(cls, stream: str, budget: LogBudget) -> tuple[Self, int]:
        """Create a pipe; return its reader, and the descriptor to write to.

        Raises:
            OSError: No pipe can be created; nothing is left open.
        """
        ours, theirs = os.pipe()
        try:
            return cls(ours, stream, budget), theirs
        except BaseException:
            os.close(ours)
            os.close(theirs)
            raise

    def close(self) -> None:
        """Read the content of the pipe and close it, even if a process could still write."""
        if not self._is_open:
            return
        if self._timer is not None:
            self._timer.cancel()
        left = LAST_BYTES
        while left > 0 and (chunk := self._read()):
            self._feed(chunk)
            left -= len(chunk)
        self._end()

    def _end(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        if self._line:
            self._end_line()

    def _read(self) -> bytes | None:
        """Return bytes; empty at the end of the pipe, ``None`` if none are available now."""
        try:
            return os.read(self._descriptor, CHUNK_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def _readable(self) -> None:
        chunk = self._read()
        if chunk:
            if not self._feed(chunk):
                self._loop.remove_reader(self._descriptor)
                self._timer = self._loop.call_later(PAUSE_SECONDS, self._resume)
        elif chunk is not None:
            self._end()

    def _resume(self) -> None:
        self._timer = None
        self._loop.add_reader(self._descriptor, self._readable)

    def _feed(self, chunk: bytes) -> bool:
        """Log the complete lines; return whether the budget allowed all of them."""
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            self._extend(chunk[start:end])
            start = end + 1
            if not self._end_line():
                last = chunk.rfind(b"\n")
                self._budget.drop(chunk.count(b"\n", start), max(0, last + 1 - start))
                self._extend(chunk[max(last + 1, start) :])
                return False
        self._extend(chunk[start:])
        return self._cut == 0

    def _extend(self, part: bytes) -> None:
        room = MAX_LINE_BYTES + REACH - len(self._line)
        self._line += part[:room]
        self._cut += max(0, len(part) - room)

    def _end_line(self) -> bool:
        line, cut = self._line.rstrip(b"\r"), self._cut
        size = len(self._line) + cut + 1
        more = len(line) + cut - MAX_LINE_BYTES
        self._line, self._cut = bytearray(), 0
        if not self._budget.take():
            self._budget.drop(1, size)
            return False
        text = redact(line.decode(errors="backslashreplace"))
        if cut:  # an incomplete credential at the end is not recognised
            text = text[:-REACH]
        if more > 0:
            text = f"{text[:MAX_LINE_BYTES]}… ({more} more bytes)"
        _log.info("%s: %s", self._stream, text)
        return True
