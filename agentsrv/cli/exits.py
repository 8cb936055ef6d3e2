"""Exit codes, and the message that is printed for an error."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from enum import IntEnum
from typing import NoReturn

from agentsrv.cli.streams import OutputLost, as_json, forget_output
from agentsrv.error_text import as_fields, format_traceback, redact
from agentsrv.errors import (
    AgentsrvError,
    ConfigurationError,
    InvalidCommandError,
    InvalidInputError,
    NotFoundError,
    UnauthenticatedError,
)
from agentsrv.telemetry.safe_text import visible_text


class Exit(IntEnum):
    """The exit code of a command."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NO_SERVER = 3
    NOT_ALLOWED = 4
    TIME_OUT = 5
    OUTPUT_LOST = 74
    CANCELLED = 130
    READER_GONE = 141


def code_of(error: AgentsrvError) -> Exit:
    """Return the exit code of an error.

    The errors of the client are recognised by their codes, because their module is imported only by
    commands that need it.
    """
    match error:
        case OutputLost(is_quiet=True):
            return Exit.READER_GONE
        case OutputLost():
            return Exit.OUTPUT_LOST
        case AgentsrvError(code="no_server"):
            return Exit.NO_SERVER
        case UnauthenticatedError():
            return Exit.NOT_ALLOWED
        case AgentsrvError(code="task_cancelled"):
            return Exit.CANCELLED
        case ConfigurationError() | InvalidCommandError() | InvalidInputError() | NotFoundError():
            return Exit.USAGE
        case _:
            return Exit.FAILED


_json = False


def use_json(wanted: bool) -> bool:
    """Print errors as JSON from now on if ``wanted``; return ``wanted``."""
    global _json  # noqa: PLW0603 - the process has one command line
    _json = wanted
    return wanted


def leave(error: AgentsrvError | OSError) -> NoReturn:
    """Print the error to stderr and exit."""
    if isinstance(error, OSError) and error.filename is None:
        error = _without_working_folder() or error
    if isinstance(error, OutputLost):
        forget_output()
        if error.is_quiet:
            sys.exit(Exit.READER_GONE)
    if isinstance(error, AgentsrvError) and _json:
        fields = dict.fromkeys(("retry_after", "details")) | as_fields(error)
        fields.pop("example", None)
        with suppress(OSError):
            print(as_json({"error": fields}), file=sys.stderr, flush=True)
        sys.exit(code_of(error))
    if isinstance(error, AgentsrvError):
        say(error.message)
        for detail in (error.details or [])[1:]:  # the first one is the message
            say(f"{detail['field']}: {detail['reason']}")
        sys.exit(code_of(error))
    reason = error.strerror or str(error)
    say(f"{error.filename}: {reason}" if error.filename else reason)
    sys.exit(Exit.FAILED)


def leave_by_fault(error: Exception) -> NoReturn:
    """Print the traceback of an unexpected error to stderr and exit.

    A module of the standard library that this Python lacks is reported in a sentence.
    """
    if isinstance(error, ModuleNotFoundError) and error.name in sys.stdlib_module_names:
        leave(
            ConfigurationError(
                f"this Python ({sys.executable}) was built without the module {error.name}, which "
                "agentsrv needs: use another Python, or build it anew with the C library installed"
            )
        )
    with suppress(OSError):
        print(format_traceback(error), end="", file=sys.stderr, flush=True)
    sys.exit(Exit.FAILED)


def _without_working_folder() -> ConfigurationError | None:
    """Return an error if the working folder was deleted, to which relative paths are added."""
    try:
        os.getcwd()  # noqa: PTH109 - pathlib has the same call, and one more object
    except OSError as error:
        return ConfigurationError(
            f"the working folder cannot be used: {error.strerror}; change to one that exists"
        )
    return None


def say(text: str) -> None:
    """Print a sentence to stderr; further lines of it are indented."""
    lines = visible_text(redact(text)).replace("\n", "\n  ")
    with suppress(OSError):  # stderr cannot be written: the exit code is all that is left
        print(f"agentsrv: {lines}", file=sys.stderr, flush=True)
