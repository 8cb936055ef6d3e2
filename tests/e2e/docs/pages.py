"""The documents' blocks of code, and programs of theirs that are run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[3] / "docs"
URL = "ws://127.0.0.1:8765"


def blocks(page: str) -> list[tuple[str, str]]:
    """The language and the text of each block of a page, in their order."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def of(page: str, language: str) -> list[str]:
    """The page's blocks in a language."""
    return [text for kind, text in blocks(page) if kind == language]


def run(folder: Path, name: str, program: str, url: str, *command: str) -> str:
    """Run a page's program, which names the server at ``URL``; returns what it prints."""
    assert URL in program
    (folder / name).write_text(program.replace(URL, url))
    done = subprocess.run(
        [*(command or (sys.executable,)), name],
        cwd=folder, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
