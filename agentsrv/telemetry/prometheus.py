"""Formats the metrics as Prometheus' text; needs the extra ``metrics``."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from agentsrv.telemetry.instruments import METRICS, Metric
from agentsrv.telemetry.server_metrics import Histogram, ServerMetrics

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST


class _ServerCollector(Collector):
    """Converts the counts to families of metrics, at each request."""

    def __init__(self, metrics: ServerMetrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Family]:
        """All metrics, including those without a count yet."""
        for metric in METRICS:
            yield _family(metric, self._metrics)


def page(metrics: ServerMetrics) -> bytes:
    """The body of ``/metrics``: the server's metrics, then those of the process.

    The latter are the metrics that are registered with ``prometheus_client``: those of the process
    and the interpreter, and those of the application.
    """
    own = CollectorRegistry()
    own.register(_ServerCollector(metrics))
    return generate_latest(own) + generate_latest(REGISTRY)


def _family(metric: Metric, metrics: ServerMetrics) -> Family:
    labels = list(metric.labels)
    if metric.kind == "histogram":
        times = HistogramMetricFamily(metric.name, metric.help, labels=labels)
        for values, sample in metric.read(metrics):
            assert isinstance(sample, Histogram)
            times.add_metric(list(values), _buckets(sample), sample.total)
        return times
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=labels)
    for values, sample in metric.read(metrics):
        assert not isinstance(sample, Histogram)
        family.add_metric(list(values), sample)
    return family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    bounds = [*map(str, histogram.bounds), "+Inf"]
    return list(zip(bounds, accumulate(histogram.counts), strict=True))
