"""The process pool: starts the fork server on demand and runs attempts.

Theory of operation
===================

`ProcessPool` has at most one fork server (`_ForkServerProcess`). The first attempt, or entering the
pool with known functions, starts it. Its states:

    starting    `_starter` runs: the application is imported; attempts wait for `_server_ready`
    ready       `send` passes the descriptors of attempts to it
    refusing    it has ended, was killed or is being closed: `send` returns ``False``

An attempt first waits until a fork server is ready, then for one of ``MAX_STARTING`` places,
then for its process. If the fork server ends before it has forked, the attempt is repeated with the
next fork server, ``MAX_HAND_OVERS`` times in all; the agent's code has not run then.

A fork server that hangs is detected by the attempts that wait for it: ``_silent_since`` is the time
of the first hand-over without any answer since. After ``START_SECONDS`` it is killed. The time is
kept by the pool because each single attempt may be cancelled earlier.

The fork server is started by a thread that also waits for its end (`_ForkServerProcess._live`): the
kernel's parent-death signal is bound to the thread that created the process, and SIGCHLD handlers
belong to the application.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from agentsrv.agents.isolation import system, wire
from agentsrv.agents.isolation.attempt import (
    IMPORT_SECONDS,
    START_SECONDS,
    Attempt,
    Handler,
    ReturnLimits,
    retrieve_error,
)
from agentsrv.agents.isolation.output import LogBudget, OutputReader
from agentsrv.errors import AgentProcessError, ConfigurationError, PermanentError

if TYPE_CHECKING:
    from agentsrv.agents.agent import StepContext
    from agentsrv.models.plan import Step

MAX_STARTING: Final = 8
"""Attempts whose processes are forked at the same time; further ones wait."""
MAX_HAND_OVERS: Final = 3
"""Fork servers to which an attempt is sent if each ends before it has started a process."""
LINES_AT_ONCE: Final = 2000
LINES_PER_SECOND: Final = 500
RESTART_SECONDS: Final = 5.0
"""Time for the fork server to restart without the application after an interrupted import."""
LEAVING_SECONDS: Final = 2.0
"""Time for the fork server to exit before it is killed."""
BOOT: Final = (
    "import json, sys; setup = json.loads(sys.argv[1]); sys.path[:] = setup['path']; "
    "from agentsrv.agents.isolation.forkserver import main; main(setup)"
)

_log = logging.getLogger("agentsrv.processes")


def refuse_in_worker() -> None:
    """Check that this process does not import the application on behalf of an agent.

    Raises:
        ConfigurationError: It does; the module would start a second server.
    """
    if system.is_worker:
        raise ConfigurationError(
            "a module that defines agents with isolation='process' starts a server when it is "
            "imported; expected: if __name__ == '__main__': before the call"
        )


class ProcessFunction:
    """An async function that calls a plain function, each time in a new process."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self.run = run

    async def __call__(self, step: Step, ctx: StepContext, **_: Any) -> Any:
        """Call the function in a new process; see `Attempt.run`.

        The process validates the params again, from ``ctx.params``.
        """
        if ctx.processes is None:
            raise RuntimeError("an agent with isolation='process' runs within App.running only")
        return await ctx.processes.call(self, step, ctx)

    @cached_property
    def location(self) -> tuple[str, str]:
        """The module and the qualified name by which another process finds the function.

        Raises:
            PermanentError: The name does not lead to this function.
        """
        module, name = self.run.__module__, self.run.__qualname__
        found: Any = sys.modules.get(module)
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is not self.run:
            raise PermanentError(
                f"the agent's function {name} cannot be found by its name in the module {module}; "
                "with isolation='process', expected a function at the top of a module, and no "
                "decorator above @app.agent"
            )
        return module, name


class ProcessPool:
    """Runs functions in new processes, for one application, within ``async with``.

    Args:
        functions: Functions that the fork server imports in advance.
        limits: Limits for the values that an attempt returns.
    """

    def __init__(self, functions: Iterable[ProcessFunction], limits: ReturnLimits) -> None:
        self._functions = [(each.run.__module__, each.run.__qualname__) for each in functions]
        self._limits = limits
        self._starting = asyncio.Semaphore(MAX_STARTING)
        self._server: _ForkServerProcess | None = None
        self._starter: asyncio.Task[None] | None = None
        self._budget = LogBudget(asyncio.get_running_loop().time, LINES_AT_ONCE, LINES_PER_SECOND)
        self._attempts: set[Attempt] = set()
        self._silent_since: float | None = None
        """Time of the first hand-over since the fork server's last answer; ``None`` without one."""

    async def __aenter__(self) -> Self:
        """Start the fork server in advance if functions are known."""
        if self._functions:
            self._start_server()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Kill the running attempts, and end the fork server."""
        for attempt in tuple(self._attempts):
            attempt.close()
        if self._starter is not None:
            self._starter.cancel()
            await asyncio.wait({self._starter})
        if self._server is not None:
            await self._server.close()

    async def call(self, function: ProcessFunction, step: Step, ctx: StepContext) -> Any:
        """Call ``function`` in a new process; return its return value.

        A result that the function set is set on ``ctx``. A cancellation kills the process, or ends
        the wait for one.

        Raises:
            PermanentError: Another process cannot find the function, or its input is too large.
            AgentProcessError: The process ended, could not be started, or did not import the
                application in time.
            AgentsrvError: The function raised an error.
        """
        job = _job(function, step, ctx, self._limits.result)
        budget = LogBudget(asyncio.get_running_loop().time, parent=self._budget)
        handlers: dict[str, Handler] = {"progress": lambda arguments: ctx.progress(**arguments)}
        for _ in range(MAX_HAND_OVERS):
            await self._server_ready()  # outside of the semaphore, so that waits do not add up
            attempt = Attempt(handlers, budget, self._limits)
            self._attempts.add(attempt)
            try:
                async with self._starting:
                    await self._begin(attempt)
                if attempt.has_begun:
                    text, result = await attempt.run(job)
                    ctx.set_result(result)
                    return text
            finally:
                self._attempts.discard(attempt)
                attempt.close()
                budget.report()
        raise AgentProcessError(
            "the agent's process was not started: the process that starts agents' processes "
            f"ended {MAX_HAND_OVERS} times before it had done so; its output is in the log"
        )

    def _start_server(self) -> asyncio.Task[None]:
        """Return the task that starts the fork server; at most one runs at a time."""
        if self._starter is None or self._starter.done():
            self._starter = asyncio.get_running_loop().create_task(self._replace_server())
            self._starter.add_done_callback(retrieve_error)
        return self._starter

    async def _replace_server(self) -> None:
        for preload in (True, False):  # importing the application may end the process
            if self._server is not None:
                await self._server.close()
            self._silent_since = None
            try:
                self._server = _ForkServerProcess(self._functions, preload=preload)
            except (OSError, RuntimeError) as error:
                raise AgentProcessError(
                    f"the process that starts agents' processes cannot be started: {error}"
                ) from error
            if await self._server.start():
                return
        raise AgentProcessError(
            "the process that starts agents' processes ended when it started, or did not start "
            f"within {START_SECONDS:g} s; its output is in the log"
        )

    async def _begin(self, attempt: Attempt) -> None:
        """Start the attempt's process.

        The fork server is killed if it has answered no attempt for ``START_SECONDS``, in one wait
        or in several consecutive waits that were cancelled earlier.

        Raises:
            AgentProcessError: The process did not start in time.
        """
        is_in_time = True
        try:
            is_in_time = await attempt.start(self._hand_over)
        finally:
            now = asyncio.get_running_loop().time()
            if attempt.is_answered:
                self._silent_since = None
            elif self._silent_since is not None and now - self._silent_since >= START_SECONDS:
                self._kill_server()
        if not is_in_time:
            self._kill_server()
            raise AgentProcessError(
                f"the agent's process did not start within {START_SECONDS:g} s; the process that "
                "should have started it was killed"
            )

    def _kill_server(self) -> None:
        """Kill the fork server because it does not answer; the next attempt starts a new one."""
        self._silent_since = None
        if self._server is not None:
            self._server.kill()

    async def _server_ready(self) -> _ForkServerProcess:
        """Return the fork server, starting one if necessary."""
        while self._server is None or not self._server.is_ready:
            await asyncio.shield(self._start_server())
        return self._server

    async def _hand_over(self, descriptors: list[int]) -> None:
        """Send the descriptors of one attempt to the fork server, or to the next if it ends."""
        while not await (await self._server_ready()).send(descriptors):
            pass
        if self._silent_since is None:
            self._silent_since = asyncio.get_running_loop().time()


class _ForkServerProcess:
    """The server's handle of the fork server.

    Raises:
        OSError, RuntimeError: Too many files are open, or no thread can be started. Nothing is left
            open.
    """

    def __init__(self, functions: list[tuple[str, str]], *, preload: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._process: subprocess.Popen[bytes] | None = None
        self._outputs: list[OutputReader] = []
        self._sending = asyncio.Lock()
        self._room: asyncio.Event | None = None
        """Wakes the sender that waits until the connection is writable; ``None`` without one."""
        self.is_ready = False
        """Whether it accepts attempts."""
        self._modules = sorted({module for module, _ in functions}) if preload else []
        self._is_closing = False
        with ExitStack() as opened:
            self._connection, theirs = map(opened.enter_context, socket.socketpair())
            self._connection.settimeout(0)
            budget, others = LogBudget(self._loop.time), list[int]()
            for stream in ("stdout", "stderr"):
                output, other = OutputReader.of_pipe(stream, budget)
                opened.callback(output.close)
                opened.callback(os.close, other)
                self._outputs.append(output)
                others.append(other)
            command = self._command(theirs.fileno(), functions, preload=preload)
            live = partial(self._live, command, theirs, others)
            thread = threading.Thread(target=live, name="agentsrv-forkserver", daemon=True)
            thread.start()
            opened.pop_all()

    def _command(
        self, connection: int, functions: list[tuple[str, str]], *, preload: bool
    ) -> list[str]:
        main = sys.modules["__main__"]
        spec = getattr(main, "__spec__", None)
        path = getattr(main, "__file__", None)
        setup = {
            "connection": connection,
            "path": [str(Path(entry).absolute()) for entry in sys.path],  # "" is the folder
            "argv": sys.argv,
            "main_name": spec.name if spec is not None else None,
            "main_path": str(Path(path).absolute()) if path and Path(path).is_file() else None,
            "functions": functions,
            "preload": preload,
        }
        flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001 - as multiprocessing does
        return [sys.executable, *flags, "-c", BOOT, json.dumps(setup)]

    def _live(self, command: list[str], theirs: socket.socket, output: list[int]) -> None:
        """Start the process and wait for its end, in the thread."""
        stdout, stderr = output
        try:
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603 - our own interpreter
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
        except OSError:
            _log.exception("the process that starts agents' processes cannot be started")
        for descriptor in output:
            os.close(descriptor)
        if self._process is not None:
            if self._is_closing:
                self._process.kill()
            self._process.wait()
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._on_end)

    async def start(self) -> bool:
        """Wait until it accepts attempts; return whether it does.

        An import of the application that takes longer than ``IMPORT_SECONDS`` is interrupted: the
        fork server logs where it waited and continues without it, or is killed if it does not.
        """
        if await self._becomes_ready(IMPORT_SECONDS if self._modules else START_SECONDS):
            return True
        if self._modules and not self._ended.done():
            _log.warning(
                "the process that starts agents' processes has not imported the application "
                "within %g s and is interrupted; the import of one of these modules waits: %s",
                IMPORT_SECONDS,
                ", ".join(self._modules),
            )
            self._signal(signal.SIGINT)
            if await self._becomes_ready(RESTART_SECONDS):
                return True
        self.kill()
        return False

    async def _becomes_ready(self, seconds: float) -> bool:
        with suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(seconds):
                self.is_ready = await self._loop.sock_recv(self._connection, 1) == b"r"
        return self.is_ready

    async def send(self, descriptors: list[int]) -> bool:
        """Send it the descriptors of one attempt; return whether it is alive to receive them."""
        async with self._sending:
            while self.is_ready:
                try:
                    socket.send_fds(self._connection, [b"f"], descriptors)
                except BlockingIOError:
                    await self._has_room()
                except OSError:  # it has ended
                    self.is_ready = False
                else:
                    return True
        return False

    async def close(self) -> None:
        """End it: close its connection, and kill it after ``LEAVING_SECONDS``.

        For attempts that wait in `send`, it returns ``False``.
        """
        self._is_closing = True
        was_ready = self.is_ready
        self._refuse()
        self._connection.close()
        try:
            if was_ready:
                await asyncio.wait({self._ended}, timeout=LEAVING_SECONDS)
            if not self._ended.done() and self._process is not None:
                self._process.kill()
            await asyncio.wait({self._ended})
        finally:
            for output in self._outputs:
                output.close()

    def kill(self) -> None:
        """Kill it. For attempts that wait in `send`, it returns ``False``."""
        self._refuse()
        self._signal(signal.SIGKILL)

    def _refuse(self) -> None:
        """Accept no more attempts, and wake the sender that waits for the connection.

        The loop identifies the connection by its descriptor's number, which the next file may get.
        The writer must therefore be removed from the loop before the connection is closed.
        """
        self.is_ready = False
        if self._room is not None:
            self._loop.remove_writer(self._connection)
            self._room.set()
            self._room = None

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    async def _has_room(self) -> None:
        """Wait until the connection is writable, or the process accepts no more attempts."""
        room = self._room = asyncio.Event()
        self._loop.add_writer(self._connection, room.set)
        try:
            await room.wait()
        finally:
            if self._room is room:  # `_refuse` has not removed it
                self._loop.remove_writer(self._connection)
                self._room = None

    def _on_end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)


def _job(function: ProcessFunction, step: Step, ctx: StepContext, max_result: int) -> bytes:
    """Return the message that begins an attempt."""
    module, name = function.location
    context = {
        "task_id": ctx.task_id,
        "task_description": ctx.task_description,
        "params": dict(ctx.params),
        "principal": ctx.principal,
        "attempt": ctx.attempt,
        "step_key": ctx.step_key,
        "outputs": dict(ctx.outputs),
        "results": dict(ctx.results),
    }
    job = {
        "module": module,
        "function": name,
        "step": step.model_dump(mode="json"),
        "context": context,
        "dependencies": {
            step_id: (
                state.step.agent,
                state.status,
                _origin(ctx, state.step.agent),
            )
            for step_id, state in ctx.dependencies.items()
        },
        "max_result": max_result,
    }
    try:
        return wire.frame({"job": job}, wire.MAX_JOB_BYTES)
    except ValueError as error:
        raise PermanentError(
            f"params, outputs and results for the agent's process: {error}"
        ) from error


def _origin(ctx: StepContext, agent: str) -> str:
    """Module and name of an agent's function, by which the process knows it."""
    registered = None if ctx.registry is None else ctx.registry.get(agent)
    return "" if registered is None else registered.origin
