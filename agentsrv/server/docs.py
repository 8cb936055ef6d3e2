"""The protocol as a page to read: HTML of the published schema, without a script."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files
from typing import Any, Final

from agentsrv.models.commands import COMMANDS
from agentsrv.models.events import EVENTS
from agentsrv.protocol.asyncapi import ERROR, SCHEMAS, reply_name
from agentsrv.protocol.replies import FRAMES

STYLE: Final = files("agentsrv.server").joinpath("docs.css").read_text("utf-8")
_HASH: Final = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""The Content-Security-Policy: the page's own style, and nothing else whatsoever."""
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
    """The page of an AsyncAPI document that ``agentsrv.protocol.asyncapi`` made."""
    info = document["info"]
    title = f"{escape(info['title'])}: the protocol"
    types = _types(document)
    parts = {
        "Commands": [_command(document, name) for name in COMMANDS],
        "Events": [_event(document, name) for name in EVENTS],
        "Other frames": [_frame(document, name) for name in FRAMES],
        "Types": [_section(name, "", _fields(schema)) for name, schema in types.items()],
    }
    names: tuple[Iterable[str], ...] = (COMMANDS, EVENTS, FRAMES, types)
    links = "".join(
        f"<h2>{heading}</h2><ul>{''.join(_link(name) for name in within)}</ul>"
        for heading, within in zip(parts, names, strict=True)
    )
    body = "".join(f"{_heading(heading)}{''.join(part)}" for heading, part in parts.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body>"
        '<a class="skip" href="#main">To the text</a>'
        f'<nav aria-label="Contents">{links}<h2>Codes</h2><ul>'
        '<li><a href="#errors">errors</a></li><li><a href="#closes">close codes</a></li></ul></nav>'
        f'<main id="main"><h1>{title}</h1><p>{_prose(info["description"])}</p>'
        f"<p>agentsrv {escape(info['version'])}. The same for programs: "
        '<a href="/asyncapi.json">AsyncAPI document</a>.</p>'
        f"{body}{_errors(document)}{_closes(document)}</main></body></html>"
    )


def _command(document: Json, name: str) -> str:
    reply = document["components"]["messages"][reply_name(name)]
    fields = _fields(_payload(document, name), without=("command",))
    answer = _fields(_payload(document, reply["name"]), without=("type", "command", "id"))
    return _section(
        name,
        document["components"]["messages"][name]["summary"],
        f"{fields}{_examples(document, name)}<h4>Reply</h4><p>{_prose(reply['summary'])}</p>"
        f"{answer}{_examples(document, reply['name'])}",
    )


def _event(document: Json, name: str) -> str:
    data = _resolve(document, _payload(document, name)["properties"]["data"])
    summary = document["components"]["messages"][name]["summary"]
    return _section(name, summary, f"<h4>Data</h4>{_fields(data)}{_examples(document, name)}")


def _frame(document: Json, name: str) -> str:
    summary = document["components"]["messages"][name]["summary"]
    fields = _fields(_payload(document, name), without=("type",))
    return _section(name, summary, fields + ("" if name == ERROR else _examples(document, name)))


def _types(document: Json) -> dict[str, Json]:
    """The schemas that fields refer to, beside those of messages and of events' data."""
    schemas: Json = document["components"]["schemas"]
    own = {message["title"] for message in document["components"]["messages"].values()}
    own |= {event.__name__ for event in EVENTS.values()}
    return {name: schema for name, schema in schemas.items() if name not in own}


def _errors(document: Json) -> str:
    rows = [
        (
            f"<code>{escape(example['name'])}</code>",
            "yes" if example["payload"]["retryable"] else "no",
            _prose(example["summary"]),
            f"<code>{escape(example['payload']['message'])}</code>",
        )
        for example in document["components"]["messages"][ERROR]["examples"]
    ]
    head = ("Code", "Retryable", "Meaning", "For example")
    return f'<section id="errors">{_heading("Errors")}{_table(head, rows)}</section>'


def _closes(document: Json) -> str:
    closes = document["channels"]["socket"]["x-close-codes"]
    rows = [
        (code, _prose(close["meaning"]), "yes" if close["reconnect"] else "no")
        for code, close in closes.items()
    ]
    head = ("Code", "Meaning", "Connect again")
    return f'<section id="closes">{_heading("Close codes")}{_table(head, rows)}</section>'


def _fields(schema: Json, without: Iterable[str] = ()) -> str:
    """A table of an object's fields; of another schema, its type."""
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
    """A type in words and HTML, with links to those that have a place of their own."""
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
    told = [
        text.format(f"{schema[name]:,}" if isinstance(schema[name], int) else escape(schema[name]))
        for name, text in LIMITS.items()
        if name in schema
    ]
    return f" ({', '.join(told)})" if told else ""


def _examples(document: Json, name: str) -> str:
    shown = document["components"]["messages"][name]["examples"]
    return "".join(
        f'<pre tabindex="0"><code>{_json(example["payload"], indent=2)}</code></pre>'
        for example in shown
    )


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    columns = "".join(f'<th scope="col">{column}</th>' for column in head)
    lines = []
    for first, *rest in rows:
        cells = "".join(f"<td>{cell}</td>" for cell in rest)
        lines.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    return f"<table><thead><tr>{columns}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _section(name: str, summary: str, content: str) -> str:
    name = escape(name)
    return (
        f'<section id="{name}"><h3><a href="#{name}">{name}</a></h3>'
        f"<p>{_prose(summary)}</p>{content}</section>"
    )


def _heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>"


def _link(name: str) -> str:
    return f'<li><a href="#{escape(name)}">{escape(name)}</a></li>'


def _payload(document: Json, name: str) -> Json:
    return _resolve(document, document["components"]["messages"][name]["payload"])


def _resolve(document: Json, reference: Json) -> Json:
    found: Json = document["components"]["schemas"][reference["$ref"].removeprefix(SCHEMAS)]
    return found


def _json(value: Any, indent: int | None = None) -> str:
    return escape(json.dumps(value, ensure_ascii=False, indent=indent), quote=False)


def _prose(text: str) -> str:
    """Escaped, with what stands between backticks as code."""
    return re.sub(r"`+([^`]+)`+", r"<code>\1</code>", escape(text, quote=False))
