"""No text of other people reaches a terminal as an escape sequence, whichever command shows it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from agentsrv import App, PermanentError
from agentsrv.settings import Settings
from tests.support.cli import in_a_thread
from tests.support.fake_server import HELLO, FakeServer, Peer
from tests.support.terminal import in_terminal

EVIL = (
    "EVIL\x1b]52;c;cm0gLXJm\x07\x1b]0;title\x07\x1b]8;;http://x\x1b\\\x1b[8m\x1b[2J\x1bP+q\x1b\\"
    "\x9b8m\x9d0;t\x9c\x08\x08\u202e\u200b\u2066\r"
)
MARK = "EVIL\\x1b]52"  # how it begins where it is shown
NEVER = ("\x1b]", "\x1bP", "\x1b[8m", "\x1b\\", "\x07", "\x08", "\x90", "\x9b", "\x9c", "\x9d",
         "\u202e", "\u200b", "\u2066")  # fmt: skip

app = App()


@app.agent
async def speaker(step, ctx, name: str = EVIL):
    """Say EVIL\x1b]52;c;cm0gLXJm\x07 things."""  # noqa: D301 - the characters themselves
    await ctx.progress(1, 2, EVIL)
    yield EVIL
    yield f"{EVIL}\n"


@app.agent(retries=1, retry_base=0.01)
async def broken(step, ctx):
    """Fail twice."""
    if ctx.attempt == 1:
        raise RuntimeError(EVIL)
    raise PermanentError(EVIL)


@app.agent(retries=0)
async def asker(step, ctx):
    """Ask."""
    return str(await ctx.ask(EVIL, options=[EVIL, "no"], default="no"))


async def _refuse(peer: Peer) -> None:
    while True:
        command = await peer.receive()
        fields = {"code": "invalid_command", "message": EVIL, "retryable": False}
        details = [{"field": EVIL, "reason": EVIL}] * 2
        answers = {"command": command["command"], "id": command["id"]}
        await peer.send({"type": "error", **answers, **fields, "details": details})


async def _close(peer: Peer) -> None:
    await peer.socket.close(4403, EVIL[:60])


@asynccontextmanager
async def _fake(script) -> AsyncIterator[str]:
    async with FakeServer(script).running() as fake:
        yield fake.url


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server with a task of each agent; one of them still asks."""

    @asynccontextmanager
    async def serving() -> AsyncIterator[str]:
        settings = Settings(port=0, store="memory:", drain_timeout=0.01)
        async with app.running(settings) as running:
            yield running.url

    yield from in_a_thread(serving)


@pytest.fixture(scope="module")
def tasks(server: str) -> dict[str, str]:
    """The id of a task of each agent."""
    from agentsrv.client import Client

    async def make() -> dict[str, str]:
        async with Client(server) as client:
            ids = {}
            for agent in ("speaker", "broken", "asker"):
                made = await client.start(f"{agent} {EVIL}", agent=agent)
                ids[agent] = made.id
                async for record in made.events():
                    if record.event_type == "input_required":
                        break
            return ids

    return asyncio.run(make())


SHOWN = {
    "run": (["run", EVIL, "--agent", "speaker"], {}, 0),
    "run in lines": (["run", EVIL, "--agent", "speaker"], {"TERM": "dumb"}, 0),
    "run as JSON": (["run", EVIL, "--agent", "speaker", "--json"], {}, 0),
    "run that fails": (["run", EVIL, "--agent", "broken"], {}, 1),
    "tail": (["tail", "ID of speaker"], {}, 0),
    "tail in lines": (["tail", "ID of broken", "--after", "1"], {}, 1),
    "status": (["status", "ID of speaker"], {}, 0),
    "status of a failure": (["status", "ID of broken"], {}, 0),
    "status of a question": (["status", "ID of asker"], {}, 0),
    "status as JSON": (["status", "ID of speaker", "--json"], {}, 0),
    "list": (["list"], {}, 0),
    "list as JSON": (["list", "--json"], {}, 0),
    "agents": (["agents"], {}, 0),
    "a wrong answer": (["respond", "ID of asker", f"not {EVIL}"], {}, 2),
    "a wrong URL": (["list", "--url", f"http{EVIL}"], {}, 2),
    "a wrong option": (["list", f"--{EVIL}"], {}, 2),
    "a wrong id": (["tail", EVIL[:24]], {}, 2),
    "a wrong parameter": (["run", "x", "--param", EVIL], {}, 2),
    "doctor": (["doctor"], {f"AGENTSRV_{EVIL}": "1"}, 1),
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_command_shows_it_and_does_not_execute_it(name, server, tasks, tmp_path, monkeypatch):
    """Each command that shows texts of other people."""
    monkeypatch.chdir(tmp_path)
    arguments, environment, code = SHOWN[name]
    arguments = [
        tasks.get(each.removeprefix("ID of "), each) if each.startswith("ID of ") else each
        for each in arguments
    ]
    environment = {"AGENTSRV_URL": server, **environment}
    with in_terminal(*arguments, columns=200, env=environment) as terminal:
        assert terminal.end() == code, terminal.text
    assert "EVIL" in terminal.written
    assert [found for found in NEVER if found in terminal.written] == []


def test_a_question_is_shown_and_not_executed(server):
    """At the prompt."""
    with in_terminal("run", EVIL, "--agent", "asker", env={"AGENTSRV_URL": server}) as terminal:
        terminal.wait_for("decline, Enter for no")
        terminal.type("\n")
        assert terminal.end() == 0
    assert MARK in terminal.written.replace("\r\n", "")
    assert [found for found in NEVER if found in terminal.written] == []


def test_top_shows_it_and_does_not_execute_it(server, tasks):
    """Beside the escape sequences that draw the screen."""
    with in_terminal("top", columns=200, env={"AGENTSRV_URL": server}) as terminal:
        terminal.wait_for(MARK)
        terminal.type("q")
        assert terminal.end() == 0
    written = terminal.written.replace("\x1b[?1049h", "").replace("\x1b[2J", "")
    assert [found for found in NEVER if found in written] == []


@pytest.mark.parametrize(("script", "code"), [(_refuse, 2), (_close, 4)])
def test_a_server_is_not_trusted_either(script, code, monkeypatch):
    """Its name, its refusals, their details, and its reason to close."""
    hello = {**HELLO, "server": {"name": EVIL, "version": EVIL}}
    monkeypatch.setattr("tests.support.fake_server.HELLO", hello)
    serving = in_a_thread(lambda: _fake(script))
    url = next(serving)
    try:
        with in_terminal("list", env={"AGENTSRV_URL": url}) as terminal:
            assert terminal.end() == code, terminal.text
    finally:
        next(serving, None)
    assert MARK in terminal.written
    assert [found for found in NEVER if found in terminal.written] == []


def test_in_a_pipe_the_result_is_what_the_agent_wrote(server):
    """Byte for byte."""
    command = [sys.executable, "-m", "agentsrv", "run", "x", "--agent", "speaker", "--url", server]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stdout.decode() == f"{EVIL}{EVIL}\n"
