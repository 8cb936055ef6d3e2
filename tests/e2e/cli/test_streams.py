"""Standard streams in every state: closed, full, without a reader, of another encoding.

Never a traceback, never a success without its output.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeAlias

import pytest

from agentsrv import App
from agentsrv.client import SyncClient
from agentsrv.settings import Settings
from tests.support.cli import in_a_thread
from tests.support.programs import require

OnPart: TypeAlias = Callable[[bytes], object]

app = App()
TEXT = "✓ done: naïve 😀"
BAD = b"caf\xe9"


@app.agent
async def speaker(step, ctx, size: int = 1, name: str = ""):
    """Say something."""
    yield TEXT * size + name


@app.agent
async def chatty(step, ctx):
    """Report often."""
    for number in range(200):
        await ctx.progress(number, 200, "x" * 60)
    yield "done"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server of the agent above."""

    @asynccontextmanager
    async def serving() -> AsyncIterator[str]:
        settings = Settings(port=0, store="memory:", drain_timeout=0.01)
        async with app.running(settings) as running:
            yield running.url

    yield from in_a_thread(serving)


def shell(script: str, server: str, **environment: str) -> tuple[int, bytes, bytes]:
    """The exit code, stdout and stderr of a script in which ``$AGENTSRV`` is the command."""
    command = [
        require("bash"),
        "-o",
        "pipefail",
        "-c",
        script.replace("$AGENTSRV", f"{sys.executable} -m agentsrv"),
    ]
    known = {**os.environ, "AGENTSRV_URL": server, **environment}
    done = subprocess.run(command, capture_output=True, env=known, check=False, timeout=60)
    return done.returncode, done.stdout, done.stderr


RUN = "$AGENTSRV run hello --agent speaker"
ENDS = {
    "stdout closed": (f"{RUN} >&-", 74, b"standard output cannot be written: Bad file descriptor"),
    "stdout full": (f"{RUN} > /dev/full", 74, b"standard output cannot be written: No space left"),
    "stdout full, JSON": (f"{RUN} --json > /dev/full", 74, b"No space left"),
    "stdout full, list": ("$AGENTSRV list > /dev/full", 74, b"No space left"),
    "stdout full, help": ("$AGENTSRV --help > /dev/full", 74, b"No space left"),
    "stdout full, version": ("$AGENTSRV --version > /dev/full", 74, b"No space left"),
    "stdout full, schema": ("$AGENTSRV schema > /dev/full", 74, b"No space left"),
    "stdin closed": (f"{RUN} <&-", 0, b"task completed"),
    "stderr closed": (f"{RUN} 2>&-", 0, b""),
    "stderr full": (f"{RUN} 2> /dev/full", 0, b""),
    "stderr closed, an error": ("$AGENTSRV tail nowhere 2>&-", 2, b""),
    "all closed": (f"{RUN} <&- >&- 2>&-", 74, b""),
    "all closed, an error": ("$AGENTSRV tail nowhere <&- >&- 2>&-", 2, b""),
    "reader gone": ("$AGENTSRV schema | head -c 1 > /dev/null", 141, b""),
    "reader gone, JSON": (f"{RUN} --param size=50000 --json | head -n 1 > /dev/null", 141, None),
    "reader gone, result": (f"{RUN} --param size=50000 | head -c 1 > /dev/null", 141, None),
    "reader gone at once, list": ("$AGENTSRV list | true", 141, b""),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_stream_that_fails_ends_in_a_sentence_and_a_code(name, server):
    """The sentence goes to stderr, where there is one."""
    script, code, told = ENDS[name]
    shell(RUN, server)
    found, _, err = shell(script, server)
    assert b"Traceback" not in err
    assert b"Exception ignored" not in err
    assert found == code, err
    assert told is None or told in err
    if code == 141:
        assert b"standard output" not in err


PIPE = 4096  # bytes that the pipe of a slow reader holds, the least that Linux gives
MANY = "--param size=3000"  # more than that
INITIALIZE = {
    "protocolVersion": "2025-06-18",
    "capabilities": {},
    "clientInfo": {"name": "test", "version": "0"},
}
MCP: list[dict[str, object]] = [
    {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": INITIALIZE},
    {"jsonrpc": "2.0", "method": "notifications/initialized"},
    *({"jsonrpc": "2.0", "id": number, "method": "tools/list"} for number in range(2, 6)),
]
SLOW = {
    "run": (1, f"run hello --agent speaker {MANY}"),
    "run, JSON": (1, f"run hello --agent speaker {MANY} --json"),
    "run, events": (2, "run hello --agent chatty"),
    "status": (1, "status TASK"),
    "tail": (1, "tail TASK"),
    "list": (1, "list --json"),
    "schema": (1, "schema"),
    "mcp": (1, "mcp"),
}


def read_slowly(reader: int, process: subprocess.Popen[bytes], on_part: OnPart) -> bytes:
    """Read nothing until the program has ended or writes no more, then small parts."""
    before, waiting = b"", bytes(4)
    while process.poll() is None and (not any(waiting) or waiting != before):
        time.sleep(0.2)
        before, waiting = waiting, fcntl.ioctl(reader, termios.FIONREAD, bytes(4))
    parts = []
    while part := os.read(reader, 1000):
        parts.append(part)
        on_part(b"".join(parts))
    return b"".join(parts)


@pytest.mark.skipif(sys.platform != "linux", reason="sets the size of a pipe")
@pytest.mark.parametrize(
    ("name", "unbuffered"), [*((name, "") for name in SLOW), ("run", "1"), ("run, events", "1")]
)
def test_a_non_blocking_pipe_gets_everything(name, unbuffered, server, tmp_path):
    """As much as a file does, from each command, on the stream that has most of its output."""
    stream, arguments = SLOW[name]
    with SyncClient(server) as client:
        large = {"size": 3000}
        handle = client.start("hello", agent="speaker", params=large)
        task = handle.id
        handle.result()
        for _ in range(20 - client.list().total):
            client.create("x" * 300, agent="speaker")
    command = [sys.executable, "-m", "agentsrv", *arguments.replace("TASK", task).split()]
    known = {**os.environ, "AGENTSRV_URL": server, "PYTHONUNBUFFERED": unbuffered}
    answers = sum("id" in message for message in MCP) if name == "mcp" else 0

    def start(output: int) -> subprocess.Popen[bytes]:
        streams = {1: subprocess.DEVNULL, 2: subprocess.DEVNULL, stream: output}
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=streams[1], stderr=streams[2], env=known
        )
        assert process.stdin is not None
        if name == "mcp":
            process.stdin.write(b"".join(json.dumps(message).encode() + b"\n" for message in MCP))
            process.stdin.flush()
        else:
            process.stdin.close()
        return process

    def end(process: subprocess.Popen[bytes], found: bytes) -> bool:
        """End its input, which ends mcp, when it has answered; whether it has."""
        assert process.stdin is not None
        if found.count(b"\n") >= answers:
            process.stdin.close()
        return process.stdin.closed

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE)
    with start(writer) as process, os.fdopen(reader, "rb"):
        os.close(writer)
        found = read_slowly(reader, process, partial(end, process))
        assert process.wait(60) == 0
    file = tmp_path / "out"
    with file.open("wb") as output, start(output.fileno()) as process:
        while not end(process, file.read_bytes()):
            time.sleep(0.02)
        assert process.wait(60) == 0
    expected = file.read_bytes()
    assert len(expected) > PIPE
    if "run" in name or name == "list":  # ids and times differ, or there is one task more
        assert found.count(b"\n") == expected.count(b"\n")
        assert abs(len(found) - len(expected)) < 200 * (1 + found.count(b"\n"))
        assert found.endswith(b"\n")
    else:
        assert sorted(found.splitlines()) == sorted(expected.splitlines())


def test_a_text_is_read_whole_from_a_non_blocking_pipe(server):
    """Also where the writer is slower than the reader."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    command = [sys.executable, "-m", "agentsrv", "run", "-", "--agent", "speaker", "--json"]
    known = {**os.environ, "AGENTSRV_URL": server}
    with subprocess.Popen(command, stdin=reader, stdout=subprocess.PIPE, env=known) as process:
        os.close(reader)
        with os.fdopen(writer, "wb", buffering=0) as typing:
            typing.write(b"first, ")
            read_all(writer)
            typing.write(b"second")
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        process.stdout.read()
    assert first["data"]["task_description"] == "first, second"


def read_all(pipe: int) -> None:
    """Return when all that was written to the pipe has been read."""
    while any(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4))):
        time.sleep(0.01)


ENCODINGS = {
    "cp1252": (
        {"PYTHONIOENCODING": "cp1252"},
        "\\u2713 done: naïve \\U0001f600\n".encode("cp1252"),
    ),
    "ascii": ({"PYTHONIOENCODING": "ascii"}, b"\\u2713 done: na\\xefve \\U0001f600\n"),
    "latin-1, strict": (
        {"PYTHONIOENCODING": "latin-1:strict"},
        "\\u2713 done: naïve \\U0001f600\n".encode("latin-1"),
    ),
    "UTF-16": ({"PYTHONIOENCODING": "utf-16-le"}, f"{TEXT}\n".encode("utf-16-le")),
    "the C locale": ({"LC_ALL": "C"}, f"{TEXT}\n".encode()),
    "the C locale, taken at its word": (
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        b"\\u2713 done: na\\xefve \\U0001f600\n",
    ),
    "no UTF-8 mode": ({"LC_ALL": "C.UTF-8", "PYTHONUTF8": "0"}, f"{TEXT}\n".encode()),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_what_an_encoding_lacks_is_written_as_an_escape(name, server):
    """Everything else is written as it is."""
    environment, out = ENCODINGS[name]
    assert shell(RUN, server, **environment)[:2] == (0, out)


@pytest.mark.parametrize("name", [name for name in ENCODINGS if name != "UTF-16"])
@pytest.mark.parametrize(
    "command", [f"{RUN} --json", "$AGENTSRV list --json --limit 1", "$AGENTSRV agents --json"]
)
def test_json_stays_json_in_each_encoding(name, command, server):
    """With the same values."""
    environment = ENCODINGS[name][0]
    encoding = environment.get("PYTHONIOENCODING", "utf-8").partition(":")[0]
    code, out, _ = shell(f"{RUN} --param name=✓é 2>&- >&2; {command}", server, **environment)
    lines = [json.loads(line) for line in out.decode(encoding).splitlines()]
    assert code == 0
    if "run" in command:
        assert lines[-1]["data"]["final_output"] == TEXT


BYTES = {
    "text": [b"run", BAD],
    "parameter": [b"run", b"x", b"--param", b"name=" + BAD],
    "name of a parameter": [b"run", b"x", b"--param", BAD + b"=1"],
    "agent": [b"run", b"x", b"--agent", BAD],
    "id": [b"tail", BAD],
    "id for status": [b"status", BAD],
    "id for cancel": [b"cancel", BAD],
    "reason": [b"cancel", b"0123456789abcdef", b"--reason", BAD],
    "question": [b"respond", BAD, b"yes"],
    "answer": [b"respond", b"0123456789abcdef/a/1", BAD],
    "status": [b"list", b"--status", BAD],
    "URL": [b"list", b"--url", b"ws://" + BAD],
    "path of a URL": [b"list", b"--url", b"ws://127.0.0.1:1/" + BAD],
    "token": [b"list", b"--token", BAD],
    "command": [BAD],
    "option": [b"list", b"--" + BAD],
    "folder": [b"index", BAD],
    "store": [b"backup", BAD, b"--store", b"sqlite:///" + BAD],
}


@pytest.mark.slow
@pytest.mark.parametrize("locale", ["C.UTF-8", "C"])
@pytest.mark.parametrize("name", BYTES)
def test_arguments_of_any_bytes_end_in_a_sentence(name, locale, server, tmp_path):
    """Whichever argument has them, and whatever the locale is."""
    environment = {**os.environ, "AGENTSRV_URL": server, "LC_ALL": locale}
    command = [sys.executable.encode(), b"-m", b"agentsrv", *BYTES[name]]
    done = subprocess.run(command, capture_output=True, env=environment, check=False, cwd=tmp_path)
    assert done.returncode in (1, 2, 3), done.stderr
    assert b"Traceback" not in done.stderr
    assert done.stderr.strip()


def test_utf_8_arguments_arrive_where_the_locale_is_ascii(server):
    """As they were typed."""
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code, _, err = shell(f"{RUN} --param name=✓", server, **environment)
    assert (code, b"Traceback" in err) == (0, False)
    code, out, _ = shell("$AGENTSRV run 'é ✓' --agent speaker --json | head -n 1", server)
    assert json.loads(out)["data"]["task_description"] == "é ✓"


SERVED = """
import sys
from agentsrv.cli import streams
with streams.guarded():
    streams.release()
    print("an agent prints")
    print("\\x1b[32m", file=sys.stderr)
"""


@pytest.mark.parametrize("streams", ["", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_what_an_application_prints_is_its_own(streams):
    """Served with a closed stdout it prints without an error, and in colour where it likes."""
    command = f"{sys.executable} -c '{SERVED}' {streams}"
    done = subprocess.run([require("bash"), "-c", command], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (b"" if ">&-" in streams.split() else b"an agent prints\n")
    assert done.stderr == (b"" if "2>&-" in streams.split() else b"\x1b[32m\n")
