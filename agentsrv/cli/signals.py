"""Signals that end a command, and what each command does at them.

=========================  ===================  ===================  ==============================
command                    SIGTERM              SIGINT               SIGHUP
=========================  ===================  ===================  ==============================
serve, also --processes    drain                drain                drain
and --reload               again: exit at once  again: exit at once  again: nothing
mcp                        cancel the calls     cancel the calls     cancel the calls
                           again: exit at once  again: exit at once  again: nothing
run                        clean up and exit    cancel the task      clean up and exit
                           again: exit at once  again: exit at once  again: nothing
other commands that wait   clean up and exit    clean up and exit    clean up and exit
                           again: exit at once  again: exit at once  again: nothing
=========================  ===================  ===================  ==============================

A server that is still starting has nothing to drain: it stops at the first signal. SIGHUP is
ignored if it was ignored at the start (``nohup``); a terminal that closes may send it twice.
``Signals`` serves ``serve``, `run_until_signal` the commands without authors' code.

Theory of operation of ``Signals``
----------------------------------
A thread receives the signals, so that code that blocks the loop cannot hold them.

Python runs signal handlers in the main thread, between two of its instructions, and asyncio runs
its own in a turn of the loop. An agent that blocks the loop therefore holds both. The handler in
C, however, always writes the signal's number to the *wake-up descriptor*, whatever the main thread
does. ``Signals`` reads this descriptor in a thread of its own. The handler in Python only waits a
moment: that gives the thread a turn while the main thread is in C code that checks for signals but
keeps Python's global lock, such as a regular expression.

SIGTERM and SIGINT count together: the second of them exits at once, with 128 + the signal's number.
Any other signal is passed on to the loop, for handlers that an application installs.

A signal may arrive while the handler of another one runs, in the same thread. The handler
therefore takes no lock (``threading.Event`` has one): the inner call would wait for the outer one.

After the first signal the thread looks at the loop's *beat*, a timer that the loop runs four times
a second:

- No beat for ``TELL_AFTER`` seconds: the log says which task blocks the loop, and where.
- No beat for as long as tasks have to end (``drain_timeout`` + ``cancel_grace``): the process exits
  with 128 + the signal's number. No drain has taken place then.
- Beats, but no end ``MARGIN`` seconds after that time: the same.

A thread needs Python's global lock. C code that neither releases it nor checks for signals (the sum
of a huge range) holds every thread of the process, also this one, until it returns.

Agents and libraries may install handlers of their own for these signals, or another wake-up
descriptor, as ``loop.add_signal_handler`` does. Each beat installs those of the server again. It
reports the first such change of a signal in the log.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, NoReturn, Self, TypeVar

from agentsrv.telemetry import logs, nonblocking_output
from agentsrv.telemetry.watchdog import blocker
from agentsrv.threads import within

T = TypeVar("T")

HANG_UP: Final[signal.Signals | None] = getattr(signal, "SIGHUP", None)  # not on Windows
BEAT: Final = 0.25  # seconds between two beats of the loop
TELL_AFTER: Final = 1.0  # seconds without a beat until the log says who blocks the loop
LEAST: Final = 2.0  # seconds without a beat that are never taken for a blocked loop
MARGIN: Final = 30.0  # seconds that a shutdown may take beyond the time that tasks have
LOG_WITHIN: Final = 1.0  # seconds for one line of the log, whose handlers may be an author's
TURN: Final = 0.1  # seconds that the handler waits for the thread to take the signal
GLANCE: Final = 0.002  # seconds between two looks whether it has

_log = logging.getLogger("agentsrv.signals")


class Signals:
    """Receives the signals that stop the server, from ``__enter__`` to ``__exit__``.

    Both run in the main thread, inside the running loop.

    Args:
        on_stop: Called once, in the loop, at the first signal.
        patience: Seconds that running tasks have to end: ``drain_timeout`` + ``cancel_grace``.
    """

    def __init__(self, on_stop: Callable[[], None], patience: float) -> None:
        self._on_stop = on_stop
        self._patience = max(patience, LEAST)
        self._first: signal.Signals | None = None
        self._first_at = 0.0
        self._exiting = False
        self._turns = 0  # how often the thread has taken signals; written by the thread only
        self._handler = self._on_signal  # one object, to be recognised
        self._told = 0.0  # the beat after which the log has said who blocks the loop
        self._reported: set[int] = set()  # signals whose handlers were replaced
        self._next: tuple[int, int] | None = None  # descriptor and inode of the loop's wake-up
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)  # noqa: FBT003 - that is its signature
        self._before: dict[int, Any] = {number: signal.getsignal(number) for number in ending()}
        self._beaten = time.monotonic()
        self._hold(report=False)
        self._thread = threading.Thread(target=self._listen, name="agentsrv-signals", daemon=True)
        self._thread.start()
        self._beat()
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        with suppress(ValueError, OSError):  # the loop has closed it
            signal.set_wakeup_fd(-1 if self._next is None else self._next[0])
        self._restore()
        self._sender.send(b"\0")
        self._thread.join()
        self._sender.close()
        self._receiver.close()

    def release_in_child(self) -> None:
        """Let a child of ``os.fork`` have its own signals; call it there.

        The wake-up descriptors are shared with the parent: a signal to the child would stop it.
        """
        signal.set_wakeup_fd(-1)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _on_signal(self, number: int, _frame: object) -> None:
        seen, give_up = self._turns, time.monotonic() + TURN
        if signal.set_wakeup_fd(self._sender.fileno()) != self._sender.fileno():
            self._sender.send(bytes([number]))  # it went to another descriptor
        while self._turns == seen and time.monotonic() < give_up:
            time.sleep(GLANCE)
        if self._exiting:  # the lines of the log take longer than a turn
            time.sleep(4 * LOG_WITHIN)

    def _beat(self) -> None:
        self._beaten = time.monotonic()
        self._hold()
        logs.check()
        self._timer = self._loop.call_later(BEAT, self._beat)

    def _hold(self, *, report: bool = True) -> None:
        """Install the server's handlers and its wake-up descriptor, whatever is there now."""
        replaced = [
            signal.Signals(number).name
            for number in self._before
            if signal.signal(number, self._handler) is not self._handler
            and number not in self._reported
        ]
        own = self._sender.fileno()
        found = signal.set_wakeup_fd(own, warn_on_full_buffer=False)
        if found not in (own, -1):
            with suppress(OSError):  # it is closed by now
                self._next = found, os.fstat(found).st_ino
        if report and replaced:
            self._reported.update(getattr(signal, name) for name in replaced)
            _log.warning(
                "code in this process has replaced the handler of %s; the server's is installed "
                "again",
                ", ".join(replaced),
            )

    def _listen(self) -> None:
        while True:
            self._receiver.settimeout(None if self._first is None else BEAT)
            try:
                numbers = self._receiver.recv(64)
            except TimeoutError:
                numbers = b""
            if 0 in numbers:
                return
            for number in numbers:
                if number in self._before:
                    self._take(signal.Signals(number))
                else:
                    self._pass_on(number)
            self._turns += 1
            if self._first is not None:
                self._look(self._first)

    def _take(self, number: signal.Signals) -> None:
        if self._first is None:
            self._first, self._first_at = number, time.monotonic()
            self._say(
                logging.INFO,
                f"{number.name}: running tasks may end; a second signal exits at once",
            )
            with suppress(RuntimeError):  # the loop has ended by itself
                self._loop.call_soon_threadsafe(self._on_stop)
        elif number is not HANG_UP:
            self._exit(number, f"{number.name} again: exiting at once")

    def _pass_on(self, number: int) -> None:
        if self._next is None:
            return
        descriptor, inode = self._next
        with suppress(OSError):
            found = os.fstat(descriptor)
            if stat.S_ISSOCK(found.st_mode) and found.st_ino == inode:
                os.write(descriptor, bytes([number]))

    def _look(self, number: signal.Signals) -> None:
        now, beaten = time.monotonic(), self._beaten
        silent, passed = now - beaten, now - self._first_at
        if silent > TELL_AFTER and beaten != self._told:
            self._told = beaten
            found = blocker(self._loop_thread)
            self._say(
                logging.WARNING,
                f"{number.name} has to wait: the event loop is blocked by {found.description}; the "
                f"process exits in {max(0.0, self._patience - passed):.0f} s, or at once at a "
                f"second signal. Stack:\n{found.stack}",
                found.about,
            )
        if min(silent, passed) > self._patience:
            self._exit(
                number,
                f"exiting without a drain: the event loop is blocked by "
                f"{blocker(self._loop_thread).description} for {silent:.0f} s",
            )
        elif passed > self._patience + MARGIN:
            self._exit(number, f"exiting: the shutdown has taken {passed:.0f} s")

    def _exit(self, number: signal.Signals, reason: str) -> None:
        self._exiting = True
        self._say(logging.WARNING, reason)
        exit_now(128 + number)

    def _say(self, level: int, text: str, about: object = None) -> None:
        """Log ``text`` and wait for that only shortly: an author's handler may hang."""
        within(LOG_WITHIN, lambda: _log.log(level, "%s", text, extra={"about": about or {}}))


def exit_now(code: int) -> NoReturn:
    """End the process at once; the last lines of the log are written as far as somebody reads."""
    within(LOG_WITHIN, logging.shutdown)
    within(2 * LOG_WITHIN, lambda: nonblocking_output.flush(LOG_WITHIN))
    os._exit(code)


def ending() -> tuple[signal.Signals, ...]:
    """The signals that end a command; without SIGHUP if it is ignored, as ``nohup`` arranges."""
    if HANG_UP is None or signal.getsignal(HANG_UP) is signal.SIG_IGN:
        return signal.SIGTERM, signal.SIGINT
    return signal.SIGTERM, signal.SIGINT, HANG_UP


def on_signals(
    numbers: Sequence[signal.Signals], act: Callable[[signal.Signals], object]
) -> Callable[[], None]:
    """Call ``act`` in the running loop at each of these signals; for programs without agents.

    Returns:
        What undoes it.
    """
    loop = asyncio.get_running_loop()
    before = [(number, signal.getsignal(number)) for number in numbers]
    for number in numbers:
        try:
            loop.add_signal_handler(number, act, number)
        except NotImplementedError:  # Windows
            take = partial(loop.call_soon_threadsafe, act, number)
            signal.signal(number, lambda *_, take=take: take())

    def undo() -> None:
        for number, handler in before:
            with suppress(NotImplementedError):
                loop.remove_signal_handler(number)
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    return undo


def end_by(
    numbers: Sequence[signal.Signals], end: Callable[[signal.Signals], object]
) -> Callable[[], None]:
    """Call ``end`` in the running loop at the first of these signals.

    The next one ends the process at once with 128 + its number; a second SIGHUP does nothing.

    Returns:
        What undoes it.
    """
    taken: list[signal.Signals] = []

    def take(number: signal.Signals) -> None:
        if taken and number is not HANG_UP:
            os._exit(128 + number)
        elif not taken:
            taken.append(number)
            end(number)

    return on_signals(numbers, take)


def run_until_signal(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine; return what it returns.

    SIGTERM and SIGHUP cancel it, so that it closes what it has opened: programs that it started,
    temporary folders, the terminal's modes. SIGINT does the same, and raises ``KeyboardInterrupt``
    afterwards, as ``asyncio.run`` does.

    Raises:
        SystemExit: One of the two signals came; with 128 + its number.
    """
    ended_by: list[signal.Signals] = []

    async def watched() -> T:
        task = asyncio.current_task()
        assert task is not None

        def end(number: signal.Signals) -> None:
            ended_by.append(number)
            task.cancel()

        undo = end_by([number for number in ending() if number is not signal.SIGINT], end)
        try:
            return await work
        finally:
            undo()

    try:
        return asyncio.run(watched())
    except asyncio.CancelledError:
        if not ended_by:
            raise
        raise SystemExit(128 + ended_by[0]) from None
