"""KnowledgeBase: a folder of documents that agents can search.

The folder is read into an SQLite file with a full-text index (FTS5, Porter stems, BM25), and
searched without the network, a model or chance: the same folder and the same query give the
same passages. With an embedding model the search is a hybrid: its ranking is fused with that
of the passages whose vectors are nearest to the query's.
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
from agentsrv.knowledge.ranking import CANDIDATES, Passage, find
from agentsrv.knowledge.reading import DocumentReader
from agentsrv.knowledge.text import terms
from agentsrv.threads import in_thread

OnProgress = Callable[[int, int, str], Awaitable[None]]
"""Is told how many files are done, how many there are, and what happened."""

BATCH_SECONDS = 0.25  # of reading per transaction: what a cancelled refresh still finishes
REMOVALS = 500  # files forgotten per transaction
OPTIMIZE_FROM = 200  # files changed by a refresh, to make merging the index worth its time
EMBED_BATCH = 64  # passages of one request to the embedding model: about 10,000 tokens
ALONE = 3  # passages refused one by one, from which the model counts as out of order
EMBED_PATIENCE = 5.0  # seconds that a search waits for the vector of its query
CLOSE_PATIENCE = 2.0  # seconds for a thread to end what it does, when the index is closed
EMBED_PAUSE = 30.0  # seconds without asking the embedding model after it has failed a search

_T = TypeVar("_T")

_log = logging.getLogger("agentsrv.knowledge")


class Embeds(Protocol):
    """An embedding model, such as `agentsrv.agents.llm.Embedder`."""

    @property
    def model(self) -> str:
        """Its name, under which its vectors are kept."""
        ...

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return the vector of each text, in their order.

        Raises:
            AgentsrvError: There are none.
        """
        ...


@dataclass(frozen=True, slots=True)
class IndexReport:
    """What a refresh found and did.

    Attributes:
        files: Files with passages in the index now.
        added: Files indexed for the first time, of those that could be read.
        updated: Files read again because their size or time had changed.
        removed: Files forgotten because they are gone.
        skipped: Files that give no passages, each with the reason.
        passages: Passages in the index now.
        bytes: Size of the text they were taken from.
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
        """How many files were skipped for each reason, the most frequent first."""
        return dict(Counter(reason for _, reason in self.skipped).most_common())


class KnowledgeBase:
    """The documents below ``folder``, searchable through the index file ``database``.

    Nothing is opened before the first call. Owns two threads, one that writes the index and one
    that searches it, so that searches work while the folder is read, and while there are files to
    read a process that reads them; `close` ends them.

    Args:
        folder: Where the documents are.
        database: The file of the index.
        embedder: What gives passages and queries vectors; without it only words count.
        now: A clock that never goes back, in seconds.
        documents: Reads the files.
    """

    def __init__(
        self,
        folder: Path,
        database: Path,
        embedder: Embeds | None = None,
        *,
        now: Callable[[], float] = time.monotonic,
        documents: DocumentReader | None = None,
    ) -> None:
        self._documents = documents or DocumentReader()
        self._vectors_failed = False
        self._folder = folder
        self._embedder = embedder
        self._now = now
        self._embed_from = -math.inf  # when the embedding model may be asked again
        self._writer = _DatabaseThread(database)
        self._reader = _DatabaseThread(database)
        self._refreshing = asyncio.Lock()

    async def refresh(self, on_progress: OnProgress | None = None) -> IndexReport:
        """Bring the index up to date with the folder: read what is new or changed, forget the rest.

        Searches see each batch of files as soon as it is committed. A cancelled refresh leaves
        a valid index of the files read so far, and the next one goes on from there. Concurrent
        calls wait for each other.

        Raises:
            KnowledgeError: The folder or the index cannot be used.
        """
        async with self._refreshing:
            started = time.monotonic()
            write = self._writer.call
            found = await write(lambda _: scan(self._folder.resolve()))
            difference = await write(lambda index: index.compare(found))
            for start in range(0, len(difference.removed), REMOVALS):
                names = difference.removed[start : start + REMOVALS]
                await write(partial(Index.remove, names=names))
            queue = [*difference.changed, *difference.added]
            done, total = 0, len(queue)
            while done < total:
                done += await write(partial(self._read, files=queue[done:]))
                if on_progress is not None:
                    await on_progress(done, total, f"read {done} of {total} files")
            await write(lambda _: self._documents.rest())
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
        """Give a vector to each passage that has none of the embedding model yet, in batches.

        Each batch is kept as it comes, and searches use it from then on. A passage that the
        model refuses, while it takes others, is left without one for good. A cancelled call
        leaves what was kept, and the next one goes on from there. Does nothing without a model.

        Returns:
            How many passages have a vector now.

        Raises:
            AgentsrvError: The model failed; the rest is left to another call.
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
        """Return the passages that answer ``query`` best, at most ``limit``, the best first.

        Any text is a valid query. Passages that have more of its words, and have them close
        together, come first; near-duplicates are left out, and passages of one file give way
        to those of others. With an embedding model, passages that are near to the query in
        meaning come first too. Empty where nothing matches or nothing was indexed yet.

        An embedding model that fails or takes long is a warning in the log, once until it works
        again, and only the words count, in this search and those of the next `EMBED_PAUSE` seconds.

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
                        index, query, limit, index.vectors(name).nearest(vector, CANDIDATES)
                    )
                )
                self._vectors_failed = False
                return found
            except ModelError as error:
                self._without_vectors(error)
        return await self._reader.call(lambda index: find(index, query, limit))

    async def _vector(self, embedder: Embeds, query: str) -> list[float] | None:
        if self._now() < self._embed_from:
            return None
        try:
            async with asyncio.timeout(EMBED_PATIENCE):
                (vector,) = await embedder.embed([query])
        except (AgentsrvError, TimeoutError) as error:
            self._without_vectors(error)
            return None
        return vector

    def _without_vectors(self, error: Exception) -> None:
        self._embed_from = self._now() + EMBED_PAUSE
        if not self._vectors_failed:
            self._vectors_failed = True
            _log.warning(
                "searching by words only, until the embedding model works again (it is asked every "
                "%g s): %s",
                EMBED_PAUSE,
                describe(error),
            )

    async def close(self) -> None:
        """Close the index, end the threads and the process that reads files.

        What they are doing is broken off; a file that is being read is read at the next start. A
        refresh or search that comes later is a `KnowledgeError`. A cancelled call may leave
        the reading thread open; call it again.
        """
        self._documents.close()
        await self._writer.close()
        await self._reader.close()
        await in_thread(self._documents.rest)


async def _vectors(
    embedder: Embeds, missing: Sequence[tuple[int, str]]
) -> dict[int, Sequence[float]]:
    """Return the vectors of passages by their rows, an empty one for each that is refused.

    Raises:
        AgentsrvError: The model refused the only one, the first `ALONE` of them, or what it had
            taken before: then no passage is at fault.
    """
    try:
        vectors = await embedder.embed([text for _, text in missing])
    except AgentsrvError:
        if len(missing) == 1:
            raise
    else:
        return dict(zip((row for row, _ in missing), vectors, strict=True))
    # one passage that is too long for the model fails its whole batch
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
            elif len(found) == min(ALONE, len(missing)):
                raise
            _log.warning("a passage is left without a vector: %s", error)
    return found


class _DatabaseThread:
    """One thread with its own connection, opened at the first call."""

    def __init__(self, database: Path) -> None:
        self._database = database
        name = f"{threads.NAME}-knowledge"
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._index: Index | None = None
        self._closed = False

    async def call(self, function: Callable[[Index], _T]) -> _T:
        """Run ``function`` in the thread; cancelling does not stop it once it runs."""
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
        """Close the connection; a thread that its file system does not answer is left behind."""
        if self._closed:
            return
        self._closed = True
        if self._index is not None:
            self._index.interrupt()
        closing = asyncio.get_running_loop().run_in_executor(self._thread, self._shut)
        try:
            await asyncio.wait({closing}, timeout=CLOSE_PATIENCE)
        finally:
            # also when cancelled: what waits in the queue, such as the closing, still runs
            self._thread.shutdown(wait=False)

    def _shut(self) -> None:
        if self._index is not None:
            self._index.close()
            self._index = None
