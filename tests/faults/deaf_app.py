"""Agents that block the event loop, replace signal handlers, or fork."""

from __future__ import annotations

import asyncio
import logging.config
import multiprocessing
import os
import re
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from agentsrv import App

app = App()

FOREVER = 600.0  # seconds
_lock = threading.Lock()
_lock.acquire()  # pylint: disable=consider-using-with
_pair = socket.socketpair()


def spin() -> None:
    """Compute in Python."""
    while True:
        pass


def catch_all() -> None:
    """Go on whatever is raised."""
    while True:
        with suppress(BaseException):
            time.sleep(FOREVER)


BLOCKERS: dict[str, Callable[[], Any]] = {
    "sleep": lambda: time.sleep(FOREVER),
    "spin": spin,
    "select": lambda: select.select([], [], [], FOREVER),
    "lock": _lock.acquire,
    "receive": lambda: _pair[0].recv(1),
    "child": lambda: subprocess.run(
        ["sleep", "30"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
    ),
    "backtracking": lambda: re.match("(a+)+$", "a" * 60 + "b"),
    "catch_all": catch_all,
}


@app.agent
async def block(step, ctx, how: str):
    """Block the loop."""
    await ctx.progress(1)
    await asyncio.sleep(0.1)  # the report is committed and sent
    BLOCKERS[how]()


def ignore() -> None:
    """As a program that must not be disturbed."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def default() -> None:
    """As a library that cleans up after itself."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def handle() -> None:
    """As a server within the server."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)


def handle_in_loop() -> None:
    """As asyncio's own examples."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, lambda: None)


def wake_up_elsewhere() -> None:
    """Take the wake-up descriptor."""
    signal.set_wakeup_fd(-1)


def silence() -> None:
    """Configure logging as if nobody else did."""
    logging.config.dictConfig({"version": 1})


REPLACERS: dict[str, Callable[[], None]] = {
    "ignore": ignore,
    "default": default,
    "handle": handle,
    "handle_in_loop": handle_in_loop,
    "wake_up_elsewhere": wake_up_elsewhere,
    "silence": silence,
}


@app.agent
async def replace(step, ctx, how: str):
    """Replace what the server has installed, and leave it at that."""
    REPLACERS[how]()


@app.agent
async def hear(step, ctx):
    """Wait for a signal that is the application's."""
    heard = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, heard.set)
    await ctx.progress(1)
    await heard.wait()
    yield "heard"


@app.agent
async def fork(step, ctx, how: str):
    """Fork; the child does as ``how`` says, the parent yields its exit status."""
    pid = os.fork()
    if pid == 0:
        match how:
            case "return":
                return
            case "raise":
                raise ValueError("in the child")
            case "await":
                await asyncio.sleep(0)
                return
            case "yield":
                yield "written by the child"
                return
            case "exit":
                raise SystemExit(3)
            case "proper":
                os._exit(7)
            case "exec":
                os.execlp("true", "true")  # noqa: S606 - that is the test
            case "stay":
                time.sleep(FOREVER)  # noqa: ASYNC251 - the child has no loop
    if how == "stay":
        yield str(pid)
    else:
        yield str(os.waitstatus_to_exitcode((await asyncio.to_thread(os.waitpid, pid, 0))[1]))


@app.agent
async def fork_in_task(step, ctx):
    """Fork in a task of the agent's own, whose child returns."""

    async def work() -> int:
        return os.fork()

    pid = await asyncio.create_task(work())
    yield str(os.waitstatus_to_exitcode((await asyncio.to_thread(os.waitpid, pid, 0))[1]))


@app.agent(isolation="thread")
def fork_in_thread(step, ctx):
    """Fork in a thread, whose child returns."""
    pid = os.fork()
    if pid == 0:
        return ""
    return str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _square(number: int) -> int:
    print("printed by a child", flush=True)
    return number * number


@app.agent
async def pool(step, ctx):
    """Compute in forked processes, as ``multiprocessing`` does it."""

    def compute() -> list[int]:
        with multiprocessing.get_context("fork").Pool(2) as processes:
            return processes.map(_square, range(4))

    yield str(await asyncio.to_thread(compute))


@app.agent
async def flood(step, ctx, lines: int):
    """Write more to standard output and standard error than a pipe holds."""
    for number in range(lines):
        print(f"printed {number} {'x' * 80}")
        ctx.log.info("logged %d %s", number, "x" * 80)
    yield "written"
