"""Whether a passage states what a sentence says: by its words, without a model.

A quote is certain. A paraphrase is taken for supported if one or two neighbouring sentences of
the passage have most of its content words, all of its numbers, and deny as often as it does.
That is a test of words, not of meaning: a sentence about another subject, otherwise in the words
of its source, passes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from agentsrv.knowledge.stemmer import stem
from agentsrv.knowledge.text import fold, sentences, stems, words

ENOUGH: Final = 0.7  # of the content words of a paraphrase that its passage must have

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_DENIALS: Final = frozenset(
    "no not never none nor neither nobody nothing without cannot hardly seldom rarely".split()
)
_OPPOSITES: Final = tuple(
    (stem(one), stem(other))
    for one, other in (
        pair.split("/")
        for pair in (
            "more/less most/least more/fewer always/never high/low higher/lower raise/lower"
            " increase/decrease increase/reduce grow/shrink fast/slow faster/slower"
            " large/small larger/smaller long/short longer/shorter better/worse best/worst"
            " before/after first/last begin/end start/stop open/close allow/forbid"
            " require/forbid safe/unsafe cheap/expensive early/late strong/weak"
            " maximum/minimum success/failure succeed/fail enable/disable accept/refuse"
        ).split()
    )
)


@dataclass(frozen=True, slots=True)
class _Part:
    """One sentence, or two, as bags of words."""

    stems: frozenset[str]
    numbers: frozenset[str]
    all: frozenset[str]
    denials: int

    @classmethod
    def of(cls, text: str) -> _Part:
        spoken = [fold(word) for word in words(text)]
        return cls(
            stems=frozenset(stems(text)),
            numbers=frozenset(_NUMBER.findall(text)),
            all=frozenset(map(stem, spoken)),
            denials=sum(word in _DENIALS or word.endswith("n't") for word in spoken),
        )

    def joined(self, other: _Part) -> _Part:
        return _Part(
            stems=self.stems | other.stems,
            numbers=self.numbers | other.numbers,
            all=self.all | other.all,
            denials=self.denials + other.denials,
        )


class Evidence:
    """A passage (``title``, ``source``, ``text``) that statements are held against."""

    def __init__(self, passage: Mapping[str, Any]) -> None:
        self._text = " ".join(passage["text"].split())
        self._about = _Part.of(f"{passage['title']} {passage['source'].replace('_', ' ')}")
        self._sentences = [_Part.of(sentence) for sentence in sentences(passage["text"])]

    def quotes(self, text: str) -> bool:
        """Tell whether ``text`` stands in the passage, white space aside."""
        return " ".join(text.split()) in self._text

    def support(self, text: str) -> float:
        """Return the part of the content words of ``text`` that the passage states together.

        0 where a number is another one, where one of the two denies more often than the other,
        or where a word's opposite stands in its place.
        """
        claim = _Part.of(text)
        if not claim.stems:
            return 0.0
        parts = self._sentences
        best = max((self._single(claim, part) for part in parts), default=0.0)
        for one, other in pairwise(parts):
            nearer = max(one, other, key=lambda part: len(claim.stems & part.stems))
            if nearer.denials == claim.denials:
                best = max(best, self._cover(claim, one.joined(other)))
        return best

    def _single(self, claim: _Part, part: _Part) -> float:
        return self._cover(claim, part) if part.denials == claim.denials else 0.0

    def _cover(self, claim: _Part, part: _Part) -> float:
        whole = part.joined(self._about)
        if not claim.numbers <= whole.numbers or _opposed(claim.all, whole.all):
            return 0.0
        return len(claim.stems & whole.stems) / len(claim.stems)


def _opposed(claim: frozenset[str], passage: frozenset[str]) -> bool:
    """Tell whether one says a word and the other, instead of it, the word's opposite."""
    return any(
        (one in claim and other in passage and one not in passage and other not in claim)
        or (other in claim and one in passage and other not in passage and one not in claim)
        for one, other in _OPPOSITES
    )
