"""Operating system calls for processes: descendants, signals, descriptors."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

IS_LINUX: Final = sys.platform == "linux"
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_PARENT: Final = 1  # field of the parent's id in /proc/PID/stat, counted after the name

is_worker = False
"""Whether this process is a fork server, or was forked by one."""


def die_with_parent(number: signal.Signals) -> None:
    """Send ``number`` to this process when the thread that created it ends. Linux only."""
    _prctl(_PR_SET_PDEATHSIG, number)


def adopt_orphans() -> None:
    """Adopt descendants whose own parent ends (become a subreaper). Linux only."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if IS_LINUX:
        with suppress(OSError, AttributeError):  # a C library without prctl
            ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def children() -> Iterator[int]:
    """Yield the ids of this process's children, including zombies; none without ``/proc``."""
    own = str(os.getpid()).encode()
    with suppress(OSError):
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError, IndexError):  # it has ended
                    line = (entry / "stat").read_bytes()
                    if line.rpartition(b")")[2].split()[_PARENT] == own:
                        yield int(entry.name)


def thread_count() -> int:
    """Return the number of threads, including those of C libraries where ``/proc`` lists them."""
    try:
        return len(list(Path("/proc/self/task").iterdir()))
    except OSError:
        return threading.active_count()


def open_descriptors() -> set[int]:
    """Return the open descriptors of this process."""
    found = {int(entry.name) for entry in Path("/dev/fd").iterdir()}
    for descriptor in tuple(found):  # one of them was the descriptor of the listing
        try:
            os.fstat(descriptor)
        except OSError:
            found.discard(descriptor)
    return found


def flush_output() -> None:
    """Flush the standard streams, which the application may have closed or replaced."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(BaseException):
            stream.flush()


def do_nothing(_number: int, _frame: object) -> None:
    """Signal handler; the wake-up descriptor, not the handler, ends the poll."""


def describe_end(status: int) -> str:
    """Describe the end of a process from its ``os.waitpid`` status: ``ended with …``."""
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return "ended with exit status 0 before the agent returned"
    if code > 0:
        return f"ended with exit status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
