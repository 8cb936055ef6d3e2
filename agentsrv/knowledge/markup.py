"""Splits documents into blocks: headings and paragraphs of text, Markdown, reST and HTML.

The blocks are for quoting, not for rendering. Code, tables, directives, comments, navigation and
scripts are dropped, inline markup is removed, and each block has its first line.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from html import unescape
from html.parser import HTMLParser

from agentsrv.knowledge.markdown import parts

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
_UNDERLINE = re.compile(r"^([=\-~^\"*+#`'.:_])\1{2,}\s*$")
_BULLET = re.compile(r"^(\s*)(?:[-*+•–o]|\d{1,3}[.)]|\(\d{1,3}\)|[a-z]\))\s+(?=\S)")
_TABLE = re.compile(r"^\s*\|.*\||^\s*[+|][-=+:| ]{3,}$|^\s*:?-{2,}:?\s*\|")
_DIRECTIVE = re.compile(r"^\s*\.\.(\s|$)")
_ADMONITION = re.compile(
    r"^\s*\.\. (note|warning|tip|important|caution|hint|attention)::", re.IGNORECASE
)
_LINK_TARGET = re.compile(r"^ {0,3}\[[^\]]+\]:\s*\S")
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_LONE_TITLE = re.compile(
    r"(?=.{3,60}$)(?:\d+(?:\.\d+)*\.?\s)?[A-Z][\w'’/&,-]*(?: [\w'’/&,-]+){0,7}$"
)
_FIELD = re.compile(r"[A-Z][a-z]+(?:-[A-Z][a-z]+)*: ")  # of a header: a paragraph by itself
_LEVELS = {"=": 1, "-": 2, "~": 3, "^": 4, '"': 4, "*": 1, "#": 1, "+": 3}

LONG_PARAGRAPH = 2_000  # characters after which a paragraph ends at the next sentence
MAX_PARAGRAPH = 20_000  # characters; longer ones are listings, and slow to process

_INLINE = (
    (re.compile(r"!\[[^\]]*\](\([^)]*\)|\[[^\]]*\])"), ""),  # an image
    (re.compile(r"\[([^\]]+)\]\((?:[^()\s]|\([^)]*\))*(?:\s+\"[^\"]*\")?\)"), r"\1"),  # a link
    (re.compile(r"\[([^\]]+)\]\[[^\]]*\]"), r"\1"),
    (re.compile(r"`([^`<]+?)\s*<[^>`]+>`__?"), r"\1"),  # a reStructuredText link
    (re.compile(r"<((?:https?|ftp|mailto):[^>\s]+)>"), r"\1"),
    (re.compile(r"</?[a-zA-Z][^<>]*>"), ""),
    (re.compile(r":[a-z:]+:`([^`]+)`"), r"\1"),  # a reStructuredText role
    (re.compile(r"``?([^`]+)``?_{0,2}"), r"\1"),
    (re.compile(r"(?<![\w*\\])\*{1,3}(?=\S)([^*]+?)(?<=[^\s\\])\*{1,3}(?![\w*])"), r"\1"),
    (re.compile(r"(?<![\w\\])_{1,3}(?=\S)([^_]+?)(?<=[^\s\\])_{1,3}(?!\w)"), r"\1"),
    (re.compile(r"\\([\\`*_{}\[\]()#+.!<>|~-])"), r"\1"),
)


@dataclass(frozen=True, slots=True)
class Block:
    """A heading (``level`` 1 to 6) or a paragraph (level 0) that begins on ``line``."""

    text: str
    line: int
    level: int = 0


def plain(text: str) -> str:
    """Return ``text`` without inline markup, entities and repeated white space."""
    if any(char in text for char in "`*_[]<\\"):
        for pattern, replacement in _INLINE:
            text = pattern.sub(replacement, text)
    if "&" in text:
        text = unescape(text)
    return " ".join(text.split())


def markdown_blocks(text: str) -> list[Block]:
    """Return the blocks of Markdown, and of the HTML in it."""
    # Replaced by empty lines, so that the numbers of the lines stay the same.
    text = _FRONT_MATTER.sub(lambda match: "\n" * match[0].count("\n"), text)
    found: list[Block] = []
    for part in parts(text):
        if part.kind == "html":
            inner = html_blocks(part.source)
            found += [replace(block, line=block.line + part.line - 1) for block in inner]
        elif part.kind == "heading":
            found += _heading(part.shown, part.line, part.level)
        elif part.kind != "other" and part.shown and len(part.shown) <= MAX_PARAGRAPH:
            found.append(Block(part.shown, part.line))
    return found


def text_blocks(text: str) -> list[Block]:
    """Return the blocks of plain text or reStructuredText."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n")
    return _TextReader().read(text.split("\n"))


def _heading(title: str, line: int, level: int) -> list[Block]:
    """Return the heading with that ``title`` in a list; an empty list if it contains no word."""
    text = title.strip(" :#")
    return [Block(text, line, level)] if any(char.isalpha() for char in text) else []


class _TextReader:
    """Collects the lines of a paragraph until a line ends it."""

    def __init__(self) -> None:
        self._blocks: list[Block] = []
        self._lines: list[str] = []
        self._size = 0  # characters in these lines
        self._start = 0
        self._fence = ""
        self._literal = -1  # lines with a deeper indent are literal; -1: no line is
        self._in_list = False

    def read(self, lines: list[str]) -> list[Block]:
        for number, raw in enumerate(lines, start=1):
            line = raw.rstrip()
            if not self._skips(line) and not self._is_structure(line, number):
                self._take(line, number)
        self._flush()
        return self._blocks

    def _skips(self, line: str) -> bool:
        """Return whether the line belongs to a code block."""
        fence = _FENCE.match(line)
        if self._fence:
            if fence and fence[1].startswith(self._fence):
                self._fence = ""
            return True
        if fence:
            self._flush()
            self._fence = fence[1]
            return True
        if self._literal >= 0 and line:
            if _indent(line) > self._literal:
                return True
            self._literal = -1
        return False

    def _is_structure(self, line: str, number: int) -> bool:
        """Handle a line that is not part of a paragraph; return whether it was such a line."""
        # Debian's control files write an empty line as a full stop.
        if not line.strip(" \t."):
            self._flush()
            return True
        if _UNDERLINE.match(line):
            self._underlined(line, number)
            return True
        if _DIRECTIVE.match(line):
            self._flush()
            if not _ADMONITION.match(line):
                self._literal = _indent(line)
            return True
        if _TABLE.match(line) or _LINK_TARGET.match(line):
            self._flush()
            self._in_list = False
            return True
        return False

    def _underlined(self, line: str, number: int) -> None:
        """Make a heading of the line above if the line underlines it."""
        if len(self._lines) == 1 and len(line) >= 0.6 * len(self._lines[0].strip()):
            title = self._lines.pop()
            self._heading(title, number - 1, _LEVELS.get(line[0], 3))
        else:
            self._flush()

    def _heading(self, title: str, number: int, level: int) -> None:
        self._blocks += _heading(plain(title), number, level)
        self._in_list = False

    def _take(self, line: str, number: int) -> None:
        bullet = _BULLET.match(line)
        if _FIELD.match(line):
            self._flush()
        if bullet:
            self._flush()
            self._in_list = True
            line = line[bullet.end() :]
        elif self._in_list and not self._lines and _indent(line) == 0:
            self._in_list = False
        if not self._lines:
            self._start = number
        self._lines.append(line.lstrip().removeprefix("> ").removeprefix(">"))
        self._size += len(line)
        if self._size > LONG_PARAGRAPH and line.endswith((".", "!", "?")):
            self._flush()

    def _flush(self) -> None:
        if not self._lines:
            return
        text, size = "\n".join(self._lines), self._size
        self._lines, self._size = [], 0
        if size > MAX_PARAGRAPH:
            return
        if text.endswith("::"):
            self._literal = 0
            text = text[:-1]
        level = self._title_level(text)
        if level:
            self._heading(text, self._start, level)
            return
        text = plain(text)
        if text:
            self._blocks.append(Block(text, self._start))

    def _title_level(self, text: str) -> int:
        """Return the level of a heading without underline: ``USAGE`` 2, ``Building it`` 3, or 0."""
        if self._in_list or not _LONE_TITLE.match(text):
            return 0
        return 2 if text.isupper() else 3


def _indent(line: str) -> int:
    expanded = line.expandtabs(4)
    return len(expanded) - len(expanded.lstrip())


# --- HTML -------------------------------------------------------------------------------------

_DROPPED = frozenset(
    "script style nav footer aside form pre table svg math noscript template button select"
    " textarea iframe object canvas audio video figure".split()
)
_BLOCKS = frozenset(
    "p div section article main body ul ol li dl dt dd blockquote header address hr br center"
    " details summary figcaption tr td th".split()
)
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_NAVIGATION = re.compile(
    r"\b(nav|navbar|navigation|navheader|navfooter|menu|sidebar|toc|breadcrumbs?|footer|copyright"
    r"|contents|related|skip-?link|headerlink|pagination)\b",
    re.IGNORECASE,
)


def html_blocks(text: str) -> list[Block]:
    """Return the blocks of an HTML page, without navigation, scripts, tables and code blocks."""
    reader = _HtmlReader()
    # html.parser asserts on some malformed declarations; the blocks before are kept.
    with suppress(AssertionError):
        # Without close(): an unclosed tag or comment hides the rest, as in a browser, while
        # close() would parse it as text in quadratic time. The line end ends a reference such
        # as "&amp".
        reader.feed(text + "\n")
    return reader.finish()


class _HtmlReader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._blocks: list[Block] = []
        self._text: list[str] = []
        self._line = 0
        self._level = 0
        self._dropping = ""  # the element whose content is dropped
        self._depth = 0
        self._linked = 0  # characters of the block that are inside links
        self._in_link = False
        self._title: list[str] = []
        self._in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._dropping:
            self._depth += tag == self._dropping
            return
        if tag in _DROPPED or (tag not in {"body", "html", "main"} and _is_navigation(attrs)):
            if tag not in {"br", "hr", "img", "input", "link", "meta", "a", "p", "li"}:
                self._flush()
                self._dropping, self._depth = tag, 1
            return
        if tag in _HEADINGS or tag in _BLOCKS:
            self._flush()
            self._level = _HEADINGS.get(tag, 0)
        self._in_title = self._in_title or tag == "title"
        self._in_link = self._in_link or tag == "a"

    def handle_endtag(self, tag: str) -> None:
        if self._dropping:
            self._depth -= tag == self._dropping
            if self._depth == 0:
                self._dropping = ""
            return
        if tag in _HEADINGS or tag in _BLOCKS:
            self._flush()
        if tag == "title":
            self._in_title = False
        if tag == "a":
            self._in_link = False

    def handle_data(self, data: str) -> None:
        if self._dropping:
            return
        if self._in_title:
            self._title.append(data)
            return
        if not self._text:
            if not data.strip():
                return
            self._line = self.getpos()[0] + data[: len(data) - len(data.lstrip())].count("\n")
        self._text.append(data)
        self._linked += len(data) * self._in_link

    def finish(self) -> list[Block]:
        """Return the blocks, the page's title as the first heading if the page has no ``h1``."""
        self._flush()
        title = " ".join("".join(self._title).split())
        if title and not any(block.level == 1 for block in self._blocks):
            return [Block(title, 1, 1), *self._blocks]
        return self._blocks

    def _flush(self) -> None:
        raw = "".join(self._text)
        level, linked = self._level, self._linked
        self._text, self._level, self._linked = [], 0, 0
        text = " ".join(raw.replace("¶", "").split())
        if level:
            text = text.strip(" #")  # a page's link to its own heading
        # A block that consists of links is navigation.
        if text and len(text) <= MAX_PARAGRAPH and (level or linked < 0.6 * len(raw)):
            self._blocks.append(Block(text, self._line, level))


def _is_navigation(attrs: list[tuple[str, str | None]]) -> bool:
    for name, value in attrs:
        if name == "role" and value in {"navigation", "search", "banner", "contentinfo"}:
            return True
        if name in {"class", "id"} and value and _NAVIGATION.search(value):
            return True
    return False
