"""``agentsrv serve --reload``: a change starts a new process, in which tasks go on."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentsrv.cli import reloading
from agentsrv.client import Client
from agentsrv.errors import ConfigurationError

MODULE = """
import asyncio
from agentsrv import App

app = App()

@app.agent
async def greeter(step, ctx):
    if "{word}" == "Hello":
        await asyncio.Event().wait()
    return "{word}"
"""


@pytest.fixture
def reloading_server(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A server of ``mine.py`` that waits for changes; its stderr is read line by line."""
    (tmp_path / "mine.py").write_text(MODULE.format(word="Hello"))
    command = [sys.executable, "-m", "agentsrv", "serve", "--reload", "--port=0", "mine:app"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        yield process
        process.terminate()


def read_until(process: subprocess.Popen[str], pattern: str) -> str:
    """What the first line with the pattern matches."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if found := re.search(pattern, line):
            return found[0]
    raise AssertionError(f"no {pattern!r} in {''.join(lines)}")


async def test_a_task_goes_on_in_the_new_code(reloading_server, tmp_path):
    """It was begun by the old process, and the new one ends it; broken code is waited out."""
    url = read_until(reloading_server, r"ws://[\w.:]+")
    async with Client(url) as client:
        task = await client.start("x", agent="greeter")
        async for record in task.events():
            if record.event_type == "step_started":
                break
    (tmp_path / "mine.py").write_text("this is no Python")
    read_until(reloading_server, "changed: mine.py")
    read_until(reloading_server, "SyntaxError")
    (tmp_path / "mine.py").write_text(MODULE.format(word="Good day"))
    url = read_until(reloading_server, r"ws://[\w.:]+")
    async with Client(url) as client:
        records = [record async for record in client.task(task.id).events()]
    assert records[-1].data["final_output"] == "Good day"
    assert "task_recovered" in [record.event_type for record in records]


async def test_one_signal_ends_both(reloading_server):
    """The server drains, and its exit code is the command's."""
    read_until(reloading_server, r"ws://[\w.:]+")
    reloading_server.send_signal(signal.SIGINT)
    assert reloading_server.wait(20) == 0


def test_without_watchfiles_the_extra_is_named(monkeypatch):
    """What is missing is told before anything starts."""
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    with pytest.raises(ConfigurationError, match=r"agentsrv\[reload\]"):
        reloading.serve_reloading([])
