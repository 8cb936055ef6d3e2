"""The metrics: what the measures of a server are called, and what they mean to an operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from agentsrv.telemetry.server_metrics import Histogram, ServerMetrics

Kind = Literal["counter", "gauge", "histogram"]
Sample = tuple[tuple[str, ...], float | Histogram]
"""The values of a metric's labels, in their order, and what was measured."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric, as Prometheus knows it; its unit is the end of its name."""

    name: str
    kind: Kind
    help: str
    read: Callable[[ServerMetrics], Iterator[Sample]]
    """What there is to tell of it now."""
    labels: tuple[str, ...] = ()


def _one(
    read: Callable[[ServerMetrics], float | Histogram],
) -> Callable[[ServerMetrics], Iterator[Sample]]:
    def sample(measures: ServerMetrics) -> Iterator[Sample]:
        yield (), read(measures)

    return sample


def _each(
    read: Callable[[ServerMetrics], Mapping[tuple[str, str], float | Histogram]],
) -> Callable[[ServerMetrics], Iterator[Sample]]:
    return lambda measures: iter(read(measures).items())


def _by_agent(measures: ServerMetrics) -> Iterator[Sample]:
    for agent, count in measures.degraded.items():
        yield (agent,), count


def _tokens(measures: ServerMetrics) -> Iterator[Sample]:
    used = measures.model()
    yield ("input",), used.get("prompt_tokens", 0)
    yield ("output",), used.get("completion_tokens", 0)


METRICS: Final = (
    Metric(
        "agentsrv_tasks_ended_total",
        "counter",
        "Tasks that ended, by their agent, (plan) where they name none, and by their outcome.",
        _each(lambda m: m.ended),
        ("agent", "outcome"),
    ),
    Metric("agentsrv_tasks_queued", "gauge", "Tasks that wait.", _one(lambda m: m.queued())),
    Metric(
        "agentsrv_tasks_running",
        "gauge",
        "Slots that are taken, also by steps that do not stop.",
        _one(lambda m: m.running()),
    ),
    Metric(
        "agentsrv_step_attempt_duration_seconds",
        "histogram",
        "How long attempts of steps took.",
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
        "Steps that failed and without which the plan went on.",
        _by_agent,
        ("agent",),
    ),
    Metric(
        "agentsrv_steps_orphaned_total",
        "counter",
        "Steps that still ran when their grace was over.",
        _one(lambda m: m.orphaned),
    ),
    Metric(
        "agentsrv_late_writes_refused_total",
        "counter",
        "Events and pieces of text of steps whose task had ended or was lost.",
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
        "From the cancellation of a running task until none of its code runs.",
        _one(lambda m: m.stopped),
    ),
    Metric(
        "agentsrv_cancel_duration_seconds",
        "histogram",
        "From the cancellation of a running task until its end is committed.",
        _one(lambda m: m.cancelled),
    ),
    Metric(
        "agentsrv_commit_duration_seconds",
        "histogram",
        "How long transactions of the store took until they were durable.",
        _one(lambda m: m.commits),
    ),
    Metric(
        "agentsrv_store_waiting",
        "gauge",
        "1 while the store takes no writes: another program's lock, a full disk, a moved file.",
        _one(lambda m: m.waits()),
    ),
    Metric(
        "agentsrv_store_faults_total",
        "counter",
        "Appends of running tasks that failed by a fault of the store; the log has the stack.",
        _one(lambda m: m.store_faults.total),
    ),
    Metric(
        "agentsrv_tasks_left_alone_total",
        "counter",
        "Tasks that broke off too often and could not be failed: they stay as they are.",
        _one(lambda m: m.left_alone),
    ),
    Metric(
        "agentsrv_store_damaged_tasks",
        "gauge",
        "Tasks that the store could not read since the server started.",
        _one(lambda m: m.damaged()),
    ),
    Metric(
        "agentsrv_event_loop_lag_seconds",
        "histogram",
        "How late the event loop came to a timer.",
        _one(lambda m: m.lag),
    ),
    Metric(
        "agentsrv_event_loop_stalls_total",
        "counter",
        "Times that the event loop was blocked for longer than stall_warning.",
        _one(lambda m: m.stalls()),
    ),
    Metric(
        "agentsrv_log_lines_dropped_total",
        "counter",
        "Lines of standard error and standard output that were dropped because nobody read them.",
        _one(lambda m: m.unwritten()),
    ),
    Metric(
        "agentsrv_commands_total",
        "counter",
        "Commands that were answered: ok, or the code of the error.",
        _each(lambda m: m.commands),
        ("command", "outcome"),
    ),
    Metric(
        "agentsrv_commands_limited_total",
        "counter",
        "Commands that were refused because their principal sent too many.",
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
        "Open connections that take less than there is for them.",
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
        "Connections that were dropped because they took nothing for stall_timeout.",
        _one(lambda m: m.stalled),
    ),
    Metric(
        "agentsrv_received_bytes_total",
        "counter",
        "Bytes that came from connections, handshakes included.",
        _one(lambda m: m.received),
    ),
    Metric(
        "agentsrv_sent_bytes_total",
        "counter",
        "Bytes of answers and events that were sent.",
        _one(lambda m: m.sent),
    ),
    Metric(
        "agentsrv_model_answers_total",
        "counter",
        "Answers of the language model that came to their end.",
        _one(lambda m: m.model().get("requests", 0)),
    ),
    Metric(
        "agentsrv_model_answers_truncated_total",
        "counter",
        "Of these, those that were cut off at llm_max_tokens.",
        _one(lambda m: m.model().get("truncated", 0)),
    ),
    Metric(
        "agentsrv_model_tokens_total",
        "counter",
        "Tokens by the account of the language model's endpoint.",
        _tokens,
        ("direction",),
    ),
)
