"""The fork server: imports the application once, and forks a supervisor for each attempt.

Theory of operation
===================

`pool` starts it with its setup as JSON in ``argv[1]`` and one end of a socket pair. It sends one
byte when it is ready. Each byte that it receives comes with four descriptors: the channel, the
control connection, and the pipes for standard output and standard error. It forks a supervisor that
owns them, and keeps a copy of *control*. The end of file on the socket pair ends the fork server.

Forking is safe only without threads and shared descriptors. After the import it therefore checks
for threads, child processes and open files or sockets; if there are any, it replaces itself
(``exec``) by a fork server without the application.

The loop polls the socket pair, the SIGCHLD pipe, and *control* of each attempt. Three cases need
the fork server's help because the supervisor may be stopped or killed by its agent:

- The server has closed *control* (``HANG_UP``): the supervisor gets SIGCONT, and SIGKILL after
  ``FROZEN_SECONDS``.
- A supervisor was killed: its orphans are adopted by the fork server, which kills them in each
  sweep until none is left. Then it closes its copy of *control*, so that the attempt ends.
- The server has died: the parent's id changes, and the fork server shuts down all controls.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import stat
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from fcntl import F_GETFL, fcntl
from typing import Any, Final, NoReturn

from agentsrv.agents.isolation import system
from agentsrv.agents.isolation.supervisor import supervise
from agentsrv.agents.isolation.worker import Application
from agentsrv.error_text import format_traceback

DESCRIPTORS: Final = 4  # of an attempt: channel, control, stdout, stderr
FROZEN_SECONDS: Final = 1.0  # for a supervisor to end after its control connection has
SWEEP_SECONDS: Final = 0.02  # between two searches for orphans
STANDARD_STREAMS: Final = frozenset(range(3))
HANG_UP: Final = getattr(select, "POLLRDHUP", 0)  # 0: only the supervisor notices the end


@dataclass(slots=True)
class _Supervised:
    """A running supervisor."""

    control: socket.socket
    """A copy, kept open until the supervisor is reaped and its orphans are gone."""
    kill_at: float | None = None


class _ForkServer:
    def __init__(self, server: socket.socket, application: Application) -> None:
        self._server = server
        self._application = application
        self._running: dict[int, _Supervised] = {}
        self._ended: list[_Supervised] = []  # reaped, but their orphans may be left
        self._poll = select.poll()
        self._signalled, self._signal = os.pipe()
        self._handlers: dict[int, Any] = {
            number: handler
            for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
            if (handler := signal.getsignal(number)) is not None
        }

    def serve(self) -> NoReturn:
        """Fork until the server closes its end of the connection; never returns."""
        for number in (self._signalled, self._signal):
            os.set_blocking(number, False)
        for number in (signal.SIGCHLD, signal.SIGTERM):  # SIGTERM: the server has died
            signal.signal(number, system.do_nothing)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(self._signal, warn_on_full_buffer=False)
        self._poll.register(self._server, select.POLLIN)
        self._poll.register(self._signalled, select.POLLIN)
        parent = os.getppid()
        with suppress(OSError):  # the server has ended; the poll reports it
            self._server.send(b"r")
        while os.getppid() == parent:
            for descriptor, _ in self._poll.poll(self._timeout()):
                if descriptor == self._signalled:
                    with suppress(BlockingIOError):
                        os.read(self._signalled, 4096)
                elif descriptor == self._server.fileno():
                    self._receive()
                else:
                    self._hung_up(descriptor)
            self._reap()
        self._end()

    def _timeout(self) -> float | None:
        """Return the milliseconds until the next kill or sweep; ``None`` if none is due."""
        if self._ended:
            return SWEEP_SECONDS * 1000
        times = [entry.kill_at for entry in self._running.values() if entry.kill_at is not None]
        return max(0.0, min(times) - time.monotonic()) * 1000 if times else None

    def _receive(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._server, 1, DESCRIPTORS)
        except OSError:
            data, descriptors = b"", []
        if not data:
            self._end()
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)  # noqa: FBT003 - has no name
        if len(descriptors) != DESCRIPTORS:  # the limit of open files was reached
            for descriptor in descriptors:
                os.close(descriptor)
            return
        channel, control, stdout, stderr = descriptors
        connection = socket.socket(fileno=control)
        try:
            pid = os.fork()
        except OSError as error:
            with suppress(OSError):
                connection.send(json.dumps({"error": f"fork: {error}"}).encode() + b"\n")
            connection.close()
        else:
            if pid == 0:
                self._become_supervisor(connection, channel, (stdout, stderr))
            self._running[pid] = _Supervised(connection)
            if HANG_UP:
                self._poll.register(connection, HANG_UP)
        for descriptor in (channel, stdout, stderr):
            os.close(descriptor)

    def _become_supervisor(
        self, control: socket.socket, channel: int, output: tuple[int, int]
    ) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            os.close(self._signalled)
            os.close(self._signal)
            self._server.close()
            for other in (*self._running.values(), *self._ended):
                other.control.close()
            supervise(control, channel, output, self._handlers, self._application)
        finally:
            os._exit(os.EX_SOFTWARE)

    def _hung_up(self, descriptor: int) -> None:
        """Resume a supervisor whose control connection the server has closed; set its time limit.

        The supervisor notices the end itself, unless the agent has stopped it.
        """
        self._poll.unregister(descriptor)
        for pid, entry in self._running.items():
            if entry.control.fileno() == descriptor:
                os.kill(pid, signal.SIGCONT)
                entry.kill_at = time.monotonic() + FROZEN_SECONDS

    def _reap(self) -> None:
        """Reap processes that have ended; kill orphans of supervisors that were killed."""
        now = time.monotonic()
        for pid, entry in self._running.items():
            if entry.kill_at is not None and entry.kill_at <= now:
                os.kill(pid, signal.SIGKILL)
                entry.kill_at = None
        with suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = found
                ended = self._running.pop(pid, None)
                if ended is None:
                    continue
                if HANG_UP:
                    with suppress(KeyError):  # `_hung_up` has unregistered it
                        self._poll.unregister(ended.control)
                if os.WIFSIGNALED(status):
                    self._ended.append(ended)
                else:
                    ended.control.close()
        if self._ended:
            orphans = set(system.children()) - self._running.keys()
            for orphan in orphans:
                with suppress(ProcessLookupError):
                    os.kill(orphan, signal.SIGKILL)
            if not orphans:
                for entry in self._ended:
                    entry.control.close()
                self._ended.clear()

    def _end(self) -> NoReturn:
        """Exit, and end all supervisors even if a copy of the server holds their connections."""
        for entry in self._running.values():
            with suppress(OSError):
                entry.control.shutdown(socket.SHUT_RDWR)
        os._exit(0)


def main(setup: dict[str, Any]) -> NoReturn:
    """Run the fork server that ``setup`` describes."""
    system.is_worker = True
    system.die_with_parent(signal.SIGTERM)
    system.adopt_orphans()
    environment, folder, umask = dict(os.environ), os.getcwd(), os.umask(0o077)  # noqa: PTH109
    os.umask(umask)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` ignores it
    server = socket.socket(fileno=setup["connection"])
    server.set_inheritable(False)
    sys.argv = setup["argv"]
    application = Application(setup["main_name"], setup["main_path"])
    if setup["preload"]:
        before = system.open_descriptors()
        try:
            for module, name in setup["functions"]:
                application.load(module, name)
            problem = _unforkable(before)
        except BaseException as error:  # noqa: BLE001 - also SystemExit; attempts report it again
            problem = f"it cannot be imported:\n{format_traceback(error)}"
        if problem is not None:
            print(  # noqa: T201 - goes to the server's log
                "each process of an agent imports the application separately, which takes longer: "
                f"{problem}",
                file=sys.stderr,
            )
            os.umask(umask)
            os.chdir(folder)
            _start_again(server, setup, environment)
    system.flush_output()
    gc.collect()
    gc.freeze()  # a later collection would write to pages that are shared with the workers
    _ForkServer(server, application).serve()


def _unforkable(before: set[int]) -> str | None:
    """Return the resources of the import that forks would lose or share; ``None`` if none."""
    threads = system.thread_count()
    if threads > 1:
        return f"the import started threads ({threads - 1}), which a fork does not copy"
    if any(system.children()):
        return "the import started a process"
    for descriptor in system.open_descriptors() - before:
        mode = os.fstat(descriptor).st_mode
        is_log = stat.S_ISREG(mode) and fcntl(descriptor, F_GETFL) & os.O_APPEND
        if not (is_log or stat.S_ISCHR(mode)):
            return (
                f"the import left descriptor {descriptor} open (a file, a socket or a pipe), "
                "which all processes would share"
            )
    return None


def _start_again(
    server: socket.socket, setup: dict[str, Any], environment: dict[str, str]
) -> NoReturn:
    """Replace this process by a fork server that does not import the application."""
    system.flush_output()
    for child in system.children():
        with suppress(OSError):
            os.kill(child, signal.SIGKILL)
    server.set_inheritable(True)
    for descriptor in system.open_descriptors() - STANDARD_STREAMS - {server.fileno()}:
        os.set_inheritable(descriptor, False)  # noqa: FBT003 - has no name
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    again = json.dumps({**setup, "preload": False})
    os.execve(sys.executable, [*sys.orig_argv[:-1], again], environment)  # noqa: S606
