"""Check that the links between the Markdown files of this repository resolve.

Looks at the top-level Markdown files, docs/, examples/ and tests/: each relative link must name a
file or a folder of the repository, each anchor a heading of the file it points into. Links to other
sites are not followed.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent

FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)")
INLINE = re.compile(
    r"\]\(\s*"
    r"(?:<([^>]*)>|([^\s()]*(?:\([^\s()]*\)[^\s()]*)*))"  # the target
    r"(?:\s+[\"'(].*?)?"  # the title
    r"\s*\)"
)
REFERENCE = re.compile(r"^ {0,3}\[(?!\^)[^\]]+\]:\s*(?:<([^>]*)>|(\S+))")
HTML = re.compile(r"<(?:a|img)\b[^>]*?\b(?:href|src)=[\"']([^\"']*)[\"']")
HTML_ANCHOR = re.compile(r"<[a-z]+\b[^>]*?\b(?:id|name)=[\"']([^\"']+)[\"']")
HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.*?)(?:\s+#+)?\s*$")
ELSEWHERE = re.compile(r"^(?:[a-z][a-z0-9+.-]*:|//)", re.IGNORECASE)


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines of ``path`` that stand outside fenced code."""
    fence = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        mark = FENCE.match(line)
        if fence:
            if mark and mark[1].startswith(fence) and line.strip() == mark[1]:
                fence = ""
        elif mark:
            fence = mark[1]
        else:
            yield number, line


def links(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the links of ``path`` with their line numbers."""
    for number, line in prose(path):
        text = CODE.sub("", line)
        for pattern in (INLINE, REFERENCE, HTML):
            for match in pattern.finditer(text):
                yield number, next((group for group in match.groups() if group is not None), "")


@cache
def anchors(path: Path) -> frozenset[str]:
    """Return the anchors that ``path`` offers, named as the usual forges name them."""
    found: set[str] = set()
    seen: Counter[str] = Counter()
    for _, line in prose(path):
        found.update(HTML_ANCHOR.findall(line))
        if heading := HEADING.match(line):
            text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
    return frozenset(found)


def complaint(page: Path, link: str) -> str | None:
    """Say what is wrong with ``link`` on ``page``, or None."""
    if ELSEWHERE.match(link):
        return None
    target, _, anchor = link.partition("#")
    target = unquote(target.partition("?")[0])
    base = ROOT if target.startswith("/") else page.parent
    path = (base / target.lstrip("/")).resolve() if target else page
    if not path.is_relative_to(ROOT):
        return "leads out of the repository"
    if not path.exists():
        return "there is no such file"
    if anchor and path.suffix == ".md" and unquote(anchor) not in anchors(path):
        return f"{path.relative_to(ROOT)} has no such heading"
    return None


def main() -> int:
    """Print each broken link; the exit status is 1 if there is one."""
    folders = (ROOT / "docs", ROOT / "examples", ROOT / "tests")
    pages = [
        *sorted(ROOT.glob("*.md")),
        *(page for it in folders for page in sorted(it.rglob("*.md"))),
    ]
    checked = broken = 0
    for page in pages:
        for number, link in links(page):
            checked += 1
            if problem := complaint(page, link):
                broken += 1
                print(f"{page.relative_to(ROOT)}:{number}: {link}: {problem}", file=sys.stderr)
    print(f"{checked} links in {len(pages)} Markdown files, {broken} of them broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
