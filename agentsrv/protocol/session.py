"""Session: what one connection may do now. Text in, requests out; no I/O.

Work is done only after the right to it is established, and is bounded before it begins:

- A client that is not authenticated may send ``auth``, ``ping`` and ``help``. Its frame is parsed
  only if it is as small as these commands are; of another one the command's name is read from the
  beginning of the text (``peek``). Fields of other commands are never validated.
- ``strict_json`` bounds the number of values and the depth before it parses.
- pydantic builds an error object for each invalid value and each unknown key. Lists and objects
  of the models fail at their first invalid element (``FailFast``), and ``_trim`` drops all but a
  few unknown keys beforehand, so a frame causes some dozens of errors at most.
"""

from __future__ import annotations

import json
import re
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import islice
from operator import is_not
from typing import Any, Final

import orjson
from pydantic import ValidationError
from pydantic_core import ErrorDetails, from_json

from agentsrv.errors import (
    AgentsrvError,
    InvalidCommandError,
    InvalidJsonError,
    TooLargeError,
    UnauthenticatedError,
    UnknownCommandError,
)
from agentsrv.models.commands import ADAPTER, COMMANDS, EXAMPLES, Auth, Command, Help, Ping
from agentsrv.models.plan import MAX_STEPS, ExecutionPlan, Step
from agentsrv.protocol import command_line, frames
from agentsrv.protocol.strict_json import BYTE_ORDER_MARK, parse_object
from agentsrv.suggest import did_you_mean

OPEN_TO_ALL: Final = (Auth, Ping, Help)
"""Commands of a connection that is not authenticated."""
MAX_STRANGER_VALUES: Final = 32  # JSON values, roughly, in a frame before authentication
MAX_BAD_FRAMES: Final = 20  # in a row; then the connection is closed with 4400
MAX_ID: Final = 64  # characters of a command's id
MAX_NAME: Final = 64  # characters of an unknown field that are told back
MAX_SHOWN: Final = 40  # characters of a wrong value that are told back
MAX_DETAILS: Final = 10  # complaints told about one command
HEAD: Final = 1024  # characters of a frame in which its command and id are looked for
TAIL: Final = 128  # characters of its end in which the id is looked for
LONG: Final = 1024  # characters of a frame that may have many unknown fields


@dataclass(frozen=True, slots=True)
class Request:
    """A command that was understood.

    ``is_short`` says that it comes from a command line that leaves something to be completed:
    its ``task_id`` is only the beginning of an id; the ``input_id`` of a ``respond`` may be a
    task's, and its ``value`` is the text that was typed.
    """

    command: Command
    is_short: bool = False
    size: int = field(default=0, compare=False)
    """Characters of its frame."""

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
                if not self.is_authenticated:
                    _check_is_small(stripped)
                fields = parse_object(stripped)
                if not self.is_authenticated:
                    _check_is_open(fields.get("command"))
                request = Request(_validate(fields, stripped), size=len(stripped))
            elif stripped:
                fields = {"command": command_line.command_of(stripped)}
                if not self.is_authenticated:
                    _check_is_open(fields["command"])
                line = command_line.parse(stripped, self.latest_task)
                fields = line.fields
                request = Request(_validate(fields, None), line.is_short, len(stripped))
            else:
                raise InvalidJsonError("found an empty frame; expected a command", example=_HELP)
        except UnauthenticatedError as refusal:
            return Refusal(self.unread(stripped, refusal), is_last=False)
        except TooLargeError as refusal:
            return self._count_bad(self.unread(stripped, refusal))
        except AgentsrvError as refusal:
            return self._count_bad(frames.error(*_echo(fields), refusal))
        self._bad_frames = 0
        return request

    def unread(self, text: str, refusal: AgentsrvError) -> bytes:
        """The error frame for a frame that is not parsed; see ``peek`` for what it echoes."""
        return frames.error(*_echo(peek(text.strip())), refusal)

    def _count_bad(self, frame: bytes) -> Refusal:
        self._bad_frames += 1
        return Refusal(frame, self._bad_frames >= MAX_BAD_FRAMES)


def peek(text: str) -> dict[str, Any]:
    """The ``command`` and ``id`` of a frame, found without parsing all of it.

    They are looked for in the first ``HEAD`` characters; an ``id`` also as the last member. Empty
    where they are elsewhere, or the text is no JSON object.
    """
    if text[:1] not in _JSON_STARTS:
        return {"command": command_line.command_of(text)} if text else {}
    head = text[:HEAD]
    if len(text) > HEAD:
        head = head.rpartition(",")[0]  # else a number could be cut, and be another one
    try:
        found = from_json(head, allow_partial=True)
    except ValueError:
        found = None
    fields = found if isinstance(found, dict) else {}
    if "id" not in fields and (last := _LAST_ID.search(text[-TAIL:])) is not None:
        fields["id"] = orjson.loads(last[1])
    return fields


def help_reply() -> dict[str, Any]:
    """The result of ``help``: an example of each command, and the command lines."""
    return {"commands": EXAMPLES, "lines": command_line.usage()}


def _check_is_small(text: str) -> None:
    """Refuse to parse what is larger than any command of an unauthenticated client.

    Raises:
        TooLargeError: It is one of these commands, with more in it than they have.
        UnknownCommandError: It is no command.
        UnauthenticatedError: It is another command, or one whose name is not at its beginning.
    """
    if text.count(",") + text.count("[") + text.count("{") <= MAX_STRANGER_VALUES:
        return
    name = peek(text).get("command")
    if isinstance(name, str) and name in _OPEN:
        raise TooLargeError(
            f"found {name} with more than {MAX_STRANGER_VALUES} JSON values; expected only the "
            "fields of the command"
        )
    if len(text) <= HEAD and not (isinstance(name, str) and name in COMMANDS):
        raise _unknown(name)
    raise _unauthenticated()


def _check_is_open(name: object) -> None:
    """Refuse a command that needs authentication; an unknown one is refused later.

    Raises:
        UnauthenticatedError: It needs authentication.
    """
    if isinstance(name, str) and name in COMMANDS and name not in _OPEN:
        raise _unauthenticated()


def _unauthenticated() -> UnauthenticatedError:
    return UnauthenticatedError(
        "this connection is not authenticated; expected auth, ping or help",
        example=EXAMPLES["auth"],
    )


def _validate(fields: dict[str, Any], text: str | None) -> Command:
    """Make a command of a frame's fields.

    Raises:
        UnknownCommandError: There is none of that name, or none is named.
        InvalidCommandError: A field is missing, unknown, wrong or out of its limits.
    """
    name = fields.get("command")
    if not isinstance(name, str) or name not in COMMANDS:
        raise _unknown(name)
    data: str | bytes | None = text
    if text is not None and len(text) > LONG:
        data = _trim(fields, name, text)
    try:
        # From the text, because JSON is validated by JSON's own rules: arrays become tuples.
        command: Command = (
            ADAPTER.validate_json(data) if data is not None else ADAPTER.validate_python(fields)
        )
    except ValidationError as error:
        raise _invalid(name, error) from None
    return command


def _trim(fields: dict[str, Any], name: str, text: str) -> str | bytes:
    """The text without most of its unknown fields: pydantic makes an error of each."""
    kept = trim(fields, COMMANDS[name].model_fields.keys())
    plan = fields.get("plan")
    if isinstance(plan, dict):
        kept_plan = trim(plan, _PLAN_FIELDS)
        steps = plan.get("steps")
        if isinstance(steps, list):
            kept_steps = [
                trim(step, _STEP_FIELDS) if isinstance(step, dict) else step
                for step in islice(steps, MAX_STEPS + 1)
            ]
            if any(map(is_not, kept_steps, steps)):
                kept_plan = kept_plan | {"steps": kept_steps}
        if kept_plan is not plan:
            kept = kept | {"plan": kept_plan}
    return text if kept is fields else orjson.dumps(kept)


def trim(fields: dict[str, Any], known: AbstractSet[str]) -> dict[str, Any]:
    """The object with ``MAX_DETAILS`` of its unknown fields, as more are not reported."""
    if len(fields) <= len(known) + MAX_DETAILS and len(fields.keys() - known) <= MAX_DETAILS:
        return fields
    unknown = (name for name in fields if name not in known)
    kept = known | set(islice(unknown, MAX_DETAILS))
    return {name: value for name, value in fields.items() if name in kept}


def _unknown(name: object) -> UnknownCommandError:
    found = f"{name[:40]!r}" if isinstance(name, str) else "no command"
    return UnknownCommandError(
        f"found {found}; expected one of {', '.join(COMMANDS)}", example=_HELP
    )


def _invalid(name: str, error: ValidationError) -> InvalidCommandError:
    complaints = error.errors(include_url=False)
    # A misspelt field is also a missing one; its own complaint tells more.
    complaints.sort(key=lambda complaint: complaint["type"] != "extra_forbidden")
    details = [_detail(name, complaint) for complaint in complaints[:MAX_DETAILS]]
    first = details[0]
    return InvalidCommandError(
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
            meant = did_you_mean(path[0], known)
            reason = f"unknown field; {meant}{' ' if meant else ''}{name} has: {', '.join(known)}"
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
_OPEN: Final = frozenset(kind.model_fields["command"].default for kind in OPEN_TO_ALL)
_PLAN_FIELDS: Final = ExecutionPlan.model_fields.keys()
_STEP_FIELDS: Final = Step.model_fields.keys()
# Where a scalar is the last member before the last brace, it belongs to the outermost object.
_LAST_ID: Final = re.compile(r',\s*"id"\s*:\s*("[^"\\\x00-\x1f]{0,64}"|-?[1-9][0-9]{0,17}|0)\s*\}$')
