"""The screens that docs/howto/terminal.md shows.

python -m tests.e2e.docs.terminal    # captures them anew and writes them there
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support.listening import listening
from tests.support.terminal import Terminal, in_terminal

PAGE: Final = Path(__file__).resolve().parents[3] / "docs" / "howto" / "terminal.md"
URL: Final = "ws://127.0.0.1:8765"  # that the page shows
CTRL_C: Final = "\x03"
SCREEN: Final = re.compile(r"^```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND: Final = re.compile(r"^```sh\n(agentsrv (?!serve).*?)\n```$", re.MULTILINE)
CHANGING: Final = (
    (r"\b[0-9a-f]{16}\b", "ID"),
    (r"\d+(\.\d+ s|:\d\d min)\b", "TIME"),
    (r'"duration":[\d.e-]+', "TIME"),
    (r'"timestamp":"[^"]*"', "TIME"),
    (r"\d+\.\d (created|ended)/s", r"RATE \1"),
    (r"(started on|ws://) ?\S+", "HOST"),
    (r"[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]", "SPINNER"),
    (r" +", " "),
)
"""What is another each time, and what is put in its place to compare."""


@contextmanager
def served() -> Iterator[str]:
    """The server of the page; yields its URL."""
    [app] = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "desk.py").write_text(app)
        with listening(Path(folder), "desk:app") as url:
            yield url


def capture(url: str) -> Iterator[str]:
    """The screens, in the order of the page."""
    run, to_file, order, watch, tail, piped, json, top = COMMAND.findall(PAGE.read_text())
    env = {"AGENTSRV_URL": url}

    @contextmanager
    def terminal(command: str, stdout: Path | None = None) -> Iterator[Terminal]:
        with in_terminal(*shlex.split(command)[1:], env=env, stdout=stdout) as opened:
            yield opened

    with terminal(run) as shown:
        shown.end()
        yield shown.text
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reply.txt"
        with terminal(to_file.partition(" >")[0], path) as shown:
            shown.end()
            yield shown.text
        assert path.read_text().startswith("There are 3 boxes here")
    with terminal(order) as shown:
        shown.wait_for("Order twelve boxes?")
        shown.type("yes\n")
        shown.end()
        yield shown.text
    with terminal(watch) as shown:
        shown.wait_for("nobody there")
        yield shown.text
        with terminal("agentsrv top") as above:
            above.wait_for("ended/s", "guard")
            everything = above.text
            above.type("q")
            above.end()
        task_id = re.findall(r"\b[0-9a-f]{16}\b", shown.text)[0]
        shown.type(CTRL_C)
        shown.end()
        yield shown.text
    with terminal(tail.replace("ID", task_id)) as shown:
        shown.end()
        yield shown.text
    yield _printed(piped.removesuffix(" 2>&1 | cat"), url)
    yield _printed(json.removesuffix(" | tail -n 1"), url).splitlines()[-1]
    assert top == "agentsrv top"
    yield everything


def _printed(command: str, url: str) -> str:
    arguments = [sys.executable, "-m", *shlex.split(command)]
    return subprocess.run(
        arguments,
        env={**os.environ, "AGENTSRV_URL": url},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    ).stdout.rstrip()


def settled(screen: str) -> list[str]:
    """The lines of a screen without what is another each time, as the order of steps may be."""
    for pattern, name in CHANGING:
        screen = re.sub(pattern, name, screen)
    return sorted(screen.strip().splitlines())


if __name__ == "__main__":
    with served() as address:
        screens = iter([screen.replace(address, URL) for screen in capture(address)])
        text = PAGE.read_text()
        PAGE.write_text(SCREEN.sub(lambda _: f"```text\n{next(screens)}\n```", text))
