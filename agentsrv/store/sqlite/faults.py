"""Classifies errors of SQLite by what they mean for the server.

    PASSING    nothing was written, and another attempt may succeed: another program holds a lock,
               the disk is full, too many files are open. The store waits.
    DAMAGED    a page cannot be read. Its task cannot be used; the others can.
    BROKEN     all other errors, above all a failed write or sync: the content of the disk is only
               known after the file was opened again. The server exits with status 1.

The codes are primary result codes (https://sqlite.org/rescode.html); extended codes are listed if
they differ in meaning from their primary code.
"""

from __future__ import annotations

import errno
import sqlite3
from enum import Enum, auto
from typing import Final

LOCKED: Final = "another program has locked it; find the program (lsof FILE), or wait until it ends"
REINDEX_HINT: Final = (
    "stop the server and rebuild the indexes: `sqlite3 FILE REINDEX`; if that fails, restore a "
    "copy that `agentsrv backup` made"
)
HINTS: Final = {
    sqlite3.SQLITE_BUSY: LOCKED,
    sqlite3.SQLITE_LOCKED: LOCKED,
    sqlite3.SQLITE_PROTOCOL: LOCKED,
    sqlite3.SQLITE_FULL: "free space on the disk",
    sqlite3.SQLITE_READONLY: "mount the file system read-write, and make the file writable for the "
    "server's user",
    sqlite3.SQLITE_CANTOPEN: "check the number of open files (LimitNOFILE) and the folder",
    sqlite3.SQLITE_NOMEM: "give the server more memory",
}
"""Errors that may pass, and what to do if they do not."""

DECODE_ERROR: Final = "Could not decode to UTF-8"
_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_UNREADABLE: Final = (
    sqlite3.SQLITE_IOERR_READ,
    sqlite3.SQLITE_IOERR_SHORT_READ,
    sqlite3.SQLITE_IOERR_CORRUPTFS,
)


class Fault(Enum):
    """The meaning of an error; see the module."""

    PASSING = auto()
    DAMAGED = auto()
    BROKEN = auto()


class HoleError(sqlite3.DatabaseError):
    """Events are missing in a log: a page is damaged in a way that SQLite does not notice."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


class IndexDamageError(sqlite3.DatabaseError):
    """An index of the table of tasks leads to the wrong row, or misses a row.

    If the rows are intact, `REINDEX` rebuilds the indexes from them.
    """

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT_INDEX


class UnopenedError(sqlite3.OperationalError):
    """One of the store's files cannot be opened now."""

    sqlite_errorcode = sqlite3.SQLITE_CANTOPEN


class CutOffError(Exception):
    """One of the store's files is shorter than what was written to it."""


class MovedError(Exception):
    """The path does not lead to the open file any more; nothing may be acknowledged."""


def fault_of(error: BaseException) -> Fault:
    """Classify an error of an operation or of a commit."""
    if isinstance(error, MovedError):
        return Fault.PASSING
    code = getattr(error, "sqlite_errorcode", None)
    if isinstance(error, sqlite3.OperationalError) and str(error).startswith(DECODE_ERROR):
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
    """Whether another attempt to open a file may succeed after ``error``."""
    if isinstance(error, OSError):
        return error.errno != errno.EIO
    return error is not None and fault_of(error) is Fault.PASSING


def is_damage(error: BaseException) -> bool:
    """Whether SQLite reports that the file is not a valid database."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED


def hint_for(error: BaseException) -> str:
    """Advice for the operator about an error that may pass."""
    if isinstance(error, MovedError):
        return "put the file back, or stop the server, restore the store and start again"
    return HINTS[getattr(error, "sqlite_errorcode", 0) & 0xFF]
