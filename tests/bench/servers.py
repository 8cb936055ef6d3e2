"""The servers that are measured, each a process of its own: ``python -m tests.bench.servers NAME``.

Each prints the port that it listens on, and serves until its standard input ends.

bare    ``websockets``' own server: one command, 14 event frames, each by ``await ws.send``
corked  the same frames in one write
memory  agentsrv with the memory store, three steps that answer at once
sqlite  the same with SQLite in the folder that is the second argument
sleepy  the same with a planner and three agents that sleep 200, 100, 150 and 100 ms
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import orjson
from websockets.asyncio.server import ServerConnection, serve

from agentsrv import App, ExecutionPlan, Step, StepContext, TaskContext
from agentsrv.cli.serving import calm_gc
from agentsrv.settings import Settings

EVENTS = 14  # of a task with three steps that each write one piece
EVENT_BYTES = 250  # of one event, about what agentsrv's are
PLANNER_SLEEP = 0.2  # seconds
AGENT_SLEEPS = (0.1, 0.15, 0.1)  # seconds


def frames() -> list[bytes]:
    """The events of one task; encoding is not what the bare server is measured for."""
    names = ["step_progress"] * (EVENTS - 1) + ["task_completed"]
    bodies = []
    for seq, name in enumerate(names, 1):
        event = {"type": "event", "event_type": name, "task_id": "0" * 16, "seq": seq}
        missing = EVENT_BYTES - len(orjson.dumps(event)) - len(',"data":""')
        bodies.append(orjson.dumps({**event, "data": "x" * missing}))
    return bodies


async def bare(socket: ServerConnection) -> None:
    """Answer each command by a send per frame."""
    events = frames()
    async for message in socket:
        orjson.loads(message)
        for event in events:
            await socket.send(event, text=True)


async def corked(socket: ServerConnection) -> None:
    """Answer each command by one write."""
    events = frames()
    async for message in socket:
        orjson.loads(message)
        for event in events:
            socket.protocol.send_text(event)
        socket.transport.write(b"".join(socket.protocol.data_to_send()))
        await socket.drain()


def instant_app() -> App:
    """Three steps, one after the other, each answering at once."""
    app = App(builtin=False)

    async def work(step: Step, ctx: StepContext) -> str:
        return "done"

    for name in ("first", "second", "third"):
        app.agent(name=name)(work)

    steps = chain()

    @app.planner
    async def plan(task_description: str, ctx: TaskContext) -> ExecutionPlan:
        return steps

    return app


def sleepy_app() -> App:
    """The same shape, with agents and a planner that wait as models do."""
    app = App(builtin=False)

    def sleeper(seconds: float) -> Callable[[Step, StepContext], Awaitable[str]]:
        async def work(step: Step, ctx: StepContext) -> str:
            await asyncio.sleep(seconds)
            return "done"

        return work

    for name, seconds in zip(("first", "second", "third"), AGENT_SLEEPS, strict=True):
        app.agent(name=name)(sleeper(seconds))

    @app.planner
    async def plan(task_description: str, ctx: TaskContext) -> ExecutionPlan:
        await asyncio.sleep(PLANNER_SLEEP)
        return chain()

    return app


def chain() -> ExecutionPlan:
    """First, second, third."""
    return ExecutionPlan(
        steps=(
            Step(step_id="step_001", agent="first"),
            Step(step_id="step_002", agent="second", depends_on=("step_001",)),
            Step(step_id="step_003", agent="third", depends_on=("step_002",)),
        )
    )


async def _until_told() -> None:
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, sys.stdin.read)


async def main(name: str, folder: str | None) -> None:
    """Serve ``name`` until standard input ends."""
    if name in ("bare", "corked"):
        handler = bare if name == "bare" else corked
        async with serve(handler, "127.0.0.1", 0, compression=None) as server:
            print(server.sockets[0].getsockname()[1], flush=True)
            await _until_told()
        return
    store = "memory:" if name == "memory" else f"sqlite:///{Path(folder or '.') / 'bench.db'}"
    app = sleepy_app() if name == "sleepy" else instant_app()
    settings = Settings(port=0, store=store, concurrency=1000, queue_limit=10_000, drain_timeout=1)
    async with app.running(settings) as running:
        calm_gc()
        print(running.port, flush=True)
        await _until_told()


if __name__ == "__main__":
    logging.disable()  # a load client goes without a closing handshake
    asyncio.run(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None))
