"""Every surroundings of ``environments.py`` end as they must: served, or refused in a sentence."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

from agentsrv import App
from agentsrv.cli.options import described_complaints
from agentsrv.errors import ConfigurationError
from agentsrv.settings import Settings, read_settings
from tests.integration.hostile.environments import (
    CONTENTS,
    FILES,
    PROCESSES,
    SERVES,
    SETTINGS,
    TEXTS,
    Given,
    Named,
    Started,
)
from tests.support.places import serving_places
from tests.support.principals import ADA
from tests.support.server_process import free_port, wait_for_port

ROOT = Path(__file__).parents[3]


def named(entries: Iterable[Given | Started]) -> list[object]:
    """The entries as parameters."""
    return [pytest.param(entry, id=entry.name) for entry in entries]


def write(folder: Path, files: Mapping[str, bytes | None]) -> None:
    """Make the files; ``None`` is a folder."""
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            file.mkdir()
        else:
            file.write_bytes(content)


@pytest.fixture
def clean(tmp_path, monkeypatch):
    """A folder and an environment without settings."""
    for name in list(os.environ):
        if name.startswith(("AGENTSRV_", "SSL_CERT_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("given", named(SETTINGS))
def test_settings_are_read_or_refused_in_a_sentence(clean, monkeypatch, given: Given):
    """What has no effect is reported, and what cannot be used is refused."""
    usual = Settings().model_dump()
    write(clean, given.files)
    for name, value in given.variables.items():
        monkeypatch.setenv(name, value)
    if given.refuses is not None:
        with pytest.raises(ConfigurationError) as refused:
            read_settings(**given.arguments)
        assert given.refuses in refused.value.message
        assert "\n" not in refused.value.message
        return
    assert read_settings(**given.arguments).model_dump() == usual | dict(given.gives)
    said = "\n".join(described_complaints())
    assert bool(said) == bool(given.says), said
    for part in given.says:
        assert part in said


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("entry", FILES, ids=lambda entry: entry.setting)
async def test_a_file_that_a_setting_names_is_used_or_refused(clean, entry: Named, content):
    """The sentence names the setting and the file."""
    expected = entry.expected[list(CONTENTS).index(content)]
    file = clean / "missing" / "file" if content == "missing" else clean / "file"
    data = CONTENTS[content]
    if content == "folder":
        file.mkdir()
    elif data is not None:
        file.write_bytes(data)
    value = f"sqlite:///{file}" if entry.setting == "store" else str(file)
    base = {"port": 0, "store": "memory:", "drain_timeout": 0.01, "knowledge_index": clean / "i.db"}
    settings = Settings(**base | dict(entry.others) | {entry.setting: value})
    if expected == SERVES:
        async with App().running(settings):
            return
    with pytest.raises(ConfigurationError) as refused:
        async with App().running(settings):
            pass
    assert expected in refused.value.message
    assert entry.setting in refused.value.message
    assert "\n" not in refused.value.message


@pytest.mark.parametrize("started", named(PROCESSES))
def test_a_process_serves_or_ends_with_a_sentence(tmp_path, started: Started):
    """There is no traceback, and nothing is left in the working folder."""
    place = tmp_path / "place"
    place.mkdir()
    write(place, started.files)
    cwd = {"deleted": tmp_path / "gone", "/": Path("/")}.get(started.cwd, place)
    cwd.mkdir(exist_ok=True)
    before = sorted(cwd.iterdir())
    port = free_port()
    command = [part.replace("PLACE", str(place)).replace("KEY", ADA) for part in started.command]
    if not started.variables.get("AGENTSRV_PORT"):
        command.append(f"--port={port}")
    else:
        write(place, {"agentsrv.toml": f"port = {port}".encode()})
    command += ["--store=memory:", "--log-format=text"]
    base = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    base |= {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state")}
    base |= {"PYTHONPATH": str(ROOT)}
    changed = {**base, **started.variables}
    environment = {
        name: value.replace("PLACE", str(place)).replace("ROOT", str(ROOT))
        for name, value in changed.items()
        if value is not None
    }

    def prepare() -> None:
        os.umask(started.umask)
        for ignored in started.ignored:
            signal.signal(ignored, signal.SIG_IGN)
        for limit, value in started.limits.items():
            resource.setrlimit(limit, (value, value))
        if started.cwd == "deleted":
            os.rmdir(cwd)  # noqa: PTH106 - between fork and exec
        for number in started.closed:
            os.close(number)

    log = tmp_path / "log"
    with log.open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "agentsrv", *command],
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=err,
            preexec_fn=prepare,  # noqa: PLW1509 - this process has one thread
        )
    try:
        if started.status is None:
            assert wait_for_port(port, lambda: process.poll() is None), log.read_text()
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz") as answer:
                assert answer.status == 200
            process.terminate()
        assert process.wait(20) == (started.status or 0), log.read_text()
    finally:
        process.kill()
        process.wait()
    text = log.read_text()
    assert started.says in text
    assert "Traceback" not in text
    if started.cwd != "deleted":
        left = {file.name for file in cwd.iterdir()} - {file.name for file in before}
        assert left <= {"__pycache__", "agentsrv.toml"}


@pytest.mark.parametrize("command", ["serve --port=0", "doctor", "index ."])
def test_a_working_folder_that_is_gone_is_named(tmp_path, command):
    """By every command that uses a path relative to it."""
    result = subprocess.run(
        ["sh", "-c", f'rmdir "$PWD" && exec {sys.executable} -m agentsrv {command}'],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("agentsrv: the working folder cannot be used: ")


@pytest.mark.slow
@pytest.mark.parametrize(
    "variables",
    [{"TMPDIR": "a folder?x#y%20é"}, {"PYTHONIOENCODING": "utf-16"}, {"TMPDIR": "two\nlines"}],
    ids=["a query", "UTF-16", "two lines"],
)
def test_the_demonstration_passes(tmp_path, variables):
    """Whatever the temporary folder's name and the encoding of the streams."""
    if "TMPDIR" in variables:
        (tmp_path / variables["TMPDIR"]).mkdir()
        variables = {"TMPDIR": str(tmp_path / variables["TMPDIR"])}
    result = subprocess.run(
        [sys.executable, "-m", "agentsrv", "demo"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
        | variables,
        stdout=subprocess.DEVNULL,
        check=False,
    )
    assert result.returncode == 0


def test_a_port_that_is_taken_is_told_with_who_has_it(tmp_path):
    """And the status says that this may pass."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = subprocess.run(
            [sys.executable, "-m", "agentsrv", "serve", f"--port={port}", "--store=memory:"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.returncode == 1
    assert f"port {port} of 127.0.0.1 is taken by process {os.getpid()} (" in result.stderr
    assert "--port" in result.stderr


WINDOWS = """
    import sys
    # What asyncio and other libraries are on Linux is loaded before Linux is taken away.
    import asyncio, ctypes, getpass, logging.config, multiprocessing, pathlib, select, signal
    import socket, ssl, subprocess, tempfile, threading
    import click, dotenv, orjson, pydantic_settings, rich.console, rich.live, rich.progress
    import typer, websockets.asyncio.client, websockets.asyncio.server, websockets.sync.client
    import importlib.metadata, urllib.request, websockets.http11, difflib, sqlite3, jwt
    for name in ("fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"):
        sys.modules[name] = None
    import os
    for name in ("fork", "forkpty", "getuid", "geteuid", "getpgid", "killpg", "register_at_fork",
                 "setpgid", "setsid", "uname", "waitid"):
        delattr(os, name)
    for name in ("SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCHLD", "SIGPIPE",
                 "SIGQUIT", "SIGWINCH", "pthread_sigmask", "setitimer"):
        delattr(signal, name)
    pair = socket.socketpair(socket.AF_UNIX)  # of asyncio's loop; Windows makes it of TCP
    socket.socketpair = lambda: pair
    for name in ("AF_UNIX", "SO_REUSEPORT"):
        delattr(socket, name)
    def missing(*_):
        raise NotImplementedError  # as the loop for Windows
    for name in ("add_signal_handler", "remove_signal_handler", "add_reader", "add_writer"):
        setattr(asyncio.SelectorEventLoop, name, missing)
    sys.platform = "win32"
    import agentsrv, agentsrv.client, agentsrv.cli
    sys.argv = ["agentsrv", *sys.argv[1:]]
    agentsrv.cli.main()
"""
ON_WINDOWS = {
    "--version": "agentsrv ",
    "--help": "Commands:",
    "agents --url {url}": "quick",
    "cancel {pending} --url {url}": "is cancelled",
    "keys create ada --key-file keys": "agentsrv_",
    "list --url {url}": "completed",
    "respond {question} yes --url {url}": "is answered",
    "run hello --agent quick --url {url}": "hello",
    "run --help": "Run one task",
    "schema": "asyncapi",
    "serve --help": "Serve agents",
    "status {done} --url {url}": "hello",
    "tail {done} --url {url}": "task completed",
    "top --url {url}": "completed",
}
"""What a user of Windows runs, with the names of ``tests.support.places``, and a part of what it prints."""


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Iterator[dict[str, str]]:
    """A server with tasks."""
    with serving_places(tmp_path_factory.mktemp("places")) as named:
        yield named


@pytest.mark.parametrize("line", ON_WINDOWS)
def test_clients_do_without_what_only_unix_has(tmp_path, places, line):
    """No module for terminals, users or limits, and no signal of Unix, is needed for a client."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WINDOWS), *line.format_map(places).split()],
        cwd=tmp_path,
        env=os.environ | {"XDG_STATE_HOME": str(tmp_path / "state")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert ON_WINDOWS[line] in result.stdout


def test_the_index_is_kept_in_the_folder_for_state(tmp_path):
    """``agentsrv index`` leaves the working folder alone, and says where it is."""
    write(tmp_path, TEXTS)
    result = subprocess.run(
        [sys.executable, "-m", "agentsrv", "index", "docs"],
        cwd=tmp_path,
        env=os.environ | {"XDG_STATE_HOME": str(tmp_path / "state")},
        capture_output=True,
        text=True,
        check=True,
    )
    (index,) = (tmp_path / "state" / "agentsrv").iterdir()
    assert f"{index}: 1 files" in result.stdout
    assert {file.name for file in tmp_path.iterdir()} == {"docs", "state"}
