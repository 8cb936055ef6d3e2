"""KnowledgeBase: a folder of documents that agents can search.

The folder is read into an SQLite file with a full-text index (FTS5, Porter stems, BM25), and
searched without the network, a model or chance: the same folder and the same query give the
same passages.
"""

from __future__ import annotations

import asyncio
import math
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from agentsrv.agents.knowledge.index import Candidate, FoundFile, Index, scan
from agentsrv.agents.text import Term, content_stem, fold, spellings, terms, word_at
from agentsrv.errors import KnowledgeError

OnProgress = Callable[[int, int, str], Awaitable[None]]
"""Is told how many files are done, how many there are, and what happened."""

BATCH_SECONDS = 0.25  # of reading per transaction: what a cancelled refresh still finishes
REMOVALS = 500  # files forgotten per transaction
OPTIMIZE_FROM = 200  # files changed by a refresh, to make merging the index worth its time
MAX_QUERY_TERMS = 16  # the rarest words of a long query; more add time and little else
CANDIDATES = 48  # passages that BM25 hands to the ranking that looks inside them
PAIRED = 6  # terms of which two must stand in a passage, at first
ENOUGH = 2  # times the wanted passages: with fewer, one term has to do
WINDOW = 180  # characters within which query terms count as standing together
DUPLICATE = 0.8  # Jaccard similarity of the words of two passages that say the same
SAME_SOURCE = 0.75  # factor of the score for each passage of that file already chosen

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Passage:
    """Some 100 to 200 words of one document.

    Attributes:
        passage_id: Its number in this index; not stable over a rebuild.
        source: Path of the file, relative to the folder, with ``/``.
        title: Path of headings above it, or the file's title.
        text: Whole sentences without markup; paragraphs are separated by empty lines.
        score: Higher is better; comparable within the result of one search only.
        line: First line in the source file, 0 where it has none (PDF).
    """

    passage_id: int
    source: str
    title: str
    text: str
    score: float
    line: int


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

    Nothing is opened before the first call. Owns two threads, one that writes and one that
    reads, so that searches go on while the folder is read; `close` ends them.
    """

    def __init__(self, folder: Path, database: Path) -> None:
        self._folder = folder
        self._writer = _Desk(database)
        self._reader = _Desk(database)
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
        return index.read(self._folder.resolve(), files, BATCH_SECONDS)

    async def search(self, query: str, limit: int = 5) -> list[Passage]:
        """Return the passages that answer ``query`` best, at most ``limit``, the best first.

        Any text is a valid query. Passages that have more of its words, and have them close
        together, come first; near-duplicates are left out, and passages of one file give way
        to those of others. Empty where nothing matches or nothing was indexed yet.

        Raises:
            KnowledgeError: The index cannot be read, or was closed.
        """
        return await self._reader.call(lambda index: find(index, query, limit))

    async def close(self) -> None:
        """Close the index and end the threads, after what they are doing now.

        A refresh or search that comes later is a `KnowledgeError`. A cancelled call may leave
        the reading thread open; call it again.
        """
        await self._writer.close()
        await self._reader.close()


class _Desk:
    """One thread with its own connection, opened at the first call."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="knowledge")
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
        if self._closed:
            return
        self._closed = True
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._shut)
        finally:
            # also when cancelled: what waits in the queue, such as the closing, still runs
            self._thread.shutdown(wait=False)

    def _shut(self) -> None:
        if self._index is not None:
            self._index.close()
            self._index = None


def find(index: Index, query: str, limit: int) -> list[Passage]:
    """Search ``index`` as `KnowledgeBase.search` describes; for the thread that owns it."""
    weights = weigh(index, terms(query))
    if not weights or limit < 1:
        return []
    candidates = index.match(match_pairs(weights), CANDIDATES) if len(weights) > 1 else []
    hits = _relative(candidates)
    if len(hits) < ENOUGH * limit:
        # rarely needed: ranking all passages that have any one of the words takes ten times longer
        hits = _relative(index.match(match_any(weights), CANDIDATES)) | hits
    return choose(hits, weights, limit)


def weigh(index: Index, found: Iterable[Term]) -> dict[Term, float]:
    """Return the `MAX_QUERY_TERMS` rarest terms with their inverse document frequency."""
    passages = index.size()
    distinct = {term.stem: term for term in found}
    weights = {
        term: math.log(1 + passages / (1 + index.frequency(stem)))
        for stem, term in distinct.items()
    }
    rarest = sorted(weights, key=lambda term: (-weights[term], term.stem))[:MAX_QUERY_TERMS]
    return {term: weights[term] for term in rarest}


def match_any(found: Iterable[Term]) -> str:
    """Return the FTS5 expression that any of the terms matches, in any of its spellings.

    Every word is quoted, so no text of a user can be read as an operator.
    """
    return " OR ".join(_quoted(term) for term in found)


def match_pairs(found: Iterable[Term]) -> str:
    """Return the FTS5 expression that any two of the first `PAIRED` terms match together."""
    words = [_quoted(term) for term in found][:PAIRED]
    return " OR ".join(
        f"({word} AND ({' OR '.join(words[place:])}))"
        for place, word in enumerate(words[:-1], start=1)
    )


def _quoted(term: Term) -> str:
    variants = ('"{}"'.format(word.replace('"', '""')) for word in spellings(fold(term.surface)))
    return f"({' OR '.join(variants)})"


def _relative(candidates: list[Candidate]) -> dict[int, Candidate]:
    """Return the candidates by row, their scores in parts of the best one's.

    BM25 adds up the terms of an expression, so the scores of two expressions do not compare.
    """
    best = max((candidate.score for candidate in candidates), default=1.0)
    return {
        candidate.rowid: replace(candidate, score=candidate.score / best)
        for candidate in candidates
    }


def choose(hits: dict[int, Candidate], weights: dict[Term, float], limit: int) -> list[Passage]:
    """Rank ``hits`` by what they cover of the weighted terms, and diversify."""
    cover = _Cover(weights)
    ranked = [(hit.score * hit.factor * cover.fit(hit), hit) for hit in hits.values()]
    ranked.sort(key=lambda entry: (-entry[0], entry[1].source, entry[1].line))
    chosen: list[Passage] = []
    seen: list[frozenset[str]] = []
    per_source: Counter[str] = Counter()
    while ranked and len(chosen) < limit:
        best = max(ranked, key=lambda entry: entry[0] * SAME_SOURCE ** per_source[entry[1].source])
        ranked.remove(best)
        score, hit = best
        body = frozenset(hit.text.lower().split())
        if any(_similarity(body, other) >= DUPLICATE for other in seen):
            continue
        seen.append(body)
        score *= SAME_SOURCE ** per_source[hit.source]
        per_source[hit.source] += 1
        chosen.append(
            Passage(hit.rowid, hit.source, hit.title, hit.text, round(score, 4), hit.line)
        )
    return chosen


class _Cover:
    """Measures how much of a query a passage covers, by the weights of the terms."""

    def __init__(self, weights: dict[Term, float]) -> None:
        self._weights = {term.stem: weight for term, weight in weights.items()}
        self._total = sum(weights.values()) or 1.0
        # Only words that begin like a query term are stemmed. Stemming changes no more than
        # the last letters, and doing it to every word of 50 passages takes 15 ms.
        starts = {
            re.escape(word[: max(2, len(stem) - 2)])
            for term in weights
            for stem in (term.stem,)
            for word in (stem, *spellings(fold(term.surface)))
        }
        # no look-behind and no flags: only so can the engine skip to possible first letters
        self._likely = re.compile("|".join(sorted(starts)))

    def fit(self, hit: Candidate) -> float:
        """Return 0.2 to 1.7: what the passage covers, and covers within `WINDOW` characters."""
        places = self._places(hit.text)
        heading = self._places(f"{hit.title} {hit.source.replace('_', ' ')}")
        present = {stem for _, stem in places}
        covered = sum(self._weights[stem] for stem in present.union(stem for _, stem in heading))
        nearest = 0.0
        for first, (place, _) in enumerate(places):
            near = {stem for other, stem in places[first:] if other - place < WINDOW}
            nearest = max(nearest, sum(self._weights[stem] for stem in near))
            if len(near) == len(present):
                break
        return 0.2 + (covered / self._total) ** 2 + 0.5 * nearest / self._total

    def _places(self, text: str) -> list[tuple[int, str]]:
        text = text.lower()
        found = []
        for match in self._likely.finditer(text):
            start = match.start()
            if start and text[start - 1].isalnum():
                continue
            stem = content_stem(word_at(text, start))
            if stem in self._weights:
                found.append((start, stem))
        return found


def _similarity(one: frozenset[str], other: frozenset[str]) -> float:
    """Return the Jaccard similarity: the part of all words that both have."""
    union = len(one | other)
    return len(one & other) / union if union else 1.0
