"""docs/tutorial/shop.md: a test does what it says, and sees what it shows."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.docs.pages import DOCS
from tests.e2e.docs.terminal import settled
from tests.support.terminal import Terminal, in_terminal

PAGE = (DOCS / "tutorial" / "shop.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent
CHAPTERS = [
    re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)
    for text in re.split(r"^## \d", PAGE, flags=re.MULTILINE)[1:]
]
PATIENCE = 60  # seconds that anything may take


class Reader:
    """Somebody who does what the page says, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.environment = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "AGENTSRV_PORT": str(port),
            "AGENTSRV_URL": f"ws://127.0.0.1:{port}",
        }
        self._server: subprocess.Popen[str] | None = None

    def serve(self, command: str) -> None:
        """Start the server, in place of one that runs."""
        self.stop(signal.SIGINT)
        self._server = subprocess.Popen(
            shlex.split(command), cwd=self.folder, env=self.environment,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._server.stderr is not None
        for line in self._server.stderr:
            if "listening on" in line:
                return
        raise AssertionError("the server ended before it listened")

    def stop(self, how: signal.Signals) -> None:
        """Stop the server, if there is one."""
        if self._server is not None:
            self._server.send_signal(how)
            self._server.communicate(timeout=PATIENCE)
            self._server = None

    def do(self, command: str) -> str:
        """Run a command; returns what it writes to standard output."""
        done = subprocess.run(
            shlex.split(command), cwd=self.folder, env=self.environment,
            capture_output=True, text=True, check=False, timeout=PATIENCE,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextmanager
    def running(self, command: str) -> Iterator[Terminal]:
        """Run a command in a terminal; what it redirects goes to the file that it names."""
        words = shlex.split(command.replace(">", " >"))
        target = words.pop().removeprefix(">") if words[-1].startswith(">") else None
        stdout = None if target is None else self.folder / target
        with in_terminal(*words[1:], env=self.environment, stdout=stdout) as terminal:
            yield terminal

    @property
    def receipt(self) -> str:
        """What the file has."""
        return (self.folder / "receipt.txt").read_text()


def told(block: str) -> tuple[str, str]:
    """The command of a console block, and what the page shows below it."""
    command, _, shown = block.removeprefix("$ ").partition("\n")
    return command, shown


@pytest.fixture
def reader(tmp_path) -> Iterator[Reader]:
    """With a server that is stopped in the end."""
    somebody = Reader(tmp_path)
    yield somebody
    somebody.stop(signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_reader_gets_through_it(reader):
    """Chapter by chapter; the first one has made the environment of this test."""
    _, (app, serve, run), (streaming, counted), (shop,), (ask, sold), crash, test = CHAPTERS
    server, _ = told(serve[1])
    file = reader.folder / "shop.py"
    for text, block in ((app[1], run), (streaming[1], counted)):
        file.write_text(text)
        reader.serve(server)
        command, shown = told(block[1])
        with reader.running(command) as terminal:
            assert terminal.end() == 0
        assert settled(terminal.text) == settled(shown)

    file.write_text(shop[1])
    reader.serve(server)
    command, shown = told(ask[1])
    with reader.running(command) as terminal:
        terminal.wait_for("How many apples?")
        terminal.type("3\n")
        assert terminal.end() == 0
    assert settled(terminal.text) == settled(shown)
    assert reader.receipt == sold[1]

    (_, answer), (_, rest) = crash
    with reader.running(command) as terminal:
        terminal.wait_for("How many apples?")
        reader.stop(signal.SIGQUIT)  # as Ctrl-\ does
        terminal.wait_for("was lost")
        reader.serve(server)
        asking, respond = answer.strip().split("\n")
        listed = ""
        while not (found := re.search(r"[0-9a-f]{16}", listed)):  # it is recovered first
            listed = reader.do(asking.removeprefix("$ "))
        reader.do(respond.removeprefix("$ ").replace("863e", found[0]))
        assert terminal.end() == 0
    assert reader.receipt == rest

    (_, program), _, (_, pytest_) = test
    (reader.folder / "test_shop.py").write_text(program)
    command, shown = told(pytest_)
    duration = re.compile(r"\d+\.\d+s")
    assert duration.sub("TIME", reader.do(command)) == duration.sub("TIME", shown)
