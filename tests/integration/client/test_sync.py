"""The client for scripts, against a real server in this loop; it is used from other threads."""

from __future__ import annotations

import asyncio
import gc
import inspect
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from agentsrv import App, InputDeclined, StepContext
from agentsrv.client import (
    Client,
    ConnectionClosedError,
    ServerUnavailableError,
    SyncClient,
    SyncTaskHandle,
    TaskCancelledError,
    TaskFailedError,
    TaskHandle,
)
from agentsrv.errors import ConfigurationError, NotFoundError
from tests.e2e.examples.sessions import served
from tests.integration.client.conftest import app as chatty


@pytest.fixture
def application() -> App:
    """The agents of the other tests, and one that asks."""
    app = App()
    for name in ("chatter", "broken", "endless"):
        app.registry.add(chatty.registry[name])

    @app.agent(retries=0)
    async def asker(step, ctx: StepContext):
        """Ask for a number."""
        return str(await ctx.ask("How many?", int))

    return app


@pytest.fixture
async def threaded(server) -> Callable[..., Any]:
    """Calls a function with a client of the server, in a thread; no thread is left behind."""

    async def call(function: Callable[[SyncClient], Any]) -> Any:
        def work() -> Any:
            with SyncClient(server.url) as client:
                return function(client)

        result = await asyncio.to_thread(work)
        assert "agentsrv-client" not in [thread.name for thread in threading.enumerate()]
        return result

    return call


@pytest.mark.parametrize(("kind", "blocking"), [(Client, SyncClient), (TaskHandle, SyncTaskHandle)])
def test_it_has_every_method(kind, blocking):
    """With the same arguments and, where it is made of the other one, the same docstring."""
    for name, method in inspect.getmembers(kind, inspect.isfunction):
        if name.startswith("_") or name == "aclose":
            continue
        mirrored = getattr(blocking, name)
        assert inspect.signature(mirrored).parameters == inspect.signature(method).parameters, name
        assert mirrored.__doc__ == method.__doc__ or name in {"events", "task"}
        assert not inspect.iscoroutinefunction(mirrored)
    properties = {name for name, _ in inspect.getmembers(kind, lambda x: isinstance(x, property))}
    assert properties <= {*dir(blocking)}
    assert list(inspect.signature(SyncClient).parameters) == ["url", "options", "token"]


async def test_each_command_returns_what_the_server_replies(threaded):
    """From the creation of a task to its end."""

    def talk(client: SyncClient) -> None:
        assert client.hello.protocol == "agentsrv.v1"
        assert client.ping() >= 0
        assert "chatter" in [agent.name for agent in client.agents()]
        task = client.create("x", agent="endless")
        assert client.find(task.id[:8]).id == task.id
        assert client.task(task.id).status().status == "pending"
        task.execute()
        for record in task.events():
            if record.event_type == "partial_output":
                break
        task.send("hurry")
        assert client.list(status="running").tasks[0].task_id == task.id
        with pytest.raises(TimeoutError):
            task.result(timeout=0.01)
        assert task.cancel("enough").already is False
        assert [record.event_type for record in task.events()][-1] == "task_cancelled"
        with pytest.raises(TaskCancelledError, match="enough"):
            task.result()
        with pytest.raises(NotFoundError):
            client.task("none").status()

    await threaded(talk)


async def test_a_handle_keeps_its_client(server):
    """A client that is dropped would be closed."""

    def work() -> None:
        task = SyncClient(server.url).start("x", agent="chatter", params={"pieces": 2})
        gc.collect()
        assert task.result().final_output == "0 1 "
        task._client.close()

    await asyncio.to_thread(work)


async def test_result_calls_its_functions_in_the_callers_thread(threaded):
    """With each event in its order; they may use the client."""
    seen: list[int] = []

    def work(client: SyncClient) -> str:
        here = threading.current_thread()

        def see(record):
            assert threading.current_thread() is here
            seen.append(record.seq)
            client.task(record.task_id).status()

        def answer(asked, refusal):
            assert threading.current_thread() is here
            assert client.task(asked.input_id.partition("/")[0]).status().inputs
            return 7 if refusal else "seven"

        return client.start("x", agent="asker").result(on_event=see, on_input=answer).final_output

    assert await threaded(work) == "7"
    assert seen == list(range(1, len(seen) + 1))


async def test_a_question_may_be_declined(threaded):
    """By the same exception as with the other client."""

    def decline(asked, refusal):
        raise InputDeclined("no")

    def work(client: SyncClient) -> None:
        with pytest.raises(TaskFailedError, match="declined"):
            client.start("x", agent="asker").result(on_input=decline)

    await threaded(work)


async def test_what_goes_wrong_is_raised_where_it_was_asked(threaded):
    """A failed task, and an error of the caller's own function."""

    def wrong(record):
        raise ZeroDivisionError(record.event_type)

    def work(client: SyncClient) -> None:
        with pytest.raises(TaskFailedError, match="out of paper"):
            client.start("x", agent="broken").result()
        with pytest.raises(ZeroDivisionError, match="task_created"):
            client.start("x", agent="chatter").result(on_event=wrong)
        assert client.ping() >= 0

    await threaded(work)


async def test_an_interrupted_result_leaves_its_task_to_the_server(threaded):
    """As Ctrl-C interrupts it, while a function of the caller's is called."""
    begun: list[str] = []

    def interrupt(record):
        begun.append(record.task_id)
        raise KeyboardInterrupt

    def work(client: SyncClient) -> None:
        with pytest.raises(KeyboardInterrupt):
            client.start("x", agent="chatter").result(on_event=interrupt)
        assert client.task(begun[0]).result().final_output

    await threaded(work)


async def test_closing_ends_the_calls_of_other_threads(server):
    """By `ConnectionClosedError`, and so is every call after it; the task goes on."""
    client = await asyncio.to_thread(SyncClient, server.url)
    begun = threading.Event()

    def wait() -> None:
        client.start("x", agent="endless").result(on_event=lambda _: begun.set())

    waiting = asyncio.create_task(asyncio.to_thread(wait))
    assert await asyncio.to_thread(begun.wait, 10)
    await asyncio.to_thread(client.close)
    with pytest.raises(ConnectionClosedError):
        await waiting
    with pytest.raises(ConnectionClosedError):
        client.ping()
    with pytest.raises(ConnectionClosedError):
        next(client.task("x").events())
    client.close()
    async with Client(server.url) as other:
        assert (await other.list()).tasks[0].status == "running"


async def test_closing_from_a_function_of_result_ends_it(server):
    """It does not wait for itself."""

    def work() -> None:
        client = SyncClient(server.url)
        with pytest.raises(ConnectionClosedError):
            client.start("x", agent="endless").result(on_event=lambda _: client.close())

    await asyncio.to_thread(work)


def test_where_there_is_no_server_nothing_is_left_behind():
    """It is told at once."""
    with pytest.raises(ServerUnavailableError):
        SyncClient("ws://127.0.0.1:1")
    with pytest.raises(ConfigurationError):
        SyncClient("here")
    assert "agentsrv-client" not in [thread.name for thread in threading.enumerate()]


async def test_it_may_be_used_beside_a_loop_that_runs():
    """As notebooks have one; it is held up, as by anything that takes time."""
    with served() as url, SyncClient(url) as client:
        assert client.start("What is a thread?").result().final_output


SCRIPT = """
import sys
from agentsrv.client import SyncClient

with SyncClient(sys.argv[1]) as client:
    try:
        if sys.argv[2] == "result":
            client.start("x", agent="endless").result(on_event=lambda record: print(record.event_type, flush=True))
        else:
            for record in client.start("x", agent="endless").events():
                print(record.event_type, flush=True)
    except KeyboardInterrupt:
        print(client.list().tasks[0].status)
"""


@pytest.mark.parametrize("call", ["result", "events"])
async def test_ctrl_c_ends_a_call_and_not_the_task(server, call):
    """Also one that waits for what does not come; the client goes on."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SCRIPT, server.url, call, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    seen = []
    while (line := await process.stdout.readline()) != b"partial_output\n":
        seen.append(line)
        assert line, f"it ended: {seen}"
    process.send_signal(signal.SIGINT)
    rest, _ = await process.communicate()
    assert (process.returncode, rest) == (0, b"running\n")
