"""Inspects an SQLite store from outside, while a server may be writing to it."""

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
from agentsrv.store.sqlite.file import companion
from agentsrv.store.sqlite.schema import SCHEMA_VERSION, SEQ_BITS, version_of

UNUSED: Final = re.compile(r"Page \d+(: | is )never used")
"""Pages of a damaged index that `recovery` has replaced; they are not an error."""
MAX_COMPLAINTS: Final = 1_000_000  # lines of the result of a check
TREE: Final = re.compile(r"[Tt]ree (?:page )?(\d+)")  # the root page that a complaint names
MIN_SQLITE_VERSION: Final = (3, 37, 0)  # the first with STRICT tables


@dataclass(frozen=True, slots=True)
class SqliteStoreInfo:
    """An overview of a store.

    Attributes:
        tasks: The number of tasks.
        unfinished: How many of them have not ended.
        is_old: Whether the next start of a server migrates the file.
    """

    tasks: int
    unfinished: int
    is_old: bool


def read_info(path: Path) -> SqliteStoreInfo:
    """Read the overview. The store is not changed, and a running server is not disturbed.

    Raises:
        ConfigurationError: It is not a store of this version, or cannot be read.
    """
    try:
        with closing(open_to_read(path)) as db:
            version = version_of(db)
            if version is None:
                return SqliteStoreInfo(0, 0, is_old=False)
            tasks, ended = db.execute("SELECT count(*), count(ended_at) FROM task").fetchone()
    except sqlite3.Error as error:
        raise ConfigurationError(f"it cannot be read: {error}") from error
    return SqliteStoreInfo(tasks, tasks - ended, is_old=version != SCHEMA_VERSION)


@dataclass(frozen=True, slots=True)
class DamageReport:
    """The damage of a store.

    Attributes:
        reason: The first complaint of SQLite; empty if there is none.
        tasks: Ids of the tasks whose row or log is damaged.
        indexes: Names of the indexes that are damaged or contradict their tables.
    """

    reason: str
    tasks: Sequence[str]
    indexes: Sequence[str] = ()


def find_damage(path: Path) -> DamageReport:
    """Read the whole store with all logs. A running server is not disturbed.

    This takes some seconds per gigabyte.

    Raises:
        ConfigurationError: It is not a store, or cannot be read at all.
    """
    try:
        with closing(open_to_read(path)) as db:
            if version_of(db) != SCHEMA_VERSION:
                return DamageReport("", [])
            db.execute("BEGIN")
            complaints = complaints_of(db, "integrity_check")
            tasks = _damaged_tasks(db)
            reason = complaints[0] if complaints else ""
            return DamageReport(reason, tasks, _indexes(db, complaints))
    except sqlite3.Error as error:
        raise ConfigurationError(f"it cannot be read: {error}") from error


def complaints_of(db: sqlite3.Connection, check: str) -> list[str]:
    """The complaints of a check of SQLite about the file, except about unused pages."""
    try:
        rows = db.execute(f"PRAGMA {check}({MAX_COMPLAINTS})").fetchall()
    except sqlite3.DatabaseError as error:
        return [str(error)]
    lines = [line for (row,) in rows for line in str(row).splitlines()]
    return [
        line
        for line in lines
        if line != "ok" and not line.startswith("***") and not UNUSED.fullmatch(line)
    ]


def _indexes(db: sqlite3.Connection, complaints: Sequence[str]) -> list[str]:
    """The indexes that complaints mention, by name or by the number of the root page."""
    indexes = db.execute("SELECT name, rootpage FROM sqlite_master WHERE type = 'index'").fetchall()
    words = [set(re.findall(r"\w+", line)) for line in complaints]
    roots = {found for line in complaints for found in TREE.findall(line)}
    return [
        name for name, root in indexes if str(root) in roots or any(name in line for line in words)
    ]


def _damaged_tasks(db: sqlite3.Connection) -> list[str]:
    """The ids in the index or in the table whose task cannot be read completely."""
    by_index = _ids(db, "SELECT id, task_id FROM task ORDER BY task_id")
    by_table = _ids(db, "SELECT id, task_id FROM task NOT INDEXED")
    found = {*by_index, *by_table}
    whole = {task_id for row, task_id in found if _is_whole(db, row, task_id)}
    return sorted({task_id for _, task_id in found} - whole)


def _ids(db: sqlite3.Connection, statement: str) -> list[tuple[int, str]]:
    """Numbers and ids of tasks, up to the first unreadable one."""
    found: list[tuple[int, str]] = []
    with suppress(sqlite3.DatabaseError):
        found.extend((row, task_id) for row, task_id in db.execute(statement) if task_id)
    return found


def _is_whole(db: sqlite3.Connection, row: int, task_id: str) -> bool:
    """Whether a task's row and each event of its log can be read and are consistent."""
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
    """A read-only connection, which never checkpoints the write-ahead log.

    A second connection that checkpoints could corrupt the file with SQLite before 3.51.3.

    Raises:
        sqlite3.Error: It is not a database, or cannot be read.
    """
    # Without a log no process writes, and `immutable` keeps SQLite from creating a log to read.
    mode = "ro" if has_log(path) else "ro&immutable=1"
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode={mode}", uri=True)


def has_log(path: Path) -> bool:
    """Whether there is a write-ahead log: a process writes, or has crashed."""
    return companion(path, "-wal").exists()
