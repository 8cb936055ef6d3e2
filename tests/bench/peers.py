"""Other ways to stream a task's events, each a process of its own: ``python peers.py NAME``.

fastapi   FastAPI on uvicorn: a POST that is answered by newline-delimited JSON
socketio  python-socketio on uvicorn: an ``emit`` for each event

Both run the same plain async orchestrator, in memory: the task in a dictionary, its events from
three steps that answer at once. They come with the dependency group ``peers``, and as runners
that speak their protocol to the load client.
"""

# No postponed annotations: FastAPI reads them, and they name what is imported in a function.

import asyncio
import logging
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Any, Self
from urllib.parse import urlsplit

import orjson

from agentsrv.bench.load import MakeRunner, Runner
from agentsrv.bench.target import Target
from agentsrv.cli.serving import loop_factory

NEEDS = {"fastapi": ("fastapi", "uvicorn", "httptools"), "socketio": ("socketio", "uvicorn")}
STEPS = ("first", "second", "third")

Emit = Callable[[dict[str, Any]], Awaitable[None]]


def missing(name: str) -> list[str]:
    """The packages that the peer needs and this environment has not."""
    return [package for package in NEEDS[name] if find_spec(package) is None]


class Orchestrator:
    """Runs a task's steps one after the other, and emits what happens."""

    def __init__(self) -> None:
        self.tasks: dict[str, dict[str, Any]] = {}

    async def run(self, description: str, emit: Emit) -> None:
        """Create a task and run it: 14 events."""
        task_id = uuid.uuid4().hex[:16]
        task: dict[str, Any] = {"description": description, "status": "pending", "outputs": {}}
        self.tasks[task_id] = task
        seq = 0

        async def tell(name: str, **data: Any) -> None:
            nonlocal seq
            seq += 1
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            await emit(
                {
                    "type": "event",
                    "event_type": name,
                    "task_id": task_id,
                    "seq": seq,
                    "timestamp": now,
                    "data": data,
                }
            )

        await tell("task_created", task_description=description, params={}, metadata={})
        await tell("task_queued", position=1)
        task["status"] = "running"
        await tell("task_started", node="peer")
        await tell("plan_created", steps=[{"step_id": name, "agent": name} for name in STEPS])
        for name in STEPS:
            await tell("step_started", step_id=name, attempt=1, agent=name, description="")
            output = task["outputs"][name] = await _work()
            await tell("partial_output", step_id=name, attempt=1, offset=0, output=output)
            await tell("step_completed", step_id=name, attempt=1, result=None, duration=0.0)
        task["status"] = "completed"
        await tell(
            "task_completed",
            status="completed",
            final_output=task["outputs"][STEPS[-1]],
            duration=0.0,
        )


async def _work() -> str:
    return "done"


def fastapi_app() -> Any:
    """The NDJSON server: a queue per task between the orchestrator and the response."""
    from fastapi import FastAPI, Request
    from fastapi.responses import StreamingResponse

    app = FastAPI()
    command_handler = Orchestrator()
    running = set()

    @app.post("/tasks/run")
    async def run(request: Request) -> StreamingResponse:
        command = orjson.loads(await request.body())
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()

        async def put(event: dict[str, Any]) -> None:
            queue.put_nowait(orjson.dumps(event) + b"\n")

        async def work() -> None:
            await command_handler.run(command["task_description"], put)
            queue.put_nowait(None)

        task = asyncio.create_task(work())
        running.add(task)
        task.add_done_callback(running.discard)

        async def lines() -> AsyncIterator[bytes]:
            while (line := await queue.get()) is not None:
                yield line

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    return app


def socketio_app() -> Any:
    """The Socket.IO server: each event is emitted to the client that asked."""
    import socketio

    server = socketio.AsyncServer(async_mode="asgi", ping_timeout=3600)
    command_handler = Orchestrator()

    @server.event
    async def create(client: str, command: dict[str, Any]) -> None:
        async def emit(event: dict[str, Any]) -> None:
            await server.emit("event", event, to=client)

        await command_handler.run(command["task_description"], emit)

    return socketio.ASGIApp(server)


class HttpRunner(Runner):
    """Posts tasks over one connection; a stream each, so only one task at a time."""

    async def open(self, target: Target) -> Self:
        """Connect; there is nothing to shake hands about."""
        parts = urlsplit(target.url)
        self._opened = True
        await self._loop.create_connection(lambda: self, parts.hostname or "", parts.port or 80)
        self._host = parts.netloc
        return self

    def send(self, *commands: bytes) -> None:
        """Post each command."""
        for command in commands:
            head = (
                f"POST /tasks/run HTTP/1.1\r\nHost: {self._host}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(command)}\r\n\r\n"
            )
            self._transport.write(head.encode() + command)


class SocketIoRunner(Runner):
    """Emits ``create`` over one Socket.IO connection."""

    async def open(self, target: Target) -> Self:
        """Connect, by WebSocket from the beginning."""
        self._greeted = False
        await super().open(Target(f"{target.url}/socket.io/"))
        super().send(b"40")
        await self.wait()
        return self

    def greeting(self, path: str, host: str, token: str | None) -> bytes:
        """With what the transport is chosen by."""
        return super().greeting(f"{path}?EIO=4&transport=websocket", host, token)

    def send(self, *commands: bytes) -> None:
        """Emit each command."""
        super().send(*(b'42["create",' + command + b"]" for command in commands))

    def received(self, data: bytes) -> None:
        """The connection is there when it was given an id."""
        if not self._greeted and b"40{" in data:
            self._greeted = True
            self.wake()
        super().received(data)


RUNNERS: dict[str, MakeRunner] = {"fastapi": HttpRunner, "socketio": SocketIoRunner}


async def main(name: str) -> None:
    """Serve the peer until SIGTERM."""
    import uvicorn

    # By address and not by a socket: a socket made elsewhere leaves Nagle's algorithm on.
    config = uvicorn.Config(
        {"fastapi": fastapi_app, "socketio": socketio_app}[name](),
        host="127.0.0.1",
        port=0,
        access_log=False,
        log_level="critical",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - there is nothing else that tells
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    print(f"listening on http://127.0.0.1:{port}", file=sys.stderr, flush=True)
    await serving


if __name__ == "__main__":
    logging.disable()
    with asyncio.Runner(loop_factory=loop_factory(sys.argv[2])) as runner:  # type: ignore[arg-type]
        runner.run(main(sys.argv[1]))
