"""Every field of every command: left out, of each wrong type, too long, too large; made of the models.

The judge is the published schema: what it refuses, the server must refuse, with a complaint about
that field.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from agentsrv.models.commands import COMMANDS, EXAMPLES
from tests.e2e.acceptance.handshakes import Rows
from tests.e2e.acceptance.probe import text
from tests.support.published_schema import DOCUMENT, complaints

VALUES: Final[tuple[Any, ...]] = (
    None, True, False, 0, 1, -1, 1.5, 1e308, (1 << 63) - 1, "", "1", "true", "\0", "\x7f", "a b",
    "é", "x" * 65, "x" * 40_000, [], [None], {}, {"a": 1}, {"a": {"b": []}}, [[]],
)  # fmt: skip
SHOWN: Final = 24  # characters of a value in a row's name
STEP: Final = {"step_id": "a", "agent": "echo"}


def rows() -> Rows:
    """All that the schema refuses."""
    found: Rows = {}
    for name, fields in _frames():
        for what, frame in fields:
            if complaints(name, frame):
                field = what.partition(" ")[0]
                told = f'"field": "{field}'
                found[f"{name}: {what}"] = (text(json.dumps(frame)), "invalid_command", told)
    return found


def _frames() -> Iterator[tuple[str, Iterator[tuple[str, dict[str, Any]]]]]:
    """For each command its changed frames, with the path of the field and what became of it."""
    for name, command in COMMANDS.items():
        fields = [field for field in command.model_fields if field != "command"]
        yield name, _changed(EXAMPLES[name], fields)
    create = EXAMPLES["create"]
    for what, step in _changed(STEP, DOCUMENT["components"]["schemas"]["Step"]["properties"]):
        yield "create", iter([(f"plan.steps.0.{what}", create | {"plan": {"steps": [step]}})])


def _changed(frame: dict[str, Any], fields: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    for field in fields:
        yield f"{field} left out", {key: frame[key] for key in frame if key != field}
        for value in VALUES:
            yield f"{field} = {json.dumps(value)[:SHOWN]}", frame | {field: value}
    yield "unknown = 1", frame | {"unknown": 1}
