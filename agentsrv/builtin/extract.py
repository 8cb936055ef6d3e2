"""Choosing sentences that answer a question, by published extractive methods.

Nothing here writes a sentence: every one comes out as it went in. Pure functions without
randomness; sentences of equal score keep the order in which they came.

The methods:
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
DAMPING = 0.7  # d: how much the question counts against the other sentences (0 to 1)
TOLERANCE = 1e-6  # change of the ranks at which the iteration ends
MAX_ITERATIONS = 60  # at d = 0.7 the error shrinks to 0.3 in each: 12 are enough
DIVERSITY = 0.7  # lambda: relevance against novelty (1: no diversity)
REDUNDANT = 0.6  # similarity to a chosen sentence from which one adds nothing
DANGLING = 0.35  # factor for a sentence that leans on the one before it
PERSONAL = 0.6  # factor for "I", "we" and the like: a voice, seldom a fact

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
# "If you need these variables": what is pointed at stands in the sentence before
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
    """A sentence of a passage, with what the methods need to know about it.

    Attributes:
        text: As it stands in the passage.
        passage: Number of the passage.
        order: Its place within the passage, from 0.
        stems: Stems of its content words.
        context: Stems of the headings above it.
        nearby: Stems of the whole passage.
        prior: 0 to 1, how good the passage and the form of the sentence are.
    """

    text: str
    passage: int
    order: int
    stems: tuple[str, ...]
    context: frozenset[str]
    nearby: frozenset[str]
    prior: float


def quality(text: str) -> float:
    """Return how well ``text`` stands on its own as a statement: 0 (not at all) to 1."""
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
    if leans(text):
        factor *= DANGLING
    if _PERSONAL.search(text):
        factor *= PERSONAL
    return factor * 0.8 ** len(_ODD.findall(text))


def leans(text: str) -> bool:
    """Tell whether ``text`` needs the sentence before it to be understood."""
    return any((_DANGLING.match(text), _LEANING.match(text), _POINTING.search(text)))


def specificity(pool: Sequence[Sentence], query: Iterable[str]) -> dict[str, float]:
    """Return the weight of each ``query`` stem: ``1 + log10(1 + N / n)``, in n of the N sentences.

    The constant keeps a rare word from outweighing all the others of a question. A stem that no
    sentence has weighs nothing, for it cannot tell one from another.
    """
    found = Counter(stem for sentence in pool for stem in {*sentence.stems, *sentence.context})
    return {
        stem: 1 + math.log10(1 + len(pool) / found[stem]) if found[stem] else 0.0 for stem in query
    }


def relevance(sentence: Sentence, weights: Mapping[str, float]) -> float:
    """Return the part of the question's weight that the sentence has, 0 to 1.

    What only the headings above it mention counts half, what only the sentences around it
    mention a quarter.
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
    """Sentences and how much each two have in common: the idf-modified cosine of LexRank.

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

    def similarity(self, one: int, other: int) -> float:
        """Return how much the sentences of these numbers have in common, 0 to 1."""
        first, second = self._vectors[one], self._vectors[other]
        if len(second) < len(first):
            first, second = second, first
        return sum(value * second[stem] for stem, value in first.items() if stem in second)

    def centrality(self, bias: Sequence[float], damping: float = DAMPING) -> list[float]:
        """Return the topic-sensitive LexRank of each sentence, the highest being 1.

        ``p(s) = d bias(s) / sum(bias) + (1 - d) sum over v of sim(s,v) / sum(sim(.,v)) p(v)``,
        iterated until it no longer changes. ``bias`` is the relevance of each sentence.
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
        """Return for each sentence where the walk goes on from it, and how likely."""
        size = len(self.sentences)
        rows: list[list[tuple[int, float]]] = [[] for _ in range(size)]
        for one in range(size):
            for other in range(one):
                if (weight := self.similarity(one, other)) > 0:
                    rows[one].append((other, weight))
                    rows[other].append((one, weight))
        for number, row in enumerate(rows):
            # a sentence keeps its own rank where it is like no other
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

        ``MMR = argmax(lambda score(s) - (1 - lambda) max over chosen c of sim(s, c))``. Sentences
        without a score, or too much like one that is ``chosen`` already, are never taken. Two
        sentences of one passage count as at least ``spread`` alike: more draws on more passages.
        """
        done = list(chosen)
        nearest = {
            number: max((self.similarity(number, other) for other in done), default=0.0)
            for number, score in enumerate(scores)
            if score > 0 and number not in done
        }
        picked: list[int] = []
        while len(picked) < limit:
            open_ = [number for number, value in nearest.items() if value < REDUNDANT]
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
