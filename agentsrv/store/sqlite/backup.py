"""Copies an SQLite store while a server may be writing to it."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from agentsrv.errors import ConfigurationError, UnavailableError
from agentsrv.store.sqlite.inspect import (
    SqliteStoreInfo,
    complaints_of,
    has_log,
    open_to_read,
    read_info,
)

OWNER_ONLY: Final = 0o600  # file mode: a backup contains all tasks


def back_up(store: Path, target: Path) -> SqliteStoreInfo:
    """Write a consistent, checked and durable copy of the store.

    The store is read in one transaction, through a read-only connection. Commits continue; they
    stay in the write-ahead log until the copy is done. In the copy, running tasks are as after a
    crash. After an error there is no file ``target``; a process that is killed leaves
    ``target.part``.

    Returns:
        An overview of the copy.

    Raises:
        ConfigurationError: It is not a store of this version, or ``target`` exists.
        UnavailableError: A server started meanwhile, or the copy is damaged.
        OSError: The copy cannot be written.
    """
    if target.exists():
        raise ConfigurationError(f"{target} exists; expected a name for a new file")
    if not store.exists():
        raise ConfigurationError(f"there is no store {store}")
    read_info(store)
    part = target.with_name(f"{target.name}.part")
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, OWNER_ONLY))
    try:
        _copy(store, part)
        found = read_info(part)
        _sync(part)
        part.rename(target)
        _sync(target.parent)
    except sqlite3.Error as error:
        raise UnavailableError(f"the store cannot be copied: {error}") from error
    finally:
        part.unlink(missing_ok=True)
    return found


def _copy(store: Path, part: Path) -> None:
    was_written = has_log(store)
    with closing(open_to_read(store)) as source, closing(sqlite3.connect(part)) as copy:
        source.backup(copy)  # in one step: between two steps, a commit would restart the copy
        # Without a write-ahead log, the copy is one file.
        copy.execute("PRAGMA journal_mode=DELETE")
        complaints = complaints_of(copy, "quick_check")
    if complaints:
        raise UnavailableError(f"the copy is damaged, and perhaps the store: {complaints[0]}")
    if has_log(store) and not was_written:
        raise UnavailableError("a server has started meanwhile; try again")


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
