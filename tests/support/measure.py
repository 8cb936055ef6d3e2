"""What a process has open, and what becomes of a figure while a test goes on."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pytest

from agentsrv.bench.machine import HAS_PROC

ESTABLISHED: Final = "01"  # of the states in /proc/net/tcp
MIB: Final = 1 << 20

needs_proc = pytest.mark.skipif(not HAS_PROC, reason="platform: there is no /proc to measure with")


def sockets(pid: int) -> int:
    """How many sockets the process has open."""
    count = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            count += entry.readlink().as_posix().startswith("socket:")
    return count


def is_established(port: int, client_port: int) -> bool:
    """Whether the server's end of a connection is open, seen from the server."""
    local, remote = f"0100007F:{port:04X}", f"0100007F:{client_port:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1] == local and fields[2] == remote:
            return fields[3] == ESTABLISHED
    return False


class Watch:
    """Looks at something every few milliseconds, in a thread of its own, and keeps the peak."""

    def __init__(self, look: Callable[[], float], every: float = 0.02) -> None:
        self.before = look()
        self.peak = self.before
        self._look = look
        self._every = every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    @property
    def growth(self) -> float:
        """How far the peak is above what there was at first."""
        return self.peak - self.before

    def _run(self) -> None:
        while not self._over.wait(self._every):
            try:
                self.peak = max(self.peak, self._look())
            except OSError:
                return  # the process is gone


def eventually(what: Callable[[], bool], timeout: float, every: float = 0.02) -> bool:
    """Wait until ``what`` is so; return whether it was within ``timeout`` seconds."""
    waiting = threading.Event()
    for _ in range(math.ceil(timeout / every)):
        if what():
            return True
        waiting.wait(every)
    return what()
