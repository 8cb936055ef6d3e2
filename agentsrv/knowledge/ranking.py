"""Selects the passages that answer a query: candidates from the index, ranked, fused, chosen.

Theory of operation
===================

1. `weigh` keeps the rarest terms of the query, weighted by inverse document frequency.
2. The index returns up to `MAX_CANDIDATES` passages by BM25. First each passage must contain two of
   the terms (`match_pairs`); if that finds too few, one term is enough (`match_any`). Ranking by
   pairs is ten times faster, because few passages match.
3. `rank` multiplies the BM25 score, relative to the best one, by two factors: the file's
   (`Candidate.factor`: change logs and licences count less), and the coverage (`_Cover.fit`): how
   much of the query's weight the passage contains, and contains within `PROXIMITY` characters.
4. With an embedding model, `fuse` combines this ranking with that of the nearest vectors by
   reciprocal rank fusion, for which the scores need not be comparable.
5. `choose` takes the best passages, without near-duplicates. Each passage of a file reduces the
   scores of the file's other passages, so that several files are represented.

The result is deterministic: equal scores are ordered by source and line.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

from agentsrv.knowledge.index import Candidate, Index
from agentsrv.knowledge.text import Term, content_stem, fold, spellings, terms, word_at

MAX_QUERY_TERMS = 16  # the rarest words of a long query; further ones take time and add little
MAX_TERMS = 1_000  # words of a query whose frequency is looked up
MAX_CANDIDATES = 48  # passages from the index that are ranked by their content
MAX_PAIRED_TERMS = 6  # terms of which a candidate must contain two
MIN_CANDIDATES_FACTOR = 2  # times the limit: with fewer candidates, one term is enough
PROXIMITY = 180  # characters within which query terms count as close together
DUPLICATE_SIMILARITY = 0.8  # Jaccard similarity from which two passages count as duplicates
SAME_SOURCE_FACTOR = 0.75  # factor of the score for each passage of the same file already chosen
FUSED_SAME_SOURCE_FACTOR = 0.9  # the same for fused scores, which differ less
FUSION_CONSTANT = 60  # rank fusion: a larger value favours the first places less

Ranked = tuple[float, Candidate]
"""A score and its passage; higher is better."""


@dataclass(frozen=True, slots=True)
class Passage:
    """About 100 to 200 words of one document.

    Attributes:
        passage_id: Its number in this index; changes when the index is rebuilt.
        source: Path of the file, relative to the folder, with ``/``.
        title: Path of the headings above it, or the file's title.
        text: Whole sentences without markup; paragraphs are separated by empty lines.
        score: Higher is better; comparable within the result of one search only.
        line: First line in the source file; 0 if the file has no lines (PDF).
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
    """Search ``index`` as `KnowledgeBase.search` describes; call it in the index's thread.

    ``nearest`` are the rows nearest to the query in meaning, the best first; ``None`` ranks by
    words only.
    """
    weights = weigh(index, terms(query))
    if not weights or limit < 1:
        return []
    candidates = index.match(match_pairs(weights), MAX_CANDIDATES) if len(weights) > 1 else []
    hits = _relative(candidates)
    if len(hits) < MIN_CANDIDATES_FACTOR * limit:
        hits = _relative(index.match(match_any(weights), MAX_CANDIDATES)) | hits
    ranked = rank(hits, weights)
    if nearest is None:
        return choose(ranked, limit, SAME_SOURCE_FACTOR)
    return choose(_hybrid(index, ranked, nearest), limit, FUSED_SAME_SOURCE_FACTOR)


def _hybrid(index: Index, ranked: Sequence[Ranked], nearest: Sequence[int]) -> list[Ranked]:
    """Fuse the ranking by words with the ranking by meaning."""
    hits = {hit.rowid: hit for _, hit in ranked}
    hits |= {hit.rowid: hit for hit in index.fetch([row for row in nearest if row not in hits])}
    scores = fuse(([hit.rowid for _, hit in ranked], [row for row in nearest if row in hits]))
    return _sorted([(score * hits[row].factor, hits[row]) for row, score in scores.items()])


def weigh(index: Index, found: Iterable[Term]) -> dict[Term, float]:
    """Return the `MAX_QUERY_TERMS` rarest terms with their inverse document frequencies."""
    passages = index.size()
    distinct = {term.stem: term for term in islice(found, MAX_TERMS)}
    weights = {
        term: math.log(1 + passages / (1 + index.frequency(stem)))
        for stem, term in distinct.items()
    }
    rarest = sorted(weights, key=lambda term: (-weights[term], term.stem))[:MAX_QUERY_TERMS]
    return {term: weights[term] for term in rarest}


def match_any(found: Iterable[Term]) -> str:
    """Return the FTS5 expression that matches any of the terms, in any of its spellings.

    Every word is quoted, so a user's text cannot contain operators.
    """
    return " OR ".join(_quoted(term) for term in found)


def match_pairs(found: Iterable[Term]) -> str:
    """Return the FTS5 expression that matches any two of the first `MAX_PAIRED_TERMS` terms."""
    words = [_quoted(term) for term in found][:MAX_PAIRED_TERMS]
    return " OR ".join(
        f"({word} AND ({' OR '.join(words[place:])}))"
        for place, word in enumerate(words[:-1], start=1)
    )


def _quoted(term: Term) -> str:
    variants = ('"{}"'.format(word.replace('"', '""')) for word in spellings(fold(term.surface)))
    return f"({' OR '.join(variants)})"


def _relative(candidates: list[Candidate]) -> dict[int, Candidate]:
    """Return the candidates by row, with scores relative to the best one.

    BM25 sums over the terms of an expression, so scores of two expressions are not comparable.
    """
    best = max((candidate.score for candidate in candidates), default=1.0)
    return {
        candidate.rowid: replace(candidate, score=candidate.score / best)
        for candidate in candidates
    }


def rank(hits: dict[int, Candidate], weights: dict[Term, float]) -> list[Ranked]:
    """Rank ``hits`` by score and by their coverage of the weighted terms, best first."""
    cover = _Cover(weights)
    return _sorted([(hit.score * hit.factor * cover.fit(hit), hit) for hit in hits.values()])


def _sorted(ranked: list[Ranked]) -> list[Ranked]:
    return sorted(ranked, key=lambda entry: (-entry[0], entry[1].source, entry[1].line))


def choose(ranking: Iterable[Ranked], limit: int, same_source: float) -> list[Passage]:
    """Choose up to ``limit`` different passages of a ranking.

    ``same_source`` is the factor of a score for each passage of the same file already chosen.
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
        if any(_similarity(body, other) >= DUPLICATE_SIMILARITY for other in seen):
            continue
        seen.append(body)
        score *= same_source ** per_source[hit.source]
        per_source[hit.source] += 1
        chosen.append(
            Passage(hit.rowid, hit.source, hit.title, hit.text, round(score, 4), hit.line)
        )
    return chosen


def fuse(rankings: Iterable[Sequence[int]]) -> dict[int, float]:
    """Return the sum of ``1 / (60 + rank)`` over the rankings, for each row.

    Reciprocal rank fusion: G. V. Cormack, C. L. A. Clarke, S. Büttcher, "Reciprocal rank fusion
    outperforms Condorcet and individual rank learning methods", SIGIR 2009. Only ranks count, so
    the scores of the rankings need not be comparable.
    """
    scores: dict[int, float] = {}
    for rank, row in chain.from_iterable(enumerate(ranking, start=1) for ranking in rankings):
        scores[row] = scores.get(row, 0.0) + 1 / (FUSION_CONSTANT + rank)
    return scores


class _Cover:
    """Measures the share of a query that a passage contains, by the terms' weights."""

    def __init__(self, weights: dict[Term, float]) -> None:
        self._weights = {term.stem: weight for term, weight in weights.items()}
        self._total = sum(weights.values()) or 1.0
        # Only words with the first letters of a query term are stemmed: stemming changes only the
        # last letters, and stemming every word of 50 passages takes 15 ms.
        starts = {
            re.escape(word[: max(2, len(stem) - 2)])
            for term in weights
            for stem in (term.stem,)
            for word in (stem, *spellings(fold(term.surface)))
        }
        # Without look-behind and flags the engine can skip to possible first letters.
        self._likely = re.compile("|".join(sorted(starts)))

    def fit(self, hit: Candidate) -> float:
        """Return 0.2 to 1.7: the weight that the passage contains, in all and close together."""
        places = self._places(hit.text)
        heading = self._places(f"{hit.title} {hit.source.replace('_', ' ')}")
        present = {stem for _, stem in places}
        covered = sum(self._weights[stem] for stem in present.union(stem for _, stem in heading))
        nearest = 0.0
        for first, (place, _) in enumerate(places):
            near = {stem for other, stem in places[first:] if other - place < PROXIMITY}
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


def _similarity(first: frozenset[str], second: frozenset[str]) -> float:
    """Return the Jaccard similarity: the share of all words that both contain."""
    union = len(first | second)
    return len(first & second) / union if union else 1.0
