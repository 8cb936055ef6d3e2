"""Splits Markdown into parts: headings, paragraphs, items, and the blocks between them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

_NEWLINE: Final = re.compile(r"\r\n?|\n")
_OTHERS: Final = frozenset({"fence", "code_block", "html_block", "table_open", "hr"})


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a Markdown text.

    Attributes:
        kind: ``heading``, ``paragraph``, ``item`` (its first paragraph), ``html``, or ``other``:
            code, a table or rows of a table, a rule.
        source: Its Markdown; for a heading, paragraph or item without the mark before it.
        shown: The visible text of a heading, paragraph or item, on one line.
        line: Its first line, from 1.
        level: The level of a heading, from 1 to 6.
    """

    kind: str
    source: str
    shown: str
    line: int
    level: int = 0


def parts(markdown: str) -> Iterator[Part]:
    """Yield the parts of a text in their order, in linear time."""
    lines = _NEWLINE.split(markdown)
    opened, around, level = "", "", 0  # types of the last token and of the token before it
    for token in _parser().parse(markdown):
        first, end = token.map or (0, 0)
        if token.type in _OTHERS:
            kind = "html" if token.type == "html_block" else "other"
            yield Part(kind, "\n".join(lines[first:end]), "", first + 1)
        elif token.type == "heading_open":
            level = int(token.tag[1:])
        elif opened == "heading_open":
            yield Part("heading", token.content, _shown(token), first + 1, level)
        elif opened == "paragraph_open":
            kind = "item" if around == "list_item_open" else "paragraph"
            if token.content.startswith(("|", "+-")):  # rows of other dialects' tables
                kind = "other"
            yield Part(kind, token.content, _shown(token), first + 1)
        around, opened = opened, token.type


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt  # noqa: PLC0415 - saves 40 ms at the server's start

    return MarkdownIt("commonmark").enable("table")


def _shown(inline: Token) -> str:
    """Return the visible text of a token; images and tags have none."""
    texts = {"text": "{}", "code_inline": "{}", "softbreak": " ", "hardbreak": " "}
    found = (texts.get(child.type, "").format(child.content) for child in inline.children or ())
    return " ".join("".join(found).split())
