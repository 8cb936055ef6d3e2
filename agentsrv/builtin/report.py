"""Reports as data: blocks of statements that cite numbered sources, parsed from and to Markdown.

A report has a title, blocks of statements, the list of sources and the open questions. The writer
writes it, the validator parses it (`read`), the optimizer does both.
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
INDIRECT: Final = "No source answers this directly. The closest statements:"
MIN_STEMS: Final = 3  # content words from which a sentence without citation is a claim

# An underscore inside a word is no markup.
_SPECIAL = re.compile(r"[\\`*\[\]<]|(?<![^\W_])_|_(?![^\W_])")
_ESCAPED = re.compile(r"\\([\\`*\[\]<_])")
# No possessive groups: up to Python 3.11.4 their matches are wrong.
_CITATIONS = re.compile(r"(?:\s*+(?<!\\)\[\d{1,6}(?:\s*+,\s*+\d{1,6})*\])+")
_NUMBER = re.compile(r"\d+")
# Marks that would begin another kind of block if a sentence is moved to the front.
_MARK = re.compile(r"(?:#{1,6}|[-+*]|\d{1,9}[.)])(?=\s|$)|>|```|~~~")
_STOP = re.compile(r"\s*+([.!?]++)(?=\s|$)")


def escape(text: str) -> str:
    """Escape ``text`` so that Markdown shows it unchanged."""
    return _SPECIAL.sub(r"\\\g<0>", text)


def unescape(text: str) -> str:
    """Return the text that Markdown shows for an escaped ``text``."""
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
class ReportBlock:
    """A heading, a paragraph, an item of a list, or another block that is kept unchanged.

    Attributes:
        kind: The kind of block.
        text: Markdown of a heading or other block; empty for the rest.
        statements: Statements of a paragraph or item.
        preface: The beginning of a paragraph that states nothing (`INDIRECT`).
    """

    kind: Literal["heading", "paragraph", "item", "other"]
    text: str = ""
    statements: tuple[Statement, ...] = ()
    preface: str = ""


def read(markdown: str) -> list[ReportBlock]:
    """Parse a report into its blocks, up to the list of its sources.

    Any Markdown is accepted. Statements without citations cite nothing. Fenced code and tables are
    blocks without statements.
    """
    blocks: list[ReportBlock] = []
    for part in parts(markdown):
        if part.kind == "heading":
            if part.source.lower() in {SOURCES.lower(), GAPS.lower()}:
                break
            blocks.append(ReportBlock("heading", f"{'#' * part.level} {part.source}"))
        elif part.kind in {"paragraph", "item"}:
            text = " ".join(part.source.split())
            preface = INDIRECT if text.startswith(INDIRECT) else ""
            found = tuple(_statements(text.removeprefix(INDIRECT).strip()))
            kind: Literal["item", "paragraph"] = "item" if part.kind == "item" else "paragraph"
            blocks.append(ReportBlock(kind, "", found, preface))
        else:
            blocks.append(ReportBlock("other", part.source))
    return blocks


def _statements(text: str) -> Iterator[Statement]:
    """Split ``text`` into sentences; a citation applies to all since the citation before it."""
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
    """Move citations after the full stop: "so it is [1]." becomes "so it is. [1]"."""
    parts, place = [], 0
    for match in _CITATIONS.finditer(text):
        stop = _STOP.match(text, match.end())
        if stop is not None:
            parts += [text[place : match.start()], stop[1], match[0]]
            place = stop.end()
    return "".join([*parts, text[place:]])


def cited(blocks: Iterable[ReportBlock]) -> list[int]:
    """Return the numbers that the blocks cite, each once, in order of first citation."""
    numbers = (n for block in blocks for item in block.statements for n in item.cites)
    return list(dict.fromkeys(numbers))


def render(blocks: Sequence[ReportBlock]) -> str:
    """Return the blocks as Markdown, without headings of empty sections."""
    kept: list[ReportBlock] = []
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


def _is_as_high(block: ReportBlock, level: int) -> bool:
    return block.kind == "heading" and len(block.text) - len(block.text.lstrip("#")) <= level


def _shown(block: ReportBlock) -> str:
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
    """Return sentences of Markdown followed by the citation that applies to all of them."""
    marks = "".join(f"[{number}]" for number in numbers)
    return " ".join([*texts, marks] if marks else texts)


@dataclass(slots=True)
class Citations:
    """Numbers the sources from 1, in the order in which a report cites them.

    ``sources`` are passages by id; their ``source``, ``title`` and ``line`` are shown.
    """

    sources: Mapping[int, Json]
    numbers: dict[int, int] = field(default_factory=dict)

    def number(self, source: int) -> int:
        """Return the number of a source; assign the next number at the first citation."""
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
        """Return the sources for a step's result; ``id`` is the passage's id."""
        return [
            {"number": number, "id": source}
            | {key: self.sources[source][key] for key in ("source", "title", "line")}
            for source, number in self.numbers.items()
        ]


def open_questions(gaps: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield the section about gaps, from the ``coverage`` of an analysis."""
    yield f"## {GAPS}\n\n"
    if gaps["not_covered"]:
        yield f"- The knowledge base has nothing on: {named(gaps['not_covered'])}.\n"
    if gaps["single_source"]:
        yield f"- Only one of the files found mentions: {named(gaps['single_source'])}.\n"
    if gaps["apart"]:
        yield f"- Mentioned, but not together with the rest: {named(gaps['apart'])}.\n"
    if not any(gaps[kind] for kind in ("not_covered", "apart", "single_source")):
        yield "Nothing: each term of the task occurs in at least two of the files found.\n"


def named(words: Iterable[str]) -> str:
    """Return ``words`` as a list in a sentence of Markdown."""
    return ", ".join(escape(word) for word in words)
