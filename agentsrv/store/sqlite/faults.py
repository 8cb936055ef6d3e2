"""What an error of SQLite means for the server: what passes, what concerns one task, what ends it.

    PASSING    nothing was written, and the same may succeed later: another program holds a lock,
               the disk is full, too many files are open. The store waits.
    DAMAGED    a page cannot be read. The task whose page it is cannot be used; others can.
    BROKEN     everything else, above all a failed write or sync: what is on the disk is only known
               after the file was opened anew. The server ends with status 1.

The codes are SQLite's primary ones (https://sqlite.org/rescode.html); extended codes are listed
where they differ from their primary code.
"""

from __future__ import annotations

import errno
import sqlite3
from enum import Enum, auto
from typing import Final

LOCKED: Final = (
    "another program has locked it; find the program (lsof FILE), or wait until it has ended"
)
REINDEX_HINT: Final = (
    "stop the server and make the indexes anew: `sqlite3 FILE REINDEX`; restore a "
    "copy that `agentsrv backup` has made if that fails"
)
HINTS: Final = {
    sqlite3.SQLITE_BUSY: LOCKED,
    sqlite3.SQLITE_LOCKED: LOCKED,
    sqlite3.SQLITE_PROTOCOL: LOCKED,
    sqlite3.SQLITE_FULL: "make room on the disk",
    sqlite3.SQLITE_READONLY: "mount the file system read-write, or give the server's user the file",
    sqlite3.SQLITE_CANTOPEN: "look at the number of open files (LimitNOFILE) and at the folder",
    sqlite3.SQLITE_NOMEM: "give the server more memory",
}
"""Errors that pass, and what to do where they do not."""

NO_TEXT: Final = "Could not decode to UTF-8"
_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_UNREADABLE: Final = (
    sqlite3.SQLITE_IOERR_READ,
    sqlite3.SQLITE_IOERR_SHORT_READ,
    sqlite3.SQLITE_IOERR_CORRUPTFS,
)


class Fault(Enum):
    """See the module."""

    PASSING = auto()
    DAMAGED = auto()
    BROKEN = auto()


class HoleError(sqlite3.DatabaseError):
    """Events are missing in a log: the page that they were on is damaged, unnoticed by SQLite."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


class IndexDamageError(sqlite3.DatabaseError):
    """An index of the table of tasks leads to another task's row, or does not have a task.

    If the rows themselves are whole, `REINDEX` makes the indexes anew from them.
    """

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT_INDEX


class UnopenedError(sqlite3.OperationalError):
    """One of the store's files cannot be opened now."""

    sqlite_errorcode = sqlite3.SQLITE_CANTOPEN


class CutOffError(Exception):
    """One of the store's files is shorter than what was written to it."""


class MovedError(Exception):
    """The store's file is not where it was opened; nothing may be acknowledged."""


def fault_of(error: BaseException) -> Fault:
    """What an error of an operation or of a commit means."""
    if isinstance(error, MovedError):
        return Fault.PASSING
    code = getattr(error, "sqlite_errorcode", None)
    if isinstance(error, sqlite3.OperationalError) and str(error).startswith(NO_TEXT):
        return Fault.DAMAGED  # Python's own error, without a code
    if not isinstance(error, sqlite3.Error) or code is None:
        return Fault.BROKEN
    primary = code & 0xFF
    if primary in HINTS:
        return Fault.PASSING
    if primary in _DAMAGED or code in _UNREADABLE:
        return Fault.DAMAGED
    return Fault.BROKEN


def may_pass(error: BaseException | None) -> bool:
    """Whether a file that cannot be opened because of ``error`` may soon be."""
    if isinstance(error, OSError):
        return error.errno != errno.EIO
    return error is not None and fault_of(error) is Fault.PASSING


def is_damage(error: BaseException) -> bool:
    """Whether the file holds what SQLite cannot have written."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED


def hint_for(error: BaseException) -> str:
    """What to do about an error that passes."""
    if isinstance(error, MovedError):
        return "put the file back, or stop the server, restore the store and start again"
    return HINTS[getattr(error, "sqlite_errorcode", 0) & 0xFF]
