"""Signals, forks and a log that nobody reads: each on a real process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from agentsrv.client import Client
from tests.faults.deaf_app import BLOCKERS, REPLACERS
from tests.support.clients import run_task
from tests.support.server_process import free_port

pytestmark = pytest.mark.faults
LOOPS = ("asyncio", "uvloop")
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PATIENCE = 20.0  # seconds after which a test gives up


class Server:
    """``agentsrv serve`` whose standard error is read by a thread, or by nobody."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        port: int = 0,
        reads: bool = True,
        program: tuple[str, ...] = ("-m", "agentsrv"),
    ) -> None:
        self.port = port or free_port()
        self.url = f"ws://127.0.0.1:{self.port}"
        self.lines: list[str] = []
        environment = {name: os.environ[name] for name in os.environ if "COVERAGE" not in name}
        self.process = subprocess.Popen(
            [sys.executable, *program, "serve", "tests.faults.deaf_app:app",
             f"--port={self.port}", f"--store=sqlite:///{folder}/agentsrv.db",
             "--log-format=text", *options],
            stdout=subprocess.DEVNULL if reads else subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment | {"PYTHONPATH": str(Path(__file__).parents[2])},
            start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        assert self.process.stderr is not None
        while "listening on" not in (line := self.process.stderr.readline().decode()):
            assert line, "".join(self.lines)
            self.lines.append(line)
        if reads:
            self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.decode())

    def said(self, text: str) -> Callable[[], bool]:
        """Whether the log has it."""
        return lambda: any(text in line for line in self.lines)

    def stop(self, *numbers: signal.Signals) -> int:
        """Send signals, one when the one before was taken; return the exit status."""
        for number in numbers:
            taken = self.said(f"{number.name}: running tasks may end")
            self.process.send_signal(number)
            wait_for(lambda: taken() or self.process.poll() is not None)  # noqa: B023 - called here
        status = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return status

    def end(self) -> None:
        """Remove it, with the children that it has left behind: they hold its standard error."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self._reader.ident is not None:
            self._reader.join(PATIENCE)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


def wait_for(condition: Callable[[], bool]) -> None:
    """Return when the condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers."""
    servers = []

    def start(*options: str, reads: bool = True, **given: Any) -> Server:
        servers.append(Server(tmp_path, *options, reads=reads, **given))
        return servers[-1]

    yield start
    for server in servers:
        server.end()


async def begin(server: Server, agent: str, **params: object) -> str:
    """Start a task and return its id when it has reported."""
    async with Client(server.url) as client:
        task = await client.start("x", agent=agent, params=params)
        async for record in task.events():
            if record.event_type == "step_progress":
                break
        return task.id


async def run(server: Server, agent: str, **params: object) -> str:
    """Run a task; return its output."""
    async with Client(server.url) as client:
        return (await run_task(client, "x", agent=agent, params=params)).final_output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "loop"), [*zip(BLOCKERS, LOOPS * len(BLOCKERS), strict=False), ("sleep", "uvloop")]
)
async def test_a_second_signal_ends_a_server_whose_loop_is_blocked(serve, how, loop):
    """With the status of the signal; the first one has been received and logged."""
    server = serve(f"--loop={loop}", "--drain-timeout=600")
    await begin(server, "block", how=how)
    if how != "backtracking":  # which holds Python's lock, too
        wait_for(server.said("the event loop is blocked"))
    assert server.stop(signal.SIGTERM, signal.SIGINT) == 128 + signal.SIGINT
    assert server.said("SIGTERM: running tasks may end")()


@pytest.mark.parametrize("number", STOPPING)
async def test_one_signal_ends_a_blocked_server_after_the_drain_time(serve, number):
    """Also a first one; the log has named the task that holds it."""
    server = serve("--drain-timeout=1.5", "--cancel-grace=0.5")
    task_id = await begin(server, "block", how="sleep")
    assert server.stop(number) == 128 + number
    log = "".join(server.lines)
    assert f"{number.name} has to wait: the event loop is blocked by task {task_id}" in log
    assert "exiting without a drain" in log


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "number", "loop"),
    [
        (how, STOPPING[place % 3], loop)
        for place, (how, loop) in enumerate((how, loop) for how in REPLACERS for loop in LOOPS)
    ],
)
async def test_a_server_drains_whatever_code_has_replaced(serve, how, number, loop):
    """Handlers of signals, the wake-up descriptor, or its own loggers."""
    server = serve(f"--loop={loop}")
    await run(server, "replace", how=how)
    if how == "silence":
        wait_for(server.said("has silenced the loggers"))
    elif how != "wake_up_elsewhere":
        wait_for(server.said("has replaced the handler of"))
    assert server.stop(number) == 0
    assert server.said(f"{number.name}: running tasks may end")()


@pytest.mark.parametrize("loop", LOOPS)
async def test_other_signals_are_the_applications(serve, loop):
    """A handler that an agent installs in the loop is called."""
    server = serve(f"--loop={loop}")
    async with Client(server.url) as client:
        task = await client.start("x", agent="hear")
        events = []
        async for record in task.events():
            events.append(record)
            if record.event_type == "step_progress":
                # Not before the server's wake-up descriptor is in its place again.
                await asyncio.sleep(0.5)
                server.process.send_signal(signal.SIGUSR1)
            if record.is_terminal:
                break
    assert events[-1].data["final_output"] == "heard"


def test_a_server_under_nohup_lives_on(serve, monkeypatch):
    """SIGHUP is ignored if it was ignored at the start."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        server = serve()
    finally:
        signal.signal(signal.SIGHUP, before)
    server.process.send_signal(signal.SIGHUP)
    assert server.stop(signal.SIGTERM) == 0
    assert not server.said("SIGHUP")()


FORKS = {
    "return": "1",
    "raise": "1",
    "await": "1",
    "yield": "1",
    "exit": "1",
    "proper": "7",
    "exec": "0",
}


@pytest.mark.parametrize("loop", LOOPS)
async def test_a_forked_child_does_not_serve(serve, loop):
    """It ends when it leaves the agent's code; the server continues, and its store is whole."""
    server = serve(f"--loop={loop}")
    found = {how: await run(server, "fork", how=how) for how in FORKS}
    assert found == FORKS
    assert await run(server, "fork_in_task") == "1"
    assert await run(server, "fork_in_thread") == "1"
    assert await run(server, "pool") == "[0, 1, 4, 9]"
    async with Client(server.url) as client:
        assert (await client.list()).total == len(FORKS) + 3
    assert server.stop(signal.SIGTERM) == 0


async def test_a_child_holds_neither_port_nor_store_nor_clients(serve, tmp_path):
    """It outlives a server that is killed; the next one starts. A signal to it stops nobody else."""
    server = serve()
    child = int(await run(server, "fork", how="stay"))
    try:
        server.process.kill()
        server.process.wait()
        second = Server(tmp_path, port=server.port)
        try:
            os.kill(child, signal.SIGTERM)
            wait_for(lambda: has_ended(child))
            assert await run(second, "replace", how="silence") == ""
            assert second.stop(signal.SIGTERM) == 0
        finally:
            second.end()
    finally:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


async def test_a_signal_to_a_child_does_not_stop_its_server(serve):
    """The descriptor by which signals are received is shared with the parent."""
    server = serve()
    child = int(await run(server, "fork", how="stay"))
    os.kill(child, signal.SIGTERM)
    wait_for(lambda: has_ended(child))
    await run(server, "replace", how="silence")
    assert not server.said("SIGTERM")()
    assert server.stop(signal.SIGTERM) == 0


EARLY_SIGNAL = """
import os, signal
os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGTERM))
from agentsrv.cli import main
main()
"""  # the hook is called before those that are registered later


@pytest.mark.parametrize("agent", ["fork_in_task", "fork_in_thread"])
async def test_a_signal_to_a_child_that_has_barely_begun_ends_the_child_only(serve, agent):
    """A pool of ``multiprocessing`` ends workers that it has just started."""
    server = serve(program=("-c", EARLY_SIGNAL))
    assert await run(server, agent) == str(-signal.SIGTERM)
    assert await run(server, "replace", how="silence") == ""
    assert not server.said("SIGTERM")()
    assert server.stop(signal.SIGTERM) == 0


def has_ended(pid: int) -> bool:
    """Whether the process has ended, perhaps without its parent's having asked for its status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def get(server: Server, path: str) -> str:
    """The body of a page of the server."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}") as answer:
        return str(answer.read().decode())


@pytest.mark.parametrize("loop", LOOPS)
async def test_a_log_that_nobody_reads_stops_nothing(serve, loop):
    """Tasks, /healthz and SIGTERM work; what was dropped is counted, and reported when it drains."""
    server = serve(f"--loop={loop}", reads=False)
    assert await run(server, "flood", lines=12_000) == "written"
    await asyncio.to_thread(get, server, "/healthz")
    metrics = await asyncio.to_thread(get, server, "/metrics")
    (count,) = [
        float(line.split()[1])
        for line in metrics.splitlines()
        if line.startswith("agentsrv_log_lines_dropped_total ")
    ]
    assert count > 1000
    assert server.process.stderr is not None
    for line in server.process.stderr:
        server.lines.append(line.decode())
        if "lines of standard error were dropped" in server.lines[-1]:
            break
    assert await run(server, "flood", lines=12_000) == "written"
    server.process.terminate()
    assert await asyncio.to_thread(server.process.wait, PATIENCE) == 0


async def test_lines_are_whole_where_a_reader_is_slow(serve):
    """What is dropped is dropped by lines."""
    server = serve("--log-format=json", reads=False)
    await run(server, "flood", lines=12_000)
    server._reader.start()
    assert server.process.stdout is not None
    threading.Thread(target=server.process.stdout.read, daemon=True).start()
    # Until the reader has caught up, the line about the signal may be among the dropped ones.
    await asyncio.to_thread(wait_for, server.said("lines of standard error were dropped"))
    server.process.terminate()
    assert await asyncio.to_thread(server.process.wait, PATIENCE) == 0
    server._reader.join()
    for line in server.lines:
        json.loads(line)
    assert server.said("SIGTERM: running tasks may end")()
