"""Spans on their way out of a real server, to a collector that speaks OTLP over HTTP."""

from __future__ import annotations

import asyncio
import builtins
import gzip
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from agentsrv.client import Client
from agentsrv.telemetry import export

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"

MODULE = """
from agentsrv import App
from opentelemetry import trace

app = App()

@app.agent
async def own(step, ctx):
    with trace.get_tracer("mine").start_as_current_span("own work"):
        return "done"
"""


@contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, ExportTraceServiceRequest]]]]:
    """A collector that keeps what it is sent; yields its URL and what came, with the path."""
    came: list[tuple[str, ExportTraceServiceRequest]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            """Take spans."""
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            came.append((self.path, ExportTraceServiceRequest.FromString(body)))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", came
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def run_a_task(folder, **environment):
    """Serve, run one task as part of a trace, stop; return the exit status and the log."""
    (folder / "mine.py").write_text(MODULE)
    command = [sys.executable, "-m", "agentsrv", "serve", "mine:app", "--port=0", "--store=memory:"]
    process = await asyncio.create_subprocess_exec(
        *command,
        "--log-format=text",
        cwd=folder,
        env={**os.environ, **environment},
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    log = ""
    while "listening on " not in log:
        log += (await process.stderr.readline()).decode()
    async with Client(log.split("listening on ")[1].strip()) as client:
        task = await client.start("x", agent="own", traceparent=f"00-{TRACE}-{SPAN}-01")
        async for _ in task.events():
            pass
    process.terminate()
    _, rest = await process.communicate()
    return process.returncode, log + rest.decode()


async def test_a_collector_is_sent_the_spans_of_a_task(tmp_path):
    """Over OTLP, as the standard variables say; the last are sent before the server ends."""
    with collector() as (url, came):
        code, log = await run_a_task(
            tmp_path,
            OTEL_EXPORTER_OTLP_ENDPOINT=url,
            OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test",
        )
    assert code == 0, log
    assert {path for path, _ in came} == {"/v1/traces"}
    spans, services = [], set()
    for _, request in came:
        for resource in request.resource_spans:
            values = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
            services.add((values["service.name"], values["deployment.environment.name"]))
            for scope in resource.scope_spans:
                spans.extend(scope.spans)
    assert services == {("agentsrv", "test")}
    assert sorted(span.name for span in spans) == [
        "invoke_agent own",
        "invoke_workflow",
        "own work",
    ]
    by_name = {span.name: span for span in spans}
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    task, attempt = by_name["invoke_workflow"], by_name["invoke_agent own"]
    assert task.parent_span_id.hex() == SPAN
    assert attempt.parent_span_id == task.span_id
    assert by_name["own work"].parent_span_id == attempt.span_id


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, ""),
        ({"OTEL_TRACES_EXPORTER": "carrier-pigeon"}, "expected otlp, console or none"),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "expected http/protobuf",
        ),
    ],
)
async def test_a_collector_that_cannot_be_reached_keeps_no_task(tmp_path, environment, told):
    """The server does its work, says why nothing is sent, and ends."""
    code, log = await run_a_task(tmp_path, **environment)
    assert code == 0, log
    assert told in log


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}, False),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "True"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
    ],
)
def test_the_standard_variables_ask_for_spans(environment, wanted):
    """An exporter or an endpoint does, unless they are switched off."""
    assert export.is_enabled(environment) is wanted


def test_without_the_extra_the_log_tells_which(monkeypatch, caplog):
    """The server does without spans."""
    found = builtins.__import__

    def without(name, *arguments, **more):
        if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter")):
            raise ImportError(name)
        return found(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    caplog.set_level(logging.WARNING, "agentsrv.tracing")
    export.configure({"OTEL_TRACES_EXPORTER": "otlp"})()
    assert "agentsrv[tracing]" in caplog.text


def test_a_provider_that_an_author_has_set_is_left_alone(spans, monkeypatch):
    """The application may have reasons of its own."""
    before = trace.get_tracer_provider()
    export.configure({"OTEL_TRACES_EXPORTER": "otlp"})()
    assert trace.get_tracer_provider() is before
    assert export.open_tracing() is not None
