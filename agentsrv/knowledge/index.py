"""The SQLite FTS5 file behind a knowledge base: what is in it, and how it is brought up to date.

Synchronous code for one thread at a time. The file holds nothing that is not in the folder: it
may be deleted at any time, and a file of another schema version is rebuilt.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from agentsrv.errors import KnowledgeError
from agentsrv.knowledge.documents import PDF_MISSING, Chunk, UnreadableError, is_changelog
from agentsrv.knowledge.folder import FoundFile
from agentsrv.knowledge.reading import Read
from agentsrv.knowledge.stemmer import TOKENIZER
from agentsrv.knowledge.text import words

if TYPE_CHECKING:
    from agentsrv.knowledge.vectors import Vectors

APPLICATION_ID = 0x61676B62  # "agkb", in the header of the file: what we may delete
SCHEMA_VERSION = 2  # raise it when documents are read differently, too
BUSY_TIMEOUT = 5.0  # seconds to wait for another process that writes the index
BUSY_PAUSE = 0.02  # seconds between two attempts to open it
CACHE_KIB = 16_384  # KiB of pages in memory, for each of the two connections
TITLE_WEIGHT, PLACE_WEIGHT, BODY_WEIGHT = 4.0, 2.5, 1.0  # of a match, for BM25
CHANGELOG_FACTOR = 0.35  # of the score: a change log mentions everything and explains nothing
LEGAL_FACTOR = 0.6  # of the score: licences and author lists, unless they are asked for

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
    reason TEXT                 -- why it was skipped
);
CREATE TABLE place (            -- where the passage of the same rowid stands
    id INTEGER PRIMARY KEY,
    file_id INTEGER NOT NULL,
    line INTEGER NOT NULL
);
CREATE INDEX place_file ON place (file_id);
CREATE TABLE vector (           -- what an embedding model gave to a passage
    place_id INTEGER NOT NULL,
    model TEXT NOT NULL,
    value BLOB NOT NULL,        -- numbers of 32 bits, of length 1 together
    PRIMARY KEY (model, place_id)
);
CREATE INDEX vector_place ON vector (place_id);
CREATE VIRTUAL TABLE passage USING fts5 (title, place, body, tokenize = '{TOKENIZER}');
CREATE VIRTUAL TABLE vocabulary USING fts5vocab (passage, row);
"""


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


@dataclass(frozen=True, slots=True)
class _Read:
    """What a file gave: its passages and size, or the reason why there are none."""

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
        self._counted = (-1, -1)  # the state of the file in which the passages were counted
        self._passages = 0
        self._vectors: dict[str, Vectors] = {}
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
        if not self._database.is_file():  # to open another one may never end
            raise KnowledgeError(
                f"the knowledge index {self._database} is no regular file; choose another file"
            )
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
        with suppress(sqlite3.Error):
            # an interrupt would break off the folding; it is over when a statement begins
            self._connection.execute("SELECT 1").fetchone()
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

    def read(self, folder: Path, files: Sequence[FoundFile], seconds: float, read: Read) -> int:
        """Read the first of ``files`` by ``read`` for about ``seconds``, and keep them.

        They are kept in one transaction, which begins when all of them are read.

        Returns:
            How many were read, at least one; a file that cannot be read counts, its reason is
            kept. All of them are in the index when this returns, or none is.
        """
        deadline = time.monotonic() + seconds
        found: list[_Read] = []
        for file in files:
            found.append(_read(folder, file, read))
            if time.monotonic() > deadline:
                break
        with self._transaction():
            for one in found:
                self._forget(one.file.name)
                self._keep(one)
        return len(found)

    def interrupt(self) -> None:
        """End the statement that another thread executes, if any, by an error."""
        self._connection.interrupt()

    def _keep(self, found: _Read) -> None:
        file, chunks = found.file, found.chunks
        cursor = self._connection.execute(
            "INSERT INTO file (name, size, mtime_ns, factor, bytes, passages, reason)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                file.name,
                file.size,
                file.mtime_ns,
                _factor(file.name),
                found.size,
                len(chunks),
                found.reason,
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

    def _forget(self, name: str) -> None:
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

    def vectors(self, model: str) -> Vectors:
        """The vectors that an embedding ``model`` gave to the passages."""
        from agentsrv.knowledge.vectors import Vectors  # noqa: PLC0415 - needs an extra

        if model not in self._vectors:
            self._vectors[model] = Vectors(self._connection, model)
        return self._vectors[model]

    def frequency(self, stem: str) -> int:
        """Return in how many passages a word of this ``stem`` occurs."""
        row = self._connection.execute(
            "SELECT doc FROM vocabulary WHERE term = ?", (stem,)
        ).fetchone()
        return row[0] if row else 0

    def match(self, expression: str, limit: int) -> list[Candidate]:
        """Return the passages that match an FTS5 ``expression``, the best first."""
        best = """SELECT rowid, title, body, -rank AS score FROM passage
                  WHERE passage MATCH ? ORDER BY rank LIMIT ?"""
        return self._candidates(best, (expression, limit))

    def fetch(self, rowids: Sequence[int]) -> list[Candidate]:
        """Return the passages of these rows, in any order, with a score of 0."""
        marks = ",".join("?" * len(rowids))
        chosen = f"SELECT rowid, title, body, 0.0 AS score FROM passage WHERE rowid IN ({marks})"  # noqa: S608 - of question marks
        return self._candidates(chosen, tuple(rowids))

    def _candidates(self, chosen: str, values: tuple[str | int, ...]) -> list[Candidate]:
        rows = self._connection.execute(
            f"""
            SELECT best.rowid, file.name, best.title, best.body, place.line, best.score, file.factor
            FROM ({chosen}) AS best
            JOIN place ON place.id = best.rowid
            JOIN file ON file.id = place.file_id
            """,  # noqa: S608 - one of the two above
            values,
        )
        return [Candidate(*row) for row in rows]


def _read(folder: Path, file: FoundFile, read: Read) -> _Read:
    if file.reason:
        return _Read(file, (), 0, file.reason)
    try:
        document = read(folder / file.name, file.name)
    except UnreadableError as error:
        return _Read(file, (), 0, str(error))
    return _Read(file, document.chunks, document.size, None)


def _factor(name: str) -> float:
    last = PurePosixPath(name.lower()).name
    if is_changelog(last):
        return CHANGELOG_FACTOR
    return LEGAL_FACTOR if last.split(".")[0] in _LEGAL else 1.0
