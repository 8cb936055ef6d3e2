"""What an SQLite store holds, looked at from outside, while a server may be writing to it."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

from agentsrv.errors import ConfigurationError
from agentsrv.store.sqlite.file import beside
from agentsrv.store.sqlite.schema import SCHEMA_VERSION, SEQ_BITS, version_of

UNUSED: Final = re.compile(r"Page \d+(: | is )never used")
"""Pages that a damaged index had, which was made anew; see ``sqlite_recovery``."""
MOST: Final = 1_000_000  # lines of what SQLite finds wrong
TREE: Final = re.compile(r"[Tt]ree (?:page )?(\d+)")  # in what SQLite finds wrong
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


@dataclass(frozen=True, slots=True)
class Damage:
    """What cannot be read in a store.

    Attributes:
        reason: SQLite's own words, of the first thing that it found; empty if it found nothing.
        tasks: Ids of the tasks whose row or log is not what was written.
        indexes: Names of the indexes that are damaged, or do not have what the tables have.
    """

    reason: str
    tasks: Sequence[str]
    indexes: Sequence[str] = ()


def find_damage(path: Path) -> Damage:
    """Read the whole store, all logs included; a server that writes to it is not disturbed.

    It takes some seconds for a gigabyte.

    Raises:
        ConfigurationError: It is no store, or nothing of it can be read.
    """
    try:
        with closing(open_to_read(path)) as db:
            if version_of(db) != SCHEMA_VERSION:
                return Damage("", [])
            db.execute("BEGIN")
            complaints = complaints_of(db, "integrity_check")
            tasks = _damaged_tasks(db)
            reason = complaints[0] if complaints else ""
            return Damage(reason, tasks, _indexes(db, complaints))
    except sqlite3.Error as error:
        raise ConfigurationError(f"it cannot be read: {error}") from error


def complaints_of(db: sqlite3.Connection, check: str) -> list[str]:
    """What SQLite finds wrong with the file by one of its checks, but for pages without use."""
    try:
        rows = db.execute(f"PRAGMA {check}({MOST})").fetchall()
    except sqlite3.DatabaseError as error:
        return [str(error)]
    lines = [line for (row,) in rows for line in str(row).splitlines()]
    return [
        line
        for line in lines
        if line != "ok" and not line.startswith("***") and not UNUSED.fullmatch(line)
    ]


def _indexes(db: sqlite3.Connection, complaints: Sequence[str]) -> list[str]:
    """The indexes that SQLite names, by their name or by the number of their first page."""
    indexes = db.execute("SELECT name, rootpage FROM sqlite_master WHERE type = 'index'").fetchall()
    words = [set(re.findall(r"\w+", line)) for line in complaints]
    roots = {found for line in complaints for found in TREE.findall(line)}
    return [
        name for name, root in indexes if str(root) in roots or any(name in line for line in words)
    ]


def _damaged_tasks(db: sqlite3.Connection) -> list[str]:
    """The ids of tasks, as the index or the table has them, that cannot be read whole by it."""
    by_index = _ids(db, "SELECT id, task_id FROM task ORDER BY task_id")
    by_table = _ids(db, "SELECT id, task_id FROM task NOT INDEXED")
    found = {*by_index, *by_table}
    whole = {task_id for row, task_id in found if _is_whole(db, row, task_id)}
    return sorted({task_id for _, task_id in found} - whole)


def _ids(db: sqlite3.Connection, statement: str) -> list[tuple[int, str]]:
    """Numbers and ids of tasks, up to the first that cannot be read."""
    found: list[tuple[int, str]] = []
    with suppress(sqlite3.DatabaseError):
        found.extend((row, task_id) for row, task_id in db.execute(statement) if task_id)
    return found


def _is_whole(db: sqlite3.Connection, row: int, task_id: str) -> bool:
    """Whether a task's row and each event of its log can be read."""
    try:
        columns = db.execute("SELECT task_id, seq, * FROM task NOT INDEXED WHERE id = ?", (row,))
        name, seq, *_ = columns.fetchone()
        bodies = db.execute(
            "SELECT body FROM event WHERE place BETWEEN ? AND ? ORDER BY place",
            (row << SEQ_BITS, (row + 1 << SEQ_BITS) - 1),
        )
        number = 0
        for (body,) in bodies:
            for line in body.split(b"\n"):
                number += 1
                if orjson.loads(line)["seq"] != number:
                    return False
    except (sqlite3.Error, ValueError, TypeError, AttributeError, LookupError):
        return False
    return bool(number == seq and name == task_id)


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
    return beside(path, "-wal").exists()
