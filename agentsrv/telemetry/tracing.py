"""Tracing: spans of tasks, attempts and calls of models, by OpenTelemetry.

Needs OpenTelemetry's API; nothing imports it before somebody has set a tracer provider. The names
of attributes are those of its semantic conventions for generative AI, 1.41. No span holds what was
asked or answered.
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
    """A worker's run of a task; current in the context that made it, until it ends."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._token = context.attach(trace.set_span_in_context(span))
        carrier: dict[str, str] = {}
        _W3C.inject(carrier)
        self.traceparent = carrier.get("traceparent")
        """The span as W3C Trace Context writes it; ``None`` where it is none."""

    def end(self, state: TaskState) -> None:
        """Say how far the task came."""
        self._span.set_attribute("agentsrv.task.status", state.status.value)
        if state.status is TaskStatus.FAILED:
            self._span.set_attribute("error.type", "task_failed")
            self._span.set_status(StatusCode.ERROR, state.error_message)
        context.detach(self._token)
        self._span.end()


class AttemptSpan:
    """An attempt of a step; current in the context that made it, until it ends."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._token: Token[Context] = context.attach(trace.set_span_in_context(span))

    def end(self, outcome: str, error: BaseException | None) -> None:
        """Say how it ended."""
        self._span.set_attribute("agentsrv.attempt.outcome", outcome)
        if error is not None:
            cause = error.__cause__ or error
            self._span.set_attribute("error.type", type(cause).__qualname__)
            self._span.set_status(StatusCode.ERROR, redact(str(error)))
        context.detach(self._token)
        self._span.end()


class ModelSpan:
    """A request to a model; ends with the ``with`` block."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def set_attributes(self, **attributes: Any) -> None:
        """Take down what the endpoint answered, by the names behind ``gen_ai.``, dots as ``__``."""
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
    """Makes the spans of a server."""

    def __init__(self, provider: trace.TracerProvider) -> None:
        self._tracer = provider.get_tracer(SERVICE, version(SERVICE))

    def task(self, state: TaskState) -> TaskSpan:
        """The span of the run that begins: a child of the client's, with a link to the last run."""
        earlier = _span_context(state.run)
        span = self._tracer.start_span(
            "invoke_workflow",
            _context(state.traceparent),
            SpanKind.CONSUMER,  # the task had waited in a queue
            {"gen_ai.operation.name": "invoke_workflow", "agentsrv.task.id": state.task_id},
            [] if earlier is None else [Link(earlier, {"agentsrv.link": "earlier_run"})],
        )
        return TaskSpan(span)

    def attempt(self, agent: str, step_key: str, attempt: int) -> AttemptSpan:
        """The span of an attempt that begins now; a child of its task's."""
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
        """The span of a request that begins now; a child of whatever is current.

        Args:
            operation: ``chat`` or ``embeddings``.
            model: The name of the model.
            url: The endpoint's base URL, as httpx has it.
            options: Of the request, by the endpoint's names.
        """
        given = options or {}
        attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "openai",  # whose API the endpoint speaks
            "gen_ai.request.model": model,
            "gen_ai.request.max_tokens": given.get("max_completion_tokens"),
            "gen_ai.request.temperature": given.get("temperature"),
            "gen_ai.request.stream": given.get("stream"),
            "server.address": url.host,
            "server.port": url.port or (443 if url.scheme == "https" else 80),
        }
        known = {name: value for name, value in attributes.items() if value is not None}
        name = f"{operation} {model}"
        return ModelSpan(self._tracer.start_span(name, kind=SpanKind.CLIENT, attributes=known))


def _context(traceparent: str | None) -> Context:
    """The context that a client named; an empty one, in which a trace begins, without it."""
    return _W3C.extract({"traceparent": traceparent} if traceparent else {}, Context())


def _span_context(traceparent: str | None) -> trace.SpanContext | None:
    if traceparent is None:
        return None
    found = trace.get_current_span(_context(traceparent)).get_span_context()
    return found if found.is_valid else None
