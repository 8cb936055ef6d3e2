"""A report as its parts: what its Markdown is written from, and read back into.

A report has a title, blocks of statements that cite numbered sources, the list of the sources
and the open questions. The writer composes it, the validator reads it, the optimizer does both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, zip_longest
from typing import Any, Final, Literal

from agentsrv.knowledge.markdown import parts
from agentsrv.knowledge.text import sentences, stems

Json = dict[str, Any]

SOURCES: Final = "Sources"
GAPS: Final = "Not covered"
INDIRECT: Final = "No source answers this directly. What comes closest:"
MIN_STEMS: Final = 3  # content words that an uncited sentence needs to state something

# an underscore inside a word is no markup
_SPECIAL = re.compile(r"[\\`*\[\]<]|(?<![^\W_])_|_(?![^\W_])")
_ESCAPED = re.compile(r"\\([\\`*\[\]<_])")
# No group is possessive: up to Python 3.11.4 such a group does not match what it should.
_CITATIONS = re.compile(r"(?:\s*+(?<!\\)\[\d{1,6}(?:\s*+,\s*+\d{1,6})*\])+")
_NUMBER = re.compile(r"\d+")
# what begins another block than a paragraph, if a sentence is moved to the front
_MARK = re.compile(r"(?:#{1,6}|[-+*]|\d{1,9}[.)])(?=\s|$)|>|```|~~~")
_STOP = re.compile(r"\s*+([.!?]++)(?=\s|$)")


def escape(text: str) -> str:
    """Return ``text`` so that Markdown shows it as it is."""
    return _SPECIAL.sub(r"\\\g<0>", text)


def unescape(text: str) -> str:
    """Return what Markdown shows of an escaped ``text``."""
    return _ESCAPED.sub(r"\1", text)


@dataclass(frozen=True, slots=True)
class Statement:
    """A sentence of a report, and the numbers of the sources that it cites.

    ``text`` is Markdown without the citations.
    """

    text: str
    cites: tuple[int, ...]

    @property
    def is_claim(self) -> bool:
        """Whether it states something; "In short:" does not."""
        if self.cites:
            return True
        return len(set(stems(self.text))) >= MIN_STEMS and not self.text.endswith((":", "?"))


@dataclass(frozen=True, slots=True)
class Block:
    """A heading, a paragraph, an item of a list, or something that is left as it is.

    Attributes:
        kind: What it is.
        text: Of a heading or something else, as it stands there; else empty.
        statements: Of a paragraph or an item.
        preface: What a paragraph begins with that states nothing.
    """

    kind: Literal["heading", "paragraph", "item", "other"]
    text: str = ""
    statements: tuple[Statement, ...] = ()
    preface: str = ""


def read(markdown: str) -> list[Block]:
    """Read a report back into its blocks, up to the list of its sources.

    Any Markdown is a report; what cites nothing has statements that cite nothing. Code between
    fences and tables state nothing.
    """
    blocks: list[Block] = []
    for part in parts(markdown):
        if part.kind == "heading":
            if part.source.lower() in {SOURCES.lower(), GAPS.lower()}:
                break
            blocks.append(Block("heading", f"{'#' * part.level} {part.source}"))
        elif part.kind in {"paragraph", "item"}:
            text = " ".join(part.source.split())
            preface = INDIRECT if text.startswith(INDIRECT) else ""
            found = tuple(_statements(text.removeprefix(INDIRECT).strip()))
            kind: Literal["item", "paragraph"] = "item" if part.kind == "item" else "paragraph"
            blocks.append(Block(kind, "", found, preface))
        else:
            blocks.append(Block("other", part.source))
    return blocks


def _statements(text: str) -> Iterator[Statement]:
    """Split ``text`` into sentences; a citation counts for all of them since the one before it."""
    text = _stops_first(text)
    place = 0
    for match in _CITATIONS.finditer(text):
        cites = tuple(dict.fromkeys(map(int, _NUMBER.findall(match[0]))))
        for sentence in sentences(text[place : match.start()]):
            yield Statement(sentence, cites)
        place = match.end()
    for sentence in sentences(text[place:]):
        yield Statement(sentence, ())


def _stops_first(text: str) -> str:
    """Return ``text`` with citations after the full stop: "so it is [1]." is "so it is. [1]"."""
    parts, place = [], 0
    for match in _CITATIONS.finditer(text):
        stop = _STOP.match(text, match.end())
        if stop is not None:
            parts += [text[place : match.start()], stop[1], match[0]]
            place = stop.end()
    return "".join([*parts, text[place:]])


def cited(blocks: Iterable[Block]) -> list[int]:
    """Return the numbers that the blocks cite, each once, in the order of their appearance."""
    numbers = (n for block in blocks for one in block.statements for n in one.cites)
    return list(dict.fromkeys(numbers))


def render(blocks: Sequence[Block]) -> str:
    """Return the blocks as Markdown, without headings that nothing stands below."""
    kept: list[Block] = []
    for block in reversed(blocks):
        if block.kind == "heading":
            level = len(block.text) - len(block.text.lstrip("#"))
            below = kept[-1] if kept else None
            if level > 1 and (below is None or _is_as_high(below, level)):
                continue
        elif block.kind != "other" and not block.statements:
            continue
        kept.append(block)
    kept.reverse()
    parts = []
    for block, following in zip_longest(kept, kept[1:]):
        tight = following is not None and block.kind == following.kind == "item"
        parts.append(_shown(block) + ("\n" if tight else "\n\n"))
    return "".join(parts)


def _is_as_high(block: Block, level: int) -> bool:
    return block.kind == "heading" and len(block.text) - len(block.text.lstrip("#")) <= level


def _shown(block: Block) -> str:
    if block.kind in ("heading", "other"):
        return block.text
    runs = groupby(block.statements, key=lambda statement: statement.cites)
    lines = (cite((statement.text for statement in run), cites) for cites, run in runs)
    text = " ".join(filter(None, (block.preface, *lines)))
    if mark := _MARK.match(text):
        last = mark.end() - 1 if mark[0][0].isdigit() else 0
        text = f"{text[:last]}\\{text[last:]}"
    return f"- {text}" if block.kind == "item" else text


def cite(texts: Iterable[str], numbers: Iterable[int]) -> str:
    """Return sentences of Markdown with the citation that counts for all of them."""
    marks = "".join(f"[{number}]" for number in numbers)
    return " ".join([*texts, marks] if marks else texts)


@dataclass(slots=True)
class Citations:
    """Numbers the sources in the order in which a report cites them, from 1.

    ``sources`` are passages by their id: ``source``, ``title`` and ``line`` are shown.
    """

    sources: Mapping[int, Json]
    numbers: dict[int, int] = field(default_factory=dict)

    def number(self, source: int) -> int:
        """Return the number of a source, a new one if it was not cited yet."""
        return self.numbers.setdefault(source, len(self.numbers) + 1)

    def section(self) -> Iterator[str]:
        """Yield the lines of the list of sources."""
        yield f"## {SOURCES}\n\n"
        for source, number in self.numbers.items():
            entry = self.sources[source]
            line = f", line {entry['line']}" if entry["line"] else ""
            yield f"{number}. `{entry['source']}`{line}: {escape(entry['title'])}\n"
        yield "\n"

    def listed(self) -> list[Json]:
        """Return the sources as the result of a step tells them; ``id`` is the passage's."""
        return [
            {"number": number, "id": source}
            | {key: self.sources[source][key] for key in ("source", "title", "line")}
            for source, number in self.numbers.items()
        ]


def open_questions(gaps: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield the section on what is not covered: the ``coverage`` of an analysis."""
    yield f"## {GAPS}\n\n"
    if gaps["not_covered"]:
        yield f"- The knowledge base has nothing on: {named(gaps['not_covered'])}.\n"
    if gaps["single_source"]:
        yield f"- Only one of the files found mentions: {named(gaps['single_source'])}.\n"
    if gaps["apart"]:
        yield f"- Mentioned, but not where the rest of the task is: {named(gaps['apart'])}.\n"
    if not any(gaps[kind] for kind in ("not_covered", "apart", "single_source")):
        yield "Nothing: each term of the task occurs in at least two of the files found.\n"


def named(words: Iterable[str]) -> str:
    """Return ``words`` as a list in a sentence of Markdown."""
    return ", ".join(escape(word) for word in words)
