"""Exit codes, and the one sentence that a user is told about an error."""

from __future__ import annotations

import sys
from enum import IntEnum
from typing import NoReturn

from agentsrv.client import NoServer, NotAllowed, TaskCancelled
from agentsrv.errors import (
    AgentsrvError,
    ConfigurationError,
    InvalidCommand,
    InvalidInput,
    NotFound,
)


class Exit(IntEnum):
    """What the shell is told."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NO_SERVER = 3
    NOT_ALLOWED = 4
    TIME_OUT = 5
    CANCELLED = 130


def code_of(error: AgentsrvError) -> Exit:
    """The exit code of an error."""
    match error:
        case NoServer():
            return Exit.NO_SERVER
        case NotAllowed() | AgentsrvError(code="unauthenticated"):
            return Exit.NOT_ALLOWED
        case TaskCancelled():
            return Exit.CANCELLED
        case ConfigurationError() | InvalidCommand() | InvalidInput() | NotFound():
            return Exit.USAGE
        case _:
            return Exit.FAILED


def leave(error: AgentsrvError | OSError) -> NoReturn:
    """Tell the error on stderr and exit."""
    if isinstance(error, AgentsrvError):
        say(error.message)
        for detail in (error.details or [])[1:]:  # the first one is the message
            say(f"{detail['field']}: {detail['reason']}")
        sys.exit(code_of(error))
    what = error.strerror or str(error)
    say(f"{error.filename}: {what}" if error.filename else what)
    sys.exit(Exit.FAILED)


def say(text: str) -> None:
    """Tell the user something that is not the result."""
    print(f"agentsrv: {text}", file=sys.stderr, flush=True)
