"""Clients of fault tests: some that read, some that do not, and one that always asks."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, Final, Self

from tests.support.measure import is_established
from tests.support.wire import Wire

PING: Final = {"command": "ping"}
SMALL_BUFFER: Final = 4096  # bytes in the kernel, of a client that never reads


class Reading:
    """The program that reads, as a process; see tests/faults/reading.py."""

    def __init__(self, port: int, count: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.reading", str(port), str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.client_ports: list[int] = self._line()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def follow(self, tasks: list[str]) -> None:
        """Follow these; returns when it does."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(tasks) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "following\n"

    def stop(self) -> None:
        """Let it take nothing: SIGSTOP."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it read again."""
        self._process.send_signal(signal.SIGCONT)

    def seen(self) -> dict[str, Any]:
        """What it has seen when all has ended."""
        seen: dict[str, Any] = self._line()
        return seen

    def _line(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


class Answers:
    """Another client, which asks all the time and notes how long each answer takes."""

    def __init__(
        self, port: int, ask: Mapping[str, Any] = PING, *, token: str | None = None
    ) -> None:
        self.seconds: list[float] = []
        self.longest = 0.0
        self.refused = 0
        self._ask = dict(ask)
        self._wire = Wire(port, token=token)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="answers")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._wire.close()
        self.longest = max(self.seconds, default=float("inf"))

    def _run(self) -> None:
        while not self._over.wait(0.01):
            started = time.perf_counter()
            self.refused += self._wire.ask(self._ask)["type"] == "error"
            self.seconds.append(time.perf_counter() - started)


class Drops:
    """Notes when the server gives each of these clients up, counted from the first look."""

    def __init__(self, port: int, client_ports: list[int]) -> None:
        self.first = self.last = 0.0
        self._port = port
        self._left = set(client_ports)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drops")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def wait(self, timeout: float) -> bool:
        """Wait until all are dropped; return whether they were in time."""
        self._thread.join(timeout)
        return not self._left

    def _run(self) -> None:
        started = time.monotonic()
        while self._left and not self._over.wait(0.05):
            dropped = {port for port in self._left if not is_established(self._port, port)}
            if dropped:
                self.last = time.monotonic() - started
                self.first = self.first or self.last
                self._left -= dropped


def flood(port: int, data: bytes, seconds: float) -> tuple[int, bool]:
    """Send ``data`` again and again without reading; return how often, and whether it was cut off."""
    sent, deadline = 0, time.monotonic() + seconds
    with Wire(port, receive_buffer=SMALL_BUFFER) as wire:
        wire.socket.settimeout(0.1)
        rest = data
        while time.monotonic() < deadline:
            try:
                rest = rest[wire.socket.send(rest) :]
            except TimeoutError:
                continue
            except OSError:
                return sent, True
            if not rest:
                sent, rest = sent + 1, data
    return sent, False
