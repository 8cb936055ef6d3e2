"""What opens several descriptors, threads or processes in a row releases all where one fails."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import pytest

from agentsrv.agents.isolation.attempt import Attempt, ReturnLimits
from agentsrv.agents.isolation.output import LogBudget
from agentsrv.agents.isolation.pool import ProcessPool, _ForkServerProcess
from agentsrv.cli import processes
from agentsrv.cli.mcp import server as mcp
from agentsrv.client import SyncClient
from agentsrv.errors import AgentProcessError, UnavailableError
from agentsrv.knowledge.reading import DocumentReader
from agentsrv.settings import Settings
from agentsrv.store.queue import QueueLimits
from agentsrv.store.sqlite.log import SqliteLog

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc/self/fd")

LIMITS = ReturnLimits(1000, 1000)


def full(*_: Any) -> Any:
    """Fail as the limit of open files does."""
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def without_room(*_: Any) -> Any:
    """Fail as the limit of threads does."""
    raise RuntimeError("can't start new thread")


def descriptors() -> set[tuple[str, str]]:
    """The open descriptors of this process, and what they lead to."""
    found = set()
    for link in list(Path("/proc/self/fd").iterdir()):
        with suppress(FileNotFoundError):  # that of the folder
            found.add((link.name, str(link.readlink())))
    return found


class Openings:
    """Counts what the main thread opens; fails at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: int | None = None
        """How many may still be opened; ``None``: any number."""
        for owner, name, fail in [
            (os, "pipe", full),
            (os, "open", full),
            (os, "dup", full),
            (socket, "socketpair", full),
            (asyncio.SelectorEventLoop, "add_reader", full),
            (threading.Thread, "start", without_room),
        ]:
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name), fail))

    def _counted(self, function: Callable[..., Any], fail: Callable[[], Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.left is not None and threading.current_thread() is threading.main_thread():
                if not self.left:
                    fail()
                self.left -= 1
            return function(*args, **kwargs)

        return call


async def fork_server(_: Path) -> None:
    """The process that starts agents' processes."""
    await _ForkServerProcess([], preload=False).close()


async def pool(_: Path) -> None:
    """The same, as an attempt asks for it."""
    async with ProcessPool([], LIMITS) as opened:
        await opened._server_ready()


async def attempt(_: Path) -> None:
    """The connections of one process of an agent."""

    async def hand_over(_: list[int]) -> None:
        raise AgentProcessError("ended")

    budget = LogBudget(asyncio.get_running_loop().time)
    made = Attempt({}, budget, LIMITS)
    try:
        await made.start(hand_over)
    finally:
        made.close()


async def relayed_stdin(_: Path) -> None:
    """What `agentsrv mcp` reads from."""
    mcp._relay_stdin(lambda _: None)


async def relayed_stdout(_: Path) -> None:
    """What `agentsrv mcp` writes to."""
    answers = mcp._Answers()
    try:
        async with mcp._relayed_stdout(answers):
            pass
    finally:
        os.close(answers.reader)
        os.close(answers.writer)


async def store(folder: Path) -> None:
    """The file of an SQLite store."""
    log = SqliteLog(folder / "store.db", QueueLimits())
    log.open()
    log.close()


MEMBERS: list[tuple[Callable[[Path], Awaitable[None]], int]] = [
    (fork_server, 6),
    (pool, 6),
    (attempt, 6),
    (relayed_stdin, 4),
    (relayed_stdout, 4),
    (store, 3),
]
"""What opens, and how often it does."""
FAILING = [
    pytest.param(member, place, id=f"{member.__name__}-{place}")
    for member, count in MEMBERS
    for place in range(count)
]


@pytest.mark.parametrize(("member", "place"), FAILING)
async def test_what_was_opened_before_is_released(
    member: Callable[[Path], Awaitable[None]], place: int, monkeypatch, tmp_path: Path
) -> None:
    """Also where the last of them fails; the error says what is missing."""
    openings, before = Openings(monkeypatch), descriptors()
    openings.left = place
    try:
        with pytest.raises(
            (OSError, RuntimeError, AgentProcessError, UnavailableError),
            match=r"Too many open files|new thread",
        ):
            await member(tmp_path)
    finally:
        openings.left = None
    assert descriptors() == before


@pytest.mark.parametrize(("member", "count"), MEMBERS[:3] + MEMBERS[-1:])
async def test_all_of_them_are_tried(
    member: Callable[[Path], Awaitable[None]], count: int, monkeypatch, tmp_path: Path
) -> None:
    """With one more than the list says nothing fails."""
    openings, before = Openings(monkeypatch), descriptors()
    openings.left = count
    try:
        await member(tmp_path)
    except AgentProcessError as error:
        assert error.message == "ended"  # noqa: PT017 - of the member that always ends so
    finally:
        openings.left = None
    assert descriptors() == before


def test_a_client_without_a_thread_closes_its_loop(monkeypatch) -> None:
    """The loop has descriptors of its own."""
    openings, before = Openings(monkeypatch), descriptors()
    monkeypatch.setattr(openings, "left", 1)  # the loop's pair of sockets
    with pytest.raises(RuntimeError, match="new thread"):
        SyncClient("ws://127.0.0.1:1")
    openings.left = None
    assert descriptors() == before


def test_a_document_is_read_without_another_descriptor(monkeypatch, tmp_path: Path) -> None:
    """An answer that could not be waited for would be taken as that of the next file."""
    monkeypatch.setattr(select, "epoll", full)
    reader = DocumentReader()
    texts = {f"{word}.txt": f"The {word} text says something." for word in ("first", "other")}
    try:
        for name, text in texts.items():
            (tmp_path / name).write_text(text)
            found = reader.read(tmp_path / name, name)
            assert [text in chunk.text for chunk in found.chunks] == [True]
    finally:
        reader.close()
        reader.stop_child()


async def test_a_server_that_cannot_be_started_is_started_later(
    monkeypatch, tmp_path: Path, caplog
) -> None:
    """One of ``--processes``; the others, which have started, are kept."""
    start, failures = SpawnProcess.start, [full]

    def flaky(self: SpawnProcess) -> None:
        if failures:
            failures.pop()()
        start(self)

    monkeypatch.setattr(SpawnProcess, "start", flaky)
    monkeypatch.setattr(processes, "PAUSE", 0.01)
    settings = Settings(store=f"sqlite:///{tmp_path}/a.db", port=0, node="one")
    supervisor = processes._Supervisor("tests.faults.slow_app:app", [settings])
    running = asyncio.create_task(supervisor.run())
    while "one" not in supervisor._processes:
        await asyncio.sleep(0.01)
        assert not running.done()
    supervisor._take(signal.SIGTERM)
    assert await running == 0
    assert (
        "one cannot be started: [Errno 24] Too many open files; it starts again in" in caplog.text
    )
