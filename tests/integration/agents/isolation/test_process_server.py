"""Processes of agents below a real server, which is killed, and of applications of all kinds."""

from __future__ import annotations

import asyncio
import fcntl
import importlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agentsrv import App
from agentsrv.agents.isolation import attempt, pool
from agentsrv.client import Client, TaskFailedError
from agentsrv.errors import ConfigurationError
from agentsrv.settings import Settings
from tests.integration.agents.isolation.test_process_function import MARK, marked, until
from tests.support.clients import run_task
from tests.support.server_process import ServerProcess

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")

APPLICATION = '''
import os, signal, subprocess, time
from agentsrv import App
from agentsrv.agents.isolation import system

in_worker = system.is_worker
{top}
app = App()

@app.agent(isolation="process", retries={retries})
def work(step, ctx, how: str = "return", path: str = "") -> str:
    if path:
        with open(path, "a") as file:
            file.write(f"{{ctx.attempt}} {{os.getpid()}} {{time.monotonic()}}\\n")
    if how == "daemon":
        subprocess.Popen(["sleep", "977"], start_new_session=True)
    if how == "program":
        subprocess.Popen(["sh", "-c", "trap '' INT TERM HUP; sleep 977"])
    if how == "C":
        sum(range(10**15))
    if how != "return":
        while True:
            time.sleep(0.01)
    return "returned"

@app.agent
async def fork(step, ctx, path: str) -> str:
    """Leave a copy of the server that holds all its connections."""
    pid = os.fork()
    if not pid:
        time.sleep(977)
        os._exit(0)
    with open(path, "a") as file:
        file.write(str(pid))
    return "forked"
'''


def application(folder: Path, top: str = "", retries: int = 0) -> str:
    """Write an application; return the name of its module."""
    name = f"app_{uuid.uuid4().hex}"
    (folder / f"{name}.py").write_text(APPLICATION.format(top=top, retries=retries))
    return name


@pytest.mark.parametrize(
    ("how", "copied"),
    [("loop", False), ("C", False), ("program", False), ("daemon", False), ("daemon", True)],
)
async def test_kill_9_of_the_server(how: str, copied: bool, monkeypatch, tmp_path: Path) -> None:
    """No process of the killed server is left beside those of the next one."""
    mark = uuid.uuid4().hex
    monkeypatch.chdir(tmp_path)
    name = application(tmp_path, retries=3)
    server = ServerProcess(tmp_path, f"{name}:app", environment={MARK: mark})
    server.start()
    copy = None
    try:
        async with Client(server.url) as client:
            params = {"how": how, "path": str(tmp_path / "trace")}
            created = await client.start("x", agent="work", params=params)
            await until((tmp_path / "trace").exists)
            if how in {"program", "daemon"}:
                await until(lambda: any("sleep 977" in line for line in marked(mark).values()))
            if copied:
                params = {"path": str(tmp_path / "copy")}
                await run_task(client, "x", agent="fork", params=params)
                copy = int((tmp_path / "copy").read_text())
        before = marked(mark)
        server.kill()
        await until(lambda: not marked(mark).keys() & (before.keys() - {copy}))
        if copy is not None:  # it holds the lock of the store
            os.kill(copy, signal.SIGKILL)
            copy = None
        server.start()
        attempts = (tmp_path / "trace").read_text().count("\n")
        await until(lambda: (tmp_path / "trace").read_text().count("\n") > attempts)
        async with Client(server.url) as client:
            task = client.task(created.id)
            await task.cancel()
            last = [record async for record in task.events()][-1]
            assert (last.event_type, last.data["stopped"]) == ("task_cancelled", True)
    finally:
        server.kill()
        if copy is not None:
            os.kill(copy, signal.SIGKILL)
    await until(lambda: not marked(mark))


IMPORTS = {
    "nothing special": ("", None, None),
    "a thread": (
        "import threading; threading.Thread(target=time.sleep, args=(977,), daemon=True).start()",
        None,
        "started threads (1)",
    ),
    "a thread that does not end": (
        "import threading\nif in_worker: threading.Thread(target=time.sleep, args=(977,)).start()",
        None,
        "started threads (1)",
    ),
    "a socket": ("import socket; kept = socket.socket()", None, "(a file, a socket or a pipe)"),
    "a file": ("kept = open(__file__)", None, "(a file, a socket or a pipe)"),
    "a log file": ("kept = open(__file__ + '.log', 'a')", None, None),
    "a program": ("kept = subprocess.Popen(['sleep', '977'])", None, "started a process"),
    "signal handlers": ("signal.signal(signal.SIGTERM, lambda *_: None)", None, None),
    "ignored signals": ("signal.signal(signal.SIGCHLD, signal.SIG_IGN)", None, None),
    "a print": ("print('imported')", None, None),
    "another folder": ("if in_worker: os.chdir('/')", None, None),
    "sys.exit": ("if in_worker: raise SystemExit(4)", "ended with exit status 4", "SystemExit: 4"),
    "os._exit": ("if in_worker: os._exit(4)", "ended with exit status 4", None),
    "a signal": (
        "if in_worker: os.kill(os.getpid(), signal.SIGKILL)",
        "was killed by SIGKILL",
        None,
    ),
    "an error": ("if in_worker: raise ValueError('not here')", "ValueError: not here", "not here"),
    "a missing module": (
        "if in_worker: import nowhere_to_be_found",
        "ModuleNotFoundError: No module named 'nowhere_to_be_found'",
        "nowhere_to_be_found",
    ),
    "other code": ("if in_worker: app = None; raise KeyError('x')", "KeyError: 'x'", "KeyError"),
}


@pytest.mark.parametrize("case", IMPORTS)
async def test_whatever_the_import_does(case: str, monkeypatch, tmp_path: Path, caplog) -> None:
    """Two attempts end alike, and the log says why they take longer."""
    caplog.set_level("INFO")
    top, error, told = IMPORTS[case]
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    monkeypatch.syspath_prepend(tmp_path)
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGCHLD)}
    module = importlib.import_module(application(tmp_path, top))
    try:
        settings = Settings(port=0, store="memory:")
        async with module.app.running(settings) as running, Client(running.url) as client:
            for _ in range(2):
                if error is None:
                    assert (await run_task(client, "x", agent="work")).final_output == "returned"
                else:
                    with pytest.raises(TaskFailedError, match=error):
                        await run_task(client, "x", agent="work")
        assert (told or "") in caplog.text
        assert ("imports the application separately" in caplog.text) is (told is not None)
        await until(lambda: not {p for p, line in marked(mark).items() if "sleep" not in line})
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        kept = getattr(module, "kept", None)
        if isinstance(kept, subprocess.Popen):
            kept.kill()
            kept.wait()
        elif kept is not None:
            kept.close()


LOCKED = """
lock = open({lock!r}, 'a')
fcntl.flock(lock, fcntl.LOCK_EX)
lock.close()
"""


@asynccontextmanager
async def waiting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seconds: float
) -> AsyncIterator[Client]:
    """A server whose processes wait for a lock when they import the application."""
    lock = tmp_path / "lock"
    monkeypatch.setattr(attempt, "IMPORT_SECONDS", seconds)
    monkeypatch.setattr(pool, "IMPORT_SECONDS", seconds)
    monkeypatch.syspath_prepend(tmp_path)
    top = f"import fcntl{LOCKED.format(lock=str(lock))}"
    module = importlib.import_module(application(tmp_path, top))
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        settings = Settings(port=0, store="memory:", drain_timeout=0.1)
        async with module.app.running(settings) as running, Client(running.url) as client:
            yield client


async def test_an_import_that_waits_has_a_bound(monkeypatch, tmp_path: Path, caplog) -> None:
    """The error says what waits; the attempts that wait for the fork server do so together."""
    async with waiting(monkeypatch, tmp_path, 1.0) as client:
        tasks = [run_task(client, "x", agent="work") for _ in range(pool.MAX_STARTING + 2)]
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    for error in ended:
        assert isinstance(error, TaskFailedError)
        assert "did not import the application within 1 s" in str(error)
    assert "has not imported the application within 1 s and is interrupted" in caplog.text
    assert caplog.text.count("and is interrupted") == 1


@pytest.mark.parametrize("phase", ["fork server", "worker"])
async def test_an_attempt_that_waits_for_an_import_can_be_ended(
    phase, monkeypatch, tmp_path: Path
) -> None:
    """By a cancel and by the step's time-out, at once; the server answers meanwhile."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    in_worker = phase == "worker"
    async with waiting(monkeypatch, tmp_path, 0.5 if in_worker else 1e6) as client:
        monkeypatch.setattr(attempt, "IMPORT_SECONDS", 1e6)
        task = (await client.start("x", agent="work")).id
        await until(lambda: len(marked(mark)) >= (3 if in_worker else 1))  # with a supervisor
        assert (await client.task(task).status()).status == "running"
        await client.task(task).cancel()
        last = [record async for record in client.task(task).events()][-1]
        assert (last.event_type, last.data["stopped"]) == ("task_cancelled", True)
        await until(lambda: len(marked(mark)) == 1)
        step = {"step_id": "a", "agent": "work", "timeout": 0.1, "max_retries": 0}
        with pytest.raises(TaskFailedError, match=r"no result within 0\.1 s"):
            await run_task(client, "x", plan={"steps": [step]})
        await until(lambda: len(marked(mark)) == 1)
    await until(lambda: not marked(mark))


SCRIPT = """
import asyncio
from agentsrv import App, StepContext
from agentsrv.client import Client
from agentsrv.settings import Settings

app = App()

@app.agent(isolation="process", retries=0)
def add(left: int = 40) -> int:
    return left + 2

@app.agent(isolation="process", retries=0)
def double(ctx: StepContext) -> int:
    return 2 * ctx.result_of(add)

async def main():
    settings = Settings(port=0, store="memory:")
    async with app.running(settings) as running, Client(running.url) as client:
        first = {{"step_id": "first", "agent": "add"}}
        second = {{"step_id": "second", "agent": "double", "depends_on": ["first"]}}
        task = await client.start("x", plan={{"steps": [first, second]}})
        print("result:", (await task.result()).final_output)

{call}
"""
GUARDED = 'if __name__ == "__main__":\n    asyncio.run(main())'
UNGUARDED = "asyncio.run(main())"


@pytest.mark.parametrize(
    ("command", "file"),
    [
        (["script.py"], "script.py"),
        (["-m", "script"], "script.py"),
        (["-m", "package"], "package/__main__.py"),
    ],
)
def test_scripts_have_processes_too(command, file, tmp_path: Path) -> None:
    """Functions of the main module are found, however it was started.

    Also after another module has imported multiprocessing, which gives the main module its second
    name.
    """
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / "sitecustomize.py").write_text("import multiprocessing")
    (tmp_path / file).write_text(SCRIPT.format(call=GUARDED))
    done = subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("result: 84\n", 0), done.stderr


def test_a_script_without_a_guard_is_told(tmp_path: Path) -> None:
    """It would start a server in each process."""
    (tmp_path / "script.py").write_text(SCRIPT.format(call=UNGUARDED))
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "expected: if __name__ == '__main__': before the call" in done.stderr


def test_an_interactive_session_is_told(tmp_path: Path) -> None:
    """There is no file from which another process could import the function."""
    done = subprocess.run(
        [sys.executable], input=SCRIPT.format(call=UNGUARDED),
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "interactive session; expected one in a file" in done.stderr


def local():
    """A function that returns one."""

    def inner(step, ctx):
        """Cannot be found by its name."""

    return inner


def shadowed(step, ctx):
    """Is replaced below."""


original = shadowed
shadowed = local()


@pytest.mark.parametrize("function", [local(), lambda step, ctx: None])
def test_a_function_that_no_process_finds_is_refused(function) -> None:
    """At the registration, where its name tells."""
    with pytest.raises(ConfigurationError, match="expected a function at the top of a module"):
        App().agent("named", isolation="process")(function)


async def test_a_function_that_was_replaced_is_refused() -> None:
    """Another process would call the other one."""
    app = App()
    app.agent(isolation="process", name="original")(original)
    settings = Settings(port=0, store="memory:")
    async with app.running(settings) as running, Client(running.url) as client:
        with pytest.raises(TaskFailedError, match=r"no decorator above @app\.agent"):
            await run_task(client, "x", agent="original")


async def test_a_server_without_such_agents_has_no_fork_server(monkeypatch) -> None:
    """It costs nothing to those who do not use it."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    settings = Settings(port=0, store="memory:")
    async with App().running(settings):
        await asyncio.sleep(0)
        assert not marked(mark)
