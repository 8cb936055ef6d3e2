"""Processes of agents: nothing that a program does reaches the server or another task."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agentsrv import App
from agentsrv.agents.isolation import attempt, pool
from agentsrv.client import Client, Record, TaskFailedError
from agentsrv.settings import Settings
from tests.integration.agents import programs
from tests.integration.agents.programs import PROGRAMS
from tests.support.clients import run_task

MARK = "TEST_MARK"  # in the environment of all processes of a test

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


def marked(mark: str) -> dict[int, str]:
    """All processes below the test, also those that have left it, with their command lines."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if (
                entry.name.isdigit()
                and f"{MARK}={mark}".encode() in (entry / "environ").read_bytes()
            ):
                found[int(entry.name)] = (
                    (entry / "cmdline").read_bytes().decode().replace("\0", " ")
                )
        except OSError:  # it has ended
            continue
    return found


async def until(condition: Callable[[], Any]) -> Any:
    """Wait until the condition holds; return its value."""
    async with asyncio.timeout(60):
        while not (value := condition()):  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.01)
    return value


def descriptors() -> int:
    """How many this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


class Server:
    """A server with agents in processes, and what is left of them."""

    def __init__(self, client: Client, mark: str) -> None:
        self.client = client
        self._mark = mark

    def left(self) -> dict[int, str]:
        """Processes except the fork server, which is the oldest."""
        found = marked(self._mark)
        if found:
            del found[min(found)]
        return found

    async def begin(self, agent: str, path: Path, **params: Any) -> str:
        """A task of that agent which has written to ``path``."""
        created = await self.client.start("x", agent=agent, params={"path": str(path), **params})
        await until(lambda: path.exists() and path.read_text())
        return created.id

    async def last(self, task: str) -> Record:
        """The task's terminal event."""
        return [record async for record in self.client.task(task).events()][-1]

    async def look(self) -> Any:
        """The state of a fresh process."""
        seen: list[Record] = []
        await run_task(self.client, "x", agent="look", on_event=seen.append)
        return next(r.data["result"] for r in seen if r.event_type == "step_completed")


@asynccontextmanager
async def served(monkeypatch: pytest.MonkeyPatch, **options: Any) -> AsyncIterator[Server]:
    """A server that has the agents of `programs`; afterwards no process is left."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    app = App()
    for name in ("program", "look", "wait", "tidy", "speak", "misreport", "use", "big", "connect"):
        app.agent(isolation="process", **{"retries": 0, **options})(getattr(programs, name))
    app.agent(isolation="process", retries=2, retry_base=0)(programs.crash)
    settings = Settings(port=0, store="memory:", drain_timeout=0.1, concurrency=16)
    async with app.running(settings) as running, Client(running.url) as client:
        yield Server(client, mark)
    assert not marked(mark)


@pytest.fixture
async def server(monkeypatch) -> AsyncIterator[Server]:
    """A server without further options."""
    async with served(monkeypatch) as server:
        yield server


async def test_programs_hurt_their_own_attempt_only(server: Server, tmp_path: Path) -> None:
    """Each ends as it should; the next task finds everything as it was, and no process is left."""
    pristine = await server.look()
    neighbour = await server.begin("wait", tmp_path / "neighbour")  # lives through all of them
    beside = server.left().keys()
    open_before = descriptors()
    wrong = {}
    for name, (_, error) in PROGRAMS.items():
        params = {"how": name, "path": str(tmp_path / "path")}
        try:
            await run_task(server.client, "x", agent="program", params=params)
            ended = None
        except TaskFailedError as failed:
            ended = failed.message
        left = [line for pid, line in server.left().items() if pid not in beside]
        if (ended is None) is not (error is None) or (error or "") not in (ended or ""):
            wrong[name] = f"ended with {ended}; expected {error}"
        elif left:
            wrong[name] = f"left {left}"
        elif await server.look() != pristine:
            wrong[name] = "the next task noticed it"
        elif (tmp_path / "path").exists() and (tmp_path / "path").read_bytes():
            wrong[name] = "wrote to a file that it should not have"
    assert wrong == {}
    assert descriptors() == open_before
    assert server.left().keys() == beside
    await server.client.task(neighbour).cancel()
    assert (await server.last(neighbour)).data["stopped"] is True


async def test_no_code_runs_in_the_server(server: Server, tmp_path: Path) -> None:
    """Pickles on standard output, on standard error and on the channel are data."""
    trap = tmp_path / "trap"
    params = {"how": "pickles on all descriptors", "path": str(trap)}
    with pytest.raises(TaskFailedError, match="sent an invalid message"):
        await run_task(server.client, "x", agent="program", params=params)
    await server.look()
    assert not trap.exists()


WAYS = [
    "loop",
    "C",
    "program",
    "stubborn",
    "daemon",
    "stopped",
    "parent stopped",
    "left its group",
    "deaf",
    "flood",
    "log flood",
]


async def test_cancel_stops_all_processes(server: Server, tmp_path: Path) -> None:
    """When ``task_cancelled`` is there, it says the truth: the process and its programs are gone."""
    wrong = {}
    for how in WAYS:
        task = await server.begin("wait", tmp_path / how, how=how)
        await server.client.task(task).cancel()
        end = await server.last(task)
        left = server.left()
        if end.event_type != "task_cancelled" or not end.data["stopped"] or left:
            wrong[how] = f"{end.event_type} {end.data}; left: {left}"
    assert wrong == {}


async def test_a_time_out_stops_all_processes(monkeypatch, tmp_path: Path) -> None:
    """The attempt fails, and nothing of it is left when the next one begins."""
    options = {"timeout": 0.5, "retries": 100, "retry_base": 0}  # some may end before they begin
    async with served(monkeypatch, **options) as server:
        for how in WAYS:
            task = await server.begin("wait", tmp_path / how, how=how)
            pid = int((tmp_path / how).read_text())
            async for record in server.client.task(task).events():
                if record.event_type == "step_retrying":
                    assert "no result within 0.5 s" in record.data["error_message"]
                    if pid not in server.left():
                        break
            await server.client.task(task).cancel()
            assert (await server.last(task)).data["stopped"] is True
            assert not server.left()


async def test_a_drain_stops_all_processes(monkeypatch, tmp_path: Path) -> None:
    """When the server has stopped, no process is left: `served` looks."""
    async with served(monkeypatch) as server:
        for how in WAYS:
            await server.begin("wait", tmp_path / how, how=how)


async def test_an_interrupted_agent_cleans_up(server: Server, tmp_path: Path) -> None:
    """A cancellation raises KeyboardInterrupt in the function, so its finally blocks run."""
    task = await server.begin("tidy", tmp_path / "path")
    await server.client.task(task).cancel()
    assert (await server.last(task)).data["stopped"] is True
    assert (tmp_path / "path").read_text() == "cleaned up"


@pytest.mark.parametrize("wait", ["", "task_started", "step_started"])
async def test_cancelled_while_it_starts(wait: str, monkeypatch) -> None:
    """60 tasks that are created and cancelled leave no process and no descriptor."""
    async with served(monkeypatch) as server:
        counts = []
        for _ in range(2):  # the fork server starts meanwhile
            for _ in range(30):
                created = await server.client.start("x", agent="look")
                task = created.id
                async for record in server.client.task(task).events():
                    if not wait or record.event_type == wait:
                        break
                await server.client.task(task).cancel()
                await server.last(task)
            await server.look()
            assert not server.left()
            counts.append(descriptors())
        assert counts[0] == counts[1]


async def test_a_death_is_a_failed_attempt(server: Server) -> None:
    """It is retried as the agent's options say."""
    assert (await run_task(server.client, "x", agent="crash")).final_output == "attempt 2"


async def test_log_and_progress(server: Server, caplog) -> None:
    """Lines are in the server's log, with their levels and tracebacks; progress is in the events."""
    caplog.set_level(logging.INFO)
    seen: list[Record] = []
    result = await run_task(server.client, "x", agent="speak", on_event=seen.append)
    assert result.final_output == "spoken"
    reports = [r.data for r in seen if r.event_type == "step_progress"]
    assert [(r["done"], r["total"], r["message"]) for r in reports] == [
        (0, 3, "part 0"),
        (1, 3, "part 1"),
        (2, 3, "part 2"),
    ]
    lines = [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "agentsrv.agent"]
    assert lines[:4] == [
        *(("INFO", f"line {number}") for number in range(3)),
        ("WARNING", "library: of a library"),
    ]
    assert "KeyError: 'told'" in caplog.text


async def test_a_report_that_is_not_json_is_refused_in_the_function(server: Server) -> None:
    """The function gets a TypeError, and may continue."""
    assert (await run_task(server.client, "x", agent="misreport")).final_output == "reported"


async def test_output_is_logged_line_by_line(server: Server, caplog) -> None:
    """What the function and its programs print names the stream and the task."""
    caplog.set_level(logging.INFO)
    for how in ("a program prints", "print what is not UTF-8", "print on stderr"):
        await run_task(server.client, "x", agent="program", params={"how": how})
    lines = [r.getMessage() for r in caplog.records if r.name == "agentsrv.agent"]
    assert lines == ["stdout: hello", "stdout: \\xff\\xfe\x00\x1b[2J", "stderr: hello"]


@pytest.mark.parametrize("how", ["print a flood", "print a line without end"])
async def test_a_flood_is_cut(how: str, server: Server, caplog) -> None:
    """All that was printed is either in the log or counted as dropped."""
    caplog.set_level(logging.INFO)
    await run_task(server.client, "x", agent="program", params={"how": how})
    lines = [r.getMessage() for r in caplog.records if r.name == "agentsrv.agent"]
    if how == "print a line without end":
        assert lines == [f"stdout: {'x' * 4096}… ({300_000 - 4096} more bytes)"]
        return
    dropped = int(lines[-1].partition(" ")[0])
    assert lines[-1].startswith(f"{dropped} lines ({2 * dropped} bytes) of the agent's output were")
    assert dropped + len(lines) - 1 == 30_000
    assert len(lines) < 5000


async def test_what_processes_do_not_have_is_refused(server: Server) -> None:
    """The error names what there is, and is not retried."""
    for what in ("search", "ask", "messages"):
        with pytest.raises(TaskFailedError, match=rf"PermanentError: ctx\.{what} is not available"):
            await run_task(server.client, "x", agent="use", params={"what": what})


async def test_texts_come_whole(server: Server) -> None:
    """Also those that take several messages."""
    for size in (0, 1, 65_535, 65_536, 65_537, 200_000):
        result = await run_task(server.client, "x", agent="big", params={"size": size})
        assert result.final_output == "ä" * size


@pytest.mark.parametrize("max_result", [2000, 250_000, 6 << 20])
async def test_results_may_be_as_large_as_the_setting_says(max_result: int) -> None:
    """As those of agents in the server; a larger one is refused with both numbers."""
    app = App()
    app.agent(isolation="process", retries=0)(programs.fill)
    settings = Settings(port=0, store="memory:", max_result=max_result)
    seen: list[Record] = []
    async with app.running(settings) as running, Client(running.url) as client:
        size = max_result - len('""')
        await run_task(client, "x", agent="fill", params={"size": size}, on_event=seen.append)
        refusal = f"found {max_result + 1} bytes of JSON; expected at most {max_result}"
        with pytest.raises(TaskFailedError) as failed:
            await run_task(client, "x", agent="fill", params={"size": size + 1})
    [result] = [r.data["result"] for r in seen if r.event_type == "step_completed"]
    assert result == "a" * size
    assert "the agent's result is refused" in failed.value.message
    assert refusal in failed.value.message


async def test_large_params_arrive(server: Server, tmp_path: Path) -> None:
    """A job may be larger than the buffers of a socket."""
    path = "x" * 500_000
    with pytest.raises(TaskFailedError, match="File name too long"):
        await run_task(server.client, "x", agent="tidy", params={"path": path})


async def test_no_descriptor_of_the_server_is_inherited(server: Server) -> None:
    """The only socket is the channel."""
    seen: list[Record] = []
    await run_task(server.client, "x", agent="connect", on_event=seen.append)
    [result] = [r.data["result"] for r in seen if r.event_type == "step_completed"]
    assert result == [1]  # AF_UNIX


async def test_the_fork_server_may_be_stopped(server: Server, monkeypatch) -> None:
    """An attempt that cannot start fails, and the next one has a new fork server."""
    await server.look()
    os.kill(min(marked(server._mark)), signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(attempt, "START_SECONDS", 0.1)
        with pytest.raises(TaskFailedError, match="the agent's process did not start within"):
            await run_task(server.client, "x", agent="look")
    await server.look()


async def test_a_stopped_fork_server_is_noticed_by_attempts_that_end_sooner(
    server: Server, monkeypatch
) -> None:
    """None of them waits as long as it is given, but one after the other they do."""
    await server.look()
    os.kill(min(marked(server._mark)), signal.SIGSTOP)
    monkeypatch.setattr(attempt, "EXIT_SECONDS", 0.01)
    monkeypatch.setattr(pool, "START_SECONDS", 0.5)
    step = {"step_id": "a", "agent": "look", "timeout": 0.2, "max_retries": 0}
    failures = 0
    while True:
        try:
            await run_task(server.client, "x", plan={"steps": [step]})
            break
        except TaskFailedError as failure:
            failures += 1
            assert "no result within 0.2 s" in failure.message  # noqa: PT017 - of each of them
            assert failures < 100
        step["timeout"] = 0.2 if pool_is_silent(server) else 30
    assert failures > 1


def pool_is_silent(server: Server) -> bool:
    """Whether the fork server that was stopped is still there."""
    oldest = min(marked(server._mark), default=0)
    try:
        state = Path(f"/proc/{oldest}/stat").read_text(encoding="utf-8").rpartition(")")[2]
    except OSError:
        return False
    return state.split()[0] == "T"


@pytest.mark.parametrize("deaths", [1, pool.MAX_HAND_OVERS])
async def test_the_fork_server_may_end_with_an_attempt_in_its_hands(
    monkeypatch, deaths: int
) -> None:
    """Another one starts the process, for nothing of the author's has run yet."""
    hand_over = pool.ProcessPool._hand_over
    left = deaths

    async def hand_over_and_kill(self: pool.ProcessPool, descriptors: list[int]) -> None:
        nonlocal left
        if not left:
            await hand_over(self, descriptors)
            return
        left -= 1
        if not marked(own._mark):
            await self._start_server()
        oldest = min(marked(own._mark))
        os.kill(oldest, signal.SIGSTOP)
        await hand_over(self, descriptors)
        os.kill(oldest, signal.SIGKILL)
        await until(lambda: oldest not in marked(own._mark))

    async with served(monkeypatch) as own:
        await own.look()
        monkeypatch.setattr(pool.ProcessPool, "_hand_over", hand_over_and_kill)
        if deaths < pool.MAX_HAND_OVERS:
            await own.look()
        else:
            with pytest.raises(TaskFailedError, match="ended 3 times before it had done so"):
                await run_task(own.client, "x", agent="look")
        assert left == 0
        await own.look()


@asynccontextmanager
async def stopped_and_full(
    server: pool._ForkServerProcess,
) -> AsyncIterator[tuple[list[asyncio.Task[None]], list[int]]]:
    """Stop the process; yield tasks that wait to send it attempts, and descriptors to send."""
    assert server._process is not None
    os.kill(server._process.pid, signal.SIGSTOP)
    with Path(os.devnull).open("rb") as file:  # noqa: ASYNC230 - it does not block
        descriptors = [file.fileno()] * 4

        async def fill() -> None:
            while await server.send(descriptors):
                pass

        filling = [asyncio.create_task(fill()) for _ in range(3)]
        await until(lambda: server._room is not None)
        yield filling, descriptors


async def test_attempts_that_wait_to_be_sent_get_the_next_fork_server() -> None:
    """Its connection usually has the descriptor number of the one that was closed."""
    limits = attempt.ReturnLimits(text=100, result=100)
    async with pool.ProcessPool([], limits) as processes, asyncio.timeout(60):
        stopped = await processes._server_ready()
        async with stopped_and_full(stopped) as (filling, descriptors):
            waiting = [asyncio.create_task(processes._hand_over(descriptors)) for _ in range(5)]
            await asyncio.sleep(0)
            processes._kill_server()
            assert await processes._server_ready() is not stopped
            await asyncio.gather(*filling, *waiting)


@pytest.mark.parametrize("end", ["kill", "close"])
async def test_a_fork_server_that_ends_refuses_attempts_that_wait(end: str, monkeypatch) -> None:
    """None waits for ever, and the loop has forgotten the connection's descriptor."""
    monkeypatch.setattr(pool, "LEAVING_SECONDS", 0)
    server = pool._ForkServerProcess([], preload=False)
    assert await server.start()
    async with asyncio.timeout(60), stopped_and_full(server) as (filling, _):
        number = server._connection.fileno()
        if end == "kill":
            server.kill()
            await asyncio.gather(*filling)
        await server.close()
        await asyncio.gather(*filling)
        assert not asyncio.get_running_loop().remove_writer(number)


async def test_the_fork_server_may_be_killed(monkeypatch, tmp_path: Path) -> None:
    """Running attempts continue, and the next task starts a new one."""
    async with served(monkeypatch) as server:
        task = await server.begin("wait", tmp_path / "pid")
        oldest = min(marked(server._mark))
        os.kill(oldest, signal.SIGKILL)
        await until(lambda: oldest not in marked(server._mark))
        assert (
            await run_task(server.client, "x", agent="big", params={"size": 3})
        ).final_output == "äää"
        assert int((tmp_path / "pid").read_text()) in marked(server._mark)
        await server.client.task(task).cancel()
        assert (await server.last(task)).data["stopped"] is True
        await until(lambda: len(marked(server._mark)) == 1)
