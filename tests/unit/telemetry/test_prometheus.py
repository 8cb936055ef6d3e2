from __future__ import annotations

import subprocess
import sys

import pytest
from prometheus_client import REGISTRY, Counter
from prometheus_client.parser import text_string_to_metric_families

from agentsrv.telemetry.instruments import METRICS
from agentsrv.telemetry.prometheus import page
from agentsrv.telemetry.server_metrics import Histogram, ServerMetrics


def families(measures):
    """The page as Prometheus' own parser reads it, by the names without ``_total``."""
    parsed = text_string_to_metric_families(page(measures).decode())
    return {family.name: family for family in parsed}


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_each_metric_is_there_before_anything_was_counted(metric):
    """With its type and its text; one without labels is 0, so that nothing is taken for missing."""
    family = families(ServerMetrics())[metric.name.removesuffix("_total")]
    assert (family.type, family.documentation) == (metric.kind, metric.help)
    values = [sample.value for sample in family.samples]
    assert set(values) == ({0.0} if not metric.labels or metric.labels == ("direction",) else set())


def test_names_are_such_as_prometheus_wants_them():
    """Counters end in _total, times in _seconds; no two are the same."""
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert metric.name.startswith("agentsrv_")
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.name.endswith("_seconds") == (metric.kind == "histogram")


def test_what_was_counted_is_told_with_its_labels():
    """Buckets add up, and a name may hold what it likes."""
    measures = ServerMetrics()
    measures.ended['say "hi"\n', "failed"] += 2
    measures.commits = Histogram((0.1, 1.0))
    for seconds in (0.05, 0.5, 7.0):
        measures.commits.observe(seconds)
    measures.queued = lambda: 5
    found = families(measures)
    (ended,) = found["agentsrv_tasks_ended"].samples
    assert ended.labels == {"agent": 'say "hi"\n', "outcome": "failed"}
    assert ended.value == 2
    assert found["agentsrv_tasks_queued"].samples[0].value == 5
    commits = found["agentsrv_commit_duration_seconds"].samples
    assert [(sample.labels.get("le"), sample.value) for sample in commits] == [
        ("0.1", 1.0), ("1.0", 2.0), ("+Inf", 3.0), (None, 3.0), (None, 7.55),
    ]  # fmt: skip


def test_the_applications_own_metrics_are_told_too():
    """Whatever is registered with the library, and its own of the process."""
    own = Counter("letters_sent", "Letters that were sent.")
    try:
        own.inc(3)
        found = families(ServerMetrics())
    finally:
        REGISTRY.unregister(own)
    assert found["letters_sent"].samples[0].value == 3
    assert "python_info" in found


def test_two_servers_in_one_process_have_pages_of_their_own():
    """Nothing of one is registered where the other would find it."""
    one, other = ServerMetrics(), ServerMetrics()
    one.orphaned = 1
    for measures, count in ((one, 1), (other, 0)):
        assert families(measures)["agentsrv_steps_orphaned"].samples[0].value == count


@pytest.mark.process
def test_a_server_without_the_extras_needs_none_of_their_packages():
    """The core is imported without Prometheus' client and without OpenTelemetry."""
    code = (
        "import sys; import agentsrv.cli.serving\n"
        "sys.exit(any(name in sys.modules for name in ('prometheus_client', 'opentelemetry')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
