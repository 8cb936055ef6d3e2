"""The page ``/docs``: the protocol's published schema as HTML, without a script."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files
from string import Template
from typing import Any, Final

from agentsrv.models.commands import COMMANDS
from agentsrv.models.events import EVENTS
from agentsrv.protocol.frame_types import FRAMES
from agentsrv.protocol.schema import ERROR, SCHEMAS, reply_name

STYLE: Final = files("agentsrv.server").joinpath("docs.css").read_text("utf-8")
PAGE: Final = Template(files("agentsrv.server").joinpath("docs.html").read_text("utf-8"))
_HASH: Final = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""Content-Security-Policy: the page's own style and nothing else."""
LIMITS: Final = {
    "minLength": "from {} characters",
    "maxLength": "up to {} characters",
    "exclusiveMinimum": "above {}",
    "minimum": "from {}",
    "maximum": "up to {}",
    "minItems": "from {} items",
    "maxItems": "up to {} items",
    "maxProperties": "up to {} keys",
    "pattern": "matching <code>{}</code>",
    "format": "{}",
}
Json = Mapping[str, Any]


def render(document: Json) -> str:
    """Return the page of an AsyncAPI document by ``agentsrv.protocol.schema``."""
    info, schemas = document["info"], document["components"]["schemas"]
    messages = document["components"]["messages"]
    # The schemas that fields refer to, without those of messages and of events' data.
    own = {message["title"] for message in messages.values()}
    types = {*schemas} - own - {event.__name__ for event in EVENTS.values()}

    def message(name: str, *without: str) -> str:
        """Return the summary, the fields and the examples of a message."""
        found = messages[name]
        schema, label = _resolved(schemas, found["payload"]), ""
        if name in EVENTS:
            schema, label = _resolved(schemas, schema["properties"]["data"]), "<h4>Data</h4>"
        examples = () if name == ERROR else found["examples"]  # errors' examples are in a table
        shown = "".join(
            f'<pre tabindex="0"><code>{_json(example["payload"], indent=2)}</code></pre>'
            for example in examples
        )
        return f"<p>{_prose(found['summary'])}</p>{label}{_fields(schema, without)}{shown}"

    parts = {
        "Commands": {
            name: f"{message(name, 'command')}<h4>Reply</h4>"
            + message(reply_name(name), "type", "command", "id")
            for name in COMMANDS
        },
        "Events": {name: message(name) for name in EVENTS},
        "Other frames": {name: message(name, "type") for name in FRAMES},
        "Types": {name: _fields(schemas[name]) for name in schemas if name in types},
        "Codes": {
            "errors": _errors(messages[ERROR]["examples"]),
            "close-codes": _closes(document["channels"]["socket"]["x-close-codes"]),
        },
    }
    return PAGE.substitute(
        style=STYLE,
        title=f"{escape(info['title'])}: the protocol",
        description=_prose(info["description"]),
        version=escape(info["version"]),
        links="".join(
            f"<h2>{heading}</h2><ul>{''.join(f'<li>{_link(name)}</li>' for name in part)}</ul>"
            for heading, part in parts.items()
        ),
        sections="".join(
            f"<h2>{heading}</h2>{''.join(_section(*entry) for entry in part.items())}"
            for heading, part in parts.items()
        ),
    )


def _errors(examples: Iterable[Json]) -> str:
    rows = [
        (
            f"<code>{escape(example['name'])}</code>",
            "yes" if example["payload"]["retryable"] else "no",
            _prose(example["summary"]),
            f"<code>{escape(example['payload']['message'])}</code>",
        )
        for example in examples
    ]
    return _table(("Code", "Retryable", "Meaning", "For example"), rows)


def _closes(closes: Mapping[str, Json]) -> str:
    rows = [
        (code, _prose(close["meaning"]), "yes" if close["reconnect"] else "no")
        for code, close in closes.items()
    ]
    return _table(("Code", "Meaning", "Connect again"), rows)


def _fields(schema: Json, without: Iterable[str] = ()) -> str:
    """Return a table of an object's fields; for another schema, its type."""
    if "properties" not in schema and schema.get("type") != "object":
        return f"<p>{_type(schema)}</p>"
    required = schema.get("required", [])
    rows = [
        (f"<code>{name}</code>", _type(field), _default(field, required, name), _meaning(field))
        for name, field in schema.get("properties", {}).items()
        if name not in without
    ]
    return _table(("Field", "Type", "Default", "Meaning"), rows) if rows else "<p>No fields.</p>"


def _default(field: Json, required: Iterable[str], name: str) -> str:
    if name in required:
        return '<span class="need">required</span>'
    if "default" not in field:
        return '<span class="need">optional</span>'
    return f'<span class="default"><code>{_json(field["default"])}</code></span>'


def _meaning(field: Json) -> str:
    inner = [part for part in field.get("anyOf", ()) if "description" in part]
    return _prose(
        " ".join(part["description"] for part in (*inner, field) if "description" in part)
    )


def _type(schema: Json) -> str:
    """Return a type in words as HTML, with links to the types that have a section."""
    match schema:
        case {"$ref": str(target)}:
            name = escape(target.removeprefix(SCHEMAS))
            return f'<a href="#{name}">{name}</a>'
        case {"const": value}:
            return f"<code>{_json(value)}</code>"
        case {"enum": [*values]}:
            return ", ".join(f"<code>{_json(value)}</code>" for value in values)
        case {"anyOf": [*parts]}:
            return " or ".join(map(_type, parts))
        case {"type": "array"}:
            return f"list of {_type(schema.get('items', {}))}{_limits(schema)}"
        case {"type": "object", "additionalProperties": dict(values)}:
            return f"object of {_type(values)}{_limits(schema)}"
        case {"type": str(kind)}:
            return f"{kind}{_limits(schema)}"
        case _:
            return "any JSON"


def _limits(schema: Json) -> str:
    limits = [
        text.format(f"{schema[name]:,}" if isinstance(schema[name], int) else escape(schema[name]))
        for name, text in LIMITS.items()
        if name in schema
    ]
    return f" ({', '.join(limits)})" if limits else ""


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    columns = "".join(f'<th scope="col">{column}</th>' for column in head)
    lines = []
    for first, *rest in rows:
        cells = "".join(f"<td>{cell}</td>" for cell in rest)
        lines.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    return f"<table><thead><tr>{columns}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _section(name: str, content: str) -> str:
    return f'<section id="{escape(name)}"><h3>{_link(name)}</h3>{content}</section>'


def _link(name: str) -> str:
    return f'<a href="#{escape(name)}">{escape(name)}</a>'


def _resolved(schemas: Json, reference: Json) -> Json:
    found: Json = schemas[reference["$ref"].removeprefix(SCHEMAS)]
    return found


def _json(value: Any, indent: int | None = None) -> str:
    return escape(json.dumps(value, ensure_ascii=False, indent=indent), quote=False)


def _prose(text: str) -> str:
    """Escape the text, and mark text between backticks as code."""
    return re.sub(r"`+([^`]+)`+", r"<code>\1</code>", escape(text, quote=False))
