"""Marks: which attempts run in this process, in a file that outlives the process.

A crash of the server must be charged to the attempts whose code ran, also where the log has not
heard of their beginning: code may end the process in its first line, before anything of its start
is committed. Committing each start first would cost one ``fsync`` a step. A mark costs a copy of
128 bytes into a mapped file: the pages belong to the operating system, so they survive whatever
ends the process. They need no ``fsync``, because a power cut is nobody's fault.

The file is a table of slots. A slot that is in use names the task, the step and the attempt::

    in use: 1 byte | task id: 39 bytes | step id: 64 bytes | attempt: 4 bytes | 20 bytes unused

Ids are padded with zeros; a planner has an empty step id. ``open`` returns what an earlier process
left behind, ``clear`` forgets it once it is stored elsewhere. ``announce_stop`` empties the table
for good: what ends this process from then on was declared, and is charged to no attempt.
"""

from __future__ import annotations

import mmap
import struct
from contextlib import suppress
from pathlib import Path
from typing import IO, Final, NamedTuple

_SLOT: Final = struct.Struct("<B39s64sI20x")
SIZE: Final = _SLOT.size
SLOTS: Final = 1024  # by which the file grows
_FREE: Final = b"\0"


class Mark(NamedTuple):
    """An attempt whose code ran when the process ended."""

    task_id: str
    step_id: str
    """Empty where the plan was made."""
    attempt: int


def _text(padded: bytes) -> str:
    return padded.rstrip(b"\0").decode(errors="replace")


class Marks:
    """The table of one process; see the head of this module. Not for use in threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self._table: mmap.mmap | None = None
        self._free: list[int] = []
        self._is_announced = False

    def open(self) -> list[Mark]:
        """Map the file, and return the marks that an earlier process left in it.

        Raises:
            OSError: The file cannot be written; a disk that is full is noticed here, and not
                when a page of the map is written.
        """
        self._file = self._path.open("a+b")
        size = self._file.seek(0, 2)
        missing = max(SLOTS * SIZE - size, -size % SIZE)
        self._file.write(bytes(missing))
        self._file.flush()
        self._table = mmap.mmap(self._file.fileno(), size + missing)
        # Ids that a damaged page has made unreadable are those of no task.
        return [
            Mark(_text(task_id), _text(step_id), attempt)
            for used, task_id, step_id, attempt in _SLOT.iter_unpack(self._table[:])
            if used
        ]

    def clear(self) -> None:
        """Forget all marks."""
        if self._table is not None:
            self._table[:] = bytes(len(self._table))
            self._free = list(range(len(self._table) - SIZE, -1, -SIZE))

    def enter(self, task_id: str, step_id: str, attempt: int) -> int:
        """Mark an attempt; return its slot, or -1 where none can be had."""
        if self._is_announced or self._table is None or not (self._free or self._grow()):
            return -1
        slot = self._free.pop()
        _SLOT.pack_into(self._table, slot, 1, task_id.encode(), step_id.encode(), attempt)
        return slot

    def leave(self, slot: int) -> None:
        """Take a mark away."""
        if self._table is not None and slot >= 0:
            self._table[slot : slot + 1] = _FREE
            self._free.append(slot)

    def announce_stop(self) -> None:
        """Forget all marks, and take no more."""
        self.clear()
        self._is_announced = True

    def close(self) -> None:
        """Let go of the file; the marks in it stay."""
        if self._table is not None:
            self._table.close()
            self._table = None
        if self._file is not None:
            self._file.close()
            self._file = None

    def _grow(self) -> bool:
        """Make room for more slots; return whether there is some."""
        assert self._table is not None
        assert self._file is not None
        size = len(self._table)
        with suppress(OSError, ValueError):
            self._file.write(bytes(SLOTS * SIZE))
            self._file.flush()
            table = mmap.mmap(self._file.fileno(), size + SLOTS * SIZE)
            self._table.close()
            self._table = table
            self._free = list(range(size + SLOTS * SIZE - SIZE, size - SIZE, -SIZE))
        return bool(self._free)
