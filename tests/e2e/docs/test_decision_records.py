"""docs/adr: each record has its parts, and the index lists it."""

from __future__ import annotations

import re

import pytest

from tests.e2e.docs.pages import DOCS

RECORDS = sorted((DOCS / "adr").glob("[0-9]*.md"))
STATUS = re.compile(
    r"accepted(?:, amended \d{4}-\d\d-\d\d)?|superseded by \[\d{4}\]\(\d{4}-[\w-]+\.md\)"
)


@pytest.mark.parametrize("path", RECORDS, ids=[path.stem for path in RECORDS])
def test_a_record_has_its_parts_and_its_row(path):
    """A number, a title, a status, a date, and three sections; the index repeats the first four."""
    text = path.read_text(encoding="utf-8")
    head = re.match(
        r"# (\d+)\. (.+)\n\n- Status: (.+)\n- Date: (\d{4}-\d\d-\d\d)\n\n## Context\n", text
    )
    assert head, text[:200]
    number, title, status, date = head.groups()
    assert path.name.startswith(f"{int(number):04d}-")
    assert STATUS.fullmatch(status)
    assert re.findall("^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]
    row = f"| [{int(number):04d}]({path.name}) | {title} | {date} | {status} |\n"
    assert row in (DOCS / "adr" / "README.md").read_text(encoding="utf-8")


def test_numbers_have_no_gaps():
    """The next record gets the next number."""
    assert [int(path.name[:4]) for path in RECORDS] == list(range(1, len(RECORDS) + 1))
