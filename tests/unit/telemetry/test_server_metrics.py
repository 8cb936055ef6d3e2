from __future__ import annotations

from agentsrv.telemetry.server_metrics import Histogram


def test_a_histogram_counts_up_to_its_bounds():
    """What takes exactly as long as a bound says counts below it; what takes longer, at the end."""
    histogram = Histogram((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 1.0, 7.0):
        histogram.observe(seconds)
    assert histogram.counts == [2, 2, 1]
    assert histogram.total == 8.65
