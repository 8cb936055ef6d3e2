"""Tracing: spans of tasks, attempts and requests to models, with OpenTelemetry.

This module needs OpenTelemetry's API; it is imported only after a tracer provider was set.
Attribute names follow OpenTelemetry's semantic conventions for generative AI, 1.41. Spans do not
contain prompts or answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import Token
from importlib.metadata import version
from types import TracebackType
from typing import Any, Final, Self

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from agentsrv.error_text import redact
from agentsrv.models.states import TaskStatus
from agentsrv.models.task import TaskState

SERVICE: Final = "agentsrv"

_W3C: Final = TraceContextTextMapPropagator()


class TaskSpan:
    """The span of a worker's run of a task; current in its creator's context until it ends."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._token = context.attach(trace.set_span_in_context(span))
        carrier: dict[str, str] = {}
        _W3C.inject(carrier)
        self.traceparent = carrier.get("traceparent")
        """The span in the format of W3C Trace Context; ``None`` if it is not valid."""

    def end(self, state: TaskState) -> None:
        """Record the task's status, and end the span."""
        self._span.set_attribute("agentsrv.task.status", state.status.value)
        if state.status is TaskStatus.FAILED:
            self._span.set_attribute("error.type", "task_failed")
            self._span.set_status(StatusCode.ERROR, state.error_message)
        context.detach(self._token)
        self._span.end()


class AttemptSpan:
    """The span of an attempt of a step; current in its creator's context until it ends."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._token: Token[Context] = context.attach(trace.set_span_in_context(span))

    def end(self, outcome: str, error: BaseException | None) -> None:
        """Record the outcome, and end the span."""
        self._span.set_attribute("agentsrv.attempt.outcome", outcome)
        if error is not None:
            cause = error.__cause__ or error
            self._span.set_attribute("error.type", type(cause).__qualname__)
            self._span.set_status(StatusCode.ERROR, redact(str(error)))
        context.detach(self._token)
        self._span.end()


class ModelSpan:
    """The span of a request to a model; ends with the ``with`` block."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def set_attributes(self, **attributes: Any) -> None:
        """Set attributes. Names are without ``gen_ai.``, with ``__`` for a dot."""
        for name, value in attributes.items():
            if value is not None:
                self._span.set_attribute(f"gen_ai.{name.replace('__', '.')}", value)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            status = getattr(error, "status", None)
            self._span.set_attribute("error.type", str(status or type(error).__qualname__))
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


class Tracing:
    """Starts the spans of a server."""

    def __init__(self, provider: trace.TracerProvider) -> None:
        self._tracer = provider.get_tracer(SERVICE, version(SERVICE))

    def task(self, state: TaskState) -> TaskSpan:
        """Start the span of a run, a child of the client's span; it links to the previous run."""
        earlier = _span_context(state.run)
        span = self._tracer.start_span(
            "invoke_workflow",
            _context(state.traceparent),
            SpanKind.CONSUMER,  # the task was in a queue
            {"gen_ai.operation.name": "invoke_workflow", "agentsrv.task.id": state.task_id},
            [] if earlier is None else [Link(earlier, {"agentsrv.link": "earlier_run"})],
        )
        return TaskSpan(span)

    def attempt(self, agent: str, step_key: str, attempt: int) -> AttemptSpan:
        """Start the span of an attempt, a child of the task's span."""
        attributes: dict[str, str | int] = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": agent,
            "agentsrv.step.key": step_key,
            "agentsrv.step.attempt": attempt,
        }
        return AttemptSpan(self._tracer.start_span(f"invoke_agent {agent}", attributes=attributes))

    def model_call(
        self, operation: str, model: str, url: Any, options: Mapping[str, Any] | None = None
    ) -> ModelSpan:
        """Start the span of a request to a model, a child of the current span.

        Args:
            operation: ``chat`` or ``embeddings``.
            model: The name of the model.
            url: The endpoint's base URL, an ``httpx.URL``.
            options: Parameters of the request, by the endpoint's names.
        """
        parameters = options or {}
        attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "openai",  # the API of the endpoint
            "gen_ai.request.model": model,
            "gen_ai.request.max_tokens": parameters.get("max_completion_tokens"),
            "gen_ai.request.temperature": parameters.get("temperature"),
            "gen_ai.request.stream": parameters.get("stream"),
            "server.address": url.host,
            "server.port": url.port or (443 if url.scheme == "https" else 80),
        }
        known = {name: value for name, value in attributes.items() if value is not None}
        name = f"{operation} {model}"
        return ModelSpan(self._tracer.start_span(name, kind=SpanKind.CLIENT, attributes=known))


def _context(traceparent: str | None) -> Context:
    """The context of a client's ``traceparent``; without it an empty one, which starts a trace."""
    return _W3C.extract({"traceparent": traceparent} if traceparent else {}, Context())


def _span_context(traceparent: str | None) -> trace.SpanContext | None:
    if traceparent is None:
        return None
    found = trace.get_current_span(_context(traceparent)).get_span_context()
    return found if found.is_valid else None
