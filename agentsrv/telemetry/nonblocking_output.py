"""Standard output and standard error that never block the server.

Theory of operation
-------------------
A write to a pipe or a terminal blocks while the reader does not read: a supervisor that stopped
draining the pipe, a slow log driver, Ctrl-S on the terminal. A pipe holds 64 KiB. After that, a
``print`` or a line of the log would block the event loop, and with it every client, ``/healthz``
and the shutdown.

``NonblockingOutput`` is a raw stream with a bounded queue and a thread of its own. ``write``
appends to the queue and returns. The thread writes one entry after another with ``os.write``, so
only this thread blocks. Lines stay whole: one entry is one write.

If the queue contains ``MAX_QUEUED_BYTES``, an entry is dropped and counted. When the reader has
caught up with half of the queue, the thread logs how many entries were dropped. If the reader has
closed its end (``EPIPE``), the entry is dropped and counted, too.

``redirected`` replaces ``sys.stdout`` and ``sys.stderr`` with text streams on two such outputs.
This covers all Python code that uses these objects: the log, ``print`` in an agent, warnings,
tracebacks of uncaught errors, and handlers of ``logging`` that an application creates afterwards.
It does not cover C code and ``os.write``, which use the descriptor.

At exit, ``flush`` waits a limited time for the queues to drain; the rest is lost.

A child of ``os.fork`` has no writing thread. It drops the queued entries, because the parent writes
them, and writes directly to the descriptor.
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

MAX_QUEUED_BYTES: Final = 1 << 20  # of one stream
FLUSH_TIMEOUT: Final = 2.0  # seconds for writing the last lines at exit

_log = logging.getLogger("agentsrv.log")
_outputs: weakref.WeakSet[NonblockingOutput] = weakref.WeakSet()


class NonblockingOutput(io.RawIOBase):
    """Writes to a descriptor from a thread of its own; ``write`` never waits for the reader.

    Args:
        descriptor: Where to write. It stays open when this stream is closed.
        name: The name of the stream in the log.
        limit: Maximum size of the queue in bytes.
    """

    def __init__(self, descriptor: int, name: str, limit: int = MAX_QUEUED_BYTES) -> None:
        self.name = name
        self.dropped = 0
        """Entries that were dropped since the start. An entry is usually one line."""
        self._descriptor = descriptor
        self._limit = limit
        self._missing = 0  # dropped entries that were not logged yet
        self._is_child = False
        self._reset()
        _outputs.add(self)
        threading.Thread(target=self._work, name=f"agentsrv-{name}", daemon=True).start()

    def _reset(self) -> None:
        # Reentrant: the garbage collector may run while the lock is held, and finalizers may write
        # warnings.
        self._changed = threading.Condition(threading.RLock())
        self._waiting: deque[bytes] = deque()
        self._size = 0  # bytes in the queue, including the entry that is being written

    def writable(self) -> bool:
        """Return true; ``io.TextIOWrapper`` requires it."""
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
        """Write the entry, however long that takes; return false if the write fails."""
        try:
            write_all(self._descriptor, entry)
        except OSError:
            return False
        return True

    def become_child(self) -> None:
        """Drop the queue and write directly from now on; for a child of ``os.fork``."""
        self._is_child = True
        self._reset()


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of ``data``, however long the reader takes.

    Raises:
        OSError: The reader has closed its end, or the descriptor cannot be written.
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
    """The number of lines that this process has dropped because they were not read in time."""
    return sum(output.dropped for output in _outputs)


def flush(timeout: float = FLUSH_TIMEOUT) -> bool:
    """Write all queues within ``timeout`` seconds; return whether that succeeded."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    deadline = time.monotonic() + timeout
    left = [output for output in _outputs if not output.drain(deadline)]
    return not left


@contextmanager
def redirected() -> Iterator[None]:
    """Make ``sys.stdout`` and ``sys.stderr`` nonblocking within the block.

    At the end, the queues are flushed within ``FLUSH_TIMEOUT`` seconds. Streams that are not the
    process's original ones (a test's, for example) are not replaced. Nested blocks do nothing.
    """
    before = sys.stdout, sys.stderr
    if sys.__stdout__ is not None and sys.stdout is sys.__stdout__:
        sys.stdout = _nonblocking(sys.__stdout__, "output")
    if sys.__stderr__ is not None and sys.stderr is sys.__stderr__:
        sys.stderr = _nonblocking(sys.__stderr__, "error")
    try:
        yield
    finally:
        if before != (sys.stdout, sys.stderr):
            flush()
            sys.stdout, sys.stderr = before


def _nonblocking(stream: TextIO, name: str) -> io.TextIOWrapper:
    stream.flush()
    output: Any = NonblockingOutput(stream.fileno(), name)
    return io.TextIOWrapper(
        output, encoding=stream.encoding, errors="backslashreplace", line_buffering=True
    )


def _in_child() -> None:
    for output in list(_outputs):
        output.become_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
