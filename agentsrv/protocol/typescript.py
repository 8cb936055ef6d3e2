"""The published schema as TypeScript declarations, for clients in JavaScript and TypeScript."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from agentsrv.models.commands import COMMANDS
from agentsrv.models.events import EVENTS
from agentsrv.protocol.schema import SCHEMAS

HEADER: Final = "// Made by `agentsrv schema --typescript`; do not edit.\n"
PRIMITIVES: Final = {
    "string": "string",
    "integer": "number",
    "number": "number",
    "boolean": "boolean",
    "null": "null",
}
Json = Mapping[str, Any]


def declarations(document: Json) -> str:
    """Return the types of an AsyncAPI document that ``agentsrv.protocol.schema`` built.

    There is one type for each schema, with its name; ``Commands`` and ``Replies``, which map the
    name of a command to its type; and ``Event``, the union of all events.
    """
    schemas = document["components"]["schemas"]
    parts = [HEADER, *(_declared(name, schema) for name, schema in schemas.items())]
    names = {name: kind.__name__ for name, kind in COMMANDS.items()}
    parts.append(_record("Commands", "The commands, by name.", names))
    replies = {name: f"{kind}Reply" for name, kind in names.items()}
    parts.append(_record("Replies", "The replies, by the name of the command.", replies))
    union = "".join(f"\n  | {kind.__name__}Event" for kind in EVENTS.values())
    parts.append(f"/** The events of tasks. */\nexport type Event ={union};\n")
    return "\n".join(parts)


def _declared(name: str, schema: Json) -> str:
    comment = _comment(schema.get("description", ""))
    if "properties" in schema:
        return f"{comment}export interface {name} {_object(schema)}\n"
    return f"{comment}export type {name} = {_type(schema)};\n"


def _record(name: str, description: str, members: Mapping[str, str]) -> str:
    lines = "".join(f"  {member}: {kind};\n" for member, kind in members.items())
    return f"{_comment(description)}export interface {name} {{\n{lines}}}\n"


def _object(schema: Json, indent: str = "") -> str:
    return "{\n" + "".join(_members(schema, f"{indent}  ")) + indent + "}"


def _members(schema: Json, indent: str) -> Iterator[str]:
    required = schema.get("required", ())
    for name, member in schema["properties"].items():
        mark = "" if name in required else "?"
        comment = _comment(member.get("description", ""), indent)
        yield f"{comment}{indent}{name}{mark}: {_type(member, indent)};\n"


def _type(schema: Json, indent: str = "") -> str:
    """Return the type of a schema; ``unknown`` if it allows any value."""
    match schema:
        case {"$ref": str(ref)}:
            return ref.removeprefix(SCHEMAS)
        case {"const": value}:
            return json.dumps(value)
        case {"enum": values}:
            return _union([json.dumps(value) for value in values])
        case {"anyOf": choices} | {"oneOf": choices}:
            return _union([_type(choice, indent) for choice in choices])
        case {"type": "array", "items": items}:
            return f"Array<{_type(items, indent)}>"
        case {"type": "object", "properties": _}:
            return _object(schema, indent)
        case {"type": "object"}:
            values = schema.get("additionalProperties", True)
            inner = _type(values, indent) if isinstance(values, Mapping) else "unknown"
            return f"Record<string, {inner}>"
        case {"type": str(name)} if name in PRIMITIVES:
            return PRIMITIVES[name]
        case _:
            return "unknown"


def _union(types: Sequence[str]) -> str:
    return " | ".join(dict.fromkeys(types))


def _comment(text: str, indent: str = "") -> str:
    return f"{indent}/** {text.replace('*/', '* /')} */\n" if text else ""
