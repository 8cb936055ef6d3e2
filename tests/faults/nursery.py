"""Servers born by fork from a process that has imported everything: a start takes no second.

A test that starts hundreds of servers uses these. Behind the fork runs the same program as
``agentsrv serve``, from its ``main`` on.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, Self

from tests.support.server_process import free_port, wait_for_port

PR_SET_PTRACER = 0x59616D61  # <sys/prctl.h>; without effect where Yama is not
PRELOADED = (
    "agentsrv.cli.commands",
    "agentsrv.cli.options",
    "agentsrv.cli.serving",
    "agentsrv.store.sqlite.store",
    "tests.faults.busy_app",
)
ENDS_WITHIN = 60.0  # seconds


class Nursery:
    """The process that is forked; its servers are its children. Leaving the block ends it."""

    def __enter__(self) -> Self:
        environment = {**os.environ}
        environment.pop("COVERAGE_PROCESS_CONFIG", None)  # its files would be traced as well
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(ENDS_WITHIN)
        self._process.stdout.close()

    def bear(self, **order: Any) -> int:
        """Fork a server that is stopped before its first step; return its process id."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._read()

    def bury(self) -> int:
        """Wait for the end of the last server; return its exit status."""
        return self._read()

    def _read(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


class ForkedServer:
    """One life of a server with its store in ``folder``, traced by ``tracer`` if there is one.

    Leaving the block kills it, unless it has ended.
    """

    def __init__(
        self,
        nursery: Nursery,
        folder: Path,
        application: str,
        *,
        port: int = 0,
        log: Path | None = None,
        environment: Mapping[str, str] = {},
        tracer: Sequence[str] = (),
    ) -> None:
        self._nursery = nursery
        self._port = port or free_port()
        self.log = log or folder / "server.log"
        self._order = {
            "arguments": [
                "agentsrv", "serve", application,
                "--port", str(self._port), "--store", f"sqlite:///{folder / 'agentsrv.db'}",
            ],
            "environment": dict(environment),
            "log": str(self.log),
        }  # fmt: skip
        self._tracer = tracer
        self._waiting = threading.Lock()  # the test may give up while a thread of it waits
        self._tracing: subprocess.Popen[bytes] | None = None
        self.url = f"ws://127.0.0.1:{self._port}"
        self.code: int | None = None
        """The exit status, once it has ended."""

    def __enter__(self) -> Self:
        self.pid = self._nursery.bear(**self._order)
        if self._tracer:
            self._tracing = subprocess.Popen(
                [*self._tracer, "-p", str(self.pid)], stderr=subprocess.PIPE
            )
            assert self._tracing.stderr is not None
            answer = self._tracing.stderr.readline()
            if b"attached" not in answer:
                self.__exit__()
                raise RuntimeError(f"the server is not traced: {answer.decode()}")
        self._signal(signal.SIGCONT)
        return self

    def __exit__(self, *_: object) -> None:
        self._signal(signal.SIGKILL)
        self.wait()

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended yet."""
        if self.code is not None:
            return False
        # It may go between any two looks: there is one look only, and either error means gone.
        with suppress(ProcessLookupError, FileNotFoundError):
            stat = Path(f"/proc/{self.pid}/stat").read_text()
            return stat.rpartition(")")[2].split()[0] not in "ZX"
        return False

    def wait_until_ready(self) -> bool:
        """Wait until it accepts connections; return whether it does."""
        return wait_for_port(self._port, lambda: self.is_alive)

    def terminate(self) -> None:
        """Ask it to end; for once it listens, which is when it hears."""
        self._signal(signal.SIGTERM)

    def wait(self) -> int:
        """Wait for its end; return its exit status."""
        with self._waiting:
            if self.code is None:
                self.code = self._nursery.bury()
            if self._tracing is not None:
                assert self._tracing.stderr is not None
                self._tracing.stderr.read()
                self._tracing.stderr.close()
                self._tracing.wait(ENDS_WITHIN)
                self._tracing = None
            return self.code

    def _signal(self, number: signal.Signals) -> None:
        if self.is_alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


def main() -> None:
    """Fork a server for each line of stdin; tell its id, and then its exit status."""
    for module in PRELOADED:
        importlib.import_module(module)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            live(**json.loads(line))
        os.waitpid(child, os.WUNTRACED)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def live(arguments: list[str], environment: Mapping[str, str], log: str) -> NoReturn:
    """Be a server: stop until somebody says to go on, then run to the end."""
    from agentsrv.cli import main as agentsrv

    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for target, source in enumerate((nothing, output, output)):
        os.dup2(source, target)
    os.environ.update(environment)
    ctypes.CDLL(None).prctl(PR_SET_PTRACER, ctypes.c_ulong(-1))  # a tracer need be no ancestor
    sys.argv = arguments
    code = 0
    os.kill(os.getpid(), signal.SIGSTOP)
    try:
        agentsrv()
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
