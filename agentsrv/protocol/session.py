"""Session: what one connection may do now. Text in, requests out; no I/O."""

from __future__ import annotations

import json
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from agentsrv.errors import (
    AgentsrvError,
    InvalidCommand,
    InvalidJson,
    Unauthenticated,
    UnknownCommand,
)
from agentsrv.models.commands import ADAPTER, COMMANDS, EXAMPLES, Auth, Command, Help, Ping
from agentsrv.protocol import frames, shell
from agentsrv.protocol.strict_json import BYTE_ORDER_MARK, parse_object

OPEN_TO_ALL: Final = (Auth, Ping, Help)
"""Commands of a connection that has not said who it is."""
MAX_BAD_FRAMES: Final = 20  # in a row; then the connection is closed with 4400
MAX_ID: Final = 64  # characters of a command's id
MAX_NAME: Final = 64  # characters of an unknown field that are told back
MAX_SHOWN: Final = 40  # characters of a wrong value that are told back
MAX_DETAILS: Final = 10  # complaints told about one command


@dataclass(frozen=True, slots=True)
class Request:
    """A command that was understood.

    ``is_short`` says that it comes from a command line that leaves something to be completed:
    its ``task_id`` is only the beginning of an id; the ``input_id`` of a ``respond`` may be a
    task's, and its ``value`` is the text that was typed.
    """

    command: Command
    is_short: bool = False

    @property
    def name(self) -> str:
        """The command's name on the wire."""
        return str(getattr(self.command, "command"))  # noqa: B009 - each subclass has its own


@dataclass(frozen=True, slots=True)
class Refusal:
    """A frame that was not understood or not allowed, and the answer to it."""

    frame: bytes
    is_last: bool
    """Whether the connection is to be closed with 4400 after it."""


class Session:
    """Reads a connection's frames; remembers its latest task and counts its bad frames."""

    def __init__(self, *, is_authenticated: bool) -> None:
        self.is_authenticated = is_authenticated
        """Whether it has said who it is; before, it may do little."""
        self.latest_task: str | None = None
        self._bad_frames = 0

    def receive(self, text: str) -> Request | Refusal:
        """Read one text frame: a JSON command, or a command line."""
        stripped = text.strip()
        fields: dict[str, Any] = {}
        try:
            if stripped[:1] in _JSON_STARTS:
                fields = parse_object(stripped)
                request = Request(_validate(fields, stripped))
            elif stripped:
                fields = {"command": stripped.split()[0].lower()}
                line = shell.parse(stripped, self.latest_task)
                fields = line.fields
                request = Request(_validate(fields, None), line.is_short)
            else:
                raise InvalidJson("found an empty frame; expected a command", example=_HELP)
        except AgentsrvError as refusal:
            self._bad_frames += 1
            name, command_id = _echo(fields)
            frame = frames.error(name, command_id, refusal)
            return Refusal(frame, self._bad_frames >= MAX_BAD_FRAMES)
        self._bad_frames = 0
        if not self.is_authenticated and not isinstance(request.command, OPEN_TO_ALL):
            unknown = Unauthenticated(
                "this connection has not said who it is", example=EXAMPLES["auth"]
            )
            return Refusal(self.refused(unknown, request), is_last=False)
        return request

    def refused(self, refusal: AgentsrvError, request: Request, /) -> bytes:
        """The frame that tells that a command is not carried out."""
        return frames.error(request.name, request.command.id, refusal)


def _validate(fields: dict[str, Any], text: str | None) -> Command:
    """Make a command of a frame's fields.

    Raises:
        UnknownCommand: There is none of that name, or none is named.
        InvalidCommand: A field is missing, unknown, wrong or out of its limits.
    """
    name = fields.get("command")
    if not isinstance(name, str) or name not in COMMANDS:
        found = f"{name[:40]!r}" if isinstance(name, str) else "no command"
        raise UnknownCommand(f"found {found}; expected one of {', '.join(COMMANDS)}", example=_HELP)
    try:
        # From the text, because JSON is validated by JSON's own rules: arrays become tuples.
        command: Command = (
            ADAPTER.validate_json(text) if text is not None else ADAPTER.validate_python(fields)
        )
    except ValidationError as error:
        raise _invalid(name, error) from None
    return command


def _invalid(name: str, error: ValidationError) -> InvalidCommand:
    complaints = error.errors(include_url=False)
    # A misspelt field is also a missing one; its own complaint tells more.
    complaints.sort(key=lambda complaint: complaint["type"] != "extra_forbidden")
    details = [_detail(name, complaint) for complaint in complaints[:MAX_DETAILS]]
    first = details[0]
    return InvalidCommand(
        f"{first['field']}: {first['reason']}", details=details, example=EXAMPLES[name]
    )


def _detail(name: str, complaint: ErrorDetails) -> dict[str, str]:
    path = [str(part) for part in complaint["loc"][1:]]  # behind the command's name
    if path[:1] == ["id"]:
        path = path[:1]  # what follows are the validator's names of the two types
    path = [part[:MAX_NAME] for part in path]
    reason = complaint["msg"].removeprefix("Value error, ")
    if complaint["type"] not in _COMPLETE:
        reason += f"; found {_shown(complaint['input'])}"
    if complaint["type"] == "extra_forbidden":
        reason = "unknown field"
        if len(path) == 1:
            known = list(COMMANDS[name].model_fields)
            alike = get_close_matches(path[0], known, 1)
            meant = f"did you mean {alike[0]}? " if alike else ""
            reason = f"unknown field; {meant}{name} has: {', '.join(known)}"
    return {"field": ".".join(path) or name, "reason": reason}


def _shown(value: Any) -> str:
    """What was found, told shortly; of a long text, as a token may be one, only its length."""
    match value:
        case str():
            return repr(value) if len(value) <= MAX_SHOWN else f"{len(value)} characters"
        case dict():
            return "an object"
        case list() | tuple():
            return "an array"
        case _:
            return json.dumps(value)


def _echo(fields: dict[str, Any]) -> tuple[str | None, frames.CommandId]:
    """The name and id that an answer carries back, where they can be told."""
    name, command_id = fields.get("command"), fields.get("id")
    is_id = (isinstance(command_id, str) and len(command_id) <= MAX_ID) or type(command_id) is int
    return (
        name if isinstance(name, str) and name in COMMANDS else None,
        command_id if is_id else None,
    )


_COMPLETE: Final = ("missing", "extra_forbidden", "value_error", "too_long", "too_short")
"""Complaints that tell what was found, or where nothing was."""
_JSON_STARTS: Final = ("{", "[", '"', BYTE_ORDER_MARK)
_HELP: Final = {"command": "help"}
