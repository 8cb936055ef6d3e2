"""Validates the frames that a server sends, before any other code of the client reads them.

The peer may be broken or hostile, or not an agentsrv server. Every frame is validated against the
types of ``agentsrv.models.replies`` and ``agentsrv.models.events``, so the rest of the client,
and the command line on top of it, use the fields without further checks. Fields, events and
statuses that this version does not know are accepted, because a newer server may send them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from types import GenericAlias
from typing import (
    Annotated,
    Any,
    Final,
    NotRequired,  # pydantic needs them before Python 3.12
    cast,
    get_type_hints,
)

from pydantic import AfterValidator, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from agentsrv.client.errors import ProtocolError
from agentsrv.models import events as e
from agentsrv.models import replies
from agentsrv.protocol import frame_types

MAX_QUOTE: Final = 60  # characters of an invalid value in a message

Fields = Mapping[str, Any]
"""The fields of a type by name, each with its type."""


def _moment(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("expected a time zone")
    return text


Moment = Annotated[str, AfterValidator(_moment)]


class _Schema(TypedDict, total=False):
    """The keywords of a JSON Schema that this package reads."""

    properties: dict[str, dict[str, Any] | bool]
    required: list[str]
    enum: list[Any]


class _Planned(TypedDict):
    """A step of a plan."""

    step_id: str
    agent: str
    depends_on: list[str]
    max_retries: int


class _Envelope(TypedDict):
    """An event, without the fields of its type."""

    event_type: str
    task_id: str
    seq: int
    timestamp: Moment
    data: dict[str, Any]


class _Server(TypedDict):
    """The server in its greeting."""

    name: str
    version: str


class _Limits(TypedDict, total=False):
    """The limit that the client enforces itself."""

    max_frame: int


def _typed(name: str, fields: Fields) -> Any:
    return TypedDict(name, dict(fields))  # type: ignore[operator] # known at run time only


def _list_of(kind: Any) -> Any:
    return GenericAlias(list, kind)


def _fields(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _data(kind: type[e.Event]) -> dict[str, Any]:
    """The fields of an event's data; those with a default may be missing."""
    hints = _fields(kind)
    return {
        field.name: hints[field.name]
        if field.default is dataclasses.MISSING
        else NotRequired[hints[field.name]]
        for field in dataclasses.fields(cast("Any", kind))
    }


# Some fields are validated more strictly than their published types.
_QUESTION: Final = _data(e.InputRequired) | {"schema": _Schema, "options": list[Any] | None}
_DATA: Final[Mapping[str, Fields]] = {name: _data(kind) for name, kind in e.EVENTS.items()} | {
    e.InputRequired.event_type: _QUESTION,
    e.PlanCreated.event_type: _data(e.PlanCreated) | {"steps": _list_of(_Planned)},
}
_AGENT: Final = _typed("AgentInfo", _fields(replies.AgentInfo) | {"params": _Schema})
_ROW: Final = _typed("TaskRow", _fields(replies.TaskRow) | {"created_at": Moment})
_ASKED: Final = _typed("InputRequired", _QUESTION)
_REPLIES: Final[Mapping[str, Any]] = {
    "create": replies.Created,
    "execute": replies.TaskReply,
    "cancel": replies.CancelReply,
    "unsubscribe": replies.Nothing,
    "respond": replies.RespondReply,
    "send": replies.SendReply,
    "auth": replies.AuthReply,
    "ping": replies.Nothing,
    "help": replies.HelpReply,
    "agents": _typed("AgentsReply", {"agents": _list_of(_AGENT)}),
    "list": _typed("TaskPage", _fields(replies.TaskPage) | {"tasks": _list_of(_ROW)}),
    "status": _typed("Snapshot", _fields(replies.Snapshot) | {"inputs": _list_of(_ASKED)}),
    "subscribe": replies.TaskReply,  # this client subscribes to single tasks
}
_FRAMES: Final[Mapping[str, Any]] = {
    **frame_types.FRAMES,
    "hello": _typed("Hello", _fields(frame_types.Hello) | {"server": _Server, "limits": _Limits}),
    "event": _Envelope,
}


@cache
def _reply(command: str) -> TypeAdapter[Any]:
    return TypeAdapter(_REPLIES[command])


@cache
def _event(event_type: str) -> TypeAdapter[Any]:
    return TypeAdapter(_typed(event_type, _DATA[event_type]))


@cache
def _frame(kind: str) -> TypeAdapter[Any]:
    return TypeAdapter(_FRAMES[kind])


def check(kind: str, frame: Any) -> None:
    """Validate a frame of the type ``kind`` other than a reply or an event.

    Raises:
        ProtocolError: A field is missing, or its value has another type.
    """
    _check(_frame(kind), frame, "a frame", kind)


def check_reply(command: str, frame: Any) -> None:
    """Validate a reply to ``command``.

    Raises:
        ProtocolError: As `check`.
    """
    _check(_reply(command), frame, "a reply to", command)


def to_record(frame: Any) -> e.Record:
    """Validate an event's frame, and return the event.

    Raises:
        ProtocolError: As `check`.
    """
    check("event", frame)
    event_type = frame["event_type"]
    if event_type in e.EVENTS:
        _check(_event(event_type), frame["data"], "an event", event_type)
    return e.to_record(frame)


def _check(adapter: TypeAdapter[Any], value: Any, subject: str, name: str) -> None:
    try:
        adapter.validate_python(value, strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        field = ".".join(map(str, found["loc"])) or "all of it"
        quoted = "" if found["type"] == "missing" else f"; found {found['input']!r}"[:MAX_QUOTE]
        raise ProtocolError(
            f"the server sent {subject} {name!r} that cannot be read: "
            f"{field}: {found['msg']}{quoted}"
        ) from None
