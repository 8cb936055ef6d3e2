"""The published schema: an AsyncAPI 3 document, built from the models that the server uses.

It has one message for each command, reply, event and other frame, each with an example. Schemas
of what clients send refuse unknown fields, as the server does; those of what the server sends
allow them, as later versions may add some.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import orjson
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode

from agentsrv import errors
from agentsrv.models.commands import COMMANDS, EXAMPLES
from agentsrv.models.events import EVENTS, encode
from agentsrv.protocol import PROTOCOL, examples, frames
from agentsrv.protocol.close_codes import CLOSES
from agentsrv.protocol.frame_types import FRAMES

ASYNCAPI: Final = "3.1.0"
SCHEMAS: Final = "#/components/schemas/"
MESSAGES: Final = "#/components/messages/"
CHANNEL: Final = "#/channels/socket"
ERROR: Final = "error"
Json = dict[str, Any]

_DESCRIPTION: Final = (
    "One WebSocket carries any number of tasks: a client sends commands, the server sends "
    "replies, errors and events, each as a text frame with one JSON object. A reply is sent after "
    "the commit that it reports, and before any event that the command caused."
)
_COMMAND_ID: Final[Json] = {
    "anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}],
    "description": "The id of the command; null if it had none.",
}
_ANY_JSON: Final[Json] = {
    "description": "Any JSON value.",
    "type": ["object", "array", "string", "number", "boolean", "null"],
}
"""Explicit types: generators of code read a schema without a type as an object."""
_EVENT: Final[Json] = {
    "task_id": {"type": "string"},
    "seq": {
        "type": "integer",
        "minimum": 1,
        "description": "The number of the event in its task's log, from 1 without gaps.",
    },
    "timestamp": {"type": "string", "format": "date-time"},
}


def document(version: str) -> Json:
    """Return the document of a server of that version."""
    schemas: Json = {}
    messages = {message["name"]: message for message in _messages(schemas)}
    schemas["JsonValue"] = _ANY_JSON
    sent = [*FRAMES, *EVENTS]
    return {
        "asyncapi": ASYNCAPI,
        "info": {
            "title": PROTOCOL,
            "version": version,
            "description": _DESCRIPTION,
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": {"local": {"host": "127.0.0.1:8765", "protocol": "ws"}},
        "channels": {
            "socket": {
                "address": "/",
                "description": "The one connection of a client; also at /ws.",
                "messages": {name: {"$ref": MESSAGES + name} for name in messages},
                "x-close-codes": {
                    str(code): {"meaning": close.meaning, "reconnect": close.reconnect}
                    for code, close in CLOSES.items()
                },
            }
        },
        "operations": {name: _operation(name) for name in COMMANDS}
        | {"tell": _refer("send", sent) | {"summary": "Frames that the server sends by itself."}},
        "components": {"schemas": dict(sorted(schemas.items())), "messages": messages},
    }


def reply_name(command: str) -> str:
    """Return the name of the message that is the reply to ``command``."""
    return f"{command}_reply"


def _operation(command: str) -> Json:
    replies = _refer("send", [reply_name(command), ERROR])
    del replies["action"]
    summary = _summary(COMMANDS[command])
    return _refer("receive", [command]) | {"summary": summary, "reply": replies}


def _refer(action: str, messages: Iterable[str]) -> Json:
    return {
        "action": action,
        "channel": {"$ref": CHANNEL},
        "messages": [{"$ref": f"{CHANNEL}/messages/{name}"} for name in messages],
    }


def _messages(schemas: Json) -> Iterator[Json]:
    """Yield each message; add its schema and those that it refers to to ``schemas``."""
    for name, command in COMMANDS.items():
        schema = _schema(command, "validation", schemas)
        # The default is for Python; on the wire the discriminator is required.
        schema["required"] = ["command", *schema.get("required", [])]
        schemas[command.__name__] = schema
        yield _message(name, command.__name__, _summary(command), [EXAMPLES[name]], has_id=True)
    for name, command in COMMANDS.items():
        reply = command.declaration.reply
        envelope = {"command": {"const": name}, "id": _COMMAND_ID}
        title = f"{command.__name__}Reply"
        schemas[title] = _frame("reply", envelope, _schema(reply, "serialization", schemas))
        frame = orjson.loads(frames.reply(name, 1, examples.REPLIES[name]))
        yield _message(reply_name(name), title, _summary(reply), [frame], has_id=True)
    for name, kind in FRAMES.items():
        title = f"{name.title().replace('_', '')}Frame"
        schemas[title] = _frame(name, {}, _schema(kind, "serialization", schemas))
        yield (
            _error_message(title, schemas)
            if name == ERROR
            else _message(name, title, _summary(kind), [{"type": name, **examples.FRAMES[name]}])
        )
    for seq, (name, event) in enumerate(EVENTS.items(), 1):
        schemas[event.__name__] = _schema(event, "serialization", schemas)
        envelope = {"event_type": {"const": name}} | _EVENT
        data = {"data": {"$ref": SCHEMAS + event.__name__}}
        title = f"{event.__name__}Event"
        schemas[title] = _frame("event", envelope | data, {"description": _summary(event)})
        body = encode(examples.EVENTS[name], examples.TASK, seq, examples.AT)
        yield _message(name, title, _summary(event), [orjson.loads(body)])


class _Untitled(GenerateJsonSchema):
    """Omits the titles of fields, which repeat their names."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - the base's
        return False


def _schema(kind: type[Any], mode: JsonSchemaMode, schemas: Json) -> Json:
    """Return the schema of a type; add those that it refers to to ``schemas``."""
    schema = TypeAdapter(kind).json_schema(
        mode=mode, ref_template=SCHEMAS + "{model}", schema_generator=_Untitled
    )
    schemas.update(schema.pop("$defs", {}))
    return schema


def _frame(kind: str, envelope: Mapping[str, Any], schema: Json) -> Json:
    """Return the schema of a frame of a ``type``: the envelope and the fields of ``schema``."""
    fixed = {"type": {"const": kind}, **envelope}
    return {
        "type": "object",
        "description": schema.get("description", ""),
        "properties": fixed | schema.get("properties", {}),
        "required": [*fixed, *schema.get("required", [])],
    }


def _message(
    name: str, schema: str, summary: str, examples: Iterable[Any], *, has_id: bool = False
) -> Json:
    message: Json = {
        "name": name,
        "title": schema,
        "summary": summary,
        "payload": {"$ref": SCHEMAS + schema},
        "examples": [{"payload": payload} for payload in examples],
    }
    if has_id:
        message["correlationId"] = {"location": "$message.payload#/id"}
    return message


def _error_message(title: str, schemas: Json) -> Json:
    """Return the message of all errors: the list of their codes, and an example of each."""
    schemas[title]["properties"]["code"]["enum"] = list(errors.BY_CODE)
    shown = [
        {
            "name": error.code,
            "summary": _summary(type(error)),
            "payload": orjson.loads(frames.error("create", 1, error)),
        }
        for error in examples.ERRORS
    ]
    message = _message(ERROR, title, _summary(FRAMES[ERROR]), [], has_id=True)
    return message | {"examples": shown}


def _summary(kind: type[Any]) -> str:
    """Return the docstring of a class without line breaks and markup."""
    return " ".join((inspect.getdoc(kind) or "").replace("``", "`").split())
