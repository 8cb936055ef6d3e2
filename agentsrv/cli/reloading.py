"""Serving while the code is written: at each change of a Python file, a new process."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from agentsrv.cli.exits import say
from agentsrv.cli.signals import HANG_UP, ending
from agentsrv.errors import ConfigurationError, missing_extra

DRAIN: Final = "0.5"  # seconds for running tasks; they go on in the next process anyway


def serve_reloading(arguments: Sequence[str]) -> int:
    """Run ``agentsrv`` with ``arguments`` until a signal ends it, anew after each change.

    Python files below the current folder are watched. A process that ends by itself, because of
    an error in the new code for example, is started again at the next change.

    Returns:
        The exit code of the last process.

    Raises:
        ConfigurationError: watchfiles is not installed.
    """
    try:
        watchfiles: Any = importlib.import_module("watchfiles")
    except ImportError:
        raise ConfigurationError(missing_extra("--reload", "reload")) from None
    stop = _Stop()
    for number in ending():
        signal.signal(number, stop.take)
    child = stop.child = _start(arguments)
    try:
        changes = watchfiles.watch(
            Path.cwd(),
            watch_filter=watchfiles.PythonFilter(),
            stop_event=stop,
            raise_interrupt=False,
        )
        for changed in changes:
            names = sorted({Path(path).name for _, path in changed})
            say(f"changed: {', '.join(names)}; starting again")
            _end(child)
            child = stop.child = _start(arguments)
    finally:
        code = _end(child)
    return code


class _Stop:
    """What the signals have demanded; a handler may run within another, so there is no lock."""

    def __init__(self) -> None:
        self.child: subprocess.Popen[bytes] | None = None
        self._is_set = False

    def take(self, number: int, _frame: object) -> None:
        """Stop at the first signal; pass the next ones on, at which the child exits at once."""
        if self._is_set and self.child is not None and number != HANG_UP:
            self.child.terminate()
        self._is_set = True

    def is_set(self) -> bool:
        """Return whether to stop, as watchfiles asks."""
        return self._is_set


def _start(arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    environment = {"AGENTSRV_DRAIN_TIMEOUT": DRAIN} | os.environ
    command = [sys.executable, "-m", "agentsrv", *arguments]
    # A group of its own: a Ctrl-C in the terminal is for us, who pass it on once.
    return subprocess.Popen(command, env=environment, start_new_session=True)  # noqa: S603 - our own command line


def _end(child: subprocess.Popen[bytes]) -> int:
    if child.poll() is None:
        child.terminate()
    return child.wait()
