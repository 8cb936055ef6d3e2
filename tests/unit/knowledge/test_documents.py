import gzip
import os
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsrv.knowledge.documents import (
    MAX_CHANGELOG_BYTES,
    MAX_FILE_BYTES,
    MAX_TITLE,
    MAX_WORDS,
    UnreadableError,
    default_title,
    is_prose,
    pack,
    read_document,
)
from agentsrv.knowledge.markup import Block
from agentsrv.knowledge.text import sentences

SENTENCE = "The server waits for the next request of a client. "


def read(folder, name, content):
    """Write a file and read it as a document."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_document(path, name)


def test_a_passage_has_its_headings_and_its_line(tmp_path):
    """The title is the path of headings, the line that of the first paragraph."""
    document = read(
        tmp_path, "a.md", "# One\n\n## Two\n\n" + SENTENCE + "\n\n# Three\n\n" + SENTENCE
    )
    assert [(chunk.title, chunk.line) for chunk in document.chunks] == [
        ("One > Two", 5),
        ("Three", 9),
    ]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.png", b"\x89PNG", r"not a document \(\.png\)"),
        ("a", b"\x7fELF\0\0" + b"text " * 50, "binary"),
        ("a.gz", b"\x1f\x8b damaged", "damaged gzip"),
        ("a.txt", b"", "no prose"),
        ("a.txt", b"x" * (MAX_FILE_BYTES + 1), "larger than 4 MiB"),
        ("a.txt.gz", gzip.compress(b"x" * (MAX_FILE_BYTES + 1)), "larger than 4 MiB"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path, name, content, reason):
    """Each kind of useless file is refused with its own reason."""
    with pytest.raises(UnreadableError, match=reason):
        read(tmp_path, name, content)


def test_missing_files_and_pipes_are_refused_without_waiting(tmp_path):
    """Neither a vanished file nor a FIFO without a writer is an unexpected exception."""
    os.mkfifo(tmp_path / "pipe")
    for name in ("missing.txt", "pipe"):
        with pytest.raises(UnreadableError):
            read_document(tmp_path / name, name)


def test_pdf_without_the_extra_says_what_to_install(tmp_path, monkeypatch):
    """The reason names the extra."""
    monkeypatch.setitem(sys.modules, "pypdf", None)
    with pytest.raises(UnreadableError, match=r"agentsrv\[pdf\]"):
        read(tmp_path, "a.pdf", b"%PDF-1.4")


def real_pdf(text: str) -> bytes:
    """A PDF of one page with one line of text, as small as the format allows."""
    drawn = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
    bodies = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        (
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R"
            b" /Resources << /Font << /F1 5 0 R >> >> >>"
        ),
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(drawn), drawn),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    document, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(bodies, 1):
        offsets.append(len(document))
        document += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return document + (
        b"xref\n0 6\n0000000000 65535 f \n%strailer\n<< /Size 6 /Root 1 0 R >>\n"
        b"startxref\n%d\n%%%%EOF\n" % (table, len(document))
    )


def test_a_real_pdf_is_read(tmp_path):
    """The extra's own library takes the text out of a file that was made here."""
    (chunk,) = read(tmp_path, "a.pdf", real_pdf(SENTENCE.strip())).chunks
    assert sentences(chunk.text) == [SENTENCE.strip()]


def test_a_pdf_is_read_page_by_page(tmp_path, monkeypatch):
    """What pypdf extracts becomes passages without lines; what it raises becomes a reason."""

    class Page:
        def extract_text(self):
            return SENTENCE.replace("request", "re-\nquest")

    class Reader:
        def __init__(self, stream):
            if stream.read() != b"%PDF-1.4":
                raise ValueError("no PDF")
            self.pages = [Page(), Page()]

    monkeypatch.setitem(sys.modules, "pypdf", SimpleNamespace(PdfReader=Reader))
    (chunk,) = read(tmp_path, "a.pdf.gz", gzip.compress(b"%PDF-1.4")).chunks
    assert (chunk.title, chunk.line) == ("a", 0)
    assert sentences(chunk.text) == [SENTENCE.strip()] * 2
    with pytest.raises(UnreadableError, match=r"damaged PDF \(ValueError\)"):
        read(tmp_path, "b.pdf", b"rubbish")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_encodings_are_recognised(tmp_path, encoding):
    """Text in the usual encodings comes out the same."""
    text = "Größere Puffer kosten naïve Programme mehr Speicher."
    assert read(tmp_path, "a.txt", text.encode(encoding)).chunks[0].text == text


def test_gzipped_markdown_is_markdown(tmp_path):
    """The ending before ``.gz`` decides."""
    document = read(tmp_path, "a.md.gz", gzip.compress(b"# Title\n\n" + SENTENCE.encode()))
    assert document.chunks[0].title == "Title"


def test_of_a_change_log_the_newest_part_is_read(tmp_path):
    """It ends at the end of a line, and does not count as too large."""
    text = "".join(f"* Entry number {n} of the log.\n" for n in range(300_000))
    document = read(tmp_path, "changelog.gz", gzip.compress(text.encode()))
    assert MAX_CHANGELOG_BYTES - 100 < document.size <= MAX_CHANGELOG_BYTES
    assert document.chunks[-1].text.endswith("of the log.")


def test_boilerplate_and_code_are_not_quoted(tmp_path):
    """Licence paragraphs and listings are left out, what stands between them is kept."""
    licence = "Permission is hereby granted, free of charge, to any person."
    listing = "if (x > 0) { y[i] = *p++; } else { return -1; }"
    document = read(tmp_path, "a.txt", f"{licence}\n\n{SENTENCE}\n\n{listing}\n")
    assert [chunk.text for chunk in document.chunks] == [SENTENCE.strip()]
    assert not is_prose(listing)


@given(st.lists(st.integers(5, 60), min_size=1, max_size=30), st.integers(1, 8))
def test_passages_hold_whole_sentences_and_all_of_them(sizes, per_paragraph):
    """No passage begins or ends inside a sentence, is too long, or loses one."""
    written = ["Word" + " another" * (size - 2) + f" w{n}." for n, size in enumerate(sizes)]
    paragraphs = [written[i : i + per_paragraph] for i in range(0, len(written), per_paragraph)]
    chunks = list(pack([Block(" ".join(part), 1) for part in paragraphs], "t"))
    found = [sentence for chunk in chunks for sentence in sentences(chunk.text)]
    assert found == written
    assert all(len(chunk.text.split()) <= MAX_WORDS for chunk in chunks)


def test_a_long_title_keeps_the_nearest_headings():
    """The outer headings go first; a heading too long in itself ends at a word."""
    headings = [Block("Outer " * 20, 1, 1), Block("Inner " * 20, 2, 2), Block(SENTENCE, 3)]
    (chunk,) = pack(headings, "t")
    assert chunk.title == ("Inner " * 20)
    (chunk,) = pack([Block("Wordy " * 40, 1, 1), Block(SENTENCE, 3)], "t")
    assert len(chunk.title) <= MAX_TITLE
    assert chunk.title.endswith("Wordy…")


def test_the_path_is_the_title_of_last_resort():
    """Endings of documents go, others tell files apart."""
    assert default_title("bash/README.md.gz") == "bash/README"
    assert default_title("bash/README.Debian.gz") == "bash/README.Debian"
