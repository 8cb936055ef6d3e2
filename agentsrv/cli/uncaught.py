"""Errors that nothing catches, in threads and in finalizers: printed without credentials."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from agentsrv.error_text import format_traceback, redact

if TYPE_CHECKING:
    from sys import UnraisableHookArgs


@contextmanager
def printed() -> Iterator[None]:
    """Print uncaught errors to stderr within the block, as the interpreter does, but redacted.

    It prints those of the main thread itself, after the block.
    """
    before = threading.excepthook, sys.unraisablehook
    threading.excepthook, sys.unraisablehook = _of_thread, _unraisable
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook = before


def _of_thread(given: threading.ExceptHookArgs) -> None:
    if given.exc_type is not SystemExit and given.exc_value is not None:
        name = "unknown" if given.thread is None else given.thread.name
        _print(f"Exception in thread {name}:\n", given.exc_value)


def _unraisable(given: UnraisableHookArgs) -> None:
    if given.exc_value is not None:
        message = given.err_msg or "Exception ignored in"
        with suppress(Exception):  # the author's own __repr__ failed
            message = f"{message}: {given.object!r}"
        _print(f"{redact(message)}\n", given.exc_value)


def _print(head: str, error: BaseException) -> None:
    if sys.stderr is not None:
        with suppress(OSError):
            print(f"{head}{format_traceback(error)}", end="", file=sys.stderr, flush=True)
