"""AttemptMarks: a file that lists the attempts whose code is running in this process.

Theory of operation
===================
A crash of the server counts as a loss of each attempt whose code was running, even if its start is
not in the log yet: the code may have ended the process in its first line. Committing each start
first would cost one ``fsync`` per step. A mark costs one ``pwrite`` of 128 bytes, some
microseconds. The written page belongs to the operating system, so it survives the process. It needs
no ``fsync``: an attempt cannot cause a power cut.

The file is not mapped into memory: access to a mapping ends the process with SIGBUS if the file was
truncated, the disk is full or a page cannot be read. ``pwrite`` extends a truncated file. If it
fails, the attempt runs without a mark, and a crash does not count as its loss.

The file is a table of slots. A used slot names the task, the step and the attempt::

    in use: 1 byte | task id: 39 bytes | step id: 64 bytes | attempt: 4 bytes | 20 bytes unused

Ids are padded with zeros; a planner has an empty step id.

    open            returns the marks of an earlier process
    clear           deletes them, after they were stored elsewhere
    enter, leave    set and delete the mark of an attempt
    announce_stop   deletes all marks, and sets no more: the end of the process is not a crash
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
SLOT_SIZE: Final = _SLOT.size  # bytes
SLOTS_PER_EXTENSION: Final = 1024
FILE_MODE: Final = 0o644  # of a new file, less the umask; the same as the database's
_FREE: Final = b"\0"


class Mark(NamedTuple):
    """An attempt whose code was running when the process ended."""

    task_id: str
    step_id: str
    """Empty for the planner."""
    attempt: int


def _text(padded: bytes) -> str:
    return padded.rstrip(b"\0").decode(errors="replace")


class AttemptMarks:
    """The table of one process; see the module. Not thread-safe."""

    def __init__(self) -> None:
        self._fd: int | None = None
        self._size = 0  # bytes of the table; the file may have been truncated since
        self._free: list[int] = []
        self._is_announced = False

    def open(self, path: Path) -> list[Mark]:
        """Open the file, and return the marks that an earlier process left in it.

        Raises:
            OSError: The file cannot be read or written, for example because the disk is full.
        """
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):  # reading a pipe could block forever
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        found = path.read_bytes()
        missing = max(SLOTS_PER_EXTENSION * SLOT_SIZE - len(found), -len(found) % SLOT_SIZE)
        if missing:
            os.pwrite(self._fd, bytes(missing), len(found))
        self._size = len(found) + missing
        # An id from a damaged page matches no task, so its mark has no effect.
        return [
            Mark(_text(task_id), _text(step_id), attempt)
            for used, task_id, step_id, attempt in _SLOT.iter_unpack(found.ljust(self._size, _FREE))
            if used
        ]

    def clear(self) -> None:
        """Delete all marks.

        Raises:
            OSError: The file cannot be written.
        """
        if self._fd is not None:
            os.pwrite(self._fd, bytes(self._size), 0)
            self._free = list(range(self._size - SLOT_SIZE, -1, -SLOT_SIZE))

    def enter(self, task_id: str, step_id: str, attempt: int) -> int:
        """Set a mark; return its slot, or -1 if it cannot be set."""
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
        """Delete the mark in a slot."""
        if self._fd is None or slot < 0:
            return
        self._free.append(slot)
        try:  # contextlib.suppress costs more than the write
            os.pwrite(self._fd, _FREE, slot)
        except OSError:
            return  # the device fails; the mark stays

    def announce_stop(self) -> None:
        """Delete all marks, and set no more. This needs no space on the disk.

        On a failing device the marks stay.
        """
        self._is_announced = True
        if self._fd is not None:
            with suppress(OSError):
                os.ftruncate(self._fd, 0)

    def close(self) -> None:
        """Close the file and keep its marks."""
        if self._fd is not None:
            fd, self._fd = self._fd, None  # first: `leave` may run in another thread
            os.close(fd)

    def _grow(self) -> None:
        """Add slots; the file is extended when they are written."""
        self._free = list(
            range(
                self._size + (SLOTS_PER_EXTENSION - 1) * SLOT_SIZE,
                self._size - SLOT_SIZE,
                -SLOT_SIZE,
            )
        )
        self._size += SLOTS_PER_EXTENSION * SLOT_SIZE
