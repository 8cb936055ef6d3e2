"""The metrics: name, type, help text and labels of each count in `ServerMetrics`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from agentsrv.telemetry.server_metrics import Histogram, ServerMetrics

Kind = Literal["counter", "gauge", "histogram"]
Sample = tuple[tuple[str, ...], float | Histogram]
"""The values of a metric's labels, in their order, and the measured value."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of Prometheus. The unit is the end of the name."""

    name: str
    kind: Kind
    help: str
    read: Callable[[ServerMetrics], Iterator[Sample]]
    """Returns the current samples."""
    labels: tuple[str, ...] = ()


def _one(
    read: Callable[[ServerMetrics], float | Histogram],
) -> Callable[[ServerMetrics], Iterator[Sample]]:
    def sample(metrics: ServerMetrics) -> Iterator[Sample]:
        yield (), read(metrics)

    return sample


def _each(
    read: Callable[[ServerMetrics], Mapping[tuple[str, str], float | Histogram]],
) -> Callable[[ServerMetrics], Iterator[Sample]]:
    return lambda metrics: iter(read(metrics).items())


def _by_agent(metrics: ServerMetrics) -> Iterator[Sample]:
    for agent, count in metrics.degraded.items():
        yield (agent,), count


def _tokens(metrics: ServerMetrics) -> Iterator[Sample]:
    used = metrics.model()
    yield ("input",), used.get("prompt_tokens", 0)
    yield ("output",), used.get("completion_tokens", 0)


METRICS: Final = (
    Metric(
        "agentsrv_tasks_ended_total",
        "counter",
        "Tasks that ended, by agent, or (plan) for a task without one, and by outcome.",
        _each(lambda m: m.ended),
        ("agent", "outcome"),
    ),
    Metric("agentsrv_tasks_queued", "gauge", "Tasks that wait.", _one(lambda m: m.queued())),
    Metric(
        "agentsrv_tasks_running",
        "gauge",
        "Slots in use, including those of steps that do not stop.",
        _one(lambda m: m.running()),
    ),
    Metric(
        "agentsrv_step_attempt_duration_seconds",
        "histogram",
        "Duration of attempts of steps.",
        _each(lambda m: m.attempts),
        ("agent", "outcome"),
    ),
    Metric(
        "agentsrv_step_retries_total",
        "counter",
        "Attempts that failed and were followed by another.",
        _each(lambda m: m.retries),
        ("agent", "reason"),
    ),
    Metric(
        "agentsrv_steps_degraded_total",
        "counter",
        "Steps that failed and without which the plan continued.",
        _by_agent,
        ("agent",),
    ),
    Metric(
        "agentsrv_steps_orphaned_total",
        "counter",
        "Steps that were still running at the end of their grace period.",
        _one(lambda m: m.orphaned),
    ),
    Metric(
        "agentsrv_late_writes_refused_total",
        "counter",
        "Events and output of steps that were written after the task had ended or was lost.",
        _one(lambda m: m.refused),
    ),
    Metric(
        "agentsrv_fenced_writes_total",
        "counter",
        "Appends that were refused because another writer was first.",
        _one(lambda m: m.fenced),
    ),
    Metric(
        "agentsrv_cancel_stop_duration_seconds",
        "histogram",
        "Time from the cancellation of a running task until none of its code runs.",
        _one(lambda m: m.stopped),
    ),
    Metric(
        "agentsrv_cancel_duration_seconds",
        "histogram",
        "Time from the cancellation of a running task until its end is committed.",
        _one(lambda m: m.cancelled),
    ),
    Metric(
        "agentsrv_commit_duration_seconds",
        "histogram",
        "Duration of transactions of the store until they were durable.",
        _one(lambda m: m.commits),
    ),
    Metric(
        "agentsrv_store_waiting",
        "gauge",
        "1 while the store cannot write: another program's lock, a full disk, a moved file.",
        _one(lambda m: m.waits()),
    ),
    Metric(
        "agentsrv_store_faults_total",
        "counter",
        "Appends of running tasks that failed with a fault of the store; see the log.",
        _one(lambda m: m.store_faults.total),
    ),
    Metric(
        "agentsrv_tasks_left_alone_total",
        "counter",
        "Tasks that broke off too often, and whose failure could not be written.",
        _one(lambda m: m.left_alone),
    ),
    Metric(
        "agentsrv_store_damaged_tasks",
        "gauge",
        "Damaged tasks that the store has found since the server started.",
        _one(lambda m: m.damaged()),
    ),
    Metric(
        "agentsrv_event_loop_lag_seconds",
        "histogram",
        "Delay of timers in the event loop.",
        _one(lambda m: m.lag),
    ),
    Metric(
        "agentsrv_event_loop_stalls_total",
        "counter",
        "Number of times the event loop was blocked for longer than stall_warning.",
        _one(lambda m: m.stalls()),
    ),
    Metric(
        "agentsrv_log_lines_dropped_total",
        "counter",
        "Lines of standard error and standard output that were dropped because they were not read.",
        _one(lambda m: m.unwritten()),
    ),
    Metric(
        "agentsrv_commands_total",
        "counter",
        "Commands that were answered, by outcome: ok, or the error code.",
        _each(lambda m: m.commands),
        ("command", "outcome"),
    ),
    Metric(
        "agentsrv_commands_limited_total",
        "counter",
        "Commands that were refused by the rate limit of their principal.",
        _one(lambda m: m.limited),
    ),
    Metric(
        "agentsrv_connections",
        "gauge",
        "Open connections.",
        _one(lambda m: m.connections()),
    ),
    Metric(
        "agentsrv_connections_behind",
        "gauge",
        "Open connections that read more slowly than data is produced for them.",
        _one(lambda m: m.behind()),
    ),
    Metric(
        "agentsrv_connections_opened_total",
        "counter",
        "Connections that were accepted.",
        _one(lambda m: m.opened),
    ),
    Metric(
        "agentsrv_connections_stalled_total",
        "counter",
        "Connections that were dropped because they read nothing for stall_timeout.",
        _one(lambda m: m.stalled),
    ),
    Metric(
        "agentsrv_received_bytes_total",
        "counter",
        "Bytes that were received, including handshakes.",
        _one(lambda m: m.received),
    ),
    Metric(
        "agentsrv_sent_bytes_total",
        "counter",
        "Bytes of replies and events that were sent.",
        _one(lambda m: m.sent),
    ),
    Metric(
        "agentsrv_model_answers_total",
        "counter",
        "Answers of the language model that were completed.",
        _one(lambda m: m.model().get("requests", 0)),
    ),
    Metric(
        "agentsrv_model_answers_truncated_total",
        "counter",
        "Completed answers that were truncated at llm_max_tokens.",
        _one(lambda m: m.model().get("truncated", 0)),
    ),
    Metric(
        "agentsrv_model_tokens_total",
        "counter",
        "Tokens as reported by the endpoint of the language model.",
        _tokens,
        ("direction",),
    ),
)
