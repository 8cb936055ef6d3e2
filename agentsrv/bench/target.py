"""What is measured: a server in a process of its own, or one that somebody else has started."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentsrv.app import SQLITE
from agentsrv.bench.app import app
from agentsrv.bench.machine import HAS_PROC
from agentsrv.client import Client
from agentsrv.errors import ConfigurationError
from agentsrv.settings import Loop

AGENTS: Final = {agent["name"] for agent in app.registry.described()}
MEMORY: Final = "memory:"
LOOK_AGAIN: Final = 0.002  # seconds between two looks at whether the server listens
STARTS_WITHIN: Final = 60.0  # seconds
ENDS_WITHIN: Final = 20.0  # seconds
LISTENS: Final = b"listening on "
LIMITS: Final = (
    *("--concurrency", "2000", "--queue-limit", "20000"),
    *("--principal-queued", "20000", "--principal-subscriptions", "100000"),
)
PATIENT: Final = ("--ping-timeout", "3600")  # pongs are sent on idle connections only
MOST_CONNECTIONS: Final = 100_000  # more than a machine lets one client open


@dataclass(frozen=True, slots=True)
class Target:
    """A server that listens."""

    url: str
    pid: int | None = None
    """Its process, where it is ours and this system lets us look into it."""
    started_in: float = 0.0
    """Seconds from its start until it listened."""


@dataclass(frozen=True, slots=True)
class Remote:
    """Where a server is that is not ours: its process and its store cannot be looked into."""

    url: str

    @asynccontextmanager
    async def server(self) -> AsyncIterator[Target]:
        """The server.

        Raises:
            ConfigurationError: It serves another application.
            NoServer: Nobody answers.
        """
        async with Client(self.url) as client:
            found = {agent["name"] for agent in await client.agents()}
        if not found >= AGENTS:
            raise ConfigurationError(
                f"the server at {self.url} has other agents; expected one that was started with "
                "agentsrv serve agentsrv.bench.app"
            )
        yield Target(self.url)


class Own:
    """Servers of our own, each started anew with the same store, which is removed behind them.

    Args:
        store: ``memory:``, or ``sqlite:///`` and a file that does not exist; ``None`` for a file
            in a folder that is made for it.
        loop: The servers' event loop.

    Raises:
        ConfigurationError: The store is another one, or its file exists: it would be somebody's.
    """

    def __init__(self, store: str | None = None, loop: Loop = "auto") -> None:
        self._loop = loop
        self.file: Path | None = None
        """The store's file; ``None`` for a store without one."""
        if store is not None and store.startswith(SQLITE):
            self.file = Path(store.removeprefix(SQLITE)).absolute()
            if self.file.exists():
                raise ConfigurationError(
                    f"{self.file} exists; expected a file that the bench may fill and remove"
                )
        elif store not in (None, MEMORY):
            raise ConfigurationError(f"store is {store!r}; expected sqlite:///FILE or memory:")
        self._scratch = tempfile.TemporaryDirectory(prefix="agentsrv-bench-")
        self.folder = Path(self._scratch.name)
        if store is None:
            self.file = self.folder / "bench.db"
        self.store = MEMORY if self.file is None else f"{SQLITE}{self.file}"

    @asynccontextmanager
    async def server(self) -> AsyncIterator[Target]:
        """A server that is started now and stopped behind the block, its store removed.

        Raises:
            ConfigurationError: It does not start.
        """
        command = [
            *(sys.executable, "-m", "agentsrv", "serve", "agentsrv.bench.app", "--log-format=text"),
            *("--port", "0", "--store", self.store, *LIMITS, *PATIENT, "--drain-timeout", "0.1"),
            *("--max-connections", str(MOST_CONNECTIONS), "--loop", self._loop),
        ]
        try:
            async with started(command, self.folder) as target:
                yield target
        finally:
            self.clear()

    def clear(self) -> None:
        """Remove the store's file and what stands beside it."""
        if self.file is not None:
            for suffix in ("", "-wal", "-shm", ".lock"):
                self.file.with_name(self.file.name + suffix).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove everything."""
        self.clear()
        self._scratch.cleanup()


Place = Own | Remote


@asynccontextmanager
async def started(command: Sequence[str], folder: Path) -> AsyncIterator[Target]:
    """Run a server within the block; it writes ``listening on URL`` to its standard error.

    No variable, ``.env`` or ``agentsrv.toml`` of the user's counts for it. It is stopped by
    SIGTERM, and killed where that does not help.

    Raises:
        ConfigurationError: It ended, or did not listen in time.
    """
    log = folder / "server.log"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AGENTSRV_")}
    with log.open("wb") as out:
        before = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stderr=out, cwd=folder, env=clean
        )
    try:
        url = await _listening(process, log)
        pid = process.pid if HAS_PROC else None
        yield Target(url, pid, time.perf_counter() - before)
    finally:
        await _stop(process)


async def _listening(process: asyncio.subprocess.Process, log: Path) -> str:
    end = time.perf_counter() + STARTS_WITHIN
    while time.perf_counter() < end and process.returncode is None:
        url = _told_url(log)
        if url is not None:
            return url
        await asyncio.sleep(LOOK_AGAIN)
    raise ConfigurationError(f"the server did not start: {_last_words(log)}")


def _told_url(log: Path) -> str | None:
    _, found, rest = log.read_bytes().partition(LISTENS)
    return rest.split()[0].decode() if found and b"\n" in rest else None


def _last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(ENDS_WITHIN):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
