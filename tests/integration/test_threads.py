"""Threads of the server, beside those of authors."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

import pytest

from agentsrv.builtin import app
from agentsrv.client import Client
from agentsrv.settings import Settings
from agentsrv.threads import NAME, in_own_thread, in_thread
from tests.support.clients import run_task

_here: ContextVar[str] = ContextVar("here")


async def test_work_runs_in_a_thread_of_the_server_in_the_callers_context():
    """Arguments and results are passed on."""
    _here.set("context")

    def work(first: int, *, second: int) -> tuple[str, str, int]:
        return threading.current_thread().name, _here.get(), first + second

    name, context, total = await in_thread(work, 1, second=2)
    assert name.startswith(NAME)
    assert (context, total) == ("context", 3)


@pytest.mark.parametrize("error", [ValueError, StopIteration, SystemExit, KeyboardInterrupt])
async def test_a_thread_of_its_own_gives_a_result_or_any_error(error):
    """It is a daemon, so that the process need not wait for it."""

    def fail() -> None:
        raise error

    thread = await in_own_thread(threading.current_thread, "agentsrv-test")
    assert (thread.result().name, thread.result().daemon) == ("agentsrv-test", True)
    assert isinstance((await in_own_thread(fail, "agentsrv-test")).exception(), error)


async def test_built_in_agents_do_not_wait_for_the_threads_of_authors(tmp_path):
    """A report is written while every thread of the default executor is blocked."""
    (tmp_path / "a.md").write_text("# Threads\n\nA thread is a sequence of instructions.\n")
    loop, release = asyncio.get_running_loop(), threading.Event()
    executor = ThreadPoolExecutor(1)
    loop.set_default_executor(executor)
    settings = Settings(
        port=0, store="memory:", knowledge=tmp_path, knowledge_index=tmp_path / "index.db"
    )
    async with app.running(settings) as running:
        blocked = loop.run_in_executor(None, release.wait)
        try:
            # By address: resolving a name is the default executor's work in asyncio.
            async with Client(running.url) as client:
                assert (await run_task(client, "What is a thread?")).final_output
            assert not blocked.done()
        finally:
            release.set()
        await blocked
