"""The index of a knowledge base: an SQLite file with a full-text table, and its updates.

Theory of operation
===================

The file is a cache of the folder: it can be deleted at any time, and a file with another schema
version or damage is deleted and rebuilt. The application id in its header marks it as an index;
other files are never deleted. Tables:

    file      one row for each file of the folder, also for unreadable ones, with the reason
    passage   the full-text table (FTS5): title, path and body of each passage
    place     the file and line of the passage with the same rowid
    vector    the vector of a passage by an embedding model; empty if the model rejected it

`compare` finds new, changed and deleted files by size and modification time. `read` first reads
files for a fraction of a second and then stores them in one transaction, so that a cancelled
refresh loses little and searches on the other connection (write-ahead log) are never blocked. A
changed file is deleted and inserted again.

An `Index` is one connection. It is synchronous and for one thread at a time.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from agentsrv.errors import KnowledgeError
from agentsrv.knowledge.documents import PDF_MISSING, Chunk, UnreadableError, is_changelog
from agentsrv.knowledge.folder import FoundFile
from agentsrv.knowledge.reading import ReadFile
from agentsrv.knowledge.stemmer import TOKENIZER
from agentsrv.knowledge.text import words

if TYPE_CHECKING:
    from agentsrv.knowledge.vectors import Vectors

APPLICATION_ID = 0x61676B62  # "agkb", in the header of the file: only such a file may be deleted
SCHEMA_VERSION = 2  # increment it also if documents are read differently
BUSY_TIMEOUT = 5.0  # seconds to wait for another process that writes the index
BUSY_RETRY_DELAY = 0.02  # seconds between two attempts to open it
CACHE_KIB = 16_384  # page cache of each of the two connections
TITLE_WEIGHT, PLACE_WEIGHT, BODY_WEIGHT = 4.0, 2.5, 1.0  # of a match, for BM25
CHANGELOG_FACTOR = 0.35  # of the score: change logs mention every subject and explain none
LEGAL_FACTOR = 0.6  # of the score of licences and author lists

_LEGAL = frozenset({"authors", "contributors", "copying", "copyright", "license", "thanks"})

_SCHEMA = f"""
CREATE TABLE file (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,  -- relative to the folder, with /
    size INTEGER NOT NULL,      -- of the file on disk, in bytes
    mtime_ns INTEGER NOT NULL,
    factor REAL NOT NULL,       -- of the score of its passages
    bytes INTEGER NOT NULL,     -- of text that was read from it
    passages INTEGER NOT NULL,
    reason TEXT                 -- why it has no passages
);
CREATE TABLE place (            -- the position of the passage with the same rowid
    id INTEGER PRIMARY KEY,
    file_id INTEGER NOT NULL,
    line INTEGER NOT NULL
);
CREATE INDEX place_file ON place (file_id);
CREATE TABLE vector (           -- the vector of a passage by an embedding model
    place_id INTEGER NOT NULL,
    model TEXT NOT NULL,
    value BLOB NOT NULL,        -- 32-bit numbers, normalized to length 1
    PRIMARY KEY (model, place_id)
);
CREATE INDEX vector_place ON vector (place_id);
CREATE VIRTUAL TABLE passage USING fts5 (title, place, body, tokenize = '{TOKENIZER}');
CREATE VIRTUAL TABLE vocabulary USING fts5vocab (passage, row);
"""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A passage that matches a query; ``score`` is BM25 with the sign that makes higher better."""

    rowid: int
    source: str
    title: str
    text: str
    line: int
    score: float
    factor: float


@dataclass(frozen=True, slots=True)
class Difference:
    """The work of a refresh: files to read, and the names of files that were deleted."""

    added: list[FoundFile]
    changed: list[FoundFile]
    removed: list[str]


@dataclass(frozen=True, slots=True)
class _ReadResult:
    """The passages and size of a file, or the reason why it has none."""

    file: FoundFile
    chunks: tuple[Chunk, ...]
    size: int
    reason: str | None


class Index:
    """One connection to the index file, for one thread.

    Raises:
        KnowledgeError: The file cannot be opened, or is not an index.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self._counted = (-1, -1)  # the state of the file at the last count of passages
        self._passages = 0
        self._vectors: dict[str, Vectors] = {}
        try:
            database.parent.mkdir(parents=True, exist_ok=True)
            self._check_file()
            self._connection = self._open()
        except (OSError, sqlite3.Error) as error:
            raise KnowledgeError(f"cannot open the knowledge index {database}: {error}") from error

    def _check_file(self) -> None:
        """Raise unless the file is missing, empty or marked with the application id."""
        if not self._database.exists():
            return
        if not self._database.is_file():  # opening a pipe may never end
            raise KnowledgeError(
                f"the knowledge index {self._database} is not a regular file; choose another file"
            )
        with self._database.open("rb") as file:
            header = file.read(72)
        if header and header[68:72] != APPLICATION_ID.to_bytes(4, "big"):
            raise KnowledgeError(
                f"{self._database} is not a knowledge index and was not changed; choose another"
                " file for the index"
            )

    def _open(self) -> sqlite3.Connection:
        deadline = time.monotonic() + BUSY_TIMEOUT
        while True:
            try:
                return self._connect()
            except sqlite3.OperationalError as error:
                # Read-only, out of space and others: waiting or deleting would not help.
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    raise
                # SQLite does not wait for a lock when it turns the write-ahead log on.
                if time.monotonic() > deadline:
                    raise
                time.sleep(BUSY_RETRY_DELAY)
            except sqlite3.DatabaseError:
                self._delete()
                return self._connect()

    def _delete(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            self._database.with_name(self._database.name + suffix).unlink(missing_ok=True)

    def _connect(self) -> sqlite3.Connection:
        # Created in one thread and used in another: the executor's.
        connection = sqlite3.connect(
            self._database, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
        )
        try:
            # A power cut may lose commits, which the next refresh repeats.
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            connection.execute("BEGIN IMMEDIATE")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                # executescript() would commit first.
                for statement in _SCHEMA.split(";\n"):
                    connection.execute(statement)
                connection.execute(
                    "INSERT INTO passage (passage, rank) VALUES ('rank', ?)",
                    (f"bm25({TITLE_WEIGHT}, {PLACE_WEIGHT}, {BODY_WEIGHT})",),
                )
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.execute("COMMIT")
            # After the schema, so that the application id is in the file and not only in its log.
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("SELECT rowid FROM passage LIMIT 1").fetchone()
            if version not in {0, SCHEMA_VERSION}:
                raise sqlite3.DatabaseError(f"schema version {version}")  # noqa: TRY301
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """Close the connection; the last one merges the write-ahead log into the file."""
        with suppress(sqlite3.Error):
            # An interrupt would abort the merge; it is reset when a statement begins.
            self._connection.execute("SELECT 1").fetchone()
        self._connection.close()

    def compare(self, found: Iterable[FoundFile]) -> Difference:
        """Compare ``found`` with the index, by size and modification time."""
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
        """Delete the files with these ``names`` in one transaction."""
        with transaction(self._connection):
            for name in names:
                self._delete_file(name)

    def read(self, folder: Path, files: Sequence[FoundFile], seconds: float, read: ReadFile) -> int:
        """Read the first of ``files`` by ``read`` for about ``seconds``, and store them.

        They are stored in one transaction, which begins after all of them are read.

        Returns:
            The number of files that were read, at least one, including unreadable ones, for which
            the reason is stored. Either all of them are stored, or none if it raises.
        """
        deadline = time.monotonic() + seconds
        found: list[_ReadResult] = []
        for file in files:
            found.append(_read(folder, file, read))
            if time.monotonic() > deadline:
                break
        with transaction(self._connection):
            for result in found:
                self._delete_file(result.file.name)
                self._insert_file(result)
        return len(found)

    def interrupt(self) -> None:
        """Abort the statement that another thread executes, which raises an error there."""
        self._connection.interrupt()

    def _insert_file(self, result: _ReadResult) -> None:
        file, chunks = result.file, result.chunks
        cursor = self._connection.execute(
            "INSERT INTO file (name, size, mtime_ns, factor, bytes, passages, reason)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                file.name,
                file.size,
                file.mtime_ns,
                _factor(file.name),
                result.size,
                len(chunks),
                result.reason,
            ),
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

    def _delete_file(self, name: str) -> None:
        row = self._connection.execute("SELECT id FROM file WHERE name = ?", (name,)).fetchone()
        if row is None:
            return
        self._connection.execute(
            "DELETE FROM passage WHERE rowid IN (SELECT id FROM place WHERE file_id = ?)", row
        )
        self._connection.execute(
            "DELETE FROM vector WHERE place_id IN (SELECT id FROM place WHERE file_id = ?)", row
        )
        self._connection.execute("DELETE FROM place WHERE file_id = ?", row)
        self._connection.execute("DELETE FROM file WHERE id = ?", row)

    def optimize(self) -> None:
        """Merge the parts of the full-text index, which makes queries faster."""
        self._connection.execute("INSERT INTO passage (passage) VALUES ('optimize')")
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def totals(self) -> tuple[int, int, int]:
        """Return the number of files with passages, of passages, and of bytes of text."""
        files, passages, size = self._connection.execute(
            "SELECT count(*), coalesce(sum(passages), 0), coalesce(sum(bytes), 0)"
            " FROM file WHERE reason IS NULL"
        ).fetchone()
        return files, passages, size

    def size(self) -> int:
        """Return the number of passages; they are counted again only after a change."""
        (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        state = (version, self._connection.total_changes)
        if self._counted != state:
            self._counted = state
            (self._passages,) = self._connection.execute("SELECT count(*) FROM place").fetchone()
        return self._passages

    def skipped(self) -> tuple[tuple[str, str], ...]:
        """Return the names of files without passages, each with the reason."""
        rows = self._connection.execute(
            "SELECT name, reason FROM file WHERE reason IS NOT NULL ORDER BY name"
        )
        return tuple(rows.fetchall())

    def vectors(self, model: str) -> Vectors:
        """Return the vectors of the passages by an embedding ``model``."""
        from agentsrv.knowledge.vectors import Vectors  # noqa: PLC0415 - needs an extra

        if model not in self._vectors:
            self._vectors[model] = Vectors(self._connection, model)
        return self._vectors[model]

    def frequency(self, stem: str) -> int:
        """Return the number of passages that contain a word with this ``stem``."""
        row = self._connection.execute(
            "SELECT doc FROM vocabulary WHERE term = ?", (stem,)
        ).fetchone()
        return row[0] if row else 0

    def match(self, expression: str, limit: int) -> list[Candidate]:
        """Return the passages that match an FTS5 ``expression``, best first."""
        best = """SELECT rowid, title, body, -rank AS score FROM passage
                  WHERE passage MATCH ? ORDER BY rank LIMIT ?"""
        return self._candidates(best, (expression, limit))

    def fetch(self, rowids: Sequence[int]) -> list[Candidate]:
        """Return the passages with these rowids, in any order, with a score of 0."""
        marks = ",".join("?" * len(rowids))
        chosen = f"SELECT rowid, title, body, 0.0 AS score FROM passage WHERE rowid IN ({marks})"  # noqa: S608 - question marks only
        return self._candidates(chosen, tuple(rowids))

    def _candidates(self, chosen: str, values: tuple[str | int, ...]) -> list[Candidate]:
        rows = self._connection.execute(
            f"""
            SELECT best.rowid, file.name, best.title, best.body, place.line, best.score, file.factor
            FROM ({chosen}) AS best
            JOIN place ON place.id = best.rowid
            JOIN file ON file.id = place.file_id
            """,  # noqa: S608 - `chosen` is one of the two queries above
            values,
        )
        return [Candidate(*row) for row in rows]


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit the statements of the block, or roll them back if it raises."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _read(folder: Path, file: FoundFile, read: ReadFile) -> _ReadResult:
    if file.reason:
        return _ReadResult(file, (), 0, file.reason)
    try:
        document = read(folder / file.name, file.name)
    except UnreadableError as error:
        return _ReadResult(file, (), 0, str(error))
    return _ReadResult(file, document.chunks, document.size, None)


def _factor(name: str) -> float:
    last = PurePosixPath(name.lower()).name
    if is_changelog(last):
        return CHANGELOG_FACTOR
    return LEGAL_FACTOR if last.split(".")[0] in _LEGAL else 1.0
