"""What an SQLite store holds, looked at from outside, while a server may be writing to it."""

from __future__ import annotations

import fcntl
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentsrv.errors import ConfigurationError
from agentsrv.store.sqlite_schema import SCHEMA_VERSION, version_of

OLDEST: Final = (3, 37, 0)  # of SQLite: the first with STRICT tables


@dataclass(frozen=True, slots=True)
class Look:
    """What was found in a store.

    Attributes:
        tasks: How many there are.
        unfinished: Those of them that have not ended.
        is_old: Whether a server of this version brings the file up to date when it starts.
    """

    tasks: int
    unfinished: int
    is_old: bool


def look(path: Path) -> Look:
    """Read what is in the store; it is not changed, and a server that writes to it not disturbed.

    Raises:
        ConfigurationError: It is no store of this version, or cannot be read.
    """
    try:
        with closing(open_to_read(path)) as db:
            version = version_of(db)
            if version is None:
                return Look(0, 0, is_old=False)
            tasks, ended = db.execute("SELECT count(*), count(ended_at) FROM task").fetchone()
    except sqlite3.Error as error:
        raise ConfigurationError(f"it cannot be read: {error}") from error
    return Look(tasks, tasks - ended, is_old=version != SCHEMA_VERSION)


def open_to_read(path: Path) -> sqlite3.Connection:
    """A connection that can only read; it never moves what is in the write-ahead log.

    So it is no second one that checkpoints, which SQLite before 3.51.3 may spoil a file with.

    Raises:
        sqlite3.Error: It is no database, or cannot be read.
    """
    # Without a log beside it nobody writes: then SQLite need not make one in order to read.
    mode = "ro" if has_log(path) else "ro&immutable=1"
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode={mode}", uri=True)


def has_log(path: Path) -> bool:
    """Whether there is a write-ahead log: somebody writes, or has not ended well."""
    return path.with_name(f"{path.name}-wal").exists()


def is_in_use(path: Path) -> bool:
    """Whether a server has the store.

    The lock is tried for a moment; a server that starts in just this moment finds it taken.

    Raises:
        OSError: The lock file cannot be opened.
    """
    try:
        with path.with_name(path.name + ".lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
