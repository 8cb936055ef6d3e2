"""Several servers on one port, for the cores of a machine: started, kept alive, ended together."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.context import SpawnProcess
from typing import Final

from agentsrv.backoff import backoff
from agentsrv.cli import addresses, serving
from agentsrv.cli.exits import Exit
from agentsrv.cli.signals import HANG_UP, ending, on_signals
from agentsrv.resources import node_name, open_store
from agentsrv.settings import Settings
from agentsrv.telemetry import logs, nonblocking_output

PAUSE: Final = 0.5  # seconds until a process that ended is started again; doubled each time
LONGEST_PAUSE: Final = 30.0  # seconds
TERMINATED: Final = 128 + signal.SIGTERM
LIVED: Final = 60.0  # seconds of life after which the pause is short again

_log = logging.getLogger("agentsrv.processes")


def serve(target: str | None, settings: Settings, complaints: Sequence[str] = ()) -> int:
    """Serve with ``settings.processes`` processes until a signal; return the exit code.

    Each is a node of its own. One that ends is started again; when this one ends, all do. A
    second SIGTERM or SIGINT ends them at once. ``complaints`` are sentences for the log.

    Raises:
        ConfigurationError: The store is not one that servers share.
        AddressError: The address cannot be listened on.
    """
    name = settings.node or node_name()
    open_store(settings, name)
    with nonblocking_output.redirected():
        logs.configure(settings.log_format, sys.stderr)
        for complaint in complaints:
            _log.warning("%s", complaint)
        try:
            with _reserved(settings) as port:
                nodes = [
                    settings.model_copy(update={"port": port, "node": f"{name}-{number}"})
                    for number in range(1, settings.processes + 1)
                ]
                return asyncio.run(_Supervisor(target, nodes).run())
        except OSError as error:
            raise addresses.explained(error, settings) from error


class _Supervisor:
    """Owns the processes, and the tasks of asyncio that each wait for one."""

    def __init__(self, target: str | None, nodes: list[Settings]) -> None:
        self._target = target
        self._nodes = nodes
        self._context = multiprocessing.get_context("spawn")
        self._processes: dict[str | None, SpawnProcess] = {}
        self._stop = asyncio.Event()
        self._signals = 0

    async def run(self) -> int:
        """Keep all processes alive until a signal; return the worst of their exit codes."""
        on_signals(ending(), self._take)
        codes = await asyncio.gather(*(self._keep(settings) for settings in self._nodes))
        if self._signals == 1:  # some may have ended by it before they could listen to signals
            codes = [code for code in codes if code != TERMINATED] or [Exit.DONE]
        return max(codes)

    async def _keep(self, settings: Settings) -> int:
        """Start a process, again when it ends; return the exit code of its last life."""
        loop, lives = asyncio.get_running_loop(), 0
        pauses = backoff(PAUSE, LONGEST_PAUSE)
        while True:
            started, lives = loop.time(), lives + 1
            process = self._context.Process(target=_live, args=(self._target, settings))
            try:
                process.start()
            except OSError as error:  # too many processes or open files: the others serve on
                code, problem = int(Exit.FAILED), f"cannot be started: {error}"
            else:
                self._processes[settings.node] = process
                code = await _exit_of(process)
                problem = f"ended with {code}"
            if self._stop.is_set():
                return code
            if code == Exit.USAGE and lives == 1:  # it has told why; the others cannot, either
                self._end()
                return code
            if loop.time() - started > LIVED:
                pauses = backoff(PAUSE, LONGEST_PAUSE)
            pause = next(pauses)
            _log.error("%s %s; it starts again in %g s", settings.node, problem, pause)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stop.wait()
                return code

    def _take(self, number: signal.Signals) -> None:
        if not self._signals or number is not HANG_UP:
            self._end()

    def _end(self) -> None:
        """Pass a signal on: the first time the processes drain, the second time they exit."""
        self._stop.set()
        self._signals += 1
        for process in self._processes.values():
            if process.is_alive():
                process.terminate()


async def _exit_of(process: SpawnProcess) -> int:
    """Wait for the end of a process; return its exit code, that of a signal as a shell has it."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(process.sentinel, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(process.sentinel)
    process.join()
    code = process.exitcode or 0
    return 128 - code if code < 0 else code


@contextmanager
def _reserved(settings: Settings) -> Iterator[int]:
    """Hold the port, free or given, without listening on it; yields its number."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(address)
        yield int(holder.getsockname()[1])


def _live(target: str | None, settings: Settings) -> None:
    """Be one of the servers."""
    os.setpgid(0, 0)  # a Ctrl-C in the terminal is for the parent, who passes it on once
    threading.Thread(target=_end_with_parent, daemon=True).start()
    raise SystemExit(serving.serve(target, settings))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
