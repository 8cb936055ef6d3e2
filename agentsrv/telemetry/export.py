"""Selects where spans are sent: OpenTelemetry's environment variables, or the author's provider."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from agentsrv.errors import missing_extra
from agentsrv.threads import within

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from agentsrv.telemetry.tracing import Tracing

FLUSH_TIMEOUT: Final = 2.0  # seconds for sending the last spans
ENABLING_VARIABLES: Final = (
    "OTEL_TRACES_EXPORTER",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
)
"""Each of these variables enables spans."""

_log = logging.getLogger("agentsrv.tracing")


def open_tracing() -> Tracing | None:
    """Tracing with this process's tracer provider; ``None`` if none was set."""
    if "opentelemetry" not in sys.modules:  # so no provider was set
        return None
    with suppress(ImportError):
        from opentelemetry.trace import ProxyTracerProvider, get_tracer_provider  # noqa: PLC0415 - an extra

        from agentsrv.telemetry.tracing import Tracing  # noqa: PLC0415 - the same

        provider = get_tracer_provider()
        return None if isinstance(provider, ProxyTracerProvider) else Tracing(provider)
    return None


def configure(environment: Mapping[str, str] = os.environ) -> Callable[[], None]:
    """Set a tracer provider for this process, if the environment variables enable spans.

    If spans cannot be sent, the reason is logged, and the server runs without them.

    Returns:
        A function that sends the last spans at exit, within ``FLUSH_TIMEOUT`` seconds.
    """
    if not is_enabled(environment) or open_tracing() is not None:
        return _do_nothing
    try:
        provider = _provider(environment)
    except ImportError:
        _log.warning(missing_extra("sending spans", "tracing"))
        return _do_nothing
    except ValueError as error:
        _log.warning("spans are enabled, but %s; no spans are sent", error)
        return _do_nothing
    from opentelemetry.trace import set_tracer_provider  # noqa: PLC0415 - an extra

    set_tracer_provider(provider)
    return lambda: _shut_down(provider)


def is_enabled(environment: Mapping[str, str]) -> bool:
    """Whether the environment variables enable spans."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if environment.get("OTEL_TRACES_EXPORTER", "").strip() == "none":
        return False
    return any(environment.get(name) for name in ENABLING_VARIABLES)


def _provider(environment: Mapping[str, str]) -> TracerProvider:
    # Imported here: an extra, and slow to import.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
        OTLPSpanExporter,
    )
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import (  # noqa: PLC0415
        BatchSpanProcessor,
        ConsoleSpanExporter,
    )

    from agentsrv.telemetry.tracing import SERVICE  # noqa: PLC0415

    kind = environment.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    if kind not in ("otlp", "console"):
        raise ValueError(f"OTEL_TRACES_EXPORTER is {kind!r}; expected otlp, console or none")
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if environment.get(name, "http/protobuf") != "http/protobuf":
            raise ValueError(f"{name} is {environment[name]!r}; expected http/protobuf")
    resource = Resource.create()
    named = resource.attributes.get(SERVICE_NAME, "")
    if str(named).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: SERVICE}))
    resource = resource.merge(Resource({"service.version": version(SERVICE)}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter() if kind == "otlp" else ConsoleSpanExporter(out=sys.stderr)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _shut_down(provider: TracerProvider) -> None:
    """Send the waiting spans. A collector that does not answer does not delay the exit."""
    within(FLUSH_TIMEOUT, provider.shutdown)


def _do_nothing() -> None:
    """The exit function of a process without spans."""
