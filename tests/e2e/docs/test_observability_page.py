"""docs/reference/telemetry.md against the metrics, the spans and the log."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from agentsrv.telemetry.export import ENABLING_VARIABLES
from agentsrv.telemetry.instruments import METRICS
from agentsrv.telemetry.logs import JsonFormatter, TextFormatter

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "reference" / "telemetry.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("| `agentsrv_")
]


def test_every_metric_stands_in_the_table():
    """With its type and its labels, in the order of the page, and no other does."""
    assert [(row[0].strip("`"), row[1], re.findall(r"`(\w+)`", row[2])) for row in ROWS] == [
        (metric.name, metric.kind, list(metric.labels)) for metric in METRICS
    ]


def test_what_is_written_of_each_metric_fits_the_columns():
    """A bar in a cell would shift the ones behind it."""
    assert {len(row) for row in ROWS} == {5}
    assert all(row[3] for row in ROWS)


@pytest.mark.parametrize("name", ENABLING_VARIABLES)
def test_the_variables_that_ask_for_spans_are_named(name):
    """Each of them."""
    assert f"`{name}`" in PAGE


def test_attributes_are_those_that_spans_have():
    """Those of ours, and of the conventions that are written out."""
    source = (ROOT / "agentsrv" / "telemetry" / "tracing.py").read_text(encoding="utf-8")
    section = PAGE[PAGE.index("## Tracing") : PAGE.index("## Logs")]
    named = set(re.findall(r"`((?:agentsrv|gen_ai|server)\.[a-z_.]+)`", section))
    assert len(named) > 10
    written = re.sub(r"__", ".", source + (ROOT / "agentsrv/agents/llm.py").read_text())
    for name in named:
        assert name.removeprefix("gen_ai.") in written


def test_each_logger_stands_in_the_table():
    """Those of the server's code, and no others."""
    files = [file for file in (ROOT / "agentsrv").rglob("*.py") if file.parent.name != "client"]
    source = "".join(file.read_text() for file in files)
    made = set(re.findall(r'getLogger\("([\w.]+)"\)', source))
    table = PAGE[PAGE.index("| logger |") :]
    assert set(re.findall(r"`(agentsrv[\w.]*)`", table)) == made


def test_the_lines_that_are_shown_have_the_servers_form():
    """The JSON has its keys in their order; the text begins as lines do."""
    (line,) = (json.loads(block) for block in re.findall(r"```json\n(.*)\n```", PAGE))
    (text,) = re.findall(r"```text\n((?:.*\n)+?)```", PAGE)
    from tests.unit.telemetry.test_logs import LINE, failure, record

    about = {key: line[key] for key in list(line)[4:8]}
    made = record("x", about=about, exc_info=failure("forged"))
    assert list(json.loads(JsonFormatter().format(made))) == list(line)
    first, *rest = text.splitlines()
    assert LINE.match(first)
    assert first.split("[")[1] == TextFormatter().format(made).splitlines()[0].split("[")[1]
    assert all(part.startswith("    | ") for part in rest)
