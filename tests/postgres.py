"""A private PostgreSQL for tests, and a private Redis."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

READY = 30  # seconds that a server has to answer
USER = "postgres"  # who the server runs as, where the tests are root's: it refuses to be root
QUICK = ("fsync=off", "full_page_writes=off", "synchronous_commit=on")


def find(name: str) -> str | None:
    """The path of one of PostgreSQL's programs, of the newest version there is, if there is one."""
    found = sorted(
        Path("/usr/lib/postgresql").glob(f"*/bin/{name}"),
        key=lambda path: int(re.sub(r"\D", "", path.parts[4]) or 0),
    )
    return str(found[-1]) if found else shutil.which(name)


def program(name: str) -> str:
    """The path of that program; skips the test without it."""
    path = find(name)
    if path is None:
        pytest.skip("PostgreSQL is not installed")
    return path


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Postgres:
    """A server with a folder of its own; ``start`` and ``stop`` it as often as you like."""

    def __init__(self, folder: Path, port: int, *settings: str) -> None:
        self.folder = folder
        self.port = port
        self.settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    def dsn(self, schema: str = "public", port: int | None = None) -> str:
        """How to reach a schema in it."""
        port = port or self.port
        return f"postgresql://{USER}@127.0.0.1:{port}/postgres?search_path={schema}"

    def version(self) -> str:
        """What it is, such as ``PostgreSQL 15.14``."""
        told = subprocess.run(
            [program("postgres"), "--version"], check=True, capture_output=True, text=True
        )
        return "PostgreSQL " + told.stdout.split()[2]

    def start(self) -> None:
        """Return when it answers."""
        log = (self.folder.parent / f"{self.folder.name}.log").open("ab")
        settings = (
            *self.settings,
            f"port={self.port}",
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "max_connections=200",
        )
        command = [program("postgres"), "-D", str(self.folder)]
        with log:
            self._process = subprocess.Popen(
                command + [f"--{setting}" for setting in settings],
                stderr=log,
                stdout=log,
                **_as_user(),
            )
        ready = [program("pg_isready"), "-q", "-h127.0.0.1", f"-p{self.port}"]
        until = time.monotonic() + READY
        while subprocess.call(ready):
            assert self._process.poll() is None, "PostgreSQL ended before it was ready"
            assert time.monotonic() < until
            time.sleep(0.02)

    @contextmanager
    def standby(self) -> Iterator[Postgres]:
        """Another server that holds a copy of all that was committed here, and waits."""
        other = Postgres(self.folder.parent / f"standby-{self.port}", free_port(), *self.settings)
        primary = f"host=127.0.0.1 port={self.port} user={USER} application_name=standby"
        copy = [program("pg_basebackup"), "-D", str(other.folder)]
        subprocess.run(
            [*copy, "-R", "-X", "stream", "--checkpoint=fast", "--no-sync", "-d", primary],
            check=True,
            **_as_user(),
        )
        other.start()
        try:
            yield other
        finally:
            other.stop()

    def promote(self) -> None:
        """Make a standby the primary."""
        subprocess.run(
            [program("pg_ctl"), "promote", "-w", "-s", "-D", str(self.folder)],
            check=True,
            **_as_user(),
        )

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """End it: SIGQUIT lets everything fall, as a crash would; SIGINT says good-bye."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(READY)
            self._process = None


@contextmanager
def postgres(*settings: str) -> Iterator[Postgres]:
    """A running server; its folder goes with it."""
    folder = Path(tempfile.mkdtemp(prefix="agentsrv-postgres-"))
    if os.geteuid() == 0:
        shutil.chown(folder, USER)
    server = Postgres(folder / "data", free_port(), *settings)
    try:
        command = [program("initdb"), "-D", str(server.folder), "-A", "trust", "-U", USER]
        subprocess.run(
            [*command, "--encoding=UTF8", "--no-locale", "--no-sync"],
            check=True,
            stdout=subprocess.DEVNULL,
            **_as_user(),
        )
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


@contextmanager
def redis(port: int | None = None) -> Iterator[str]:
    """A running Redis; yields its URL."""
    path = shutil.which("redis-server")
    if path is None:
        pytest.skip("Redis is not installed")
    port = port or free_port()
    process = subprocess.Popen(
        [path, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
        stdout=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + READY
        while time.monotonic() < until:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.02)
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(READY)


def _as_user() -> dict[str, Any]:
    """Who runs the server."""
    return {"user": USER, "group": USER, "cwd": "/"} if os.geteuid() == 0 else {"cwd": "/"}
