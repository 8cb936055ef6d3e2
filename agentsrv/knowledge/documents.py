"""Extracts passages from files: text, Markdown, reStructuredText, HTML and (extra ``pdf``) PDF.

`read_document` returns the quotable text of a file: prose without markup, in passages of about 100
to 200 words that begin and end at sentences. Code blocks, tables, navigation and licence
boilerplate are omitted. A file that cannot be read raises `UnreadableError` with the reason, and no
other exception.

The steps: read the bytes with a size limit; decode them, or have pypdf extract the text; split the
text into blocks (`markup`); drop blocks that are not prose; pack the blocks below one heading into
passages (`pack`).
"""

from __future__ import annotations

import io
import os
import re
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from agentsrv.errors import missing_extra
from agentsrv.knowledge.markup import Block, html_blocks, markdown_blocks, text_blocks
from agentsrv.knowledge.text import sentences

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_FILE_BYTES = 4 << 20  # after decompression; a novel has about 1 MiB
MAX_CHANGELOG_BYTES = 64 << 10  # the newest entries come first; old ones are outdated
TARGET_WORDS = 120  # words after which a passage ends at the next paragraph
MAX_WORDS = 200  # words in a passage, unless a single sentence has more
MAX_SENTENCE_WORDS = 120  # a longer "sentence" is a list or table without its format
MIN_WORDS = 5  # words; a shorter passage contains no statement
MAX_TITLE = 160  # characters
PDF_MISSING = missing_extra("reading PDF", "pdf")

_TEXT = frozenset({".txt", ".text", ".rst", ".adoc", ".asciidoc", ".org", ".me", ".1st"})
_MARKDOWN = frozenset({".md", ".markdown", ".mdown", ".mkd", ".mdx", ".qmd"})
_HTML = frozenset({".html", ".htm", ".xhtml"})
_OTHER = frozenset(
    """
    .c .h .cc .cpp .cxx .hpp .js .mjs .cjs .ts .tsx .jsx .css .scss .less .py .pyi .pyc .pl .pm
    .rb .go .rs .java .kt .swift .sh .bash .zsh .awk .sed .lua .tcl .el .lisp .scm .hs .ml .php
    .sql .cocci .ssp .json .jsonl .yaml .yml .toml .ini .cfg .conf .xml .xsl .dtd .svg .csv .tsv
    .lock .log .map .pem .crt .key .diff .patch .po .pot .mo .png .jpg .jpeg .gif .bmp .ico .webp
    .tif .tiff .mp3 .mp4 .ogg .wav .avi .mov .zip .tar .tgz .bz2 .xz .zst .7z .jar .whl .deb .rpm
    .so .o .a .exe .dll .bin .db .sqlite .sqlite3 .woff .woff2 .ttf .otf .eot .ps .eps .dvi .tex
    .texi .texinfo .doc .docx .odt .xls .xlsx .ods .ppt .pptx .odp .ipynb .am .in .ac .m4 .mk
    """.split()
)
_CHANGELOG = re.compile(r"change[-_]?log|^changes\b|^history\b|^news\b|^releases?\b", re.IGNORECASE)
_HYPHEN = re.compile(r"(?<=[a-z])-\n(?=[a-z])")  # in a word that was divided at a line end
_CONTROL = bytes(set(range(32)) - {8, 9, 10, 12, 13, 27})
# Phrases of licences and of web pages. Searching plain substrings in lower-case text is twenty
# times faster than one regular expression.
_BOILERPLATE = (
    "permission is hereby granted", "permission to use, copy", "the software is provided",
    'provided "as is"', "free software; you can", "free software: you can",
    "hope that it will be useful", "redistribution and use in source", "redistributions of",
    "redistributions in", "received a copy of the gnu", "without any warranty",
    "limitation of liability", "liable for any", "merchantability",
    "licensed under the apache license, version", "neither the name of", "above copyright notice",
    "this copyright notice", "you may not use this file except", "hereby grant",
    "subject to the following conditions", "all rights reserved", "terms and conditions of",
    "terms and conditions for", "skip to content", "skip to main content", "cookie policy",
)  # fmt: skip


class UnreadableError(Exception):
    """A file without passages; the message is the reason, for users."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A passage of a file: heading path, text (paragraphs by empty lines), first line."""

    title: str
    text: str
    line: int


@dataclass(frozen=True, slots=True)
class Document:
    """The passages of one file, and the number of bytes of its text."""

    chunks: tuple[Chunk, ...]
    size: int


def is_changelog(name: str) -> bool:
    """Return whether a file with this name records changes."""
    return _CHANGELOG.search(name) is not None


def read_document(path: Path, name: str) -> Document:
    """Read the file at ``path``; ``name`` is its name for users (relative, with ``/``).

    Gzipped files (``.gz``) are decompressed. Of a change log only the first `MAX_CHANGELOG_BYTES`
    are read. The function blocks.

    Raises:
        UnreadableError: The file is missing, not a regular file, too large, binary, damaged, not
            a document, or without prose.
    """
    suffix = _suffix(name)
    if suffix in _OTHER:
        raise UnreadableError(f"not a document ({suffix})")
    pure = PurePosixPath(name)
    limit = MAX_CHANGELOG_BYTES if is_changelog(pure.name) else 0
    data = _read(path, gzipped=pure.suffix == ".gz", limit=limit)
    if suffix == ".pdf":
        blocks: Iterable[Block] = _pdf_blocks(data)
    else:
        text = _decode(data)
        if suffix in _HTML or text[:256].lstrip().lower().startswith(("<!doctype html", "<html")):
            blocks = html_blocks(text)
        else:
            blocks = markdown_blocks(text) if suffix in _MARKDOWN else text_blocks(text)
    chunks, length = [], 0
    for chunk in pack(blocks, default_title(name)):
        length += len(chunk.text)
        if length > MAX_FILE_BYTES:
            raise UnreadableError(f"more than {MAX_FILE_BYTES >> 20} MiB of text")
        chunks.append(Chunk(_encodable(chunk.title), _encodable(chunk.text), chunk.line))
    if not chunks:
        raise UnreadableError("no prose in it")
    return Document(tuple(chunks), len(data))


def _encodable(text: str) -> str:
    """Replace unpaired surrogates in ``text``, which a PDF may contain."""
    return text.encode(errors="replace").decode()


def default_title(name: str) -> str:
    """Return the title of a document without headings: its path without the suffix."""
    pure = PurePosixPath(name.removesuffix(".gz"))
    if pure.suffix.lower() in _TEXT | _MARKDOWN | _HTML | {".pdf"}:
        pure = pure.with_suffix("")
    return str(pure)


def _suffix(name: str) -> str:
    return PurePosixPath(name.removesuffix(".gz")).suffix.lower()


def _read(path: Path, *, gzipped: bool, limit: int) -> bytes:
    maximum = f"larger than {MAX_FILE_BYTES >> 20} MiB"
    try:
        # Without O_NONBLOCK a FIFO would wait for a writer. The file may have been replaced since
        # it was listed.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableError("not a regular file")
            if status.st_size > MAX_FILE_BYTES:
                raise UnreadableError(maximum)
            data = file.read(MAX_FILE_BYTES + 1)
        if gzipped:
            data = zlib.decompressobj(wbits=31).decompress(data, limit or MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UnreadableError(error.strerror or type(error).__name__) from error
    except zlib.error as error:
        raise UnreadableError("damaged gzip file") from error
    if limit:
        # An incomplete last entry must not be quoted.
        data = data[:limit].rpartition(b"\n")[0] if len(data) >= limit else data
    if len(data) > MAX_FILE_BYTES:
        raise UnreadableError(maximum)
    return data


def _decode(data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace")
    head = data[:8192]
    if b"\0" in head or len(head.translate(None, _CONTROL)) < 0.98 * len(head):
        raise UnreadableError("binary")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        # The other common encoding of Western text, in which almost every byte is a character.
        return data.decode("cp1252", errors="replace").replace("\ufffd", " ")


def _pdf_blocks(data: bytes) -> list[Block]:
    try:
        from pypdf import (  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415 - an extra
            PdfReader,
        )
    except ImportError:
        raise UnreadableError(PDF_MISSING) from None
    blocks: list[Block] = []
    try:
        for page in PdfReader(io.BytesIO(data)).pages:
            # The text of a PDF has no lines of a source file: 0.
            text = _HYPHEN.sub("", page.extract_text() or "")
            found = text_blocks(text)
            blocks.extend(Block(block.text, 0, block.level) for block in found)
    except Exception as error:  # a damaged PDF raises almost anything
        raise UnreadableError(f"damaged PDF ({type(error).__name__})") from error
    return blocks


def pack(blocks: Iterable[Block], title: str) -> Iterator[Chunk]:
    """Pack ``blocks`` into passages of whole sentences below one heading, of `TARGET_WORDS`."""
    path: list[tuple[int, str]] = []
    pending: list[Block] = []
    for block in blocks:
        if block.level == 0:
            pending.append(block)
            continue
        yield from _pack_section(pending, _title(path, title))
        pending = []
        path = [entry for entry in path if entry[0] < block.level]
        path.append((block.level, block.text))
    yield from _pack_section(pending, _title(path, title))


def _title(path: list[tuple[int, str]], default: str) -> str:
    parts = [text for _, text in path] or [default]
    while len(parts) > 1 and len(" > ".join(parts)) > MAX_TITLE:
        parts.pop(0)  # the last headings describe the text best
    title = " > ".join(parts)
    if len(title) > MAX_TITLE:
        title = title[:MAX_TITLE].rsplit(" ", 1)[0] + "…"
    return title


def _pack_section(blocks: list[Block], title: str) -> Iterator[Chunk]:
    parts: list[str] = []
    count, line = 0, 0
    for block in _prose(blocks):
        size = len(block.text.split())
        if parts and (count >= TARGET_WORDS or count + size > MAX_WORDS):
            yield from _chunk(parts, title, line)
            parts, count = [], 0
        if not parts:
            line = block.line
        parts.append(block.text)
        count += size
    yield from _chunk(parts, title, line)


def _chunk(parts: list[str], title: str, line: int) -> Iterator[Chunk]:
    text = "\n\n".join(parts)
    if len(text.split(maxsplit=MIN_WORDS)) >= MIN_WORDS:
        yield Chunk(title, text, line)


def _prose(blocks: list[Block]) -> Iterator[Block]:
    """Yield the blocks of prose; long ones are divided into whole sentences."""
    for block in blocks:
        if not is_prose(block.text) or _is_boilerplate(block.text):
            continue
        if len(block.text) < 5 * MAX_WORDS or len(block.text.split()) <= MAX_WORDS:
            yield block
            continue
        piece: list[str] = []
        count = 0
        for sentence in sentences(block.text):
            size = len(sentence.split())
            if size > MAX_SENTENCE_WORDS:
                continue
            if piece and count + size > MAX_WORDS:
                yield Block(" ".join(piece), block.line)
                piece, count = [], 0
            piece.append(sentence)
            count += size
        if piece:
            yield Block(" ".join(piece), block.line)


def _is_boilerplate(text: str) -> bool:
    lowered = text.lower()
    return any(marker in lowered for marker in _BOILERPLATE)


_NOT_LETTERS = bytes(byte for byte in range(128) if not chr(byte).isalpha())
_NOT_SYMBOLS = bytes(byte for byte in range(256) if chr(byte) not in "{}<>=|\\$#@^~*_+[]")
MIN_PROSE = 12  # bytes; shorter text is a label
MIN_LETTERS = 0.62  # share of letters; English prose has about 0.8
MAX_SYMBOLS = 0.035  # share of symbols


def is_prose(text: str) -> bool:
    """Return whether ``text`` consists of sentences rather than code, a table or a listing."""
    data = text.encode(errors="replace")  # bytes.translate counts ten times faster than a loop
    size = len(data)
    if size < MIN_PROSE or " " not in text:
        return False
    letters = len(data.translate(None, _NOT_LETTERS))
    symbols = len(data.translate(None, _NOT_SYMBOLS))
    symbols += text.count("--") + text.count("::") + text.count("//")
    return letters >= MIN_LETTERS * size and symbols <= MAX_SYMBOLS * size
