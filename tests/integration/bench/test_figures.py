from __future__ import annotations

import math

from agentsrv.bench.figures import Figure, Report, percentile


def test_a_figure_is_told_with_its_spread():
    """The median, then the lowest and the highest; as many digits as mean something."""
    assert Figure("a", "a", (1234.5,)).told() == "1,234"
    assert Figure("a", "a", (3.0, 1.0, 2.0)).told() == "2.00 [1.00 .. 3.00]"
    assert Figure("a", "a", (12.34, 99.96, 100.4)).told() == "100.0 [12.3 .. 100]"


def test_a_figure_survives_its_json():
    """Nothing is lost on the way."""
    figure = Figure("a.b", "what it is", (1.0, 2.5))
    assert Figure.of_json(figure.as_json()) == figure


def test_a_report_tells_each_line_when_it_is_there():
    """Titles, figures and notes, in their order."""
    lines: list[str] = []
    report = Report(lines.append)
    report.title("speed: how fast")
    report.add("speed.a", "tasks/s", [5.0])
    report.add_spread("speed.b", "waiting", [[0.001] * 99 + [0.5]])
    report.note("not all of it")
    assert lines[0] == "\nspeed: how fast"
    assert [line.split() for line in lines[1:]] == [
        ["tasks/s", "5.00"],
        ["waiting", "p50,", "ms", "1.00"],
        ["waiting", "p99,", "ms", "500"],
        ["(not", "all", "of", "it)"],
    ]
    assert [figure.key for figure in report.figures] == ["speed.a", "speed.b.p50", "speed.b.p99"]


def test_a_percentile_is_a_value_that_was_there():
    """And not a number where there is none."""
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile(range(100), 0.99) == 99
    assert percentile([1], 0.99) == 1
    assert math.isnan(percentile([], 0.5))
