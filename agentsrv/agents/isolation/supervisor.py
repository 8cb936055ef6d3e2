"""The supervisor of one attempt: forks the worker, waits for its end, kills what it leaves.

It ignores signals, for an agent may send some to its parent, and never runs code of authors.
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
HEARD: Final = frozenset({signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD})


def supervise(
    control: socket.socket,
    channel: int,
    output: tuple[int, int],
    handlers: Mapping[int, Any],
    application: Application,
) -> NoReturn:
    """Run one worker to its end, and leave no process of it.

    Args:
        control: The connection to the server: see the theory of operation.
        channel: The worker's connection to the server.
        output: The pipes for the worker's standard output and standard error.
        handlers: The signal handlers that the worker begins with.
        application: What the worker imports, if that has not been done.
    """
    os.setsid()  # signals to the group of the fork server do not reach it
    system.adopt_orphans()
    signalled, wake = os.pipe()
    for descriptor in (signalled, wake):
        os.set_blocking(descriptor, False)
    for number in signal.valid_signals() - HEARD:
        with suppress(OSError):  # reserved by the C library
            signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, system.do_nothing)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    if _is_closed(control):  # cancelled while it started
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
    with suppress(OSError):  # the server is gone, as the next look tells
        control.send(json.dumps({"pid": pid}).encode() + b"\n")
    status = _watch(control, signalled, pid)
    _kill_descendants()
    with suppress(OSError):
        control.send(json.dumps({"status": status}).encode() + b"\n")
    os._exit(0)


def _watch(control: socket.socket, signalled: int, pid: int) -> int:
    """Wait until the worker has ended, which the server may demand; return its status."""
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
    """Reap adopted processes that have ended; the worker's status if it has.

    The group of the worker is killed before the worker is reaped: until then, its number cannot
    become that of another group.
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
    """Kill and reap all that is left below this process.

    Processes whose parent has ended fall to this one (on Linux), so each round finds the next
    generation.
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
