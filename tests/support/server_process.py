"""A server as a process of its own, to be killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

STARTS_WITHIN = 60.0  # seconds; a second where the machine is idle
LOGS_WITHIN = 60.0  # seconds; some milliseconds, but for what is yet to happen


class ServerProcess:
    """``agentsrv serve`` on a port of its own, with a store in ``folder``.

    ``tracer`` is a command before it, such as ``strace``.
    """

    def __init__(
        self,
        folder: Path,
        application: str,
        *options: str,
        environment: Mapping[str, str] = {},
        tracer: Sequence[str] = (),
    ) -> None:
        self.port = free_port()
        self.log = folder / "server.log"
        self._command = [
            sys.executable, "-m", "agentsrv", "serve", application,
            "--port", str(self.port), "--store", f"sqlite:///{folder / 'agentsrv.db'}", *options,
        ]  # fmt: skip
        self._environment = {**os.environ, **environment}
        self._tracer = tracer
        if tracer:  # coverage writes files of its own, which would be traced as well
            self._environment.pop("COVERAGE_PROCESS_CONFIG", None)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens, in each of its lives."""
        return f"ws://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process that runs now; that of the server, not of its tracer."""
        assert self._process is not None
        pid = self._process.pid
        if not self._tracer:
            return pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(children[0]) if children else pid

    def start(self) -> None:
        """Start it and wait until it accepts connections."""
        self.launch()
        if not self.wait_until_ready():
            self.kill()
            raise RuntimeError(f"the server did not start:\n{self.log.read_text()[-4000:]}")

    def launch(self) -> None:
        """Start it without waiting for anything."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._tracer, *self._command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
            )

    def wait_until_ready(self) -> bool:
        """Wait until it accepts connections; return whether it does."""
        process = self._process
        assert process is not None
        return wait_for_port(self.port, lambda: process.poll() is None)

    def wait_for_log(self, words: str, times: int = 1) -> str:
        """Wait until its log has ``words`` so many times; return the log.

        A thread of the server writes the log, after what it reports has happened.
        """
        deadline = time.monotonic() + LOGS_WITHIN
        while (log := self.log.read_text()).count(words) < times:
            assert time.monotonic() < deadline, f"expected {words!r} {times} times in:\n{log}"
            time.sleep(0.02)
        return log

    def wait(self, timeout: float = 30) -> int:
        """Wait until it has ended by itself; return its exit status."""
        assert self._process is not None
        return self._process.wait(timeout)

    def kill(self) -> None:
        """Pull the plug: SIGKILL."""
        assert self._process is not None
        if self._process.poll() is None:
            self._signal(signal.SIGKILL)
        self._process.wait()

    def stop(self, timeout: float = 30) -> int:
        """Ask it to end; return its exit status. It is killed where it does not."""
        assert self._process is not None
        if self._process.poll() is None:
            self._signal(signal.SIGTERM)
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # it was quicker
            os.kill(self.pid, number)


def wait_for_port(port: int, is_alive: Callable[[], bool]) -> bool:
    """Wait until somebody accepts connections; return whether that was before its end."""
    deadline = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < deadline and is_alive():
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.01)
        else:
            return True
    return False


def require_default_port() -> None:
    """Skip the test if another program listens where commands look for a server by default."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 8765)) == 0:
            pytest.skip("port 8765 of 127.0.0.1 is in use by another program")


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
