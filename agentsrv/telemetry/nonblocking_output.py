"""Standard output and standard error that never block the server.

Theory of operation
-------------------
A write to a pipe or a terminal blocks while the reader does not read: a supervisor that stopped
draining the pipe, a slow log driver, Ctrl-S on the terminal. A pipe holds 64 KiB. After that, one
``print`` or one line of the log would hold the event loop, and with it every client, ``/healthz``
and the orderly shutdown.

``NonblockingOutput`` is a raw stream with a bounded queue and a thread of its own. ``write``
appends to the queue and returns. The thread takes one entry after the other and writes it with
``os.write``, so only this thread ever blocks. Lines stay whole: one entry is one write, as before.

If the queue holds ``LIMIT`` bytes, an entry is dropped and counted. When the reader has caught up
with half of the queue, the thread logs how many entries are missing. A reader that has closed its
end (``EPIPE``) costs the entry, which is counted too.

``redirected`` replaces ``sys.stdout`` and ``sys.stderr`` with text streams on two outlets. Since
everything in Python that writes to these descriptors uses the two objects, this covers the log,
``print`` in an agent, warnings, tracebacks of uncaught errors and handlers of ``logging`` that an
application creates after it. It does not cover C code and ``os.write``, which use the descriptor
itself.

At the end, ``flush`` waits a bounded time for the queues to drain; what is left is lost.

A child of ``os.fork`` has no writing thread. There the entries that wait are dropped, because the
parent writes them, and writes go directly to the descriptor.
"""

from __future__ import annotations

import io
import logging
import os
import select
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, TextIO

LIMIT: Final = 1 << 20  # bytes that wait for the reader of one stream
FLUSH_WITHIN: Final = 2.0  # seconds that the last lines have to be written at the end

_log = logging.getLogger("agentsrv.log")
_outlets: weakref.WeakSet[NonblockingOutput] = weakref.WeakSet()


class NonblockingOutput(io.RawIOBase):
    """Writes to a descriptor from a thread of its own; ``write`` never waits for the reader.

    Args:
        descriptor: Where to write. It stays open when the outlet is closed.
        name: What it is called in the log.
        limit: Bytes that may wait.
    """

    def __init__(self, descriptor: int, name: str, limit: int = LIMIT) -> None:
        self.name = name
        self.dropped = 0
        """Entries that were dropped since the start. An entry is one line, as a rule."""
        self._descriptor = descriptor
        self._limit = limit
        self._missing = 0  # of the dropped entries, those that the log has not reported yet
        self._is_child = False
        self._reset()
        _outlets.add(self)
        threading.Thread(target=self._work, name=f"agentsrv-{name}", daemon=True).start()

    def _reset(self) -> None:
        # The lock can be taken twice by one thread: the garbage collector may run while it is
        # held, and finalizers may write warnings.
        self._changed = threading.Condition(threading.RLock())
        self._waiting: deque[bytes] = deque()
        self._size = 0  # bytes that wait, including the entry that is being written

    def writable(self) -> bool:
        """Return true, as ``io.TextIOWrapper`` asks for."""
        return True

    def fileno(self) -> int:
        """Return the descriptor, for programs that are started with this stream."""
        return self._descriptor

    def isatty(self) -> bool:
        """Return whether the descriptor is a terminal."""
        try:
            return os.isatty(self._descriptor)
        except OSError:
            return False

    def write(self, data: Any, /) -> int:
        """Queue ``data`` as one entry, or drop it if the queue is full; return its length."""
        entry = bytes(data)
        if self._is_child:
            self._write_out(entry)
            return len(entry)
        with self._changed:
            if self._size and self._size + len(entry) > self._limit:
                self.dropped += 1
                self._missing += 1
            elif entry:
                self._waiting.append(entry)
                self._size += len(entry)
                self._changed.notify_all()
        return len(entry)

    def drain(self, deadline: float) -> bool:
        """Wait until everything is written, at most until ``deadline`` of the monotonic clock."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not self._size, max(0.0, deadline - time.monotonic())
            )

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                entry = self._waiting.popleft()
            is_written = self._write_out(entry)
            with self._changed:
                self._size -= len(entry)
                missing = 0
                if not is_written:
                    self.dropped += 1
                    self._missing += 1
                elif self._size <= self._limit // 2:
                    missing, self._missing = self._missing, 0
                self._changed.notify_all()
            if missing:
                _log.warning(
                    "%d lines of standard %s were dropped because they were not read in time",
                    missing,
                    self.name,
                )

    def _write_out(self, entry: bytes) -> bool:
        """Write the entry, however long that takes; return false if that is not possible."""
        try:
            write_all(self._descriptor, entry)
        except OSError:
            return False
        return True

    def become_child(self) -> None:
        """Drop what waits and write directly from now on; for a child of ``os.fork``."""
        self._is_child = True
        self._reset()


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of ``data``, however long the reader takes.

    Raises:
        OSError: The reader has gone, or the descriptor cannot be written.
    """
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:  # another process made the descriptor non-blocking
            until_ready(descriptor, writable=True)


def until_ready(descriptor: int, *, writable: bool) -> None:
    """Wait until a non-blocking descriptor can be written or read, or its other end is closed."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT if writable else select.POLLIN)
    poll.poll()


def dropped() -> int:
    """How many lines were dropped in this process because they were not read in time."""
    return sum(outlet.dropped for outlet in _outlets)


def flush(timeout: float = FLUSH_WITHIN) -> bool:
    """Write what waits, within ``timeout`` seconds together; return whether that succeeded."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    deadline = time.monotonic() + timeout
    left = [outlet for outlet in _outlets if not outlet.drain(deadline)]
    return not left


@contextmanager
def redirected() -> Iterator[None]:
    """Let ``sys.stdout`` and ``sys.stderr`` write through outlets within the block.

    At the end, what waits is flushed within ``FLUSH_WITHIN`` seconds. Streams that are not the
    process's own (a test's, for example) are left alone. Nested blocks do nothing.
    """
    before = sys.stdout, sys.stderr
    if sys.__stdout__ is not None and sys.stdout is sys.__stdout__:
        sys.stdout = _through_outlet(sys.__stdout__, "output")
    if sys.__stderr__ is not None and sys.stderr is sys.__stderr__:
        sys.stderr = _through_outlet(sys.__stderr__, "error")
    try:
        yield
    finally:
        if before != (sys.stdout, sys.stderr):
            flush()
            sys.stdout, sys.stderr = before


def _through_outlet(stream: TextIO, name: str) -> io.TextIOWrapper:
    stream.flush()
    outlet: Any = NonblockingOutput(stream.fileno(), name)
    return io.TextIOWrapper(
        outlet, encoding=stream.encoding, errors="backslashreplace", line_buffering=True
    )


def _in_child() -> None:
    for outlet in list(_outlets):
        outlet.become_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
