"""The TypeScript declarations, against the schema that they are made of.

That they fit those who use them is tried in tests/e2e/console/test_client.py.
"""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from agentsrv.cli.commands import app
from agentsrv.protocol.schema import document
from agentsrv.protocol.typescript import declarations
from agentsrv.version import __version__

SHIPPED = Path(__file__).parents[3] / "agentsrv" / "console" / "protocol.d.ts"


def test_what_is_shipped_is_made_of_the_schema():
    """It is made anew by: agentsrv schema --typescript."""
    assert SHIPPED.read_text() == declarations(document(__version__))


def test_the_command_line_prints_them():
    """The same that is shipped."""
    assert CliRunner().invoke(app, ["schema", "--typescript"]).output == SHIPPED.read_text()


def test_each_kind_of_schema_has_its_type():
    """What a schema does not say is unknown; a text cannot end its comment."""
    members = {
        "a": {"type": "integer", "description": "x */ y"},
        "b": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "c": {"type": "array", "items": {"$ref": "#/components/schemas/Other"}},
        "d": {"const": "e"},
        "f": {"type": "object", "additionalProperties": {"type": "boolean"}},
        "g": {},
    }
    schema = {"type": "object", "properties": members, "required": ["a"]}
    text = declarations({"components": {"schemas": {"Made": schema}}})
    lines = [line.strip() for line in text.partition("export interface Made {")[2].splitlines()]
    assert lines[1:8] == [
        "/** x * / y */",
        "a: number;",
        "b?: string | null;",
        "c?: Array<Other>;",
        'd?: "e";',
        "f?: Record<string, boolean>;",
        "g?: unknown;",
    ]
