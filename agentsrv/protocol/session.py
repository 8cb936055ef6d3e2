"""The session of one connection: text in, commands or errors out; no I/O.

Theory of operation. `Session.receive` turns a text frame into a `Request` or a `Refusal`:

1. A frame that begins like JSON is parsed strictly (``strict_json``); any other is a command line,
   which ``command_line`` translates into the fields of the same command.
2. The fields are validated by the command's model, from the text if it is JSON, because strict
   models accept JSON's arrays as tuples only from there.
3. An error is encoded with the command's name and id as far as they can be read, so that the client
   can match it. After `MAX_BAD_FRAMES` invalid frames in a row the connection is closed.

An unauthenticated client must not cause work. Therefore:

- It may send the commands in `OPEN_COMMANDS` only. Its frame is parsed only if it is as small as
  these commands are; for a larger one, ``peek`` reads the name of the command from the beginning of
  the text. Fields of other commands are never validated.
- ``strict_json`` limits the number of values and the depth before it parses.
- pydantic builds an error object for each invalid value and each unknown key. Lists and objects
  of the models fail at their first invalid element (``FailFast``), and ``_trim`` drops all but a
  few unknown keys before validation, so a frame causes some dozens of errors at most.
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
from agentsrv.models.commands import (
    ADAPTER,
    COMMANDS,
    EXAMPLES,
    MIN_PREFIX,
    TASK_ID_LENGTH,
    AnyCommand,
    Respond,
)
from agentsrv.models.plan import MAX_STEPS, ExecutionPlan, Step
from agentsrv.protocol import command_line, frames
from agentsrv.protocol.strict_json import BYTE_ORDER_MARK, parse_object
from agentsrv.suggest import did_you_mean

OPEN_COMMANDS: Final = frozenset(
    name for name, kind in COMMANDS.items() if not kind.declaration.needs_authentication
)
"""The commands that a connection may send before it is authenticated."""
MAX_UNAUTHENTICATED_VALUES: Final = 32  # JSON values, roughly, before authentication
MAX_BAD_FRAMES: Final = 20  # in a row; then the connection is closed with 4400
MAX_ID: Final = 64  # characters of a command's id
MAX_NAME_SHOWN: Final = 64  # characters of an unknown field that an error repeats
MAX_VALUE_SHOWN: Final = 40  # characters of an invalid value that an error repeats
MAX_DETAILS: Final = 10  # invalid fields that one error reports
PEEK_HEAD: Final = 1024  # characters at the start of a frame that `peek` reads
PEEK_TAIL: Final = 128  # characters at its end in which `peek` searches the id
TRIM_THRESHOLD: Final = 1024  # characters of a frame that may have many unknown fields


@dataclass(frozen=True, slots=True)
class Request:
    """A valid command."""

    command: AnyCommand
    is_abbreviated: bool = False
    """Whether something must be resolved before it is carried out.

    That is a ``task_id`` that is a prefix. In a ``respond`` that was typed as a line, it is an
    ``input_id`` that may be a task's id, for its one open question, and a ``value`` that is text,
    whose meaning the question determines.
    """
    size: int = field(default=0, compare=False)
    """Characters of its frame."""

    @property
    def name(self) -> str:
        """The command's name on the wire."""
        return self.command.command


@dataclass(frozen=True, slots=True)
class Refusal:
    """An invalid or forbidden frame, with the error to send."""

    frame: bytes
    is_last: bool
    """Whether the connection must be closed with 4400 after the error."""


class Session:
    """Reads the frames of a connection; knows its latest task and counts its invalid frames."""

    def __init__(self, *, is_authenticated: bool) -> None:
        self.is_authenticated = is_authenticated
        """Whether the client has authenticated; before, only `OPEN_COMMANDS` are accepted."""
        self.latest_task: str | None = None
        self._bad_frames = 0

    def receive(self, text: str) -> Request | Refusal:
        """Read one text frame: a JSON command, or a command line."""
        stripped = text.strip()
        fields: dict[str, Any] = {}
        is_typed = stripped[:1] not in _JSON_STARTS
        try:
            if not is_typed:
                if not self.is_authenticated:
                    _check_is_small(stripped)
                fields = parse_object(stripped)
                if not self.is_authenticated:
                    _check_is_open(fields.get("command"))
                command = _validate(fields, stripped)
            elif stripped:
                fields = {"command": command_line.command_of(stripped)}
                if not self.is_authenticated:
                    _check_is_open(fields["command"])
                fields = command_line.parse(stripped, self.latest_task)
                command = _validate(fields, None)
            else:
                raise InvalidJsonError("found an empty frame; expected a command", example=_HELP)
        except UnauthenticatedError as refusal:
            return Refusal(self.unread(stripped, refusal), is_last=False)
        except TooLargeError as refusal:
            return self._count_bad(self.unread(stripped, refusal))
        except AgentsrvError as refusal:
            return self._count_bad(frames.error(*_echo(fields), refusal))
        self._bad_frames = 0
        task_id = fields.get("task_id")
        if task_id is None:
            is_abbreviated = is_typed and type(command) is Respond
        else:
            is_abbreviated = MIN_PREFIX <= len(task_id) < TASK_ID_LENGTH
        return Request(command, is_abbreviated, len(stripped))

    def unread(self, text: str, refusal: AgentsrvError) -> bytes:
        """Encode the error for a frame that is not parsed; ``peek`` finds the command and id."""
        return frames.error(*_echo(peek(text.strip())), refusal)

    def _count_bad(self, frame: bytes) -> Refusal:
        self._bad_frames += 1
        return Refusal(frame, self._bad_frames >= MAX_BAD_FRAMES)


def peek(text: str) -> dict[str, Any]:
    """Return the ``command`` and ``id`` of a frame without parsing all of it.

    Finds them in the first ``PEEK_HEAD`` characters, and an ``id`` also as the last member. A field
    that is elsewhere is missing, and the result is empty if the text is not a JSON object.
    """
    if text[:1] not in _JSON_STARTS:
        return {"command": command_line.command_of(text)} if text else {}
    head = text[:PEEK_HEAD]
    if len(text) > PEEK_HEAD:
        head = head.rpartition(",")[0]  # a truncated number would be another number
    try:
        found = from_json(head, allow_partial=True)
    except ValueError:
        found = None
    fields = found if isinstance(found, dict) else {}
    if "id" not in fields and (last := _LAST_ID.search(text[-PEEK_TAIL:])) is not None:
        fields["id"] = orjson.loads(last[1])
    return fields


def help_reply() -> dict[str, Any]:
    """Return the reply to ``help``: an example of each command, and the command lines."""
    return {"commands": EXAMPLES, "lines": command_line.usage()}


def _check_is_small(text: str) -> None:
    """Refuse to parse a frame that is larger than any open command.

    Raises:
        TooLargeError: It is an open command with too many values.
        UnknownCommandError: It is not a command.
        UnauthenticatedError: It is another command, or its name is not at its beginning.
    """
    if text.count(",") + text.count("[") + text.count("{") <= MAX_UNAUTHENTICATED_VALUES:
        return
    name = peek(text).get("command")
    if isinstance(name, str) and name in OPEN_COMMANDS:
        raise TooLargeError(
            f"found {name} with more than {MAX_UNAUTHENTICATED_VALUES} JSON values; expected only "
            "the fields of the command"
        )
    if len(text) <= PEEK_HEAD and not (isinstance(name, str) and name in COMMANDS):
        raise _unknown(name)
    raise _unauthenticated()


def _check_is_open(name: object) -> None:
    """Refuse a command that needs authentication; unknown commands are refused later.

    Raises:
        UnauthenticatedError: The command needs authentication.
    """
    if isinstance(name, str) and name in COMMANDS and name not in OPEN_COMMANDS:
        raise _unauthenticated()


def _unauthenticated() -> UnauthenticatedError:
    return UnauthenticatedError(
        f"this connection is not authenticated; expected {_OPEN_IN_WORDS}",
        example=EXAMPLES["auth"],
    )


def _validate(fields: dict[str, Any], text: str | None) -> AnyCommand:
    """Validate the fields of a frame; ``text`` is the frame if it was JSON.

    Raises:
        UnknownCommandError: The field ``command`` is missing or names no command.
        InvalidCommandError: A field is missing, unknown, of the wrong type or out of its limits.
    """
    name = fields.get("command")
    if not isinstance(name, str) or name not in COMMANDS:
        raise _unknown(name)
    data: str | bytes | None = text
    if text is not None and len(text) > TRIM_THRESHOLD:
        data = _trim(fields, name, text)
    try:
        # From the text, because strict models accept arrays as tuples only when they read JSON.
        command: AnyCommand = (
            ADAPTER.validate_json(data) if data is not None else ADAPTER.validate_python(fields)
        )
    except ValidationError as error:
        raise _invalid(name, error) from None
    return command


def _trim(fields: dict[str, Any], name: str, text: str) -> str | bytes:
    """Remove most unknown fields from the text: pydantic builds an error object for each."""
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
    """Return the object with at most ``MAX_DETAILS`` unknown fields; more are not reported."""
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
    problems = error.errors(include_url=False)
    # A misspelt field is also a missing field; the error about its name helps more.
    problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")
    details = [_detail(name, problem) for problem in problems[:MAX_DETAILS]]
    first = details[0]
    return InvalidCommandError(
        f"{first['field']}: {first['reason']}", details=details, example=EXAMPLES[name]
    )


def _detail(name: str, problem: ErrorDetails) -> dict[str, str]:
    path = [str(part) for part in problem["loc"][1:]]  # after the command's name
    if path[:1] == ["id"]:
        path = path[:1]  # what follows are the validator's names of the two types
    path = [part[:MAX_NAME_SHOWN] for part in path]
    reason = problem["msg"].removeprefix("Value error, ")
    if problem["type"] not in _COMPLETE:
        reason += f"; found {_shown(problem['input'])}"
    if problem["type"] == "extra_forbidden":
        reason = "unknown field"
        if len(path) == 1:
            known = list(COMMANDS[name].model_fields)
            meant = did_you_mean(path[0], known)
            reason = f"unknown field; {meant}{' ' if meant else ''}{name} has: {', '.join(known)}"
    return {"field": ".".join(path) or name, "reason": reason}


def _shown(value: Any) -> str:
    """Describe an invalid value; of a long text only its length, because it may be a token."""
    match value:
        case str():
            return repr(value) if len(value) <= MAX_VALUE_SHOWN else f"{len(value)} characters"
        case dict():
            return "an object"
        case list() | tuple():
            return "an array"
        case _:
            return json.dumps(value)


def _echo(fields: dict[str, Any]) -> tuple[str | None, frames.CommandId]:
    """Return the name and id that a reply repeats; ``None`` for those that are invalid."""
    name, command_id = fields.get("command"), fields.get("id")
    is_id = (isinstance(command_id, str) and len(command_id) <= MAX_ID) or type(command_id) is int
    return (
        name if isinstance(name, str) and name in COMMANDS else None,
        command_id if is_id else None,
    )


_COMPLETE: Final = ("missing", "extra_forbidden", "value_error", "too_long", "too_short")
"""Types of errors whose message already contains the value, or that have none."""
_OPEN_IN_WORDS: Final = " or ".join(", ".join(sorted(OPEN_COMMANDS)).rsplit(", ", 1))
_JSON_STARTS: Final = ("{", "[", '"', BYTE_ORDER_MARK)
_HELP: Final = {"command": "help"}
_PLAN_FIELDS: Final = ExecutionPlan.model_fields.keys()
_STEP_FIELDS: Final = Step.model_fields.keys()
# A scalar that is the last member before the last brace belongs to the outermost object.
_LAST_ID: Final = re.compile(r',\s*"id"\s*:\s*("[^"\\\x00-\x1f]{0,64}"|-?[1-9][0-9]{0,17}|0)\s*\}$')
