"""A conversation in wscat, and the document that shows it.

python -m tests.examples.wscat    # writes examples/wscat.md anew
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson
import pexpect

from tests.listening import listening

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "examples/wscat.md"
KNOWLEDGE = ROOT / "examples/knowledge"
WIDTH = 120  # characters of a frame that are shown
PATIENCE = 15  # seconds for an answer
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")

INTRODUCTION = """\
# A session in wscat

[wscat](https://github.com/websockets/wscat) is a WebSocket client for the terminal:
`npm install -g wscat`. This session was captured (`python -m tests.examples.wscat`), not
imagined; long frames are cut at `…`, errors are shown whole.

```sh
agentsrv serve --knowledge examples/knowledge
wscat -c ws://127.0.0.1:8765
```

The server speaks first: its version, its limits and its commands.
"""
CONVERSATION = {
    "run How does async I/O affect throughput?": (
        "A line that does not begin with `{` is a command line: no JSON to type. `run` creates a "
        "task, executes it, and shows its events; the reply comes first."
    ),
    "status": "Without an id, the connection's latest task is meant; `status 3f2a` would do, too.",
    "cancel": "There is nothing to cancel any more, and to ask again is no error.",
    '{"command": "create"': "Broken JSON is told, with a correct command; the connection lives.",
    '{"command": "create", "task_descripton": "Why?"}': "So is a misspelt field.",
    '{"command": "ping", "id": "p1"}': "JSON commands may carry an id, which comes back.",
}


@dataclass(frozen=True, slots=True)
class Exchange:
    """What was typed, nothing at first, and the frames that came."""

    typed: str
    frames: Sequence[str]

    @property
    def kinds(self) -> list[tuple[str, ...]]:
        """The kinds of the frames, in the order of their first coming."""
        return list(dict.fromkeys(map(kind, self.frames)))


def kind(frame: str) -> tuple[str, ...]:
    """What a frame is, told by its beginning."""
    names = ("type", "event_type", "command", "code")
    found = (re.search(rf'^{{[^{{]*?"{name}":"(\w+)"', frame) for name in names)
    return tuple(match[1] for match in found if match)


def converse(url: str, lines: Sequence[str]) -> Iterator[Exchange]:
    """Type ``lines`` into wscat, each when the one before it is answered."""
    terminal = pexpect.spawn(
        "wscat", ["-c", url], encoding="utf-8", timeout=PATIENCE, dimensions=(50, 30_000)
    )
    try:
        yield Exchange("", [_frame(terminal)])
        for line in lines:
            terminal.sendline(line)
            frames = [_frame(terminal)]
            if line.startswith("run "):
                while "task_completed" not in kind(frames[-1]):
                    frames.append(_frame(terminal))
            yield Exchange(line, frames)
    finally:
        terminal.close(force=True)


def _frame(terminal: pexpect.spawn[str]) -> str:
    terminal.expect(r"< (\{[^\n]*)\n")
    assert isinstance(terminal.match, re.Match)
    text = ESCAPES.sub("", terminal.match[1])
    orjson.loads(text)  # whole, and nothing else
    return text


@contextmanager
def served() -> Iterator[str]:
    """A real server with the examples' knowledge; yields its URL."""
    with (
        tempfile.TemporaryDirectory() as folder,
        listening(Path(folder), f"--knowledge={KNOWLEDGE}") as url,
    ):
        yield url


def read_document() -> list[Exchange]:
    """The conversation that the document shows."""
    exchanges: list[Exchange] = []
    blocks = re.findall(r"```text\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    for block in blocks:
        typed, frames = "", []
        for line in block.splitlines():
            if line.startswith("> "):
                typed = line[2:]
            elif line.startswith("< "):
                frames.append(line[2:])
        exchanges.append(Exchange(typed, frames))
    return exchanges


def write_document(exchanges: Sequence[Exchange]) -> None:
    """Write the document anew; long frames are cut."""
    parts = [INTRODUCTION]
    for exchange in exchanges:
        if exchange.typed:
            parts.append(f"{CONVERSATION[exchange.typed]}\n")
        shown = [f"> {exchange.typed}"] if exchange.typed else ["Connected (press CTRL+C to quit)"]
        for frame in exchange.frames:
            is_short = len(frame) <= WIDTH or "error" in kind(frame)
            cut = frame if is_short else f"{frame[: WIDTH - 1]}…"
            shown.append(f"< {cut}")
        parts.append("\n".join(["```text", *shown, "```\n"]))
    DOCUMENT.write_text("\n".join(parts))


if __name__ == "__main__":
    with served() as address:
        write_document(list(converse(address, list(CONVERSATION))))
