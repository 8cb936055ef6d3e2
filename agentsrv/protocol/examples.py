"""An example of each frame that the server sends, for the published schema.

Those of replies and events are part of the declarations of commands and events.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from agentsrv import errors
from agentsrv.models import events as e
from agentsrv.models.commands import COMMANDS, EXAMPLES
from agentsrv.protocol import PROTOCOL

TASK: Final = "3f2a9c0d1b7e4a65"
AT: Final = "2026-03-01T12:00:00.000Z"
EVENTS: Final[Mapping[str, e.Event]] = {
    event_type: e.from_data(kind, kind.declaration.example) for event_type, kind in e.EVENTS.items()
}

REPLIES: Final[Mapping[str, Mapping[str, Any]]] = {
    name: kind.declaration.reply_example for name, kind in COMMANDS.items()
}

FRAMES: Final[Mapping[str, Mapping[str, Any]]] = {
    "hello": {
        "protocol": PROTOCOL,
        "server": {"name": "agentsrv", "version": "0.1.0"},
        "connection_id": "5b0c8f6e-2f0e-4a53-9d36-3f1f9a7d2c11",
        "authenticated": False,
        "limits": {"max_frame": 1 << 20, "command_rate": 500.0, "principal_queued": 1000},
        "commands": list(EXAMPLES),
    },
    "caught_up": {"task_id": TASK, "seq": 12},
    "goaway": {"reason": "the server stops", "reconnect_in": 1.0},
}

ERRORS: Final[tuple[errors.AgentsrvError, ...]] = (
    errors.InvalidJsonError("found an empty frame; expected a command", example=EXAMPLES["help"]),
    errors.InvalidCommandError(
        "task_id: Field required",
        details=[{"field": "task_id", "reason": "Field required"}],
        example=EXAMPLES["status"],
    ),
    errors.UnknownCommandError(
        "found 'crate'; expected one of create, …", example=EXAMPLES["help"]
    ),
    errors.UnauthenticatedError("the token is not accepted"),
    errors.NotFoundError(f"there is no task {TASK!r}"),
    errors.InvalidStateError("task 3f2a9c0d1b7e4a65 is completed; execute needs pending"),
    errors.ConflictError("the question was answered before"),
    errors.InvalidInputError(
        "value: Input should be a valid boolean",
        details=[{"field": "value", "reason": "Input should be a valid boolean"}],
    ),
    errors.SeqAheadError("after_seq is 40; the log ends at 12"),
    errors.TooLargeError("the answer has 70000 bytes; at most 65536 are kept"),
    errors.RateLimitedError("too many commands", retry_after=0.1),
    errors.OverloadedError("1000 of your tasks are waiting already", retry_after=1.0),
    errors.ShuttingDownError("the server is about to stop; reconnect and try again"),
    errors.UnavailableError("the store cannot commit now"),
    errors.InternalError("the server has a fault; see incident 2b1f0c9d8e7a in its log"),
)
