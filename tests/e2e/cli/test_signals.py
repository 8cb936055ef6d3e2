"""What commands do at signals, while they start, while they wait, and within a handler."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import pytest

from agentsrv import App
from agentsrv.cli.reloading import _Stop
from agentsrv.client import SyncClient
from agentsrv.settings import Settings
from tests.support.cli import in_a_thread

app = App()
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
WITHIN = 60  # seconds after which a test gives up
PATIENT = """
import agentsrv.store.postgres.store, agentsrv.store.sqlite.store
agentsrv.store.postgres.store.OPEN_TIMEOUT = agentsrv.store.sqlite.store.OPEN_TIMEOUT = 1e6
agentsrv.store.postgres.connections.CONNECT_TIMEOUT = 1e6
from agentsrv.cli import main
main()
"""


@app.agent
async def endless(step, ctx):
    """Stay."""
    yield "I stay"
    await asyncio.Event().wait()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server of the agent above."""

    @asynccontextmanager
    async def serving() -> AsyncIterator[str]:
        settings = Settings(port=0, store="memory:", drain_timeout=0.01)
        async with app.running(settings) as running:
            yield running.url

    yield from in_a_thread(serving)


@contextmanager
def started(*command: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A program whose output is read line by line; it is killed afterwards."""
    with subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """The first line that has ``text``."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return line
    raise AssertionError(f"no {text!r} in {''.join(lines)}")


@contextmanager
def locked(folder: Path) -> Iterator[tuple[str, Callable[[subprocess.Popen[str]], object]]]:
    """A database that another program writes."""
    with closing(sqlite3.connect(folder / "agentsrv.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield f"sqlite:///{folder}/agentsrv.db", lambda process: read_until(process, "waiting up")


@contextmanager
def refused(_: Path) -> Iterator[tuple[str, Callable[[subprocess.Popen[str]], object]]]:
    """A PostgreSQL that does not run."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        store = f"postgresql://ann@127.0.0.1:{holder.getsockname()[1]}/tasks"
        yield store, lambda process: read_until(process, "waiting up")


@contextmanager
def silent(_: Path) -> Iterator[tuple[str, Callable[[subprocess.Popen[str]], object]]]:
    """A PostgreSQL that accepts a connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(WITHIN)
        accepted: list[socket.socket] = []
        store = f"postgresql://ann@127.0.0.1:{listener.getsockname()[1]}/tasks"
        yield store, lambda _: accepted.append(listener.accept()[0])
        for connection in accepted:
            connection.close()


@pytest.mark.parametrize("number", ENDING)
@pytest.mark.parametrize("store", [locked, refused, silent])
def test_a_signal_ends_a_start_that_waits(store, number, tmp_path):
    """At once, with the status of a server that was told to stop."""
    with (
        store(tmp_path) as (url, waits),
        started("-c", PATIENT, "serve", "--port=0", f"--store={url}") as process,
    ):
        waits(process)
        process.send_signal(number)
        read_until(process, "the start was interrupted")
        assert process.wait(WITHIN) == 0


WAITING = {
    "tail": ("tail TASK", "step_001 started"),
    "run": ("run hello --agent endless", "step_001 started"),
    "run, JSON": ("run hello --agent endless --json", "partial_output"),
    "demo": ("demo", "listens on"),
}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("name", WAITING)
def test_a_command_that_waits_cleans_up(name, number, server):
    """It exits with 128 and the signal's number, and leaves no program behind."""
    arguments, shown = WAITING[name]
    with SyncClient(server) as client:
        task = client.start("hello", agent="endless").id
    command = arguments.replace("TASK", task).split()
    with started("-m", "agentsrv", *command, AGENTSRV_URL=server) as process:
        line = read_until(process, shown)
        process.send_signal(number)
        assert process.wait(WITHIN) == 128 + number
    if name == "demo":
        host, port = line.split("ws://")[1].strip().split(":")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)))


def test_a_command_under_nohup_lives_on(server):
    """SIGHUP is ignored if it was ignored at the start."""
    with SyncClient(server) as client:
        task = client.start("hello", agent="endless").id
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with started("-m", "agentsrv", "tail", task, AGENTSRV_URL=server) as process:
            read_until(process, "step_001 started")
            process.send_signal(signal.SIGHUP)
            process.send_signal(signal.SIGTERM)
            assert process.wait(WITHIN) == 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGHUP, before)


STUBBORN = """
import asyncio
from agentsrv.cli.signals import end_by, ending, run_until_signal

async def wait():
    try:
        print("waits", flush=True)
        await asyncio.Event().wait()
    finally:
        print("cleans up", flush=True)
        await asyncio.Event().wait()

async def wait_for_calls():
    end_by(ending(), lambda _: print("cleans up", flush=True))
    print("waits", flush=True)
    await asyncio.Event().wait()

run_until_signal({work}())
"""


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("work", ["wait", "wait_for_calls"])
def test_a_second_signal_does_not_wait(work, first):
    """Except SIGHUP, which a terminal that closes may send twice."""
    with started("-c", STUBBORN.format(work=work)) as process:
        read_until(process, "waits")
        process.send_signal(first)
        read_until(process, "cleans up")
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.wait(WITHIN) == 128 + signal.SIGTERM


REENTERED = """
import asyncio, os, signal, sys
from agentsrv.cli.reloading import _Stop
from agentsrv.cli.signals import Signals

LINES = 60  # more than a handler has, with all that it calls
left = 0

def trace(frame, event, _):
    global left
    if event == "line":
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGHUP)
    return trace

def send():
    global left
    for left in range(1, LINES):
        sys.settrace(trace)
        os.kill(os.getpid(), signal.SIGHUP)
        sys.settrace(None)

async def serve():
    with Signals(lambda: None, 1e6):
        send()

{call}
print("lives")
"""
HANDLERS = {
    "serve": "asyncio.run(serve())",
    "reload": "signal.signal(signal.SIGHUP, _Stop().take); send()",
}


@pytest.mark.parametrize("name", HANDLERS)
def test_a_signal_may_come_within_a_handler(name):
    """At each line of it, and of what it calls: nothing waits for itself."""
    done = subprocess.run(
        [sys.executable, "-c", REENTERED.format(call=HANDLERS[name])],
        stdout=subprocess.PIPE,
        timeout=WITHIN,
        check=True,
    )
    assert done.stdout == b"lives\n"


def test_reloading_passes_the_second_signal_on():
    """The process that serves then exits at once."""

    class Child:
        ended = 0

        def terminate(self) -> None:
            self.ended += 1

    stop, child = _Stop(), Child()
    stop.child = child  # type: ignore[assignment]
    told = []
    for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        stop.take(number, None)
        told.append((stop.is_set(), child.ended))
    assert told == [(True, 0), (True, 0), (True, 1), (True, 2)]
