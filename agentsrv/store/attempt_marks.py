"""Marks: which attempts run in this process, in a file that outlives the process.

A crash of the server counts as a loss of each attempt whose code ran, also if its start is not in
the log: code may end the process in its first line, before its start is committed. Committing each
start first would cost one ``fsync`` a step. A mark costs one ``pwrite`` of 128 bytes, some
microseconds: the page belongs to the operating system, so it survives whatever ends the process.
It needs no ``fsync``, because no attempt causes a power cut.

The file is not mapped: reading or writing a map ends the process with SIGBUS if the file was
truncated, if the disk is full or if a page cannot be read. ``pwrite`` to a truncated file makes it
longer again. If it fails, the attempt runs without a mark, so a crash is no loss of it.

The file is a table of slots. A slot that is in use names the task, the step and the attempt::

    in use: 1 byte | task id: 39 bytes | step id: 64 bytes | attempt: 4 bytes | 20 bytes unused

Ids are padded with zeros; a planner has an empty step id. ``open`` returns what an earlier process
left behind, ``clear`` forgets it once it is stored elsewhere. ``announce_stop`` empties the table
for good: what ends this process from then on was declared, and counts against no attempt.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

_SLOT: Final = struct.Struct("<B39s64sI20x")
SIZE: Final = _SLOT.size
SLOTS: Final = 1024  # by which the table grows
MODE: Final = 0o644  # of a new file, less the umask; that of the database
_FREE: Final = b"\0"


class Mark(NamedTuple):
    """An attempt whose code ran when the process ended."""

    task_id: str
    step_id: str
    """Empty where the plan was made."""
    attempt: int


def _text(padded: bytes) -> str:
    return padded.rstrip(b"\0").decode(errors="replace")


class AttemptMarks:
    """The table of one process; see the head of this module. Not for use in threads."""

    def __init__(self) -> None:
        self._fd: int | None = None
        self._size = 0  # bytes of the table; the file may have been truncated since
        self._free: list[int] = []
        self._is_announced = False

    def open(self, path: Path) -> list[Mark]:
        """Open the file, and return the marks that an earlier process left in it.

        Raises:
            OSError: The file cannot be read or written; a full disk is noticed here.
        """
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, MODE)
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):  # to read another one may never end
            raise OSError(errno.EINVAL, "found no regular file", str(path))
        found = path.read_bytes()
        missing = max(SLOTS * SIZE - len(found), -len(found) % SIZE)
        if missing:
            os.pwrite(self._fd, bytes(missing), len(found))
        self._size = len(found) + missing
        # Ids that a damaged page has made unreadable are those of no task.
        return [
            Mark(_text(task_id), _text(step_id), attempt)
            for used, task_id, step_id, attempt in _SLOT.iter_unpack(found.ljust(self._size, _FREE))
            if used
        ]

    def clear(self) -> None:
        """Forget all marks.

        Raises:
            OSError: The file cannot be written.
        """
        if self._fd is not None:
            os.pwrite(self._fd, bytes(self._size), 0)
            self._free = list(range(self._size - SIZE, -1, -SIZE))

    def enter(self, task_id: str, step_id: str, attempt: int) -> int:
        """Mark an attempt; return its slot, or -1 if it cannot be marked."""
        if self._is_announced or self._fd is None:
            return -1
        if not self._free:
            self._grow()
        slot = self._free.pop()
        try:
            mark = _SLOT.pack(1, task_id.encode(), step_id.encode(), attempt)
            os.pwrite(self._fd, mark, slot)
        except OSError:
            self._free.append(slot)
            return -1
        return slot

    def leave(self, slot: int) -> None:
        """Take a mark away."""
        if self._fd is None or slot < 0:
            return
        self._free.append(slot)
        try:  # without contextlib.suppress, whose two calls cost more than the write
            os.pwrite(self._fd, _FREE, slot)
        except OSError:
            return  # a failing device: the disk has room for a slot that was written before

    def announce_stop(self) -> None:
        """Forget all marks, and take no more. A full disk does not matter.

        If the file cannot be changed any more (a failing device), its marks stay.
        """
        self._is_announced = True
        if self._fd is not None:
            with suppress(OSError):
                os.ftruncate(self._fd, 0)

    def close(self) -> None:
        """Close the file; the marks in it stay."""
        if self._fd is not None:
            fd, self._fd = self._fd, None  # first: an attempt may end in another thread
            os.close(fd)

    def _grow(self) -> None:
        """Add slots; the file becomes longer when they are written."""
        self._free = list(range(self._size + (SLOTS - 1) * SIZE, self._size - SIZE, -SIZE))
        self._size += SLOTS * SIZE
