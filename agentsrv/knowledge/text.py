"""Words and sentences of English text: splitting, shortening, stop words, stems.

All functions are pure and deterministic: the same text always has the same sentences and terms.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from agentsrv.knowledge.stemmer import MAX_WORD, stem
from agentsrv.patterns import lazy_pattern

# Function words, and words of questions ("how", "explain", "please"): these describe the wanted
# answer rather than its subject, and occur in every passage.
STOP_WORDS: frozenset[str] = frozenset(
    """
    a about above across actually after again against all almost along already also although
    always am among an and another any anyone anything are aren't around as at away back be became
    because become becomes been before behind being below between both but by came can can't
    cannot come could couldn't did didn't do does doesn't doing don't done down due during each
    either else enough especially etc even ever every everything few for from further gave get
    gets getting give gives given go goes going gone got had hadn't has hasn't have haven't having
    he hence her here hers herself him himself his how however i i'd i'll i'm i've if in indeed
    instead into is isn't it it's its itself just keep kept know known largely least less let
    let's like likely made mainly make makes making many may maybe me might mine more moreover
    most mostly much must my myself nearly need needs neither never nevertheless next no none nor
    not nothing now of off often on once one ones only onto or other others otherwise ought our
    ours ourselves out over own per perhaps please put quite rather really regarding same say
    says see seem seems seen shall she should shouldn't since so some someone something somewhat
    sometimes soon still such take taken takes tell than that that's the their theirs them
    themselves then there there's thereby therefore these they they're thing things this those
    though through throughout thus to together too toward towards two under unless until up upon
    us use used uses using usually various very via want wants was wasn't way ways we we'll we're
    we've well were weren't what what's when where whereas whether which while who whom whose why
    will with within without won't would wouldn't yes yet you you'll you're you've your yours
    yourself
    advantage advantages affect affected affects answer apply avoid best better compare cons deal
    describe detail details difference differences discuss drawback drawbacks example examples
    explain explanation find good handle handled handles handling happen happens help helps impact
    impacts important influence influences information involved kind kinds list matter matters mean
    means overview people please possible problem problems pros question relate related report show
    summarise summarize summary talk topic versus vs work working works write
    """.split()
)

# Spellings and abbreviations of one term. The first one provides the stem; a search tries all.
SPELLINGS: tuple[tuple[str, ...], ...] = (
    ("asynchronous", "async", "asyncio"),
    ("authentication", "auth"),
    ("backoff", "back-off"),
    ("backpressure", "back-pressure"),
    ("configuration", "config"),
    ("database", "db"),
    ("documentation", "docs"),
    ("environment", "env"),
    ("i/o", "io"),
    ("license", "licence"),
    ("licenses", "licences"),
    ("performance", "perf"),
    ("repository", "repo"),
    ("synchronous", "sync"),
    ("timeout", "time-out"),
)
_SPELLINGS = {word: group for group in SPELLINGS for word in group}

_WORD = lazy_pattern(
    r"[iI]/[oO](?![a-z])|(?:[bB]ack-(?:off|pressure)|[tT]ime-out)s?(?!\w)|[^\W_]+(?:['’][^\W_]+)*"
)
# Possessive, and only from the first full stop of a row: linear even on a text of full stops.
_BOUNDARY = lazy_pattern(r"(?<![.!?…])([.!?…]++[\"'”’)\]]*+)\s++(?=[\"'“‘(\[]*+[^\Wa-z_])")
_PARAGRAPH = lazy_pattern(r"\n[^\S\n]*\n")
_ABBREVIATIONS = frozenset(
    "al approx ca cf ch chap co corp dept dr e.g ed eds eg eq est fig figs i.e ie inc incl jr ltd"
    " misc mr mrs ms p para pp prof ref resp sect sr st vol vols vs".split()
)


@dataclass(frozen=True, slots=True)
class Term:
    """A content word: as written, and the stem that its forms share."""

    surface: str
    stem: str


def words(text: str) -> list[str]:
    """Return the words of ``text`` in order, as written; ``I/O`` is one word."""
    return _WORD.findall(text)


def word_at(text: str, start: int) -> str:
    """Return the word of ``text`` that begins at ``start``, or the empty string."""
    match = _WORD.match(text, start)
    return match[0] if match else ""


def terms(text: str) -> list[Term]:
    """Return the content words of ``text`` in order, without stop words and single letters."""
    found = []
    for word in words(text):
        stem = content_stem(word)
        if stem:
            found.append(Term(word, stem))
    return found


def stems(text: str) -> list[str]:
    """Return the stems of the content words of ``text``, in order and with repetitions."""
    return [stem for word in words(text) if (stem := content_stem(word))]


def content_stem(word: str) -> str:
    """Return the stem of ``word``, or the empty string if it is not a content word.

    Stop words, single letters and words of more than `MAX_WORD` letters are not.
    """
    return _content_stem(word) if len(word) <= MAX_WORD else ""


@lru_cache(maxsize=1 << 16)
def _content_stem(word: str) -> str:
    folded = fold(word)
    if folded in STOP_WORDS or len(folded) == 1:
        return ""
    folded = spellings(folded)[0]
    return stem(folded.removesuffix("'s").replace("-", ""))


def spellings(word: str) -> tuple[str, ...]:
    """Return the spellings of a folded ``word`` that count as one term; often only the word."""
    return _SPELLINGS.get(word, (word,))


def fold(word: str) -> str:
    """Return ``word`` in lower case, without accents and with a straight apostrophe."""
    return _fold(word) if len(word) <= MAX_WORD else _fold.__wrapped__(word)


@lru_cache(maxsize=1 << 16)
def _fold(word: str) -> str:
    if word.isascii():
        return word.lower()
    decomposed = unicodedata.normalize("NFKD", word.replace("’", "'")).casefold()
    return "".join(char for char in decomposed if not unicodedata.combining(char))


def sentences(text: str) -> list[str]:
    """Split ``text`` into sentences; an empty line always ends one.

    No characters except white space are added, lost or moved. Each sentence is non-empty, stripped
    and has single spaces. A full stop does not end a sentence after a known abbreviation or an
    initial, nor before a word in lower case.
    """
    found: list[str] = []
    for paragraph in _PARAGRAPH.split(text):
        line = " ".join(paragraph.split())
        start = 0
        for match in _BOUNDARY.finditer(line):
            if _ends_sentence(line[start : match.end(1)]):
                found.append(line[start : match.end(1)])
                start = match.end()
        if line[start:]:
            found.append(line[start:])
    return found


def shorten(text: str, limit: int) -> str:
    """Return ``text`` on one line, cut after a word with an ellipsis if it exceeds ``limit``."""
    line = " ".join(text.split())
    if len(line) <= limit:
        return line
    return line[: limit - 1].rsplit(" ", 1)[0].rstrip(" ,;:.") + "…"


def _ends_sentence(piece: str) -> bool:
    if not piece.endswith("."):
        return True
    last = piece[:-1].rsplit(" ", 1)[-1].lstrip("([\"'“‘")
    initial = len(last) == 1 and last.isalpha() and last != "I"
    # "1." and "2.3." at the start are numbers of headings or items.
    number = " " not in piece and last.replace(".", "").isdigit()
    return not (initial or number or last.lower() in _ABBREVIATIONS)
