"""Vectors of the passages of an index: stored in its file, compared in memory.

Needs numpy, which the extra ``llm`` installs. The code is synchronous and belongs to the thread
that owns the connection. All vectors of a model are loaded when they are first compared, and again
after the file has changed: 4 bytes per number, 30 MB for 10,000 passages of 768 numbers.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from agentsrv.errors import ModelError
from agentsrv.knowledge.index import transaction

Floats = npt.NDArray[np.float32]


class Vectors:
    """The vectors of passages by ``model``, in the index at ``connection``."""

    def __init__(self, connection: sqlite3.Connection, model: str) -> None:
        self._connection = connection
        self._model = model
        self._read_at = -1  # `data_version` of the file when the matrix was loaded
        self._rows: list[int] = []
        self._matrix: Floats = np.empty((0, 0), np.float32)

    def missing(self, limit: int) -> list[tuple[int, str]]:
        """Return up to ``limit`` passages without a vector: rowid, and title and text."""
        found = self._connection.execute(
            """
            SELECT passage.rowid, passage.title || char(10) || passage.body FROM passage
            WHERE passage.rowid IN (
                SELECT id FROM place
                WHERE id NOT IN (SELECT place_id FROM vector WHERE model = ?)
                ORDER BY id LIMIT ?)
            ORDER BY passage.rowid
            """,
            (self._model, limit),
        )
        return found.fetchall()

    def add(self, vectors: Mapping[int, Sequence[float]]) -> None:
        """Store the vectors of these rows in one transaction; rows that were deleted are skipped.

        An empty vector records that the model rejected the passage.
        """
        rows = [
            (self._model, _unit(np.asarray(vector, np.float32)).tobytes(), row)
            for row, vector in vectors.items()
        ]
        with transaction(self._connection):
            self._connection.executemany(
                "INSERT OR REPLACE INTO vector (place_id, model, value)"
                " SELECT id, ?, ? FROM place WHERE id = ?",
                rows,
            )

    def count(self) -> int:
        """Return the number of passages with a vector by this model."""
        (count,) = self._connection.execute(
            "SELECT count(*) FROM vector WHERE model = ? AND value <> x''", (self._model,)
        ).fetchone()
        return int(count)

    def nearest(self, vector: Sequence[float], limit: int) -> list[int]:
        """Return the rows whose vectors have the greatest cosine with ``vector``, best first.

        Raises:
            ModelError: The model returns vectors of another dimension than before.
        """
        self._load()
        if not self._rows:
            return []
        if len(vector) != self._matrix.shape[1]:
            raise ModelError(
                f"{self._model} returned a vector of {len(vector)} numbers; the index has"
                f" {self._matrix.shape[1]}: rebuild it"
            )
        cosines = self._matrix @ _unit(np.asarray(vector, np.float32))
        # A stable sort returns equal passages in the same order each time.
        best = np.argsort(-cosines, kind="stable")[:limit]
        return [self._rows[place] for place in best]

    def _load(self) -> None:
        (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        if version == self._read_at:
            return
        rows = self._connection.execute(
            "SELECT place_id, value FROM vector WHERE model = ? AND value <> x'' ORDER BY place_id",
            (self._model,),
        ).fetchall()
        size = len(rows[-1][1]) if rows else 0
        kept = [(row, value) for row, value in rows if len(value) == size]
        self._rows = [row for row, _ in kept]
        joined = b"".join(value for _, value in kept)
        self._matrix = np.frombuffer(joined, np.float32).reshape(len(kept), -1 if kept else 0)
        self._read_at = version


def _unit(vector: Floats) -> Floats:
    """Return ``vector`` with length 1; a zero vector is returned unchanged."""
    length = float(np.linalg.norm(vector))
    return vector / np.float32(length) if length else vector
