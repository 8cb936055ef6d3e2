import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from agentsrv.cli.options import make_settings
from agentsrv.cli.serving import _until_end, _verdict, load_app
from agentsrv.client import Client
from agentsrv.errors import ConfigurationError
from tests.support.clients import run_task
from tests.support.fake_model import fake_model

MODULE = """
import asyncio, time
from agentsrv import App
import agentsrv.cli.serving as serving
serving.LAST_CHANCE = 0.1
app = App()
other = 5

@app.agent
async def deaf(step, ctx):
    sleeping = asyncio.ensure_future(asyncio.to_thread(time.sleep, 60))
    await ctx.progress(1)
    await sleeping

@app.agent
async def stubborn(step, ctx):
    is_told = False
    while True:
        try:
            if not is_told:
                is_told = True
                await ctx.progress(1)
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass
"""


@pytest.fixture
def serve(tmp_path):
    """Starts ``agentsrv serve`` in a folder of its own; yields the process and its URL."""
    (tmp_path / "mine.py").write_text(MODULE)
    processes = []

    def start(*arguments: str) -> tuple[subprocess.Popen[str], str, list[str]]:
        command = [sys.executable, "-m", "agentsrv", "serve", "--port=0", "--store=memory:"]
        command.append("--log-format=text")
        # Traced by coverage, Python 3.11 may miss an except around an await; and a process that
        # ends by os._exit has nothing measured anyway.
        env = {name: os.environ[name] for name in os.environ if "COVERAGE" not in name}
        process = subprocess.Popen(
            [*command, *arguments],
            cwd=tmp_path,
            env=env if "mine:app" in arguments else None,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "listening on " in line:
                return process, line.split("listening on ")[1].strip(), lines
        raise AssertionError("".join(lines))

    yield start
    for process in processes:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_server_with_exit_status_0(serve, number):
    """Its log says what it does."""
    process, url, _ = serve()
    assert url.startswith("ws://127.0.0.1:")
    process.send_signal(number)
    assert process.wait(30) == 0
    assert "a second signal exits at once" in process.stderr.read()


@pytest.mark.parametrize("agent", ["deaf", "stubborn"])
async def test_agents_that_do_not_stop_do_not_keep_the_process(serve, agent):
    """A thread or a task that ignores its cancellation is named and left behind."""
    process, url, _ = serve("mine:app", "--drain-timeout=0.05", "--cancel-grace=0.05")
    async with Client(url) as client:
        task = await client.start("Stay", agent=agent)
        async for record in task.events():
            if record.event_type == "step_progress":
                break
    started = time.monotonic()
    process.terminate()
    assert await asyncio.to_thread(process.wait, 10) == 0
    assert time.monotonic() - started < 8
    log = process.stderr.read()
    assert "does not stop" in log, log


async def test_a_server_with_a_model_keeps_its_key(serve, monkeypatch, tmp_path):
    """It asks the endpoint that the environment names, and its log is quiet about that."""
    monkeypatch.setenv("AGENTSRV_LLM_KEY", "sk-secret")
    monkeypatch.setenv("AGENTSRV_LLM_MODEL", "fake")
    async with fake_model() as fake:
        monkeypatch.setenv("AGENTSRV_LLM_URL", fake.url)
        plan = {"step_id": "a", "agent": "retriever", "description": "", "depends_on": []}
        fake.script(json.dumps({"steps": [plan]}))
        process, url, lines = serve()
        async with Client(url) as client:
            await run_task(client, "What is a thread?")
        process.terminate()
        assert await asyncio.to_thread(process.wait, 10) == 0
    assert fake.requests[0].headers["authorization"] == "Bearer sk-secret"
    log = "".join(lines) + process.stderr.read()
    assert "sk-secret" not in log
    assert "HTTP Request" not in log


async def test_a_second_signal_exits_at_once(serve):
    """Even while tasks may still end."""
    process, url, _ = serve("mine:app", "--drain-timeout=30")
    async with Client(url) as client:
        task = await client.start("Stay", agent="deaf")
        async for record in task.events():
            if record.event_type == "step_progress":
                break
        process.terminate()
        await asyncio.to_thread(process.stderr.readline)
        process.terminate()
        assert await asyncio.to_thread(process.wait, 10) == 128 + signal.SIGTERM


async def test_a_broken_store_ends_the_server_with_exit_status_1(capsys):
    """The message says so."""
    broken = asyncio.get_running_loop().create_future()
    broken.set_result(OSError("disk full"))
    running = SimpleNamespace(broken=broken)
    await _until_end(running, asyncio.Event())  # type: ignore[arg-type]
    assert _verdict(running) == 1  # type: ignore[arg-type]
    assert "disk full" in capsys.readouterr().err


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Modules that are wrong in one way or another."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "m_good.py").write_text("from agentsrv import App\nmine = App()\napp = App()\n")
    (tmp_path / "m_named.py").write_text("from agentsrv import App\nmine = App()\n")
    (tmp_path / "m_raises.py").write_text("1 / 0\n")
    (tmp_path / "m_syntax.py").write_text("def (\n")
    (tmp_path / "m_imports.py").write_text("import nothing_of_that_name\n")
    (tmp_path / "m_sync.py").write_text(
        "from agentsrv import App\napp = App()\n@app.agent\ndef wrong(step, ctx): ...\n"
    )


def test_an_application_is_loaded_from_the_current_folder(modules):
    """By its name, or as ``app``; without a module there are the built-in agents."""
    assert load_app("m_good:mine") is not load_app("m_good")
    names = {agent["name"] for agent in load_app(None).registry.described()}
    assert names == {"retriever", "analyzer", "writer", "validator", "optimizer"}


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("m_nowhere:app", "there is no module 'm_nowhere'"),
        ("m_named", "found nothing of that name; there is m_named:mine"),
        ("os:path", "found module object"),
        ("m_raises", r"ZeroDivisionError: division by zero \(.*m_raises.py:1\)"),
        ("m_syntax", "SyntaxError"),
        ("m_imports", "m_imports cannot be imported: No module named 'nothing_of_that_name'"),
        ("m_sync", "m_sync: agent 'wrong'.*expected an async function"),
    ],
)
def test_what_cannot_be_served_is_told(modules, target, sentence):
    """Where the author looks for it."""
    with pytest.raises(ConfigurationError, match=sentence):
        load_app(target)


LIFESPAN = """
from contextlib import asynccontextmanager
from agentsrv import App

@asynccontextmanager
async def lifespan(app):
    {before}
    yield
    {after}

app = App(lifespan=lifespan)
"""


@pytest.mark.parametrize(
    ("before", "after", "when"),
    [('raise OSError("no database")', "", "start"), ("", 'raise OSError("no database")', "end")],
)
def test_a_lifespan_that_fails_is_one_sentence_and_status_1(before, after, when, tmp_path):
    """A supervisor may try again; the sentence has the place in the author's file."""
    file = tmp_path / "mine.py"
    file.write_text(LIFESPAN.format(before=before, after=after))
    command = [sys.executable, "-m", "agentsrv", "serve", "mine:app", "--port=0", "--store=memory:"]
    said = []
    with subprocess.Popen(
        [*command, "--log-format=text"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if "listening on" in line:
                process.send_signal(signal.SIGTERM)
    assert process.returncode == 1
    number = next(n for n, line in enumerate(file.read_text().splitlines(), 1) if "raise" in line)
    assert said[-1] == (
        f"agentsrv: the application's lifespan failed at the {when}: OSError: no database "
        f"({file}:{number})\n"
    )
    assert len(said) == 1 or when == "end"
    assert "Traceback" not in "".join(said)


def test_the_command_line_counts_most(tmp_path, monkeypatch):
    """Then the environment, .env and agentsrv.toml."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "agentsrv.toml").write_text(
        'port = 1\nhost = "toml"\nstore = "memory:"\nconcurrency = 1'
    )
    (tmp_path / ".env").write_text("AGENTSRV_PORT=2\nAGENTSRV_HOST=dotenv\nAGENTSRV_STORE=dotenv\n")
    monkeypatch.setenv("AGENTSRV_PORT", "3")
    monkeypatch.setenv("AGENTSRV_HOST", "environment")
    settings = make_settings(port=4)
    found = (settings.port, settings.host, settings.store, settings.concurrency)
    assert found == (4, "environment", "dotenv", 1)


def test_a_file_of_settings_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    """By its name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "agentsrv.toml").write_text("port = ")
    with pytest.raises(ConfigurationError, match=r"agentsrv\.toml"):
        make_settings()
    (tmp_path / "agentsrv.toml").write_text("port = 'many'")
    with pytest.raises(ConfigurationError, match="port is 'many'"):
        make_settings()
