"""A copy of an SQLite store, taken while a server may be writing to it."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from agentsrv.errors import ConfigurationError, UnavailableError
from agentsrv.store.sqlite.inspect import Look, complaints_of, has_log, look, open_to_read

OWNER_ONLY: Final = 0o600  # who may read a backup may read all tasks


def back_up(store: Path, target: Path) -> Look:
    """Write a copy of the store as it was at one moment, checked and durable; tell what is in it.

    The store is read in one transaction, through a connection that can only read: commits go on,
    and what they write waits in the write-ahead log until the copy is done. A task that ran is in
    the copy as after a crash. Nothing is left at ``target`` where this fails; a cancelled process
    leaves ``target`` with ``.part`` behind its name.

    Raises:
        ConfigurationError: It is no store of this version, or there is a file at ``target``.
        Unavailable: A server started meanwhile, or the copy is damaged.
        OSError: It cannot be written.
    """
    if target.exists():
        raise ConfigurationError(f"{target} exists; expected a name for a new file")
    if not store.exists():
        raise ConfigurationError(f"there is no store {store}")
    look(store)
    part = target.with_name(f"{target.name}.part")
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, OWNER_ONLY))
    try:
        _copy(store, part)
        found = look(part)
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
        source.backup(copy)  # in one step: in several, each commit beside it would begin it anew
        # Else the copy would be opened with a write-ahead log, which is not wanted beside it.
        copy.execute("PRAGMA journal_mode=DELETE")
        complaints = complaints_of(copy, "quick_check")
    if complaints:
        raise UnavailableError(f"the copy is damaged, and the store perhaps: {complaints[0]}")
    if has_log(store) and not was_written:
        raise UnavailableError("a server has started meanwhile; try again")


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
