"""A connection that is lost, or a server that is silent, is reported while a command waits."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from agentsrv.cli.connection import ConnectionWatch
from agentsrv.client import Outage
from tests.support.server_process import ServerProcess
from tests.support.terminal import in_terminal

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def server(tmp_path) -> Iterator[ServerProcess]:
    """A server of its own, to be stopped."""
    server = ServerProcess(tmp_path, "tests.e2e.cli.live.conftest:planned", "--drain-timeout=0.1")
    server.start()
    yield server
    os.kill(server.pid, signal.SIGCONT)
    server.kill()


COMMANDS = {"live": {}, "lines": {"TERM": "dumb"}}


@pytest.mark.parametrize("env", COMMANDS.values(), ids=COMMANDS)
def test_run_reports_a_server_that_is_killed_and_its_return(server, env):
    """At once, and once each."""
    with in_terminal("run", "endless wait", "--url", server.url, env=env, columns=200) as terminal:
        terminal.wait_for("endless")
        server.kill()
        terminal.wait_for(f"the connection to {server.url} was lost: it ended without a closing")
        terminal.wait_for("the task continues on the server, trying again")
        server.start()
        terminal.wait_for("connected again after", "no event is missing")
        assert terminal.text.count("trying again") == 1
        terminal.type("\x03")
        assert terminal.end() == 130


@pytest.mark.parametrize("command", ["run", "tail"])
def test_a_server_that_is_stopped_is_reported(server, command):
    """The connection is open and silent; it is kept."""
    with in_terminal("run", "endless wait", "--url", server.url, columns=200) as first:
        first.wait_for("last endless")
        if command == "tail":
            task_id = first.lines[0].split()[3]
            with in_terminal("tail", task_id, "--url", server.url, columns=200) as terminal:
                terminal.wait_for("last endless")
                _stop_and_continue(server, terminal)
        else:
            _stop_and_continue(server, first)
        first.type("\x03")
        assert first.end() == 130


def _stop_and_continue(server: ServerProcess, terminal) -> None:
    os.kill(server.pid, signal.SIGSTOP)
    terminal.wait_for("the server does not answer; the task continues on the server")
    os.kill(server.pid, signal.SIGCONT)
    terminal.wait_for("the server answers again after")


def test_top_reports_a_server_that_is_killed_and_draws_again(server):
    """The last screen stays, and says why it is old."""
    with in_terminal("top", "--url", server.url, columns=200) as terminal:
        terminal.wait_for("(q quits)")
        server.kill()
        terminal.wait_for("was lost: it ended without a closing handshake; trying again")
        server.start()
        terminal.wait_for("(q quits)")
        terminal.type("q")
        assert terminal.end() == 0


def test_each_trouble_is_told_once_and_its_end():
    """However many attempts fail, and whatever the pings say meanwhile."""
    told: list[str] = []
    now = [0.0]
    watch = ConnectionWatch(told.append, lambda: now[0])
    watch.answered()
    watch.changed(None)
    assert told == []
    watch.silent()
    watch.silent()
    watch.changed(Outage("lost", 0.0, 1.0))
    assert watch.trouble == "lost"
    watch.silent()
    now[0] = 9.0
    watch.changed(None)
    watch.answered()
    assert watch.trouble == ""
    assert told == [
        "the server does not answer; the task continues on the server, trying again",
        "connected again after 9 s; no event is missing",
    ]
