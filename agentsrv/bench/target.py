"""What is measured: a server in a process of its own, or one that somebody else has started."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agentsrv.bench.app import app
from agentsrv.bench.machine import HAS_PROC
from agentsrv.client import Client
from agentsrv.error_text import redact_url
from agentsrv.errors import ConfigurationError
from agentsrv.resources import POSTGRES, SQLITE, need_postgres
from agentsrv.settings import Loop, Role

if TYPE_CHECKING:  # an extra
    from agentsrv.store.postgres.temporary_schema import TemporarySchema

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
    """Its process, or the parent of several, where it is ours and this system lets us look."""
    started_in: float = 0.0
    """Seconds from its start until it listened."""
    token: str | None = field(default=None, repr=False)
    """What the load says who it is by, where the server asks."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Servers that share a store."""

    targets: Sequence[Target]
    schema: TemporarySchema | None = None
    """Their store, where it is in PostgreSQL."""


@dataclass(frozen=True, slots=True)
class RemoteServer:
    """Where a server is that is not ours: its process and its store cannot be looked into."""

    url: str
    token: str | None = field(default=None, repr=False)

    @asynccontextmanager
    async def server(self) -> AsyncIterator[Target]:
        """The server.

        Raises:
            ConfigurationError: It serves another application, or the token is none.
            ServerUnavailableError: There is no server.
            UnauthenticatedError: The server rejects the token.
        """
        async with Client(self.url, token=self.token) as client:
            found = {agent.name for agent in await client.agents()}
        if not found >= AGENTS:
            raise ConfigurationError(
                f"the server at {self.url} has other agents; expected one that was started with "
                "agentsrv serve agentsrv.bench.app"
            )
        yield Target(self.url, token=self.token)


class LocalServer:
    """Servers of our own, each started anew with the same store, which is removed behind them.

    Args:
        store: ``memory:``; or ``sqlite:///`` and a file that does not exist; or ``postgresql://``
            and a database, in which each store is a schema of its own; ``None`` for a file in a
            folder that is made for it.
        loop: The servers' event loop.

    Raises:
        ConfigurationError: The store is another one, the extra for it is not installed, or its
            file exists: it would be somebody's.
    """

    def __init__(self, store: str | None = None, loop: Loop = "auto") -> None:
        self.loop = loop
        self.file: Path | None = None
        """The store's file; ``None`` for a store without one."""
        if store is not None and store.startswith(SQLITE):
            self.file = Path(store.removeprefix(SQLITE)).absolute()
            if self.file.exists():
                raise ConfigurationError(
                    f"{self.file} exists; expected a file that the bench may fill and remove"
                )
        elif store is not None and store.startswith(POSTGRES):
            need_postgres()
        elif store not in (None, MEMORY):
            raise ConfigurationError(
                f"store is {redact_url(store)!r}; expected sqlite:///FILE, memory: or postgresql://…"
            )
        self._scratch = tempfile.TemporaryDirectory(prefix="agentsrv-bench-")
        self.folder = Path(self._scratch.name)
        if store is None:
            self.file = self.folder / "bench.db"
        self.store = store if store and self.file is None else f"{SQLITE}{self.file}"

    @property
    def is_shared(self) -> bool:
        """Whether several servers may have the store at the same time."""
        return self.store.startswith(POSTGRES)

    @asynccontextmanager
    async def server(self) -> AsyncIterator[Target]:
        """A server that is started now and stopped behind the block, its store removed.

        Raises:
            ConfigurationError: It does not start.
        """
        async with self.cluster("all") as cluster:
            yield cluster.targets[0]

    @asynccontextmanager
    async def cluster(self, *roles: Role, processes: int = 1) -> AsyncIterator[Cluster]:
        """A node of each role, each of so many processes on its port, that share a store.

        More than one of either, or a role that is not ``all``, needs a store that ``is_shared``.

        Raises:
            ConfigurationError: One of them does not start.
        """
        async with AsyncExitStack() as stack:
            schema, store = None, self.store
            if self.is_shared:
                from agentsrv.store.postgres.temporary_schema import temporary_schema  # noqa: PLC0415 - an extra

                schema = await stack.enter_async_context(temporary_schema(store))
                store = schema.dsn
            stack.callback(self.clear)
            targets = []
            for number, role in enumerate(roles):
                folder = self.folder / f"node-{number}"
                folder.mkdir(exist_ok=True)
                command = self._command(store, f"--role={role}", f"--processes={processes}")
                node = started(command, folder, processes)
                targets.append(await stack.enter_async_context(node))
            yield Cluster(targets, schema)

    def _command(self, store: str, *options: str) -> list[str]:
        return [
            *(sys.executable, "-m", "agentsrv", "serve", "agentsrv.bench.app", "--log-format=text"),
            *("--port", "0", "--store", store, *LIMITS, *PATIENT, "--drain-timeout", "0.1"),
            *("--max-connections", str(MOST_CONNECTIONS), "--loop", self.loop, *options),
        ]

    def clear(self) -> None:
        """Remove the store's file and what stands beside it."""
        if self.file is not None:
            for suffix in ("", "-wal", "-shm", ".running"):
                self.file.with_name(self.file.name + suffix).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove everything."""
        self.clear()
        self._scratch.cleanup()


Place = LocalServer | RemoteServer


@asynccontextmanager
async def started(
    command: Sequence[str], folder: Path, processes: int = 1
) -> AsyncIterator[Target]:
    """Run a server within the block; it writes ``listening on URL`` to its standard error.

    One of several processes writes that as often, and is there when the last one listens.

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
        url = await _listening(process, log, processes)
        pid = process.pid if HAS_PROC else None
        yield Target(url, pid, time.perf_counter() - before)
    finally:
        await _stop(process)


async def _listening(process: asyncio.subprocess.Process, log: Path, processes: int) -> str:
    end = time.perf_counter() + STARTS_WITHIN
    while time.perf_counter() < end and process.returncode is None:
        url = _told_url(log, processes)
        if url is not None:
            return url
        await asyncio.sleep(LOOK_AGAIN)
    raise ConfigurationError(f"the server did not start: {_last_words(log)}")


def _told_url(log: Path, times: int) -> str | None:
    told = log.read_bytes().split(LISTENS)[1:]
    return told[0].split()[0].decode() if len(told) >= times and b"\n" in told[-1] else None


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
