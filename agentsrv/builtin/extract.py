"""Selects sentences that answer a question, by published extractive methods.

Theory of operation
===================

No sentence is written or changed: the functions score and select sentences of documents. They are
pure and deterministic; sentences with equal scores keep their order.

1. `quality` decides from the form whether a sentence can be read alone: length, punctuation, prose
   rather than code. Sentences that need the one before (`needs_context`: "This is ...") or that
   speak in the first person get a lower value.
2. `specificity` weights each stem of the question by its rarity, and `relevance` is the share of
   the question's weight that a sentence contains, in itself or (at a discount) in its headings and
   its neighbours.
3. `Graph.centrality` runs a random walk over the sentences (topic-sensitive LexRank): it jumps to
   relevant sentences and moves between similar ones. The stationary probability is high for
   relevant sentences that many others resemble.
4. `Graph.diversify` selects by maximal marginal relevance: the best sentence that is not too
   similar to those already selected.

References:
    Topic-sensitive LexRank: J. Otterbacher, G. Erkan, D. R. Radev, "Using random walks for
    question-focused sentence retrieval", HLT/EMNLP 2005; the graph and its similarity from
    G. Erkan, D. R. Radev, "LexRank: graph-based lexical centrality as salience in text
    summarization", Journal of Artificial Intelligence Research 22, 2004.
    Maximal marginal relevance: J. Carbonell, J. Goldstein, "The use of MMR, diversity-based
    reranking for reordering documents and producing summaries", SIGIR 1998.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from agentsrv.knowledge.documents import is_prose

MIN_STATEMENT_WORDS = 5
MAX_STATEMENT_WORDS = 48
MAX_STATEMENT = 2_000  # characters
DAMPING = 0.7  # d: weight of the question against the other sentences (0 to 1)
TOLERANCE = 1e-6  # change of the ranks at which the iteration ends
MAX_ITERATIONS = 60  # at d = 0.7 each one reduces the error to 0.3: 12 are enough
DIVERSITY = 0.7  # lambda: relevance against novelty (1: no diversity)
REDUNDANT_SIMILARITY = 0.6  # to a selected sentence, from which a sentence adds nothing
CONTEXT_FACTOR = 0.35  # for a sentence that needs the one before it
PERSONAL_FACTOR = 0.6  # for "I", "we" and similar words: an opinion, seldom a fact

_DANGLING = re.compile(
    r"(?:this|that|these|those|it|its|they|their|he|she|his|her|such|here|there|both|either|neither"
    r"|one|another|others?|some|however|therefore|thus|hence|also|but|and|or|so|then|otherwise"
    r"|instead|similarly|likewise|moreover|furthermore|additionally|consequently|accordingly"
    r"|nevertheless|nonetheless|meanwhile|conversely|rather|again|finally|lastly|first|second"
    r"|third|next|in contrast|by contrast|in addition|in this|in that|in these|in such|in both"
    r"|in either|for this|for that|for these|for example|for instance|as a result|as such|at this"
    r"|at that|after that|because of this|on the other hand|the same|the latter|the former"
    r"|the above|the following|as above|see|note|e\.g\.|i\.e\.|to do so|to do this|if so|if not"
    r"|even so|that said|alternatively)\b",
    re.IGNORECASE,
)
_PERSONAL = re.compile(r"\b(?:I(?![/\w])|we|we're|we've|we'll|my|our|us)\b")
_POINTING = re.compile(
    r"\b(?:as follows|(?:see|shown|listed|described|discussed|given|mentioned) (?:below|above)"
    r"|the (?:example|section|table|figure|code) (?:above|below)|next section|this (?:section|file"
    r"|document|chapter|page|manual|directory))\b",
    re.IGNORECASE,
)
# "If you need these variables": the sentence before names them.
_LEANING = re.compile(
    r"(?:if|when|since|because|as|although|while|to|for|by|in|on|with|after|before|once|unless"
    r"|usually|often|sometimes|normally|typically|generally|currently|unfortunately)\b"
    r"[^,.;]{0,50}\b(?:this|that|these|those|such|it|they|them)\b",
    re.IGNORECASE,
)
_ENDS = re.compile(r"(?<!e\.g)(?<!i\.e)(?<!etc)(?<! )[.!][\"'”’)]*$")
_BEGINS = re.compile(r"[\"'“‘(]?(?:[A-Z0-9]|[a-z]+[(._][\w.()]+ )")
_ODD = re.compile(
    r"https?://|\S+@\S+\.\w|\b\w+_\w+_\w+|[/\\]\w+[/\\]|\s--?\w|::|[{}=;|#]|\s[.:]\s"
    r"|^[\w-]+: |#\d{3,}|\bv?\d+\.\d+\.\d+"
)


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of a passage, with the values that the methods need.

    Attributes:
        text: The sentence as in the passage.
        passage: Number of the passage.
        order: Position within the passage, from 0.
        stems: Stems of its content words.
        context: Stems of the headings above it.
        nearby: Stems of the whole passage.
        prior: Quality of the passage and of the sentence's form, 0 to 1.
    """

    text: str
    passage: int
    order: int
    stems: tuple[str, ...]
    context: frozenset[str]
    nearby: frozenset[str]
    prior: float


def quality(text: str) -> float:
    """Return how well ``text`` can be read alone as a statement: 0 (not at all) to 1."""
    if len(text) > MAX_STATEMENT:
        return 0.0
    count = len(text.split())
    if not MIN_STATEMENT_WORDS <= count <= MAX_STATEMENT_WORDS:
        return 0.0
    if not (_ENDS.search(text) and _BEGINS.match(text) and is_prose(text)):
        return 0.0
    if text.count("(") != text.count(")") or text.count('"') % 2:
        return 0.0
    factor = 1.0
    if needs_context(text):
        factor *= CONTEXT_FACTOR
    if _PERSONAL.search(text):
        factor *= PERSONAL_FACTOR
    return factor * 0.8 ** len(_ODD.findall(text))


def needs_context(text: str) -> bool:
    """Return whether ``text`` cannot be understood without the sentence before it."""
    return any((_DANGLING.match(text), _LEANING.match(text), _POINTING.search(text)))


def specificity(pool: Sequence[Sentence], query: Iterable[str]) -> dict[str, float]:
    """Return the weight of each ``query`` stem: ``1 + log10(1 + N / n)``, in n of the N sentences.

    The constant limits how much a rare word can outweigh the others. A stem that occurs in no
    sentence has weight 0, because it distinguishes none.
    """
    found = Counter(stem for sentence in pool for stem in {*sentence.stems, *sentence.context})
    return {
        stem: 1 + math.log10(1 + len(pool) / found[stem]) if found[stem] else 0.0 for stem in query
    }


def relevance(sentence: Sentence, weights: Mapping[str, float]) -> float:
    """Return the share of the question's weight that the sentence contains, 0 to 1.

    A stem that occurs only in the headings above it counts half, one that occurs only in the
    sentences around it a quarter.
    """
    total = sum(weights.values())
    if not total:
        return 0.0
    covered = 0.0
    for stem, weight in weights.items():
        if stem in sentence.stems:
            covered += weight
        elif stem in sentence.context:
            covered += weight / 2
        elif stem in sentence.nearby:
            covered += weight / 4
    return covered / total


class Graph:
    """Sentences and the similarity of each pair: the idf-modified cosine of LexRank.

    ``sim(x, y) = sum(tf(w,x) tf(w,y) idf(w)^2) / (|x| |y|)`` over the common words ``w``, where
    ``|x| = sqrt(sum((tf(w,x) idf(w))^2))`` and ``idf(w) = log(1 + N / n(w))``.
    """

    def __init__(self, sentences: Sequence[Sentence]) -> None:
        self.sentences = sentences
        frequency = Counter(stem for sentence in sentences for stem in set(sentence.stems))
        size = len(sentences)
        self._vectors = []
        for sentence in sentences:
            counts = Counter(sentence.stems)
            vector = {
                stem: count * math.log(1 + size / frequency[stem]) for stem, count in counts.items()
            }
            norm = math.sqrt(sum(value * value for value in vector.values())) or 1.0
            self._vectors.append({stem: value / norm for stem, value in vector.items()})

    def similarity(self, number: int, other: int) -> float:
        """Return the similarity of the sentences with these numbers, 0 to 1."""
        first, second = self._vectors[number], self._vectors[other]
        if len(second) < len(first):
            first, second = second, first
        return sum(value * second[stem] for stem, value in first.items() if stem in second)

    def centrality(self, bias: Sequence[float], damping: float = DAMPING) -> list[float]:
        """Return the topic-sensitive LexRank of each sentence, scaled to a maximum of 1.

        ``p(s) = d bias(s) / sum(bias) + (1 - d) sum over v of sim(s,v) / sum(sim(.,v)) p(v)``,
        iterated until it converges. ``bias`` is the relevance of each sentence.
        """
        size = len(self.sentences)
        total = sum(bias)
        if not size or not total:
            return [0.0] * size
        start = [value / total for value in bias]
        rows = self._transitions()
        ranks = start
        for _ in range(MAX_ITERATIONS):
            spread = [0.0] * size
            for rank, row in zip(ranks, rows, strict=True):
                for place, weight in row:
                    spread[place] += weight * rank
            following = [
                damping * own + (1 - damping) * other
                for own, other in zip(start, spread, strict=True)
            ]
            change = sum(abs(a - b) for a, b in zip(ranks, following, strict=True))
            ranks = following
            if change < TOLERANCE:
                break
        highest = max(ranks)
        return [rank / highest for rank in ranks]

    def _transitions(self) -> list[list[tuple[int, float]]]:
        """Return for each sentence the sentences to which the walk moves, and how likely."""
        size = len(self.sentences)
        rows: list[list[tuple[int, float]]] = [[] for _ in range(size)]
        for number in range(size):
            for other in range(number):
                if (weight := self.similarity(number, other)) > 0:
                    rows[number].append((other, weight))
                    rows[other].append((number, weight))
        for number, row in enumerate(rows):
            # A sentence that is similar to no other keeps its rank.
            total = sum(weight for _, weight in row) or 1.0
            rows[number] = [(other, weight / total) for other, weight in row] or [(number, 1.0)]
        return rows

    def diversify(
        self,
        scores: Sequence[float],
        limit: int,
        chosen: Iterable[int] = (),
        spread: float = 0.0,
    ) -> list[int]:
        """Choose up to ``limit`` sentences by maximal marginal relevance, the best first.

        ``MMR = argmax(lambda score(s) - (1 - lambda) max over chosen c of sim(s, c))``. A sentence
        with score 0, or too similar to one that is already ``chosen``, is never selected. Two
        sentences of one passage count as similar by at least ``spread``, so a larger value selects
        from more passages.
        """
        done = list(chosen)
        nearest = {
            number: max((self.similarity(number, other) for other in done), default=0.0)
            for number, score in enumerate(scores)
            if score > 0 and number not in done
        }
        picked: list[int] = []
        while len(picked) < limit:
            open_ = [number for number, value in nearest.items() if value < REDUNDANT_SIMILARITY]
            if not open_:
                break
            best = max(
                open_,
                key=lambda number: DIVERSITY * scores[number] - (1 - DIVERSITY) * nearest[number],
            )
            picked.append(best)
            del nearest[best]
            for number, value in nearest.items():
                same = self.sentences[number].passage == self.sentences[best].passage
                like = self.similarity(number, best)
                nearest[number] = max(value, like, spread if same else 0.0)
        return picked
