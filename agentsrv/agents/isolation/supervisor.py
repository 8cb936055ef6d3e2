"""The supervisor of one attempt: forks the worker, waits for its end, kills its descendants.

Theory of operation
===================

The supervisor waits in one ``poll`` for two events: a byte or the end of file on *control*, from
the server, and SIGCHLD, which writes to a pipe (``set_wakeup_fd``). On ``i`` it interrupts the
worker's process group; on the end of file it kills the group and the worker. When the worker has
ended, it kills and reaps every remaining descendant, sends the exit status and exits, which ends
*control*.

It never runs code of authors. It ignores all other signals, because an agent may send signals to
its parent. A process id may be reused as soon as the process is reaped, so the worker's group is
signalled before the worker is reaped.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, NoReturn

from agentsrv.agents.isolation import system
from agentsrv.agents.isolation.worker import Application, work

INTERRUPT: Final = b"i"
KEPT_SIGNALS: Final = frozenset({signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD})  # not ignored


def supervise(
    control: socket.socket,
    channel: int,
    output: tuple[int, int],
    handlers: Mapping[int, Any],
    application: Application,
) -> NoReturn:
    """Run one worker until no process of it is left; never returns.

    Args:
        control: The connection to the server; see the theory of operation.
        channel: The worker's connection to the server.
        output: The pipes for the worker's standard output and standard error.
        handlers: The signal handlers of the worker.
        application: Imported by the worker unless this process has imported it.
    """
    os.setsid()  # signals to the group of the fork server do not reach it
    system.adopt_orphans()
    signalled, wake = os.pipe()
    for descriptor in (signalled, wake):
        os.set_blocking(descriptor, False)
    for number in signal.valid_signals() - KEPT_SIGNALS:
        with suppress(OSError):  # reserved by the C library
            signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, system.do_nothing)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    if _is_closed(control):  # the attempt was cancelled before the worker was forked
        os._exit(0)
    supervisor = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        control.send(json.dumps({"error": f"fork: {error}"}).encode() + b"\n")
        os._exit(0)
    if pid == 0:
        try:
            signal.set_wakeup_fd(-1)
            for descriptor in (signalled, wake):
                os.close(descriptor)
            control.close()
            os.setsid()
            system.die_with_parent(signal.SIGKILL)
            if os.getppid() != supervisor:
                os._exit(os.EX_SOFTWARE)
            work(channel, output, handlers, application)
        finally:
            os._exit(os.EX_SOFTWARE)
    for descriptor in (channel, *output):
        os.close(descriptor)
    with suppress(OSError):  # the server has ended; `_watch` reads the end of control
        control.send(json.dumps({"pid": pid}).encode() + b"\n")
    status = _watch(control, signalled, pid)
    _kill_descendants()
    with suppress(OSError):
        control.send(json.dumps({"status": status}).encode() + b"\n")
    os._exit(0)


def _watch(control: socket.socket, signalled: int, pid: int) -> int:
    """Return the worker's status when it has ended; obey the server's commands until then."""
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(signalled, select.POLLIN)
    while True:
        status = _reap(pid)
        if status is not None:
            return status
        for descriptor, _ in poll.poll():
            if descriptor == signalled:
                with suppress(BlockingIOError):
                    os.read(signalled, 4096)
                continue
            try:
                command = control.recv(1)
            except OSError:
                command = b""
            if command == INTERRUPT:
                _signal_group(pid, signal.SIGINT)
            elif not command:
                poll.unregister(control)
                _signal_group(pid, signal.SIGKILL)
                os.kill(pid, signal.SIGKILL)  # it may have left its group


def _reap(worker: int) -> int | None:
    """Reap adopted processes that have ended; return the worker's status if it has ended.

    The group of the worker is killed before the worker is reaped, because the number of the group
    may be reused afterwards.
    """
    if not hasattr(os, "waitid"):  # macOS before Python 3.13
        pid, status = os.waitpid(worker, os.WNOHANG)
        if pid:
            _signal_group(worker, signal.SIGKILL)
        return status if pid else None
    while True:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return None
        if ended.si_pid == worker:
            _signal_group(worker, signal.SIGKILL)
            return os.waitpid(worker, 0)[1]
        os.waitpid(ended.si_pid, 0)


def _kill_descendants() -> None:
    """Kill and reap all descendants.

    On Linux this process adopts the children of each process that it kills, so each round finds
    the next generation.
    """
    with suppress(ChildProcessError):
        while True:
            if os.waitpid(-1, os.WNOHANG)[0]:
                continue
            killed = 0
            for child in system.children():
                with suppress(PermissionError):  # a set-user-id program
                    os.kill(child, signal.SIGKILL)
                    killed += 1
            if not killed:
                return
            os.waitpid(-1, 0)


def _signal_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # gone; macOS: only zombies are left
        os.killpg(group, number)


def _is_closed(control: socket.socket) -> bool:
    try:
        return not control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
