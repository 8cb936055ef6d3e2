"""The SQLite FTS5 file behind a knowledge base: what is in it, and how it is brought up to date.

Synchronous code for one thread at a time. The file holds nothing that is not in the folder: it
may be deleted at any time, and a file of another schema version is rebuilt.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from agentsrv.agents.knowledge.documents import (
    PDF_MISSING,
    Chunk,
    Unreadable,
    is_changelog,
    read_document,
)
from agentsrv.agents.text import words
from agentsrv.errors import KnowledgeError

APPLICATION_ID = 0x61676B62  # "agkb", in the header of the file: what we may delete
SCHEMA_VERSION = 1  # raise it when documents are read differently, too
BUSY_TIMEOUT = 5.0  # seconds to wait for another process that writes the index
BUSY_PAUSE = 0.02  # seconds between two attempts to open it
CACHE_KIB = 16_384  # KiB of pages in memory, for each of the two connections
TITLE_WEIGHT, PLACE_WEIGHT, BODY_WEIGHT = 4.0, 2.5, 1.0  # of a match, for BM25
CHANGELOG_FACTOR = 0.35  # of the score: a change log mentions everything and explains nothing
LEGAL_FACTOR = 0.6  # of the score: licences and author lists, unless they are asked for

_SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules", "site-packages"})
_LEGAL = frozenset({"authors", "contributors", "copying", "copyright", "license", "thanks"})

_SCHEMA = """
CREATE TABLE file (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,  -- relative to the folder, with /
    size INTEGER NOT NULL,      -- of the file on disk, in bytes
    mtime_ns INTEGER NOT NULL,
    factor REAL NOT NULL,       -- of the score of its passages
    bytes INTEGER NOT NULL,     -- of text that was read from it
    passages INTEGER NOT NULL,
    reason TEXT                 -- why it was skipped
);
CREATE TABLE place (            -- where the passage of the same rowid stands
    id INTEGER PRIMARY KEY,
    file_id INTEGER NOT NULL,
    line INTEGER NOT NULL
);
CREATE INDEX place_file ON place (file_id);
CREATE VIRTUAL TABLE passage USING fts5 (title, place, body, tokenize = 'porter unicode61');
CREATE VIRTUAL TABLE vocabulary USING fts5vocab (passage, row);
"""


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file as the folder lists it; ``reason`` where it is not even to be opened."""

    name: str
    size: int
    mtime_ns: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A passage that matches a query; ``score`` is BM25 turned so that higher is better."""

    rowid: int
    source: str
    title: str
    text: str
    line: int
    score: float
    factor: float


@dataclass(frozen=True, slots=True)
class Difference:
    """What a refresh has to do: files to read again, and the names that are gone."""

    added: list[FoundFile]
    changed: list[FoundFile]
    removed: list[str]


def scan(folder: Path) -> list[FoundFile]:
    """List the regular files below ``folder``, by name.

    Symbolic links are not followed, so there is no loop and nothing outside the folder; hidden
    files and folders, ``node_modules`` and the like are passed over. A subfolder that cannot be
    listed is an entry with its reason.

    Raises:
        KnowledgeError: ``folder`` itself is missing or cannot be listed.
    """
    found: list[FoundFile] = []

    def unlisted(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise KnowledgeError(f"cannot list the folder {folder}: {error.strerror}") from error
        name = Path(error.filename).relative_to(folder).as_posix()
        found.append(FoundFile(f"{name}/", 0, 0, error.strerror or "cannot be listed"))

    for parent, folders, names in os.walk(folder, onerror=unlisted):
        folders[:] = [name for name in folders if not _passed_over(name)]
        for name in names:
            if not _passed_over(name):
                found.extend(_found(folder, Path(parent, name)))
    return sorted(found, key=lambda file: file.name)


def _passed_over(name: str) -> bool:
    return name.startswith(".") or name in _SKIPPED_FOLDERS


def _found(folder: Path, path: Path) -> Iterable[FoundFile]:
    name = path.relative_to(folder).as_posix()
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = name.encode(errors="surrogateescape").decode(errors="replace")
        return [FoundFile(shown, 0, 0, "its name is not UTF-8")]
    try:
        status = path.lstat()
    except OSError as error:
        # it vanished since it was listed, or the path is too long
        return [FoundFile(name, 0, 0, error.strerror or "cannot be examined")]
    if stat.S_ISLNK(status.st_mode):
        return [FoundFile(name, 0, 0, "symbolic link")]
    return [FoundFile(name, status.st_size, status.st_mtime_ns)]


class Index:
    """One connection to the index file, for one thread.

    Raises:
        KnowledgeError: The file cannot be opened, or is not an index.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self._counted = (-1, -1)  # the state of the file in which the passages were counted
        self._passages = 0
        try:
            database.parent.mkdir(parents=True, exist_ok=True)
            self._refuse_others()
            self._connection = self._open()
        except (OSError, sqlite3.Error) as error:
            raise KnowledgeError(f"cannot open the knowledge index {database}: {error}") from error

    def _refuse_others(self) -> None:
        """Leave a file alone that is not missing, empty or marked with our application id."""
        if not self._database.exists():
            return
        with self._database.open("rb") as file:
            header = file.read(72)
        if header and header[68:72] != APPLICATION_ID.to_bytes(4, "big"):
            raise KnowledgeError(
                f"{self._database} is not a knowledge index, and is left alone:"
                " choose another file for the index"
            )

    def _open(self) -> sqlite3.Connection:
        deadline = time.monotonic() + BUSY_TIMEOUT
        while True:
            try:
                return self._connect()
            except sqlite3.OperationalError as error:
                # read-only, out of space, ...: neither waiting nor deleting would help
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    raise
                # SQLite does not wait for its turn to turn the write-ahead log on
                if time.monotonic() > deadline:
                    raise
                time.sleep(BUSY_PAUSE)
            except sqlite3.DatabaseError:
                self._delete()
                return self._connect()

    def _delete(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            self._database.with_name(self._database.name + suffix).unlink(missing_ok=True)

    def _connect(self) -> sqlite3.Connection:
        # created in one thread, used in one other: the executor's
        connection = sqlite3.connect(
            self._database, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
        )
        try:
            # what a power cut takes is read from the folder again
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            connection.execute("BEGIN IMMEDIATE")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                # not executescript(): it would commit first
                for statement in _SCHEMA.split(";\n"):
                    connection.execute(statement)
                connection.execute(
                    "INSERT INTO passage (passage, rank) VALUES ('rank', ?)",
                    (f"bm25({TITLE_WEIGHT}, {PLACE_WEIGHT}, {BODY_WEIGHT})",),
                )
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.execute("COMMIT")
            # after the schema: the application id must be in the file, not in its log
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("SELECT rowid FROM passage LIMIT 1").fetchone()
            if version not in {0, SCHEMA_VERSION}:
                raise sqlite3.DatabaseError(f"schema version {version}")  # noqa: TRY301
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """Close the connection; the last one to close folds the write-ahead log into the file."""
        self._connection.close()

    def compare(self, found: Iterable[FoundFile]) -> Difference:
        """Compare ``found`` with what is indexed, by size and time of modification."""
        known = {
            name: (size, mtime, reason)
            for name, size, mtime, reason in self._connection.execute(
                "SELECT name, size, mtime_ns, reason FROM file"
            )
        }
        difference = Difference([], [], [])
        for file in found:
            before = known.pop(file.name, None)
            if before is None:
                difference.added.append(file)
            elif before[:2] != (file.size, file.mtime_ns) or before[2] == PDF_MISSING:
                difference.changed.append(file)
        difference.removed.extend(sorted(known))
        return difference

    def remove(self, names: Iterable[str]) -> None:
        """Forget the files of these ``names``, in one transaction."""
        with self._transaction():
            for name in names:
                self._forget(name)

    def read(self, folder: Path, files: Sequence[FoundFile], seconds: float) -> int:
        """Read the first of ``files`` for about ``seconds``, in one transaction.

        Returns:
            How many were read, at least one; a file that cannot be read counts, its reason is
            kept. All of them are in the index when this returns, or none is.
        """
        deadline = time.monotonic() + seconds
        count = 0
        with self._transaction():
            for file in files:
                self._forget(file.name)
                self._read(folder, file)
                count += 1
                if time.monotonic() > deadline:
                    break
        return count

    def _read(self, folder: Path, file: FoundFile) -> None:
        chunks: tuple[Chunk, ...] = ()
        size, reason = 0, file.reason or None
        if reason is None:
            try:
                document = read_document(folder / file.name, file.name)
                chunks, size = document.chunks, document.size
            except Unreadable as error:
                reason = str(error)
        cursor = self._connection.execute(
            "INSERT INTO file (name, size, mtime_ns, factor, bytes, passages, reason)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (file.name, file.size, file.mtime_ns, _factor(file.name), size, len(chunks), reason),
        )
        place = " ".join(words(file.name.replace("_", " ")))
        for chunk in chunks:
            row = self._connection.execute(
                "INSERT INTO place (file_id, line) VALUES (?, ?)", (cursor.lastrowid, chunk.line)
            )
            self._connection.execute(
                "INSERT INTO passage (rowid, title, place, body) VALUES (?, ?, ?, ?)",
                (row.lastrowid, chunk.title, place, chunk.text),
            )

    def _forget(self, name: str) -> None:
        row = self._connection.execute("SELECT id FROM file WHERE name = ?", (name,)).fetchone()
        if row is None:
            return
        self._connection.execute(
            "DELETE FROM passage WHERE rowid IN (SELECT id FROM place WHERE file_id = ?)", row
        )
        self._connection.execute("DELETE FROM place WHERE file_id = ?", row)
        self._connection.execute("DELETE FROM file WHERE id = ?", row)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def optimize(self) -> None:
        """Merge the parts of the full-text index into one, which makes queries faster."""
        self._connection.execute("INSERT INTO passage (passage) VALUES ('optimize')")
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def totals(self) -> tuple[int, int, int]:
        """Return how many files with passages, passages and bytes of text there are."""
        files, passages, size = self._connection.execute(
            "SELECT count(*), coalesce(sum(passages), 0), coalesce(sum(bytes), 0)"
            " FROM file WHERE reason IS NULL"
        ).fetchone()
        return files, passages, size

    def size(self) -> int:
        """Return how many passages there are; counted again only after a change."""
        (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        state = (version, self._connection.total_changes)
        if self._counted != state:
            self._counted = state
            (self._passages,) = self._connection.execute("SELECT count(*) FROM place").fetchone()
        return self._passages

    def skipped(self) -> tuple[tuple[str, str], ...]:
        """Return the files that were not read, with the reason, by name."""
        rows = self._connection.execute(
            "SELECT name, reason FROM file WHERE reason IS NOT NULL ORDER BY name"
        )
        return tuple(rows.fetchall())

    def frequency(self, stem: str) -> int:
        """Return in how many passages a word of this ``stem`` occurs."""
        row = self._connection.execute(
            "SELECT doc FROM vocabulary WHERE term = ?", (stem,)
        ).fetchone()
        return row[0] if row else 0

    def match(self, expression: str, limit: int) -> list[Candidate]:
        """Return the passages that match an FTS5 ``expression``, the best first."""
        rows = self._connection.execute(
            """
            SELECT best.rowid, file.name, best.title, best.body, place.line, -best.rank, file.factor
            FROM (SELECT rowid, title, body, rank FROM passage
                  WHERE passage MATCH ? ORDER BY rank LIMIT ?) AS best
            JOIN place ON place.id = best.rowid
            JOIN file ON file.id = place.file_id
            """,
            (expression, limit),
        )
        return [Candidate(*row) for row in rows]


def _factor(name: str) -> float:
    last = PurePosixPath(name.lower()).name
    if is_changelog(last):
        return CHANGELOG_FACTOR
    return LEGAL_FACTOR if last.split(".")[0] in _LEGAL else 1.0
