"""A client that is used where it has no connection says so at once, and every error travels."""

from __future__ import annotations

import asyncio
import copy
import gc
import inspect
import multiprocessing
import os
import pickle
import pkgutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import aclosing
from importlib import import_module
from typing import Any, cast

import pytest

import agentsrv
from agentsrv.client import (
    Client,
    ClientUsageError,
    ConnectionClosedError,
    SyncClient,
    TaskCancelledError,
    TaskFailedError,
    TaskHandle,
)
from agentsrv.client.errors import from_frame
from agentsrv.errors import AgentsrvError
from agentsrv.models import events as e
from tests.support.clients import run_task
from tests.unit.models.samples import sample

TASK = "0123456789abcdef"
COMMANDS: dict[str, tuple[Any, ...]] = {
    "start": ("x",),
    "create": ("x",),
    "find": ("01234567",),
    "list": (),
    "agents": (),
    "ping": (),
}
TASK_COMMANDS: dict[str, tuple[Any, ...]] = {
    "execute": (),
    "status": (),
    "cancel": (),
    "send": ("hello",),
    "respond": (f"{TASK}/a/1", 1),
    "result": (),
}


async def use(client: Client, name: str) -> None:
    """Call a method, or begin to iterate."""
    if name == "cancel by key":
        await client.cancel(idempotency_key="x")
    elif name == "events":
        async with aclosing(client.task(TASK).events()) as events:
            await anext(events)
    elif name in TASK_COMMANDS:
        await getattr(client.task(TASK), name)(*TASK_COMMANDS[name])
    else:
        await getattr(client, name)(*COMMANDS[name])


def methods(kind: type) -> set[str]:
    """The public methods of a class."""
    functions = inspect.getmembers(kind, inspect.isfunction)
    return {name for name, _ in functions if not name.startswith("_")}


def test_every_method_is_listed():
    """A new method belongs in the lists."""
    assert methods(Client) == {*COMMANDS, "cancel", "task", "aclose"}
    assert methods(TaskHandle) == {*TASK_COMMANDS, "events"}


EVERY = [*COMMANDS, *TASK_COMMANDS, "cancel by key", "events"]


@pytest.mark.parametrize("name", EVERY)
async def test_a_client_that_was_not_entered(name, server):
    """It is refused at once, and does not wait."""
    with pytest.raises(ClientUsageError, match="async with"):
        await use(Client(server.url), name)


@pytest.mark.parametrize("name", EVERY)
async def test_a_client_that_was_closed(name, server):
    """Likewise; closing again changes nothing."""
    async with Client(server.url) as client:
        pass
    with pytest.raises(ConnectionClosedError):
        await use(client, name)
    await client.aclose()


@pytest.mark.parametrize("name", EVERY)
async def test_a_client_of_another_event_loop(name, client):
    """It is refused there, and usable here."""

    def elsewhere() -> None:
        asyncio.run(use(client, name))

    with pytest.raises(ClientUsageError, match="another event loop"):
        await asyncio.to_thread(elsewhere)
    assert await client.ping() >= 0


async def test_closing_from_another_event_loop(client):
    """Refused likewise."""
    with pytest.raises(ClientUsageError, match="another event loop"):
        await asyncio.to_thread(lambda: asyncio.run(client.aclose()))
    assert await client.ping() >= 0


async def test_a_client_is_entered_once(client):
    """A second connection needs a second client."""
    with pytest.raises(ClientUsageError, match="entered before"):
        await client.__aenter__()
    assert await client.ping() >= 0


async def test_a_child_of_fork_is_refused_and_leaves_the_connection_alone(client):
    """Each method is refused in the child; the parent continues."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        told = "nothing"
        try:
            for name in EVERY:
                coroutine = use(client, name)
                try:
                    coroutine.send(None)
                except ClientUsageError as error:
                    told = str(error)
                else:
                    told = f"{name} waits"
                    break
        finally:
            os.write(writer, told.encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        assert "os.fork()" in await asyncio.to_thread(pipe.read)
    await asyncio.to_thread(os.waitpid, child, 0)
    assert await client.ping() >= 0


async def test_a_sync_client_in_a_child_of_fork_or_in_its_own_thread(server):
    """Both would wait for ever."""

    def in_child(client: SyncClient, queue: Any) -> None:
        try:
            client.ping()
        except ClientUsageError as error:
            queue.put(str(error))
        client.close()

    def work() -> None:
        with SyncClient(server.url) as client:
            fork = multiprocessing.get_context("fork")
            queue = fork.Queue()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                child = fork.Process(target=in_child, args=(client, queue))
                child.start()
            assert "os.fork()" in queue.get(timeout=30)
            child.join()
            assert client.ping() >= 0

        with SyncClient(server.url) as client:
            told: list[str] = []

            def callback() -> None:
                with pytest.raises(ClientUsageError) as raised:
                    client.ping()
                told.append(str(raised.value))

            client._loop_thread.loop.call_soon_threadsafe(callback)
            client.ping()
        assert "own thread" in told[0]

    await asyncio.to_thread(work)


DROPPED = """
import sys
from agentsrv.client import SyncClient
client = SyncClient(sys.argv[1])
print(client.ping() >= 0, flush=True)
"""


async def test_a_sync_client_that_is_dropped_warns_and_ends_its_thread(server):
    """As files and sockets do."""

    def work() -> None:
        client = SyncClient(server.url)
        thread = client._loop_thread.thread
        with pytest.warns(ResourceWarning, match="unclosed <agentsrv"):  # noqa: PT031
            del client
            gc.collect()
        thread.join(30)
        assert not thread.is_alive()

    await asyncio.to_thread(work)


async def test_a_dropped_client_that_is_closed_at_once_ends_its_thread(server, monkeypatch):
    """Its loop waits in the selector when the thread that dropped it asks it to stop."""
    begin = asyncio.run_coroutine_threadsafe

    def closed_already(*args: Any) -> Any:
        ended = begin(*args)
        ended.result()
        time.sleep(0.05)  # the loop gets into the selector
        return ended

    def work() -> None:
        client = SyncClient(server.url)
        thread = client._loop_thread.thread
        monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", closed_already)
        with pytest.warns(ResourceWarning, match="unclosed <agentsrv"):  # noqa: PT031
            del client
            gc.collect()
        thread.join(30)
        assert not thread.is_alive()

    await asyncio.to_thread(work)


async def test_a_sync_client_that_is_never_closed_does_not_hold_up_the_end(server):
    """The program ends, with a warning."""
    command = [sys.executable, "-W", "always", "-c", DROPPED, server.url]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout) == (0, "True\n")
    assert "ResourceWarning: unclosed" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", EVERY)
async def test_a_cancelled_call_leaves_the_client_usable(name, server):
    """At each point where it waits, as far as two turns of the loop are apart."""
    async with Client(server.url) as client:
        for turns in range(6):
            task = asyncio.create_task(use(client, name))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled() or task.exception() is None or turns
        assert await client.ping() >= 0
        ended = await run_task(client, "x", agent="chatter", params={"pieces": 2})
        assert ended.final_output == "0 1 "


async def test_closing_an_iterator_unsubscribes(server):
    """By ``contextlib.aclosing``."""
    async with Client(server.url) as client:
        task = await client.start("x", agent="endless")
        async with aclosing(task.events()) as events:
            async for record in events:
                if record.event_type == "partial_output":
                    break
        await task.cancel()
        assert len(client._subscriptions) == 0


# Errors.


def every_error() -> Iterator[type[AgentsrvError]]:
    """The base and all subclasses in the package."""
    for module in pkgutil.walk_packages(agentsrv.__path__, "agentsrv."):
        if not module.name.endswith("__main__"):
            try:
                import_module(module.name)
            except ImportError:  # of an extra that is not installed
                continue
    left = [AgentsrvError]
    while left:
        kind = left.pop()
        left += kind.__subclasses__()
        if kind.__module__.startswith("agentsrv."):
            yield kind


def made(kind: type[AgentsrvError]) -> AgentsrvError:
    """An instance with all fields set."""
    if kind is TaskFailedError:
        error: AgentsrvError = TaskFailedError("0123", cast("e.TaskFailed", sample(e.TaskFailed)))
    elif kind is TaskCancelledError:
        error = TaskCancelledError("0123", cast("e.TaskCancelled", sample(e.TaskCancelled)))
    else:
        error = kind.__new__(kind)
        AgentsrvError.__init__(error, "found x; expected y")
    error.retry_after, error.details = 1.5, [{"field": "a", "reason": "b"}]
    error.example = {"command": "ping"}
    error.code, error.retryable = "of_a_newer_server", True
    error.add_note("a note")
    return error


@pytest.mark.parametrize(
    "kind", sorted(set(every_error()), key=str), ids=lambda kind: kind.__name__
)
@pytest.mark.parametrize(
    "travel",
    [lambda x: pickle.loads(pickle.dumps(x)), copy.copy, copy.deepcopy],  # noqa: S301
)
def test_every_error_survives_pickle_and_copy(kind, travel):
    """With its class, its arguments and all its fields."""
    error = made(kind)
    other = travel(error)
    assert type(other) is kind
    assert other is not error
    assert (str(other), other.args, vars(other)) == (str(error), error.args, vars(error))


def test_an_error_of_a_newer_server_survives_too():
    """Its code is no class of ours."""
    error = from_frame({"code": "teapot", "retryable": True, "message": "short", "retry_after": 2})
    other = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert (other.code, other.retryable, other.message, other.retry_after) == (
        "teapot",
        True,
        "short",
        2,
    )
