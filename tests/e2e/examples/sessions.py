"""Sessions in WebSocket clients of the terminal, and the documents that show them.

python -m tests.e2e.examples.sessions              # writes all of these documents anew
python -m tests.e2e.examples.sessions websockets   # writes examples/websockets.md
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson
import pexpect

from agentsrv.cli.demo import KNOWLEDGE
from tests.support.listening import listening

ROOT: Final = Path(__file__).parents[3]

URL: Final = "ws://127.0.0.1:8765"  # that the documents show
WIDTH: Final = 120  # characters of a frame that are shown
PATIENCE: Final = 45  # seconds for an answer
ESCAPES: Final = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|[78])|\r")
CAPTURED: Final = """\
This session was captured (`python -m tests.e2e.examples.sessions`), not
imagined; long frames are cut at `…`, errors are shown whole.
"""


@dataclass(frozen=True, slots=True)
class Program:
    """A client, and the session in it that its document shows."""

    name: str
    arguments: Sequence[str]
    """Before the URL."""
    greeting: str
    """What it prints when it is connected."""
    head: str
    conversation: Mapping[str, str]
    """What is typed, each with the sentence before it."""
    end: str = ""
    """The sentence before the end by Ctrl-D, where the document shows it."""

    @property
    def document(self) -> Path:
        """Where the session is shown."""
        return ROOT / f"examples/{self.name}.md"


WSCAT: Final = Program(
    "wscat",
    ["-c"],
    "Connected (press CTRL+C to quit)",
    f"""\
# A session in wscat

[wscat](https://github.com/websockets/wscat) is a WebSocket client for the terminal:
`npm install -g wscat`. {CAPTURED}
```sh
agentsrv serve --knowledge agentsrv/cli/demo/knowledge
wscat -c {URL}
```
""",
    {
        "run How does async I/O affect throughput?": (
            "A line that does not begin with `{` is a command line: no JSON to type. `run` "
            "creates a task, executes it, and shows its events; the reply comes first."
        ),
        "status": (
            "Without an id, the connection's latest task is meant; `status 3f2a` would do, too."
        ),
        "cancel": "There is nothing to cancel any more, and to ask again is no error.",
        '{"command": "create"': (
            "Broken JSON is told, with a correct command; the connection lives."
        ),
        '{"command": "create", "task_descripton": "Why?"}': "So is a misspelt field.",
        '{"command": "ping", "id": "p1"}': "JSON commands may carry an id, which comes back.",
    },
)
WEBSOCKETS: Final = Program(
    "websockets",
    [],
    f"Connected to {URL}.",
    f"""\
# A session in the command line of websockets

[websockets](https://websockets.readthedocs.io/), on which agentsrv is built, brings a client for
the terminal: where agentsrv is installed, so is the command `websockets`.
{CAPTURED}
```sh
agentsrv serve --knowledge agentsrv/cli/demo/knowledge
websockets {URL}
```
""",
    {
        "run Why does back-pressure matter?": (
            "What is typed is a command line or JSON, as in [wscat](wscat.md)."
        ),
        '{"command": "list", "id": 1, "limit": 1}': "The newest task, asked for in JSON.",
        "execute": "A task runs once; that it has ended is no fault of the connection.",
    },
    "Ctrl-D closes the connection; the server keeps the tasks.",
)
PROGRAMS: Final = {program.name: program for program in (WSCAT, WEBSOCKETS)}


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


def converse(program: Program, url: str, lines: Sequence[str]) -> Iterator[Exchange]:
    """Type ``lines`` into the program, each when the one before it is answered."""
    terminal = pexpect.spawn(
        program.name,
        [*program.arguments, url],
        encoding="utf-8",
        timeout=PATIENCE,
        dimensions=(50, 30_000),
    )
    try:
        terminal.expect_exact(program.greeting.replace(URL, url))
        yield Exchange("", [_frame(terminal)])
        for line in lines:
            terminal.sendline(line)
            frames = [_frame(terminal)]
            if line.startswith("run "):
                while "task_completed" not in kind(frames[-1]):
                    frames.append(_frame(terminal))
            yield Exchange(line, frames)
        if program.end:
            terminal.sendeof()
            terminal.expect_exact("Connection closed: 1000 (OK).")
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


def read_document(program: Program) -> list[Exchange]:
    """The conversation that the document shows."""
    exchanges: list[Exchange] = []
    blocks = re.findall(r"```text\n(.*?)```", program.document.read_text(), re.DOTALL)
    for block in blocks:
        typed, frames = "", []
        for line in block.splitlines():
            if line.startswith("> "):
                typed = line[2:]
            elif line.startswith("< "):
                frames.append(line[2:])
        if frames:
            exchanges.append(Exchange(typed, frames))
    return exchanges


def write_document(program: Program, exchanges: Sequence[Exchange]) -> None:
    """Write the document anew; long frames are cut."""
    parts = [
        program.head,
        "The server speaks first: its version, its limits and its commands.\n",
    ]
    for exchange in exchanges:
        if exchange.typed:
            parts.append(f"{program.conversation[exchange.typed]}\n")
        shown = [f"> {exchange.typed}"] if exchange.typed else [program.greeting]
        for frame in exchange.frames:
            is_short = len(frame) <= WIDTH or "error" in kind(frame)
            cut = frame if is_short else f"{frame[: WIDTH - 1]}…"
            shown.append(f"< {cut}")
        parts.append("\n".join(["```text", *shown, "```\n"]))
    if program.end:
        parts.append(f"{program.end}\n\n```text\nConnection closed: 1000 (OK).\n```\n")
    program.document.write_text("\n".join(parts))


if __name__ == "__main__":
    for chosen in sys.argv[1:] or PROGRAMS:
        with served() as address:
            session = converse(PROGRAMS[chosen], address, list(PROGRAMS[chosen].conversation))
            write_document(PROGRAMS[chosen], list(session))
