"""A command in a real terminal, and what its screen shows."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pexpect
import pyte

PATIENCE = 45  # seconds for something to be shown
ROWS, COLUMNS = 24, 80


class Terminal:
    """Types, and looks at the screen as a person would; ``written`` is all that was sent to it."""

    def __init__(self, process: pexpect.spawn[str], rows: int, columns: int) -> None:
        self.process = process
        self.written = ""
        self._screen = pyte.HistoryScreen(columns, rows, history=10_000)
        self._stream = pyte.Stream(self._screen)

    @property
    def lines(self) -> list[str]:
        """The lines of the screen and those that have left it, without the empty ones."""
        gone = (
            "".join(line[column].data for column in range(self._screen.columns))
            for line in self._screen.history.top
        )
        return [line.rstrip() for line in [*gone, *self._screen.display] if line.strip()]

    @property
    def text(self) -> str:
        """The lines as one text."""
        return "\n".join(self.lines)

    @property
    def is_cursor_hidden(self) -> bool:
        """Whether the cursor is left hidden."""
        return self._screen.cursor.hidden

    def wait_for(self, *texts: str) -> None:
        """Look until all ``texts`` are on the screen together."""
        self._look(lambda: all(text in self.text for text in texts), f"{texts} on the screen")

    def end(self) -> int:
        """Look until the command has ended, and return its exit code."""
        self._look(lambda: not self._read(), "its end")
        self.process.close()
        assert self.process.exitstatus is not None
        return int(self.process.exitstatus)

    def type(self, text: str) -> None:
        """Type."""
        self.process.send(text)

    def resize(self, rows: int, columns: int) -> None:
        """Make the window another size."""
        self._screen.resize(rows, columns)
        self.process.setwinsize(rows, columns)

    def _look(self, condition, what: str) -> None:
        until = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < until, f"waited for {what}; there is:\n{self.text}"
            self._read()

    def _read(self) -> bool:
        """Take in what was sent; tell whether more can come."""
        try:
            text = self.process.read_nonblocking(65536, timeout=0.05)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.written += text
        self._stream.feed(text)
        return True


def _listen_to_interrupts() -> None:
    """A shell lets what it runs in the background ignore them, and so would what that starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def in_terminal(
    *arguments: str,
    rows: int = ROWS,
    columns: int = COLUMNS,
    env: Mapping[str, str] | None = None,
    stdout: Path | None = None,
) -> Iterator[Terminal]:
    """Run ``agentsrv`` with ``arguments``, its stdout in a file if one is given.

    What is left of it is killed.
    """
    command = [sys.executable, "-m", "agentsrv", *arguments]
    if stdout is not None:
        command = ["sh", "-c", 'exec "$@" > "$0"', str(stdout), *command]
    process = pexpect.spawn(
        command[0],
        command[1:],
        encoding="utf-8",
        dimensions=(rows, columns),
        env={**os.environ, "TERM": "xterm-256color", **(env or {})},
        preexec_fn=_listen_to_interrupts,
    )
    try:
        yield Terminal(process, rows, columns)
    finally:
        process.close(force=True)
