"""Each line on its own, and those of a real server."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsrv.client import Client
from agentsrv.telemetry import logs
from agentsrv.telemetry.logs import JsonFormatter, TextFormatter
from tests.support.handshakes import shout
from tests.support.listening import listening
from tests.support.principals import ADA, ADA_KEY

NASTY = "one\r\n2026-01-01 00:00:00,000 ERROR   root: forged\x1b[31m\x9b\x85\u2028\u202e\ud800\x00"
KINDS = (TextFormatter, JsonFormatter)
LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ +[\w.]+: ")


ABOUT = dict.fromkeys(("connection_id", "principal", "task_id", "step_id"), NASTY) | {"attempt": 2}


def record(message, *arguments, **more):
    """A record as ``logging`` makes it."""
    made = logging.LogRecord("agentsrv.test", logging.INFO, __file__, 1, message, arguments, None)
    vars(made).update(more)
    return made


def failure(message):
    """What ``exc_info`` is for an error with that message."""

    def fail():
        raise ValueError(message)

    with pytest.raises(ValueError, match="forged") as caught:
        fail()
    return caught.type, caught.value, caught.tb


@given(st.text())
def test_a_line_stays_one_line(text):
    """Whatever the message and the fields hold, in both formats, and it can be encoded."""
    lines = [kind().format(record("said %s", text, about={"principal": text})) for kind in KINDS]
    for line in lines:
        assert len(line.splitlines()) == 1
        assert not re.search("[\x00-\x1f\x7f-\x9f]", line)
        line.encode()
    assert json.loads(lines[1])["message"].startswith("said ")


def test_for_people_nothing_of_a_client_begins_a_line():
    """Not in the message, not in the fields, and not in the traceback below them."""
    error = failure(NASTY)
    text = TextFormatter().format(record("said %s", NASTY, about=ABOUT, exc_info=error))
    first, *rest = text.split("\n")
    assert LINE.match(first)
    assert first.count("forged") == 5
    assert rest
    assert all(line.startswith("    | ") for line in rest)
    assert "\x1b" not in text
    assert r"one\r\n2026-01-01" in first
    assert "attempt=2]" in first


def test_for_programs_a_line_is_one_object():
    """With the fields that are known, their types, and the traceback as it was."""
    error = failure(NASTY)
    line = JsonFormatter().format(record("said %s", NASTY, about=ABOUT, exc_info=error))
    (only,) = line.splitlines()
    found = json.loads(only)
    assert list(found) == [
        "time", "level", "logger", "message",
        "connection_id", "principal", "task_id", "step_id", "attempt", "traceback",
    ]  # fmt: skip
    assert found["attempt"] == 2
    assert found["level"] == "info"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found["time"])
    assert found["message"].startswith("said one\r\n2026")
    assert found["traceback"].startswith("Traceback (most recent call last):\n")


def test_who_is_spoken_of_is_the_records_own_or_the_contexts():
    """The record's own counts more, then the connection that the library names."""
    format_ = JsonFormatter().format
    connection = SimpleNamespace(about={"task_id": "2"})
    assert "task_id" not in json.loads(format_(record("x")))
    token = logs.about.set({"task_id": "1"})
    try:
        assert json.loads(format_(record("x")))["task_id"] == "1"
        assert json.loads(format_(record("x", websocket=connection)))["task_id"] == "2"
        assert json.loads(format_(record("x", websocket=object())))["task_id"] == "1"
        own = record("x", websocket=connection, about={"task_id": "3"})
        assert json.loads(format_(own))["task_id"] == "3"
        assert "task_id" not in json.loads(format_(record("x", about={})))
        assert json.loads(format_(record("x", about="cats")))["task_id"] == "1"
    finally:
        logs.about.reset(token)


@pytest.mark.parametrize(
    ("wanted", "is_terminal", "kind"),
    [
        ("auto", True, TextFormatter),
        ("auto", False, JsonFormatter),
        ("text", False, TextFormatter),
        ("json", True, JsonFormatter),
    ],
)
def test_the_format_is_that_of_the_reader_unless_it_is_set(monkeypatch, wanted, is_terminal, kind):
    """A terminal has people before it."""
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: is_terminal)
    root = logging.RootLogger(logging.WARNING)
    monkeypatch.setattr(logging, "root", root)
    logs.configure(wanted, stream)
    (handler,) = root.handlers
    assert type(handler.formatter) is kind
    assert root.level == logging.INFO


MODULE = """
import logging, time
from agentsrv import App

app = App()

@app.agent(retries=0)
async def talker(step, ctx):
    logging.getLogger("library").warning("seen by a library:\\n%s", ctx.task_description)
    ctx.log.info("said")
    raise ValueError(ctx.task_description)

@app.agent(isolation="thread")
def threaded(step, ctx):
    logging.getLogger("library").warning("in a thread")
"""


@pytest.mark.process
async def test_lines_of_a_server_name_the_task_and_the_step(tmp_path):
    """Those of agents, of libraries that they call, of threads, and of what becomes of it."""
    (tmp_path / "mine.py").write_text(MODULE)
    command = [sys.executable, "-m", "agentsrv", "serve", "mine:app", "--port=0", "--store=memory:"]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=tmp_path, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    lines = [json.loads(await process.stderr.readline())]
    url = lines[0]["message"].removeprefix("listening on ")
    async with Client(url) as client:
        tasks = {}
        for agent in ("talker", "threaded"):
            created = await client.start("x\n\x1b[31m", agent=agent)
            tasks[agent] = created.id
            async for _ in created.events():
                pass
    process.terminate()
    _, rest = await process.communicate()
    lines += map(json.loads, rest.splitlines())
    assert process.returncode == 0
    named = {line["message"].split("\n")[0]: line for line in lines}
    for message, agent in (
        ("seen by a library:", "talker"),
        ("said", "talker"),
        (f"step {tasks['talker']}/step_001 failed: ValueError: x", "talker"),
        ("in a thread", "threaded"),
    ):
        line = named[message]
        assert (line["task_id"], line["principal"]) == (tasks[agent], "anonymous")
        assert (line["step_id"], line["attempt"]) == ("step_001", 1)
    assert (
        "ValueError: x\n\\x1b[31m"
        in named[f"step {tasks['talker']}/step_001 failed: ValueError: x"]["traceback"]
    )
    assert "task_id" not in lines[0]


RUDE = """
from agentsrv import App

app = App()

@app.agent(retries=1, retry_base=0.001, on_failure="degrade")
async def rude(step, ctx, word: str):
    ctx.log.warning("told %s", word)
    raise ValueError(word + ctx.task_description + step.description)
"""


@pytest.mark.process
async def test_nothing_that_a_client_sends_begins_a_line(tmp_path):
    """Whatever field it stands in: of commands, of handshakes, and of what becomes of them."""
    (tmp_path / "mine.py").write_text(RUDE)
    nasty = NASTY.replace("\ud800", "")  # which the client cannot send
    command = [sys.executable, "-m", "agentsrv", "serve", "mine:app", "--port=0", "--store=memory:"]
    process = await asyncio.create_subprocess_exec(
        *command,
        *("--log-format=text", "--behind-proxy", f"--api-keys={ADA}"),
        cwd=tmp_path,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    first = (await process.stderr.readline()).decode()
    url = first.split("listening on ")[1].strip()
    port = int(url.rpartition(":")[2])
    header = "forged\t\x9b\x85"  # the library refuses other control characters by itself
    good = ("Host: 127.0.0.1", "Upgrade: websocket")
    for lines in (
        ("GET / HTTP/1.1", f"Host: {header}"),
        ("GET / HTTP/1.1", *good, f"Origin: {header}"),
        ("GET / HTTP/1.1", *good, f"Authorization: Bearer {header}"),
        ("GET / HTTP/1.1", *good, "Authorization: Bearer x", f"X-Forwarded-For: {header}"),
        (f"GET /{nasty} HTTP/1.1", "Host: x"),
    ):
        await shout(port, *lines)
    step = {"step_id": "a", "agent": "rude", "description": nasty}
    plan, params = {"steps": [step]}, {"word": nasty}
    async with Client(url, token=ADA_KEY) as client:
        task = await client.start(nasty, plan=plan, params=params)
        async for _ in task.events():
            pass
        await task.cancel(nasty)
    process.terminate()
    _, rest = await process.communicate()
    log = first + rest.decode()
    assert log.count("forged") > 5
    assert "told one\\r\\n2026" in log
    assert log.count("refused 127.0.0.1: HTTP") >= 3
    for line in log.rstrip("\n").split("\n"):
        assert "\r" not in line
        assert "\x1b" not in line
        assert LINE.match(line) or line.startswith("    | "), line
    assert not re.search("(?m)^2026-01-01", log)


@pytest.mark.process
def test_a_setting_gives_people_their_lines(tmp_path):
    """Also where nobody sits before a terminal."""
    with listening(tmp_path) as url:
        assert url.startswith("ws://127.0.0.1:")


@pytest.mark.process
def test_what_is_told_on_a_broken_stream_is_no_fault(tmp_path):
    """A reader that went away takes no server with it."""
    code = (
        "import logging, sys; from agentsrv.telemetry import logs\n"
        "logs.configure('json', sys.stderr); logging.getLogger('x').info('\\ud800 \\u00e4')\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert json.loads(process.stderr)["message"] == "\\ud800 ä"
