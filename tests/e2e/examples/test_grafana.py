"""The dashboard and the rules ask for what there is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from agentsrv.telemetry.instruments import METRICS

FOLDER = Path(__file__).resolve().parents[3] / "examples" / "grafana"
DASHBOARD = json.loads((FOLDER / "agentsrv.json").read_text(encoding="utf-8"))
RULES = (FOLDER / "alerts.yml").read_text(encoding="utf-8")
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
RULE_QUERIES = re.findall(r"expr: (?:>-\n)?((?:.*?\n)+?) {8}\w+:", RULES)


def series():
    """Each series that Prometheus has of a server, with its labels."""
    found: dict[str, set[str]] = {}
    for metric in METRICS:
        labels = {*metric.labels, "job"}
        if metric.kind == "histogram":
            found |= {f"{metric.name}_bucket": labels | {"le"}}
            found |= {f"{metric.name}_{end}": labels for end in ("count", "sum")}
        else:
            found[metric.name] = labels
    return found


SERIES = series()


@pytest.mark.parametrize("query", QUERIES + RULE_QUERIES)
def test_a_query_names_what_there_is(query):
    """Series with their suffixes, and labels that all of them have; its brackets close."""
    names = re.findall(r"agentsrv_\w+", query)
    assert names or "up{" in query
    assert set(names) <= set(SERIES)
    wanted = {
        label.strip()
        for group in re.findall(r"by \(([^)]*)\)", query)
        for label in group.split(",")
    }
    wanted |= set(re.findall(r"(\w+)!?[=~]+\"", query))
    for name in names:
        assert wanted <= SERIES[name]
    for opening, closing in ("()", "[]", "{}"):
        assert query.count(opening) == query.count(closing)


def test_a_rate_is_taken_of_what_only_grows():
    """Not of a gauge; and a gauge is no quantile."""
    gauges = [metric.name for metric in METRICS if metric.kind == "gauge"]
    for query in QUERIES + RULE_QUERIES:
        for name in re.findall(r"(?:rate|increase)\((agentsrv_\w+)", query):
            assert name not in gauges


def test_every_metric_has_its_place_on_the_dashboard():
    """Nothing is measured that nobody sees."""
    shown = " ".join(QUERIES)
    assert [metric.name for metric in METRICS if metric.name not in shown] == []


def test_the_panels_do_not_overlap():
    """Each has its place on the grid of 24 columns, and an id of its own."""
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        own = {
            (column, row)
            for column in range(place["x"], place["x"] + place["w"])
            for row in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not own & cells
        cells |= own
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_each_rule_is_found():
    """The rules are read as text here; none is overlooked."""
    assert len(RULE_QUERIES) == RULES.count("- alert:") == RULES.count("summary:")
