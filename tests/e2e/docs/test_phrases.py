"""The documents' prose has none of the phrases that readers stumble over."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.e2e.docs.pages import DOCS

ROOT = DOCS.parent
PAGES = sorted(
    [
        *DOCS.rglob("*.md"),
        *(ROOT / f"{name}.md" for name in ("README", "SYSTEM_DESIGN", "POST_MORTEM")),
        *(ROOT / f"{name}.md" for name in ("CONTRIBUTING", "SECURITY")),
    ]
)
CODE = re.compile(r"^ *```.*?^ *```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
PHRASES = re.compile(
    r"\b(is none|are none|who(ever| wants| has| asks)|nobody (cares|knows)|without a word"
    r"|in other hands|stands (in|on|for)|goes on|go on|told (it|them|so|of)|tells? of"
    r"|a word (of|for)|behind (it|this|these|them|that))\b",
    re.IGNORECASE,
)


@pytest.mark.parametrize("path", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_a_page_has_none_of_the_phrases(path: Path):
    """Outside of code, also over the end of a line."""
    prose = " ".join(CODE.sub("", path.read_text(encoding="utf-8")).split())
    assert [match[0] for match in PHRASES.finditer(prose)] == []
