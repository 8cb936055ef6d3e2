"""A real server in this loop, and a raw client that speaks JSON to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from pydantic import BaseModel, ConfigDict
from websockets.asyncio.client import ClientConnection, connect

from agentsrv import App, Step, StepContext
from agentsrv.settings import Settings
from agentsrv.wiring import Server


class ConnectionClosedError(BaseModel):
    """Takes one member only."""

    model_config = ConfigDict(extra="forbid")
    number: int = 0


def make_app() -> App:
    """Agents for tests: one that echoes, one that talks without end, one that waits."""
    app = App()

    @app.agent
    async def echo(step: Step, ctx: StepContext, times: int = 1, more: str = "") -> str:
        """Say the task again."""
        return ctx.task_description * times

    @app.agent
    async def lister(
        step: Step,
        ctx: StepContext,
        numbers: Sequence[int] = (),
        named: Mapping[str, int] | None = None,
        closed: ConnectionClosedError | None = None,
    ) -> int:
        """Count what it is given."""
        return len(numbers) + len(named or ()) + (closed is not None)

    @app.agent
    async def talker(
        step: Step, ctx: StepContext, pieces: int = 50, size: int = 10, pause: float = 0.0
    ) -> AsyncIterator[str]:
        """Write many pieces."""
        for number in range(pieces):
            yield f"{number}".rjust(size, ".")
            await asyncio.sleep(pause)

    @app.agent
    async def waiter(step: Step, ctx: StepContext) -> str:
        """Wait until cancelled."""
        await asyncio.Event().wait()
        return "never"

    @app.agent
    async def asker(step: Step, ctx: StepContext) -> str:
        """Ask whether it is allowed."""
        return f"{step.step_id}: {await ctx.confirm('May I?')}"

    @app.agent
    async def listener(step: Step, ctx: StepContext) -> str:
        """Wait for a message, and repeat it."""
        return json.dumps(await anext(aiter(ctx.messages())))

    return app


class Talk:
    """One connection: frames are read in the order in which they come."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def send(self, frame: dict[str, Any] | str | bytes) -> None:
        """Send one frame as it is."""
        await self.socket.send(json.dumps(frame) if isinstance(frame, dict) else frame)

    async def next(self) -> dict[str, Any]:
        """The next frame."""
        async with asyncio.timeout(30):
            frame: dict[str, Any] = json.loads(await self.socket.recv())
        return frame

    async def ask(self, frame: dict[str, Any] | str) -> dict[str, Any]:
        """Send, and skip events until the answer comes."""
        await self.send(frame)
        while True:
            answer = await self.next()
            if answer["type"] in ("reply", "error"):
                return answer

    async def until(self, event_type: str) -> dict[str, Any]:
        """Skip frames until an event of that type comes."""
        while True:
            frame = await self.next()
            if frame.get("event_type") == event_type:
                return frame

    async def log(self, task_id: str) -> list[dict[str, Any]]:
        """The task's events up to its last, as they come; others' are skipped."""
        events = []
        while True:
            frame = await self.next()
            if frame["type"] == "event" and frame["task_id"] == task_id:
                events.append(frame)
                if frame["event_type"] in ("task_completed", "task_failed", "task_cancelled"):
                    return events


@asynccontextmanager
async def serving(app: App | None = None, **settings: Any) -> AsyncIterator[Server]:
    """A server on a free port, with a store in memory unless another is named."""
    wanted: dict[str, Any] = {
        "port": 0,
        "store": "memory:",
        "drain_timeout": 0.2,
        "cancel_grace": 0.5,
    } | settings
    async with (app or make_app()).running(Settings(**wanted)) as server:
        yield server


@asynccontextmanager
async def talking(server: Server, **options: Any) -> AsyncIterator[Talk]:
    """A connection, its hello read.

    At the end it does not wait for the server's close frame for long: a server that has refused
    a command over the rate reads nothing more for some seconds.
    """
    async with connect(server.url, **{"close_timeout": 0.1} | options) as socket:
        talk = Talk(socket)
        assert (await talk.next())["type"] == "hello"
        yield talk
