"""The published schema: an AsyncAPI 3 document, made of the models that the server runs on.

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
    "replies, errors and events, each as a text frame with one JSON object. A reply is sent when "
    "what it says is committed, and before any event that the command caused."
)
_COMMAND_ID: Final[Json] = {
    "anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}],
    "description": "The command's own, null where it had none.",
}
_ANY_JSON: Final[Json] = {
    "description": "Any JSON value.",
    "type": ["object", "array", "string", "number", "boolean", "null"],
}
"""Instead of no type at all, which generators of types take for an object."""
_EVENT: Final[Json] = {
    "task_id": {"type": "string"},
    "seq": {"type": "integer", "minimum": 1, "description": "Counts a task's events, no holes."},
    "timestamp": {"type": "string", "format": "date-time"},
}


def document(version: str) -> Json:
    """The whole document, as a server of ``version`` speaks."""
    schemas: Json = {}
    messages = {message["name"]: message for message in _messages(schemas)}
    schemas["JsonValue"] = _ANY_JSON
    told = [*FRAMES, *EVENTS]
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
        | {"tell": _refer("send", told) | {"summary": "What the server tells by itself."}},
        "components": {"schemas": dict(sorted(schemas.items())), "messages": messages},
    }


def reply_name(command: str) -> str:
    """The name of the message that answers ``command``."""
    return f"{command}_reply"


def _operation(command: str) -> Json:
    answers = _refer("send", [reply_name(command), ERROR])
    del answers["action"]
    return _refer("receive", [command]) | {"summary": _told(COMMANDS[command]), "reply": answers}


def _refer(action: str, messages: Iterable[str]) -> Json:
    return {
        "action": action,
        "channel": {"$ref": CHANNEL},
        "messages": [{"$ref": f"{CHANNEL}/messages/{name}"} for name in messages],
    }


def _messages(schemas: Json) -> Iterator[Json]:
    """Each message; their schemas, and those that these need, go to ``schemas``."""
    for name, command in COMMANDS.items():
        schema = _schema(command, "validation", schemas)
        # Its default is for Python; on the wire the discriminator must be there.
        schema["required"] = ["command", *schema.get("required", [])]
        schemas[command.__name__] = schema
        yield _message(name, command.__name__, _told(command), [EXAMPLES[name]], answer=True)
    for name, command in COMMANDS.items():
        reply = command.declaration.reply
        envelope = {"command": {"const": name}, "id": _COMMAND_ID}
        title = f"{command.__name__}Reply"
        schemas[title] = _frame("reply", envelope, _schema(reply, "serialization", schemas))
        frame = orjson.loads(frames.reply(name, 1, examples.REPLIES[name]))
        yield _message(reply_name(name), title, _told(reply), [frame], answer=True)
    for name, kind in FRAMES.items():
        title = f"{name.title().replace('_', '')}Frame"
        schemas[title] = _frame(name, {}, _schema(kind, "serialization", schemas))
        yield (
            _error_message(title, schemas)
            if name == ERROR
            else _message(name, title, _told(kind), [{"type": name, **examples.FRAMES[name]}])
        )
    for seq, (name, event) in enumerate(EVENTS.items(), 1):
        schemas[event.__name__] = _schema(event, "serialization", schemas)
        envelope = {"event_type": {"const": name}} | _EVENT
        data = {"data": {"$ref": SCHEMAS + event.__name__}}
        title = f"{event.__name__}Event"
        schemas[title] = _frame("event", envelope | data, {"description": _told(event)})
        body = encode(examples.EVENTS[name], examples.TASK, seq, examples.AT)
        yield _message(name, title, _told(event), [orjson.loads(body)])


class _Untitled(GenerateJsonSchema):
    """Leaves out the titles of fields, which say their names again."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - the base's
        return False


def _schema(kind: type[Any], mode: JsonSchemaMode, schemas: Json) -> Json:
    """The schema of a type; those that it refers to go to ``schemas``."""
    schema = TypeAdapter(kind).json_schema(
        mode=mode, ref_template=SCHEMAS + "{model}", schema_generator=_Untitled
    )
    schemas.update(schema.pop("$defs", {}))
    return schema


def _frame(kind: str, envelope: Mapping[str, Any], schema: Json) -> Json:
    """The schema of a frame of that ``type``: an envelope, and what it holds besides."""
    fixed = {"type": {"const": kind}, **envelope}
    return {
        "type": "object",
        "description": schema.get("description", ""),
        "properties": fixed | schema.get("properties", {}),
        "required": [*fixed, *schema.get("required", [])],
    }


def _message(
    name: str, schema: str, summary: str, shown: Iterable[Any], *, answer: bool = False
) -> Json:
    message: Json = {
        "name": name,
        "title": schema,
        "summary": summary,
        "payload": {"$ref": SCHEMAS + schema},
        "examples": [{"payload": payload} for payload in shown],
    }
    if answer:
        message["correlationId"] = {"location": "$message.payload#/id"}
    return message


def _error_message(title: str, schemas: Json) -> Json:
    """The message of all errors: an enumeration of their codes, and an example of each."""
    schemas[title]["properties"]["code"]["enum"] = list(errors.BY_CODE)
    shown = [
        {
            "name": error.code,
            "summary": _told(type(error)),
            "payload": orjson.loads(frames.error("create", 1, error)),
        }
        for error in examples.ERRORS
    ]
    message = _message(ERROR, title, _told(FRAMES[ERROR]), [], answer=True)
    return message | {"examples": shown}


def _told(kind: type[Any]) -> str:
    """The docstring of a class, without its line breaks and markup."""
    return " ".join((inspect.getdoc(kind) or "").replace("``", "`").split())
