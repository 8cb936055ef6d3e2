"""Where spans go: to whatever OpenTelemetry's standard variables name, or the author's provider."""

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

FLUSH_WITHIN: Final = 2.0  # seconds that the last spans have to be sent
WANTED_BY: Final = (
    "OTEL_TRACES_EXPORTER",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
)
"""One of these variables asks for spans."""

_log = logging.getLogger("agentsrv.tracing")


def open_tracing() -> Tracing | None:
    """Tracing by the provider of this process; ``None`` where nobody has set one."""
    if "opentelemetry" not in sys.modules:  # then nobody has
        return None
    with suppress(ImportError):
        from opentelemetry.trace import ProxyTracerProvider, get_tracer_provider  # noqa: PLC0415 - an extra

        from agentsrv.telemetry.tracing import Tracing  # noqa: PLC0415 - the same

        provider = get_tracer_provider()
        return None if isinstance(provider, ProxyTracerProvider) else Tracing(provider)
    return None


def configure(environment: Mapping[str, str] = os.environ) -> Callable[[], None]:
    """Let this process send its spans, if the standard variables ask for that.

    Where they cannot be sent, the log tells why; the server does without.

    Returns:
        What sends the last of them at the end, within ``FLUSH_WITHIN``.
    """
    if not is_wanted(environment) or open_tracing() is not None:
        return _nothing
    try:
        provider = _provider(environment)
    except ImportError:
        _log.warning(missing_extra("sending spans", "tracing"))
        return _nothing
    except ValueError as error:
        _log.warning("spans are asked for, but %s; none is sent", error)
        return _nothing
    from opentelemetry.trace import set_tracer_provider  # noqa: PLC0415 - an extra

    set_tracer_provider(provider)
    return lambda: _shut_down(provider)


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Whether the standard variables ask for spans."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if environment.get("OTEL_TRACES_EXPORTER", "").strip() == "none":
        return False
    return any(environment.get(name) for name in WANTED_BY)


def _provider(environment: Mapping[str, str]) -> TracerProvider:
    # An extra; and who sends no spans need not wait for these.
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

    wanted = environment.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    if wanted not in ("otlp", "console"):
        raise ValueError(f"OTEL_TRACES_EXPORTER is {wanted!r}; expected otlp, console or none")
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if environment.get(name, "http/protobuf") != "http/protobuf":
            raise ValueError(f"{name} is {environment[name]!r}; expected http/protobuf")
    resource = Resource.create()
    named = resource.attributes.get(SERVICE_NAME, "")
    if str(named).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: SERVICE}))
    resource = resource.merge(Resource({"service.version": version(SERVICE)}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter() if wanted == "otlp" else ConsoleSpanExporter(out=sys.stderr)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _shut_down(provider: TracerProvider) -> None:
    """Send what waits. A collector that does not answer keeps nobody from the exit."""
    within(FLUSH_WITHIN, provider.shutdown)


def _nothing() -> None:
    """There are no spans."""
