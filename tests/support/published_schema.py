"""The published schema, as what every frame is held against."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import jsonschema_rs

from agentsrv.protocol.schema import document, reply_name

DOCUMENT: Final = document("1.2.3")
MESSAGES: Final = DOCUMENT["components"]["messages"]


def name_of(frame: dict[str, Any]) -> str:
    """The name of the message that a frame of the server is."""
    match frame["type"]:
        case "event":
            return str(frame["event_type"])
        case "reply":
            return reply_name(frame["command"])
        case kind:
            return str(kind)


def complaints(name: str, frame: Any) -> list[str]:
    """What the published schema has against a frame."""
    return [error.message for error in _validator(name).iter_errors(frame)]


@cache
def _validator(name: str) -> jsonschema_rs.Validator:
    root = {**MESSAGES[name]["payload"], "components": DOCUMENT["components"]}
    return jsonschema_rs.validator_for(root)
