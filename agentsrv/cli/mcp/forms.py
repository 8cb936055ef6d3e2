"""Questions as forms: what a client of the Model Context Protocol can put to its user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from mcp_types import ElicitRequestFormParams, ElicitResult

from agentsrv.errors import InputDeclined
from agentsrv.models.canonical import canonical
from agentsrv.models.events import InputRequired
from agentsrv.protocol.typed_answer import read_answer

FIELD: Final = "answer"
PLAIN: Final = ("boolean", "integer", "number", "string")
"""The types of JSON that a field of a form may have."""
KEPT: Final = (
    *("type", "title", "description", "minimum", "maximum", "minLength", "maxLength", "format"),
    *("enum", "default"),
)
"""What a form may say of a field; the server checks the rest."""
FORMATS: Final = ("date", "date-time", "email", "uri")


class Dismissed(Exception):
    """The user has neither answered nor declined; the question stays open."""


def form(asked: InputRequired, refusal: str | None = None) -> ElicitRequestFormParams:
    """A form for the question.

    An object of plain fields is asked for field by field, anything else in one field, in which
    what is not plain is written as JSON.

    Args:
        asked: The question.
        refusal: Why the answer before was none.
    """
    message = f"{asked.step_id} asks: {asked.prompt}"
    if refusal is not None:
        message = f"{refusal}\n\n{message}"
    schema: dict[str, Any]
    if _is_flat(asked):
        properties = asked.schema["properties"]
        schema = {
            "type": "object",
            "properties": {name: _field(field) for name, field in properties.items()},
            "required": list(asked.schema.get("required", [])),
        }
    else:
        field = _only_field(asked)
        if asked.default is not None and asked.options is not None:
            named = dict(zip(map(_key, asked.options), labels(asked.options), strict=True))
            if (label := named.get(_key(asked.default))) is not None:
                field["default"] = label
        elif asked.default is not None and type(asked.default).__name__ in ("bool", "int", "str"):
            field["default"] = asked.default
        schema = {"type": "object", "properties": {FIELD: field}, "required": [FIELD]}
    return ElicitRequestFormParams(message=message, requested_schema=schema)


def answer(asked: InputRequired, result: ElicitResult) -> Any:
    """What the user answered.

    Raises:
        InputDeclined: That nobody wants to answer.
        Dismissed: Nothing.
    """
    if result.action == "decline":
        raise InputDeclined("declined by the user of the MCP client")
    if result.action == "cancel" or result.content is None:
        raise Dismissed
    if _is_flat(asked):
        return result.content
    value = result.content.get(FIELD)
    if asked.options is not None:
        named = zip(labels(asked.options), asked.options, strict=True)
        return next((option for label, option in named if label == value), value)
    return read_answer(value, asked) if isinstance(value, str) else value


def labels(options: Sequence[Any]) -> list[str]:
    """What a user chooses from: texts as they are, others as JSON; all as JSON if two are alike."""
    found = [option if isinstance(option, str) else _key(option) for option in options]
    return found if len(set(found)) == len(found) else list(map(_key, options))


def _key(option: Any) -> str:
    return canonical(option).decode()


def _is_flat(asked: InputRequired) -> bool:
    fields = asked.schema.get("properties")
    return (
        asked.options is None
        and asked.schema.get("type") == "object"
        and isinstance(fields, dict)
        and bool(fields)
        and all(isinstance(one, dict) and one.get("type") in PLAIN for one in fields.values())
        and fields.keys() >= set(asked.schema.get("required", ()))
    )


def _only_field(asked: InputRequired) -> dict[str, Any]:
    if asked.options is not None:
        return {"type": "string", "enum": labels(asked.options)}
    if asked.schema.get("type") in PLAIN:
        return _field(asked.schema)
    return {"type": "string", "description": "Written as JSON."}


def _field(schema: Mapping[str, Any]) -> dict[str, Any]:
    field = {name: schema[name] for name in KEPT if name in schema}
    if field.get("format") not in FORMATS:
        field.pop("format", None)
    return field
