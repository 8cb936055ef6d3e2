"""Check that the code's prose and the documents avoid phrases that readers stumble over.

Reads the docstrings, comments and string literals of agentsrv/ and the Markdown documents outside
of their code. The lines of a docstring, a paragraph or a block of comments are joined, so a phrase
that continues on the next line is found as well. Each finding is printed with its file and line.

PHRASES and OPENINGS are the lists; to extend one, add an alternative. REMAINING names the folders
and files that still contain such phrases, with the number that each may have at most: lower a
number after a rewrite, and delete the entry when it reaches zero.
"""

from __future__ import annotations

import io
import re
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PHRASES = re.compile(
    r"\b(?:(?<!there )(?:is|are) none|who(?:ever| wants| has| asks)|nobody (?:cares|knows)"
    r"|without a word|in other hands|stands? (?:in|on|for)|goes on|go on|told|tells?"
    r"|a word (?:of|for)|behind (?:it|this|these|them|that)|an? (?:word|sentence) to)\b",
    re.IGNORECASE,
)
OPENINGS = re.compile(r"(?:^|[.;] )(?:What|Who|Whose|Whoever|Whatever) [a-z][^?.]*(?:\.|$)")
"""Sentences whose subject is a clause: "What it returns is ..."."""

REMAINING: dict[str, int] = {
    "agentsrv/agents/params.py": 2,
    "agentsrv/agents/registry.py": 1,
    "agentsrv/bench/": 30,
    "agentsrv/cli/": 79,
    "agentsrv/delivery/": 2,
    "agentsrv/engine/": 5,
    "agentsrv/knowledge/text.py": 1,  # a stop word of texts
    "agentsrv/models/": 8,
    "agentsrv/protocol/": 1,
    "agentsrv/store/": 3,
}

DOCUMENTS = [
    "README.md",
    "SYSTEM_DESIGN.md",
    "POST_MORTEM.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs",
    "examples",
]
CODE = re.compile(r"^ *```.*?^ *```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
STRINGS = {tokenize.STRING} | {
    getattr(tokenize, name) for name in ["FSTRING_MIDDLE"] if hasattr(tokenize, name)
}


def prose_of_module(text: str) -> Iterator[tuple[int, str]]:
    """Yield each string literal and each block of comments with the number of its first line."""
    comment: list[str] = []
    first = last = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        line = token.start[0]
        if token.type == tokenize.COMMENT:
            if comment and line != last + 1:
                yield first, "\n".join(comment)
                comment = []
            if not comment:
                first = line
            comment.append(token.string.lstrip("#: "))
            last = line
        elif token.type in STRINGS:
            yield line, token.string.strip("rbfRBF").strip("\"'")
    if comment:
        yield first, "\n".join(comment)


def prose_of_document(text: str) -> Iterator[tuple[int, str]]:
    """Yield the text of a document; fenced and inline code is replaced by its line ends."""
    yield 1, CODE.sub(lambda match: "\n" * match[0].count("\n"), text)


def findings(path: Path) -> Iterator[str]:
    """Yield a line for each phrase in a file."""
    text = path.read_text(encoding="utf-8")
    parts = prose_of_module(text) if path.suffix == ".py" else prose_of_document(text)
    for first, part in parts:
        # The positions of the words in the part, and in the part joined on one line.
        words = " ".join(part.split())
        starts = [match.start() for match in re.finditer(r"\S+", part)]
        offsets = [match.start() for match in re.finditer(r"\S+", words)]
        for match in [*PHRASES.finditer(words), *OPENINGS.finditer(words)]:
            index = sum(offset <= match.start() for offset in offsets) - 1
            line = first + part.count("\n", 0, starts[index])
            yield f"{path.relative_to(ROOT)}:{line}: {match[0][:60]!r}"


def paths() -> Iterator[Path]:
    """Yield the files to check."""
    yield from sorted((ROOT / "agentsrv").rglob("*.py"))
    for name in DOCUMENTS:
        path = ROOT / name
        yield from sorted(path.rglob("*.md")) if path.is_dir() else [path]


def main() -> int:
    """Print the findings; return 1 if there are too many."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in paths():
        name = str(path.relative_to(ROOT))
        folder = next((key for key in REMAINING if name.startswith(key)), "")
        found[folder].extend(findings(path))
    failed = bool(found[""])
    for line in found.pop("", []):
        print(line)
    for folder, lines in found.items():
        if len(lines) > REMAINING[folder]:
            failed = True
            print(*lines, sep="\n")
            print(f"{folder}: {len(lines)} phrases, allowed are {REMAINING[folder]}")
        elif len(lines) < REMAINING[folder]:
            print(f"{folder}: lower REMAINING in .ci/check_phrases.py to {len(lines)}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
