"""KnowledgeBase: refreshes and searches the index of a folder of documents.

Theory of operation
===================

The index file has two connections, each in a thread of its own (`_DatabaseThread`): one writes
(`refresh`, `embed`), the other searches. With SQLite's write-ahead log a search therefore never
waits for a refresh, and sees each batch as soon as it is committed.

`refresh` works in batches: list the folder, compare it with the index, delete rows of deleted
files, read the others in transactions of `BATCH_SECONDS`. A cancellation takes effect between two
batches; the index is valid after each, and the next refresh continues there.

`embed` sends passages without a vector to the embedding model, `EMBED_BATCH` at a time. If a batch
is rejected, its passages are sent one by one, to find the one that the model does not accept. An
error that affects all of them is a fault of the model, and ends the call.

`search` uses neither network nor model unless there is an embedding model: the same folder and
query then give the same passages. With a model the ranking by words is fused with that of the
nearest vectors. If the model fails or is slow, searches use words alone for `EMBED_RETRY_DELAY`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sqlite3
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from agentsrv import threads
from agentsrv.error_text import describe
from agentsrv.errors import AgentsrvError, KnowledgeError, ModelError
from agentsrv.knowledge.folder import FoundFile, scan
from agentsrv.knowledge.index import Index
from agentsrv.knowledge.ranking import MAX_CANDIDATES, Passage, find
from agentsrv.knowledge.reading import DocumentReader
from agentsrv.knowledge.text import terms
from agentsrv.threads import in_thread

OnProgress = Callable[[int, int, str], Awaitable[None]]
"""Called with the number of files done, their total number, and a message."""

BATCH_SECONDS = 0.25  # of reading per transaction, which a cancelled refresh still completes
REMOVALS_PER_BATCH = 500  # files deleted per transaction
OPTIMIZE_FROM = 200  # files changed by a refresh from which merging the index is worth its time
EMBED_BATCH = 64  # passages in one request to the embedding model: about 10,000 tokens
MAX_REJECTED = 3  # first passages rejected one by one from which the model is considered broken
EMBED_TIMEOUT = 5.0  # seconds that a search waits for the vector of its query
CLOSE_TIMEOUT = 2.0  # seconds that `close` waits for a thread
EMBED_RETRY_DELAY = 30.0  # seconds without the embedding model after it has failed in a search

_T = TypeVar("_T")

_log = logging.getLogger("agentsrv.knowledge")


class EmbeddingModel(Protocol):
    """An embedding model, such as `agentsrv.agents.llm.Embedder`."""

    @property
    def model(self) -> str:
        """Its name, under which the index stores its vectors."""
        ...

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return the vectors of the texts, in their order.

        Raises:
            AgentsrvError: The model failed or rejected a text.
        """
        ...


@dataclass(frozen=True, slots=True)
class IndexReport:
    """The result of a refresh.

    Attributes:
        files: Files with passages in the index.
        added: Files that were indexed for the first time.
        updated: Files that were read again because their size or time had changed.
        removed: Files that were deleted from the index because they no longer exist.
        skipped: Files without passages, each with the reason.
        passages: Passages in the index.
        bytes: Size of the text of the passages' files.
        seconds: Duration of the refresh.
    """

    files: int
    added: int
    updated: int
    removed: int
    skipped: tuple[tuple[str, str], ...]
    passages: int
    bytes: int
    seconds: float

    @property
    def reasons(self) -> dict[str, int]:
        """The number of skipped files for each reason, the most frequent first."""
        return dict(Counter(reason for _, reason in self.skipped).most_common())


class KnowledgeBase:
    """The documents below ``folder``, searchable through the index file ``database``.

    Nothing is opened before the first call. It owns two threads and, while files are read, a child
    process; `close` ends them.

    Args:
        folder: The folder of the documents.
        database: The file of the index.
        embedder: Computes vectors of passages and queries; without it only words count.
        now: A monotonic clock, in seconds.
        documents: Reads the files.
    """

    def __init__(
        self,
        folder: Path,
        database: Path,
        embedder: EmbeddingModel | None = None,
        *,
        now: Callable[[], float] = time.monotonic,
        documents: DocumentReader | None = None,
    ) -> None:
        self._documents = documents or DocumentReader()
        self._vectors_failed = False
        self._folder = folder
        self._embedder = embedder
        self._now = now
        self._embed_from = -math.inf  # time from which the embedding model is used again
        self._writer = _DatabaseThread(database)
        self._reader = _DatabaseThread(database)
        self._refreshing = asyncio.Lock()

    async def refresh(self, on_progress: OnProgress | None = None) -> IndexReport:
        """Update the index: read new and changed files, delete files that no longer exist.

        Searches see each batch of files as soon as it is committed. A cancelled refresh leaves a
        valid index of the files read so far, and the next one continues there. Concurrent calls
        wait for each other.

        Raises:
            KnowledgeError: The folder or the index cannot be used.
        """
        async with self._refreshing:
            started = time.monotonic()
            write = self._writer.call
            found = await write(lambda _: scan(self._folder.resolve()))
            difference = await write(lambda index: index.compare(found))
            for start in range(0, len(difference.removed), REMOVALS_PER_BATCH):
                names = difference.removed[start : start + REMOVALS_PER_BATCH]
                await write(partial(Index.remove, names=names))
            queue = [*difference.changed, *difference.added]
            done, total = 0, len(queue)
            while done < total:
                done += await write(partial(self._read, files=queue[done:]))
                if on_progress is not None:
                    await on_progress(done, total, f"read {done} of {total} files")
            await write(lambda _: self._documents.stop_child())
            if total + len(difference.removed) >= OPTIMIZE_FROM:
                await write(Index.optimize)
            files, passages, size = await write(Index.totals)
            skipped = await write(Index.skipped)
        unread = {name for name, _ in skipped}
        return IndexReport(
            files=files,
            added=sum(file.name not in unread for file in difference.added),
            updated=sum(file.name not in unread for file in difference.changed),
            removed=len(difference.removed),
            skipped=skipped,
            passages=passages,
            bytes=size,
            seconds=time.monotonic() - started,
        )

    def _read(self, index: Index, files: Sequence[FoundFile]) -> int:
        return index.read(self._folder.resolve(), files, BATCH_SECONDS, self._documents.read)

    async def embed(self) -> int:
        """Compute the vectors of passages that have none by the embedding model, in batches.

        Each batch is stored when it arrives, and searches use it from then on. A passage that the
        model rejects while it accepts others stays without a vector. A cancelled call keeps the
        stored vectors, and the next one continues. Does nothing without a model.

        Returns:
            The number of passages with a vector.

        Raises:
            AgentsrvError: The model failed; another call can continue.
            KnowledgeError: The index cannot be used.
        """
        if self._embedder is None:
            return 0
        name, write = self._embedder.model, self._writer.call
        while missing := await write(lambda index: index.vectors(name).missing(EMBED_BATCH)):
            fresh = await _vectors(self._embedder, missing)
            await write(lambda index, fresh=fresh: index.vectors(name).add(fresh))  # type: ignore[misc]
        return await write(lambda index: index.vectors(name).count())

    async def search(self, query: str, limit: int = 5) -> list[Passage]:
        """Return the passages that answer ``query`` best, at most ``limit``, best first.

        Any text is a valid query. Passages that contain more of its words, close together, come
        first. Near-duplicates are omitted, and further passages of one file rank lower. With an
        embedding model, passages that are near to the query in meaning come first as well. The
        list is empty if nothing matches or nothing has been indexed.

        If the embedding model fails or is slow, this search and those of the next
        `EMBED_RETRY_DELAY` seconds use words only. A warning is logged once until it works again.

        Raises:
            KnowledgeError: The index cannot be read, or was closed.
        """
        if self._embedder is None or not terms(query):
            return await self._reader.call(lambda index: find(index, query, limit))
        name = self._embedder.model
        vector = await self._vector(self._embedder, query)
        if vector is not None:
            try:
                found = await self._reader.call(
                    lambda index: find(
                        index, query, limit, index.vectors(name).nearest(vector, MAX_CANDIDATES)
                    )
                )
                self._vectors_failed = False
                return found
            except ModelError as error:
                self._without_vectors(error)
        return await self._reader.call(lambda index: find(index, query, limit))

    async def _vector(self, embedder: EmbeddingModel, query: str) -> list[float] | None:
        if self._now() < self._embed_from:
            return None
        try:
            async with asyncio.timeout(EMBED_TIMEOUT):
                (vector,) = await embedder.embed([query])
        except (AgentsrvError, TimeoutError) as error:
            self._without_vectors(error)
            return None
        return vector

    def _without_vectors(self, error: Exception) -> None:
        self._embed_from = self._now() + EMBED_RETRY_DELAY
        if not self._vectors_failed:
            self._vectors_failed = True
            _log.warning(
                "searching by words only until the embedding model works again (it is tried every "
                "%g s): %s",
                EMBED_RETRY_DELAY,
                describe(error),
            )

    async def close(self) -> None:
        """Close the index; end the threads and the process that reads files.

        Work in progress is aborted; a file that is being read is read after the next start. Later
        calls raise `KnowledgeError`. A cancelled call may leave the searching thread open; call it
        again.
        """
        self._documents.close()
        await self._writer.close()
        await self._reader.close()
        await in_thread(self._documents.stop_child)


async def _vectors(
    embedder: EmbeddingModel, missing: Sequence[tuple[int, str]]
) -> dict[int, Sequence[float]]:
    """Return the vectors of passages by rowid, an empty one for each that the model rejects.

    Raises:
        AgentsrvError: The model rejected the only passage, the first `MAX_REJECTED` ones, or one
            that it had accepted before: the model is at fault and not a passage.
    """
    try:
        vectors = await embedder.embed([text for _, text in missing])
    except AgentsrvError:
        if len(missing) == 1:
            raise
    else:
        return dict(zip((row for row, _ in missing), vectors, strict=True))
    # One passage that is too long for the model fails its whole batch.
    found: dict[int, Sequence[float]] = {}
    taken: str | None = None
    for row, text in missing:
        try:
            (found[row],) = await embedder.embed([text])
            taken = text
        except AgentsrvError as error:
            found[row] = ()
            if taken is not None:
                await embedder.embed([taken])
            elif len(found) == min(MAX_REJECTED, len(missing)):
                raise
            _log.warning("a passage has no vector: %s", error)
    return found


class _DatabaseThread:
    """A thread with its own connection, opened at the first call."""

    def __init__(self, database: Path) -> None:
        self._database = database
        name = f"{threads.NAME}-knowledge"
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._index: Index | None = None
        self._closed = False

    async def call(self, function: Callable[[Index], _T]) -> _T:
        """Run ``function`` in the thread; a cancellation does not stop it once it runs."""
        if self._closed:
            raise KnowledgeError("the knowledge base is closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, function)

    def _run(self, function: Callable[[Index], _T]) -> _T:
        try:
            if self._index is None:
                self._index = Index(self._database)
            return function(self._index)
        except sqlite3.Error as error:
            raise KnowledgeError(f"the knowledge index {self._database} failed: {error}") from error

    async def close(self) -> None:
        """Close the connection; a thread that is blocked by its file system is abandoned."""
        if self._closed:
            return
        self._closed = True
        if self._index is not None:
            self._index.interrupt()
        closing = asyncio.get_running_loop().run_in_executor(self._thread, self._shut)
        try:
            await asyncio.wait({closing}, timeout=CLOSE_TIMEOUT)
        finally:
            # Also after a cancellation: calls in the queue, such as `_shut`, still run.
            self._thread.shutdown(wait=False)

    def _shut(self) -> None:
        if self._index is not None:
            self._index.close()
            self._index = None
