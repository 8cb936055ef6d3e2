"""No error leaves the process with a credential, whichever road it takes."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from http import HTTPStatus
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator, BaseModel, field_serializer

from agentsrv import App, PermanentError
from agentsrv.adapters.ag_ui.messages import AguiSession
from agentsrv.agents.endpoint_errors import words_of
from agentsrv.agents.isolation import wire
from agentsrv.agents.isolation.output import MAX_LINE_BYTES, LogBudget, OutputReader
from agentsrv.agents.isolation.pool import BOOT
from agentsrv.agents.isolation.worker import MAX_LOGGED, _ToServer
from agentsrv.cli import doctor, exits, uncaught
from agentsrv.cli.mcp.server import _refusals
from agentsrv.cli.serving import load_app
from agentsrv.credentials import REACH
from agentsrv.engine.cluster.remote_commands import _encode_error
from agentsrv.errors import AgentsrvError, ConfigurationError, InvalidCommandError
from agentsrv.protocol import frames
from agentsrv.server.http import _refusal
from agentsrv.server.requests import close
from agentsrv.telemetry import logs
from agentsrv.telemetry.tracing import AttemptSpan
from agentsrv.testing import serving

SECRET = "s3cret-Value"
LEAK = f"GET /?api_key={SECRET}"
MARK = "api_key=***"
REFUSAL = InvalidCommandError(LEAK, details=[{"field": "a", "reason": LEAK}] * 2)


def error() -> RuntimeError:
    """An error that has been raised."""
    with pytest.raises(RuntimeError) as found:
        raise RuntimeError(LEAK)
    return found.value


def refuse(value: Any) -> Any:
    """Refuse a value as an author's validator does."""
    raise ValueError(LEAK)


class Result(BaseModel):
    """What an agent cannot return."""

    name: str = "a"

    @field_serializer("name")
    def write(self, _: str) -> str:
        """Fail as an author's serializer does."""
        raise ValueError(LEAK)


app = App()


@app.agent(retries=1, retry_base=0.001)
async def raising(step, ctx):
    """Raise at each attempt."""
    raise ValueError(LEAK)


@app.agent
async def refusing(step, ctx):
    """Raise once."""
    raise PermanentError(LEAK)


@app.agent
async def grouped(step, ctx):
    """Raise a group with causes."""
    raise ExceptionGroup(LEAK, [ValueError(LEAK)]) from KeyError(LEAK)


@app.agent
async def strict(step, ctx, name: Annotated[str, AfterValidator(refuse)]):
    """Take a parameter that is refused."""


@app.agent
async def serializing(step, ctx):
    """Return what cannot be written."""
    ctx.set_result(Result())


@app.agent
async def logging_agent(step, ctx):
    """Log, leave an error behind, and fail."""
    ctx.log.warning("refused: %s", LEAK, exc_info=error())
    leave_behind = asyncio.ensure_future(_raise())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    del leave_behind
    gc.collect()
    raise PermanentError(LEAK)


async def _raise() -> None:
    raise RuntimeError(LEAK)


planned = App()


@planned.planner
async def plan(task_description):
    """Refuse to plan, in the way that the task names."""
    raise (PermanentError if task_description == "once" else ValueError)(LEAK)


@pytest.mark.parametrize(
    "agent", ["raising", "refusing", "grouped", "strict", "serializing", "logging_agent"]
)
async def test_of_an_agent(agent, caplog):
    """In events, in the status, in the log with its tracebacks."""
    caplog.set_level(logging.DEBUG)
    params = {"name": "a value"} if agent == "strict" else {}
    async with serving(app) as client:
        task = await client.start("x", agent=agent, params=params)
        events = [record.data async for record in task.events()]
        status = await task.status()
    shown = f"{events[-3:]} {status.error_message} {status.steps} {logged(caplog)}"
    assert MARK in str(status.error_message)
    if agent == "logging_agent":
        assert "never retrieved" in shown
    assert SECRET not in f"{shown} {events}"
    assert "a value" not in shown


@pytest.mark.parametrize("description", ["once", "again"])
async def test_of_a_planner(description, caplog, monkeypatch):
    """Whether the planner is asked again or not."""
    monkeypatch.setattr("agentsrv.engine.planning.RetryPolicy.delay", lambda *_: 0.0)
    caplog.set_level(logging.DEBUG)
    async with serving(planned) as client:
        task = await client.start(description)
        events = [record.data async for record in task.events()]
    assert MARK in events[-1]["error_message"]
    assert SECRET not in f"{events} {logged(caplog)}"


def logged(caplog) -> str:
    """All records, as the server writes them."""
    text = logs.TextFormatter()
    return "\n".join([*map(text.format, caplog.records), str(caplog.text)])


class Peer:
    """What sockets and spans are told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def __getattr__(self, _: str) -> Any:
        return lambda *given: self.told.append(given)

    async def close(self, *given: Any) -> None:
        """Close a connection."""
        self.told.append(given)


def by_frame() -> Any:
    """A reply."""
    return frames.error("create", 1, REFUSAL)


def by_front_end(*, is_running: bool = False) -> Any:
    """An event of AG-UI."""
    session = AguiSession()
    session.is_running = is_running
    return session.refused(REFUSAL)


def by_run() -> Any:
    """The same while a run is under way."""
    return by_front_end(is_running=True)


def by_node() -> Any:
    """A reply to another node."""
    return _encode_error(REFUSAL)


def by_close() -> Any:
    """The reason of a close."""
    peer: Any = Peer()
    asyncio.run(close(peer, 4403, LEAK))
    return peer.told


def by_page() -> Any:
    """A body of HTTP."""
    peer: Any = Peer()
    _refusal(peer, HTTPStatus.UNAUTHORIZED, REFUSAL)
    return peer.told


def by_model_tool() -> Any:
    """A refusal of MCP."""
    with pytest.raises(Exception, match="api_key") as found, _refusals():
        raise REFUSAL
    return found.value


def by_span() -> Any:
    """The status of a span."""
    span: Any = Peer()
    attempt = AttemptSpan(span)
    attempt.end("lost", error())
    return [str(getattr(each, "description", each)) for given in span.told for each in given]


def by_pipe() -> Any:
    """What a process of an agent sends at its end."""
    return wire.failure(error())


def by_pipe_log() -> Any:
    """What it logs."""
    sent: Any = []
    record = logging.LogRecord("a", logging.ERROR, "a", 1, "x", (), (RuntimeError, error(), None))
    _ToServer(SimpleNamespace(send=sent.append)).emit(record)  # type: ignore[arg-type]
    return sent


def by_long_pipe_log() -> Any:
    """A line that is cut where a credential is."""
    sent: Any = []
    for place in range(0, len(LEAK), 4):
        message = f"{'x ' * (MAX_LOGGED // 2)}"[place:] + f"{LEAK} {'x ' * MAX_LOGGED}"
        record = logging.LogRecord("a", logging.ERROR, "a", 1, message, (), None)
        _ToServer(SimpleNamespace(send=sent.append)).emit(record)  # type: ignore[arg-type]
    assert "s3cret" not in str(sent)
    return f"{sent} {MARK}"


def by_long_output(caplog) -> Any:
    """A line that a process prints, which is cut where a credential is."""

    async def read() -> None:
        for place in range(0, len(LEAK), 4):
            ours, theirs = os.pipe()
            reader = OutputReader(ours, "stdout", LogBudget(lambda: 0.0))
            with os.fdopen(theirs, "wb") as pipe:
                pipe.write(b"x " * ((MAX_LINE_BYTES + REACH) // 2 - place) + LEAK.encode())
                pipe.write(b"x" * 20_000)
            reader.close()

    caplog.set_level(logging.INFO)
    asyncio.run(read())
    assert "s3cret" not in caplog.text
    assert "more bytes" in caplog.text
    return f"{caplog.text} {MARK}"


def by_endpoint() -> Any:
    """The words of a model's endpoint, which are cut where a credential is."""
    texts = [words_of(f"{'x ' * 240}{'y' * place} {LEAK}".encode()) for place in range(20)]
    assert "s3cret" not in str(texts)
    return f"{texts} {MARK}"


def by_log() -> Any:
    """A record with a message, a traceback and a stack, whichever formatter writes it."""
    stream = io.StringIO()
    handlers = [logging.StreamHandler(stream) for _ in range(3)]
    for handler, kind in zip(
        handlers, (logging.Formatter, logs.TextFormatter, logs.JsonFormatter), strict=True
    ):
        handler.setFormatter(kind())
    return _log(handlers, stream, "said %s", LEAK)


def by_bad_log() -> Any:
    """A record whose arguments do not fit; logging would print them."""
    stream = io.StringIO()
    return _log([logging.StreamHandler(stream)], stream, "%d", LEAK) + MARK


def _log(handlers: list[Any], stream: io.StringIO, message: str, argument: str) -> str:
    logger = logging.getLogger("agentsrv.test")
    logs.remove_credentials()
    logger.propagate = False
    try:
        for handler in handlers:
            logger.addHandler(handler)
        logger.error(message, argument, exc_info=error(), stack_info=True)
    finally:
        logger.propagate = True
        for handler in handlers:
            logger.removeHandler(handler)
    assert "Traceback" in stream.getvalue() or "no text" in stream.getvalue()
    return stream.getvalue().replace(f'"{LEAK}"', "")


def by_thread() -> Any:
    """An error that ends a thread."""

    def fail() -> None:
        raise error()

    with uncaught.printed():
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()


def by_finalizer() -> Any:
    """An error in a finalizer."""

    class Leaky:
        def __del__(self) -> None:
            raise RuntimeError(LEAK)

    with uncaught.printed():
        Leaky()
        gc.collect()


def by_fault() -> Any:
    """A fault of the command line."""
    with pytest.raises(SystemExit):
        exits.leave_by_fault(error())


def by_sentence() -> Any:
    """An error of the command line, with its details."""
    with pytest.raises(SystemExit):
        exits.leave(REFUSAL)


def by_json() -> Any:
    """The same with --json."""
    exits.use_json(wanted=True)
    try:
        by_sentence()
    finally:
        exits.use_json(wanted=False)


def by_import() -> Any:
    """An application that cannot be imported."""
    with pytest.raises(ConfigurationError) as found:
        load_app("leaky_application")
    return found.value


def by_doctor() -> Any:
    """A finding."""

    async def examine(_: Any) -> Any:
        yield doctor.Finding(doctor.Level.FAIL, LEAK, LEAK)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doctor, "examine", examine)
        asyncio.run(doctor.run({}))


def by_fork_server() -> Any:
    """What the fork server prints about an application that cannot be imported."""
    ours, theirs = socket.socketpair()
    setup = {
        "connection": theirs.fileno(), "path": sys.path, "argv": [""], "main_name": None,
        "main_path": None, "functions": [("leaky_application", "f")], "preload": True,
    }  # fmt: skip
    with theirs:
        command = [sys.executable, "-c", BOOT, json.dumps(setup)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, pass_fds=[theirs.fileno()])
    with process, ours:
        assert ours.recv(1) == b"r"  # ready, without the application
        ours.close()
        return process.communicate()[1]


ROADS = [
    by_frame, by_front_end, by_run, by_node, by_close, by_page, by_model_tool, by_span, by_pipe,
    by_pipe_log, by_long_pipe_log, by_long_output, by_endpoint, by_log, by_bad_log, by_thread, by_finalizer, by_fault, by_sentence, by_json,
    by_import, by_doctor,
    pytest.param(
        by_fork_server, marks=pytest.mark.skipif(sys.platform == "win32", reason="no forks")
    ),
]  # fmt: skip


@pytest.mark.parametrize("road", ROADS)
def test_of_the_server(road, tmp_path, monkeypatch, capsys, caplog):
    """What is returned, and what is printed."""
    (tmp_path / "leaky_application.py").write_text(f"leak = '''{LEAK}'''\nraise ValueError(leak)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "leaky_application", raising=False)
    found = road(caplog) if road is by_long_output else road()
    printed = capsys.readouterr()
    shown = f"{found} {printed.out} {printed.err}"
    assert MARK in shown
    assert SECRET not in shown


def test_a_record_remove_credentials_keeps_its_error():
    """For handlers that report errors elsewhere."""
    logs.remove_credentials()
    make = logging.getLogRecordFactory()
    for message, is_kept in (("plain", True), (LEAK, False)):
        given = (AgentsrvError, AgentsrvError(message), None)
        record = make("agentsrv.test", logging.ERROR, "a", 1, "x", (), given)
        assert (record.exc_info is not None) is is_kept
    others = make("app", logging.ERROR, "a", 1, LEAK, (), None)
    assert (others.getMessage() == LEAK) is not logs._records.are_all_ours
