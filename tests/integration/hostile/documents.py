"""Documents of a knowledge folder that hurt whoever reads them, as data: one a line.

An entry is a name and what it consists of: bytes, or a unit and how many bytes of it. ``reason`` is
what the index must tell of it; None where it may be read or not, in bounded time.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from typing import Final

SIZE: Final = (4 << 20) - 99  # bytes: the largest file that is read
SENTENCE: Final = b"The harmless neighbour explains how a kettle boils water at home."


@dataclass(frozen=True)
class Document:
    """One file."""

    name: str
    unit: bytes
    size: int = SIZE
    before: bytes = b""
    reason: str | None = None

    @property
    def content(self) -> bytes:
        """The bytes of the file."""
        return self.before + (self.unit * (self.size // len(self.unit) + 1))[: self.size]


def pdf(stream: bytes) -> bytes:
    """A PDF with one page, whose content is ``stream``, packed."""
    packed = zlib.compress(stream, 9)
    parts = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Contents 4 0 R >>",
        b"<< /Length %d /Filter /FlateDecode >>\nstream\n%s\nendstream" % (len(packed), packed),
    ]
    data, places = b"%PDF-1.4\n", []
    for number, part in enumerate(parts, start=1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, part)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    return (
        data
        + b"xref\n0 5\n0000000000 65535 f \n%strailer\n<< /Size 5 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF"
        % (table, len(data))
    )


def whole(name: str, content: bytes, reason: str | None = None) -> Document:
    """A file of this content."""
    return Document(name, b" ", 0, content, reason)


BRACKETS: Final = b"[" * 19_000 + b"\n\n"  # seconds to read, each of them
DOCUMENTS: Final = (
    Document("ends.html", b"</", reason="no prose"),
    Document("ends-with-names.html", b"</p ", reason="no prose"),
    Document("comments.html", b"<!--", reason="no prose"),
    Document("tags.html", b"<a ", reason="no prose|CPU time"),
    Document("attributes.html", b"<a b='", reason="no prose|CPU time"),
    Document("classes.html", b"<p class='", reason="no prose|CPU time"),
    Document("sections.html", b"<![CDATA["),
    Document("declarations.html", b"<!"),
    Document("instructions.html", b"<?"),
    Document("entities.html", b"&#"),
    Document("references.html", b"&amp"),
    Document("deep.html", b"<div>"),
    Document("tables.html", b"<table><tr><td>"),
    Document("scripts.html", b"<script>"),
    Document("titles.html", b"<title>a "),
    Document("links.html", b"<a href=x>a b</a> "),
    Document("page.txt", b"</", before=b"<!doctype html>", reason="no prose"),
    Document("page", b"</", before=b"<html>", reason="no prose"),
    Document("comments.md", b"<!--", reason="no prose"),
    Document("front.md", b"---\n"),
    Document("brackets.md", b"["),
    Document("images.md", b"!["),
    Document("links.md", b"[a]("),
    Document("references.md", b"[a][a]"),
    Document("paragraphs-of-brackets.md", BRACKETS),
    Document("paragraphs-of-images.md", b"![" * 9_000 + b"\n\n"),
    Document("paragraphs-of-stars.md", b"*a" * 9_000 + b"\n\n"),
    Document("paragraphs-of-backticks.md", b"`a <" * 4_000 + b"\n\n"),
    Document("backticks.md", b"`"),
    Document("fences.md", b"```\n"),
    Document("stars.md", b"*a "),
    Document("underscores.md", b"_a "),
    Document("backslashes.md", b"\\"),
    Document("headings.md", b"# a\n"),
    Document("long-heading.md", b"a ", before=b"# "),
    Document("heading-of-marks.md", b"# ", before=b"# a"),
    Document("quotes.md", b"> "),
    Document("lists.md", b"- a\n"),
    Document("rows.md", b"|a"),
    Document("line.txt", b"a"),
    Document("words.txt", b"a "),
    Document("stops.txt", b". A"),
    Document("brackets.txt", BRACKETS, reason="more than .* of CPU time"),
    Document("dots.txt", b"."),
    Document("quotes.txt", b'." '),
    Document("lines.txt", b"a\n"),
    Document("empty-lines.txt", b"\n"),
    Document("spaces.txt", b" ", before=b"a"),
    Document("tabs.txt", b"\t", before=b"a"),
    Document("hyphens.txt", b"A-"),
    Document("numbers.txt", b"1."),
    Document("fields.txt", b"Aa-Aa"),
    Document("roles.rst", b":a:`"),
    Document("directives.rst", b".. a::\n"),
    Document("literals.rst", b"a::\n\n"),
    Document("sentences.txt", SENTENCE + b" "),
    whole("bomb.txt.gz", gzip.compress(b"a " * (64 << 20)), "larger than 4 MiB"),
    whole("bomb.html.gz", gzip.compress(b"</" * (2 << 20), 9)[:-1], "damaged gzip|no prose"),
    whole("broken.txt.gz", gzip.compress(b"a")[:12] + b"\xff" * 99, "damaged gzip|no prose"),
    whole("bomb.pdf", pdf(b"(a) Tj " * (24 << 20))),
    whole("text.pdf", pdf(b"BT (a) Tj ET " * 20_000)),
    whole("cut.pdf", pdf(b"BT (a) Tj ET")[:200], "damaged PDF|no prose"),
    whole("nonsense.pdf", b"%PDF-1.7" + b"\0" * 99, "damaged PDF"),
    whole("nested.pdf", b"%PDF-1.4\n1 0 obj\n" + b"[" * 100_000 + b"\nendobj\ntrailer\n<</Root 1 0 R>>", "PDF|CPU time|prose"),
    whole("zeros.txt", b"\0" * 9_999, "binary"),
    whole("half-utf16.txt", b"\xff\xfe" + b"\x3d\xd8" * 999, None),
    whole("empty.txt", b"", "no prose"),
)  # fmt: skip

LENGTH: Final = 1 << 16  # characters of a question: the longest that is taken
QUESTIONS: Final = {
    "one word": "thread ",
    "one word without an end": "a",
    "a word of vowels": "yb",
    "a word of apostrophes": "a'",
    "accents": "\u00e9",
    "combining accents": "e\u0301",
    "quotes": '"',
    "full stops": ".",
    "full stops and quotes": '."',
    "full stops and spaces": "a. ",
    "ellipses": "\u2026) ",
    "citations": "[1]",
    "citations that do not end": "[1, ",
    "citations with spaces": " [1",
    "citations before full stops": "[1].",
    "brackets": "[",
    "angles": "< ",
    "operators": "NEAR(thread queue) OR ",
    "prefixes": "thread* ",
    "columns": "body:thread ",
    "parentheses": "(a OR ",
    "line ends": "\n",
    "numbers": "1.",
    "addresses": "a@",
    "paths": "/a",
    "underscores": "_a",
    "conditions": "if ",
    "io": "I/O ",
    "spaces": " ",
    "NUL": "\0",
}
"""Questions, and texts of models, by the unit that they repeat."""
