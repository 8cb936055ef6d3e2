"""Which passages answer a query best: candidates from the index, ranked, fused and chosen."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

from agentsrv.knowledge.index import Candidate, Index
from agentsrv.knowledge.text import Term, content_stem, fold, spellings, terms, word_at

MAX_QUERY_TERMS = 16  # the rarest words of a long query; more add time and little else
MAX_TERMS = 1_000  # of a query, which are looked up
CANDIDATES = 48  # passages that BM25 hands to the ranking that looks inside them
PAIRED = 6  # terms of which two must stand in a passage, at first
ENOUGH = 2  # times the wanted passages: with fewer, one term has to do
WINDOW = 180  # characters within which query terms count as standing together
DUPLICATE = 0.8  # Jaccard similarity of the words of two passages that say the same
SAME_SOURCE = 0.75  # factor of the score for each passage of that file already chosen
SAME_SOURCE_FUSED = 0.9  # the same for fused scores, which differ less
FLATTENING = 60  # the constant of rank fusion: how little the first places count above the next

Ranked = tuple[float, Candidate]
"""A passage and its score; higher is better."""


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


def find(
    index: Index, query: str, limit: int, nearest: Sequence[int] | None = None
) -> list[Passage]:
    """Search ``index`` as `KnowledgeBase.search` describes; for the thread that owns it.

    ``nearest`` are the rows that are nearest to the query in meaning, the best first; without
    them only words count.
    """
    weights = weigh(index, terms(query))
    if not weights or limit < 1:
        return []
    candidates = index.match(match_pairs(weights), CANDIDATES) if len(weights) > 1 else []
    hits = _relative(candidates)
    if len(hits) < ENOUGH * limit:
        # rarely needed: ranking all passages that have any one of the words takes ten times longer
        hits = _relative(index.match(match_any(weights), CANDIDATES)) | hits
    ranked = rank(hits, weights)
    if nearest is None:
        return choose(ranked, limit, SAME_SOURCE)
    return choose(_hybrid(index, ranked, nearest), limit, SAME_SOURCE_FUSED)


def _hybrid(index: Index, ranked: Sequence[Ranked], nearest: Sequence[int]) -> list[Ranked]:
    """Fuse the ranking by words with that by meaning."""
    hits = {hit.rowid: hit for _, hit in ranked}
    hits |= {hit.rowid: hit for hit in index.fetch([row for row in nearest if row not in hits])}
    scores = fuse(([hit.rowid for _, hit in ranked], [row for row in nearest if row in hits]))
    return _sorted([(score * hits[row].factor, hits[row]) for row, score in scores.items()])


def weigh(index: Index, found: Iterable[Term]) -> dict[Term, float]:
    """Return the `MAX_QUERY_TERMS` rarest terms with their inverse document frequency."""
    passages = index.size()
    distinct = {term.stem: term for term in islice(found, MAX_TERMS)}
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


def rank(hits: dict[int, Candidate], weights: dict[Term, float]) -> list[Ranked]:
    """Rank ``hits`` by what they cover of the weighted terms, the best first."""
    cover = _Cover(weights)
    return _sorted([(hit.score * hit.factor * cover.fit(hit), hit) for hit in hits.values()])


def _sorted(ranked: list[Ranked]) -> list[Ranked]:
    return sorted(ranked, key=lambda entry: (-entry[0], entry[1].source, entry[1].line))


def choose(ranking: Iterable[Ranked], limit: int, same_source: float) -> list[Passage]:
    """Choose up to ``limit`` passages of a ranking that differ.

    ``same_source`` is the factor of a score for each passage of that file already chosen.
    """
    ranked = list(ranking)
    chosen: list[Passage] = []
    seen: list[frozenset[str]] = []
    per_source: Counter[str] = Counter()
    while ranked and len(chosen) < limit:
        best = max(ranked, key=lambda entry: entry[0] * same_source ** per_source[entry[1].source])
        ranked.remove(best)
        score, hit = best
        body = frozenset(hit.text.lower().split())
        if any(_similarity(body, other) >= DUPLICATE for other in seen):
            continue
        seen.append(body)
        score *= same_source ** per_source[hit.source]
        per_source[hit.source] += 1
        chosen.append(
            Passage(hit.rowid, hit.source, hit.title, hit.text, round(score, 4), hit.line)
        )
    return chosen


def fuse(rankings: Iterable[Sequence[int]]) -> dict[int, float]:
    """Fuse rankings into one score each: the sum of ``1 / (60 + rank)`` over the rankings.

    Reciprocal rank fusion: G. V. Cormack, C. L. A. Clarke, S. Büttcher, "Reciprocal rank fusion
    outperforms Condorcet and individual rank learning methods", SIGIR 2009. Only ranks count, so
    scores of different kinds need not compare.
    """
    scores: dict[int, float] = {}
    for rank, row in chain.from_iterable(enumerate(ranking, start=1) for ranking in rankings):
        scores[row] = scores.get(row, 0.0) + 1 / (FLATTENING + rank)
    return scores


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
