"""Decides by words, without a model, whether a passage supports a sentence.

Theory of operation
===================

A sentence that occurs in the passage, white space aside, is a *quote* and always supported. For a
*paraphrase*, `Evidence.support` compares bags of stems with each sentence of the passage and with
each pair of neighbouring sentences, and returns the largest share of the paraphrase's content words
that one of them contains. The passage's title and file name count as part of every sentence. The
share is 0 if one of these tests fails:

- All numbers of the paraphrase occur in the sentence.
- Both contain the same number of negations (*not*, *never*, *n't*). Of a pair, the sentence that
  has more words in common with the paraphrase is compared.
- No word of the paraphrase is replaced by its opposite (`_OPPOSITES`, such as more/less).

From `MIN_SUPPORT` on, a paraphrase counts as supported. This is a test of words, not of meaning: a
sentence about another subject passes if it uses the words of the source.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from agentsrv.knowledge.stemmer import stem
from agentsrv.knowledge.text import fold, sentences, stems, words

MIN_SUPPORT: Final = 0.7  # share of a paraphrase's content words that its passage must contain

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_DENIALS: Final = frozenset(
    "no not never none nor neither nobody nothing without cannot hardly seldom rarely".split()
)
_OPPOSITES: Final = tuple(
    (stem(word), stem(opposite))
    for word, opposite in (
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
    """One sentence, or two together, as bags of words."""

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
    """A passage (``title``, ``source``, ``text``) with which statements are compared."""

    def __init__(self, passage: Mapping[str, Any]) -> None:
        self._text = " ".join(passage["text"].split())
        self._about = _Part.of(f"{passage['title']} {passage['source'].replace('_', ' ')}")
        self._sentences = [_Part.of(sentence) for sentence in sentences(passage["text"])]

    def quotes(self, text: str) -> bool:
        """Return whether ``text`` occurs in the passage, white space aside."""
        return " ".join(text.split()) in self._text

    def support(self, text: str) -> float:
        """Return the share of the content words of ``text`` that the passage states together.

        0 if a number, a negation or the opposite of a word contradicts it; see the module.
        """
        claim = _Part.of(text)
        if not claim.stems:
            return 0.0
        parts = self._sentences
        best = max((self._single(claim, part) for part in parts), default=0.0)
        for first, second in pairwise(parts):
            nearer = max(first, second, key=lambda part: len(claim.stems & part.stems))
            if nearer.denials == claim.denials:
                best = max(best, self._cover(claim, first.joined(second)))
        return best

    def _single(self, claim: _Part, part: _Part) -> float:
        return self._cover(claim, part) if part.denials == claim.denials else 0.0

    def _cover(self, claim: _Part, part: _Part) -> float:
        whole = part.joined(self._about)
        if not claim.numbers <= whole.numbers or _opposed(claim.all, whole.all):
            return 0.0
        return len(claim.stems & whole.stems) / len(claim.stems)


def _opposed(claim: frozenset[str], passage: frozenset[str]) -> bool:
    """Return whether one text contains a word and the other only its opposite."""
    return any(
        (word in claim and opposite in passage and word not in passage and opposite not in claim)
        or (opposite in claim and word in passage and opposite not in passage and word not in claim)
        for word, opposite in _OPPOSITES
    )
