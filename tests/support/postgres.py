"""A private PostgreSQL for tests, and a private Redis."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.support.programs import require

READY = 30  # seconds that a server has to answer
USER = "postgres"  # who the server runs as, where the tests are root's: it refuses to be root
QUICK = ("fsync=off", "full_page_writes=off", "synchronous_commit=on")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Postgres:
    """A server with a folder of its own; ``start`` and ``stop`` it as often as you like.

    ``within`` is a command that runs it elsewhere: such as in another network, where it has
    the address ``host``.
    """

    def __init__(
        self,
        folder: Path,
        port: int,
        *settings: str,
        host: str = "127.0.0.1",
        within: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.port = port
        self.host = host
        self.settings = settings
        self._within = within
        self._process: subprocess.Popen[bytes] | None = None

    def dsn(
        self, schema: str = "public", *, host: str | None = None, port: int | None = None
    ) -> str:
        """How to reach a schema in it, perhaps by another address that it has."""
        place = f"{host or self.host}:{port or self.port}"
        return f"postgresql://{USER}@{place}/postgres?search_path={schema}"

    def make(self) -> None:
        """Make its folder, with an empty database."""
        command = [require("initdb"), "-D", str(self.folder), "-A", "trust", "-U", USER]
        subprocess.run(
            [*command, "--encoding=UTF8", "--no-locale", "--no-sync", "--data-checksums"],
            check=True,
            stdout=subprocess.DEVNULL,
            **_as_user(),
        )
        if self._within:
            with (self.folder / "pg_hba.conf").open("a") as rules:
                rules.write("host all,replication all samenet trust\n")

    def version(self) -> str:
        """What it is, such as ``PostgreSQL 15.14``."""
        told = subprocess.run(
            [require("postgres"), "--version"], check=True, capture_output=True, text=True
        )
        return "PostgreSQL " + told.stdout.split()[2]

    def start(self) -> None:
        """Return when it answers."""
        log = (self.folder.parent / f"{self.folder.name}.log").open("ab")
        settings = (
            *self.settings,
            f"port={self.port}",
            "listen_addresses=*" if self._within else f"listen_addresses={self.host}",
            "unix_socket_directories=",
            "max_connections=200",
        )
        command = [*self._within, require("postgres"), "-D", str(self.folder)]
        who = {"cwd": "/"} if self._within else _as_user()
        with log:
            self._process = subprocess.Popen(
                command + [f"--{setting}" for setting in settings], stderr=log, stdout=log, **who
            )
        ready = [require("pg_isready"), "-q", f"-h{self.host}", f"-p{self.port}"]
        until = time.monotonic() + READY
        while subprocess.call(ready):
            assert self._process.poll() is None, "PostgreSQL ended before it was ready"
            assert time.monotonic() < until
            time.sleep(0.02)

    @contextmanager
    def standby(self) -> Iterator[Postgres]:
        """Another server that holds a copy of all that was committed here, and waits."""
        other = Postgres(self.folder.parent / f"standby-{self.port}", free_port(), *self.settings)
        self.copy_to(other, "standby")
        other.start()
        try:
            yield other
        finally:
            other.stop()

    def copy_to(self, other: Postgres, name: str) -> None:
        """Make the folder of ``other``: it will stand by, and be known here by that name."""
        copy = [require("pg_basebackup"), "-D", str(other.folder), "-d", self._conninfo(name)]
        subprocess.run(
            [*copy, "-R", "-X", "stream", "--checkpoint=fast", "--no-sync"],
            check=True,
            **_as_user(),
        )

    def follow(self, primary: Postgres, name: str) -> None:
        """Stand by for another primary than before, and be known there by that name."""
        self.ask(f"ALTER SYSTEM SET primary_conninfo = '{primary._conninfo(name)}'")
        self.ask("SELECT pg_reload_conf()")

    def ask(self, query: str) -> str:
        """What one statement yields, as text."""
        where = ["-h", self.host, "-p", str(self.port), "-U", USER]
        command = [require("psql"), "-qXAt", *where, "-c", query]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def _conninfo(self, name: str) -> str:
        """How a standby of that name reaches it."""
        return f"host={self.host} port={self.port} user={USER} application_name={name}"

    def promote(self) -> None:
        """Make a standby the primary."""
        subprocess.run(
            [require("pg_ctl"), "promote", "-w", "-s", "-D", str(self.folder)],
            check=True,
            **_as_user(),
        )

    @property
    def is_running(self) -> bool:
        """Whether it was started, and not ended since."""
        return self._process is not None

    def kill(self) -> None:
        """SIGKILL for all of its processes: none of them says or sends another word."""
        if self._process is not None:
            pid = self._process.pid
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            for each in (pid, *map(int, children)):
                with suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """End it: SIGQUIT lets everything fall, as a crash would; SIGINT says good-bye."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(READY)
            self._process = None


@contextmanager
def folder_of_servers() -> Iterator[Path]:
    """A folder that is theirs, and goes."""
    folder = Path(tempfile.mkdtemp(prefix="agentsrv-postgres-"))
    if os.geteuid() == 0:
        shutil.chown(folder, USER)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def postgres(
    *settings: str, host: str = "127.0.0.1", within: Sequence[str] = ()
) -> Iterator[Postgres]:
    """A running server; its folder goes with it."""
    with folder_of_servers() as folder:
        server = Postgres(folder / "data", free_port(), *settings, host=host, within=within)
        server.make()
        try:
            server.start()
            yield server
        finally:
            server.stop()


@contextmanager
def redis(port: int | None = None) -> Iterator[str]:
    """A running Redis; yields its URL."""
    path = require("redis-server")
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
