"""What a child of ``os.fork`` inherits from a server, and how it is kept from serving.

Theory of operation
-------------------
A child of ``os.fork`` is a copy of the server with one thread: the one that forked. If the code of
the agent returns in the child, or awaits something there, the child continues as a second server:
it accepts clients, writes into their connections and into the store. So the child is cut off as
soon as it exists (``os.register_at_fork``), before the agent's code runs in it:

1. *Signals.* The wake-up descriptor is shared with the parent; a signal to the child would stop the
   parent. The child gets the handlers that were there before the server's. Signals are blocked in
   the thread that forks until the child has them: ``multiprocessing`` ends workers that have barely
   been started. A signal that arrived in between is delivered to the child's own handlers.
2. *Descriptors.* The listening socket and the sockets of clients are replaced with ``/dev/null``. A
   child that outlives the server would otherwise hold the port. Replacing keeps the numbers in use:
   Python objects of the parent that are collected in the child close ``/dev/null``, and not a file
   that the child has opened since. An SQLite store releases its lock in the child by itself, in the
   same way. The database stays open and unused: its locks are POSIX locks, which are not inherited,
   and SQLite closes it safely only as long as the descriptor leads to the file that the server has
   locked.
3. *The way back.* A trace function on the outermost frame of the author's code ends the child when
   this frame returns, raises or awaits: with status ``LEFT`` and a sentence on standard error.

``multiprocessing`` ends its children by itself and runs long computations in them, so step 3 is
left out there. A child that calls ``exec`` loses everything but descriptors 0 to 2; those of the
server are closed by then. ``os._exit`` is the proper end of a child.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final

from agentsrv.cli.signals import Signals

LEFT: Final = 1  # exit status of a child that leaves the agent's code
MACHINERY: Final = ("agentsrv", "anyio", "asyncio", "concurrent.futures.thread", "threading")
"""Modules that call authors' code."""
ENDS_BY_ITSELF: Final = "multiprocessing.popen_fork"


@dataclass(frozen=True, slots=True)
class _Server:
    """What a child has to be kept from."""

    signals: Signals
    port: int


_servers: list[_Server] = []  # of this process: none or one
_forking = threading.local()
"""``signals``: those that the thread had blocked before it began to fork."""


@contextmanager
def guarded(signals: Signals, port: int) -> Iterator[None]:
    """Cut children off that are forked within the block.

    Args:
        signals: Those of the server.
        port: Where it listens.
    """
    _servers.append(_Server(signals, port))
    try:
        yield
    finally:
        _servers.clear()


def _before_fork() -> None:
    if _servers:
        _forking.signals = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def _in_parent() -> None:
    blocked = _forking.__dict__.pop("signals", None)
    if blocked is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _in_child() -> None:
    try:
        if _servers:
            _cut_off(_servers.pop())
    finally:
        _in_parent()  # restores the signals here, too


def _cut_off(server: _Server) -> None:
    server.signals.release_in_child()
    _replace_descriptors(server)
    # Called by _in_child, which the thread calls where it forks.
    outermost = _authors_outermost(sys._getframe(1).f_back)  # noqa: SLF001 - the only way
    if outermost is not None:
        outermost.f_trace = _leave
        sys.settrace(_ignore)


def _replace_descriptors(server: _Server) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/dev/fd"):  # noqa: PTH208 - numbers
        number = int(name)
        with suppress(OSError):  # the folder itself, which is closed by now
            found = os.fstat(number)
            if stat.S_ISSOCK(found.st_mode) and _port_of(number) == server.port:
                os.dup2(nothing, number, inheritable=False)
    os.close(nothing)


def _port_of(descriptor: int) -> int | None:
    """The local port of a socket of TCP."""
    found = socket.socket(fileno=descriptor)
    try:
        address = found.getsockname()
        return address[1] if found.family in (socket.AF_INET, socket.AF_INET6) else None
    finally:
        found.detach()


def _authors_outermost(frame: FrameType | None) -> FrameType | None:
    """The frame of authors' code that is called by the server or by a library of its."""
    outermost = None
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        if module == ENDS_BY_ITSELF:
            return None
        if any(module == name or module.startswith(f"{name}.") for name in MACHINERY):
            break
        outermost, frame = frame, frame.f_back
    return outermost


def _leave(_frame: FrameType, event: str, _arg: object) -> Any:
    if event != "return":  # which an exception and an await are, too
        return _leave
    text = b"agentsrv: a child of os.fork has left the agent's code and ends; expected os._exit\n"
    with suppress(OSError, ValueError):
        if select.select([], [2], [], 0)[1]:
            os.write(2, text)
    os._exit(LEFT)


def _ignore(_frame: FrameType, _event: str, _arg: object) -> None:
    """New frames are not traced."""


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
