"""A server that says what it is told to, and remembers what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import orjson
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from agentsrv.protocol import examples

HELLO = {
    "type": "hello",
    "protocol": "agentsrv.v1",
    "server": {"name": "agentsrv", "version": "0"},
    "connection_id": "1",
    "authenticated": False,
    "limits": {"max_frame": 10_000},
    "commands": [],
}
T1 = "0123456789abcdef"


class Peer:
    """One connection as the fake server sees it."""

    def __init__(self, socket: ServerConnection, asked: list[dict[str, Any]]) -> None:
        self.socket = socket
        self._asked = asked

    async def send(self, *frames: dict[str, Any]) -> None:
        """Send frames."""
        for frame in frames:
            await self.socket.send(orjson.dumps(frame), text=True)

    async def receive(self) -> dict[str, Any]:
        """The next command."""
        command: dict[str, Any] = orjson.loads(await self.socket.recv())
        self._asked.append(command)
        return command

    async def reply(self, command: dict[str, Any], **result: Any) -> None:
        """Answer a command; fields that are not given are those of the protocol's example."""
        name = command["command"]
        envelope = {"type": "reply", "command": name, "id": command["id"]}
        await self.send({**examples.REPLIES[name], **envelope, **result})

    async def subscribed(self, *, after: int, seq: int, status: str = "running") -> None:
        """Take a subscription to ``T1`` behind ``after``."""
        command = await self.receive()
        assert (command["command"], command["after_seq"]) == ("subscribe", after)
        await self.reply(command, task_id=T1, status=status, seq=seq)


Script = Callable[[Peer], Awaitable[None]]


class FakeServer:
    """Runs one script after another, one for each connection; the last one again and again."""

    def __init__(self, *scripts: Script, greet: bool = True) -> None:
        self.asked: list[dict[str, Any]] = []
        self.connections = 0
        self.url = ""
        self._scripts = scripts
        self._greet = greet

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FakeServer]:
        """Serve within the block."""
        async with serve(self._handle, "127.0.0.1", 0, close_timeout=0.1) as server:
            self.url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            yield self

    async def _handle(self, socket: ServerConnection) -> None:
        script = self._scripts[min(self.connections, len(self._scripts) - 1)]
        self.connections += 1
        peer = Peer(socket, self.asked)
        if self._greet:
            await peer.send(HELLO)
        with suppress(ConnectionClosed):
            await script(peer)


def event(seq: int, event_type: str = "step_progress", **data: Any) -> dict[str, Any]:
    """An event frame of task ``T1``; fields that are not given are those of the example."""
    return {
        "type": "event",
        "event_type": event_type,
        "task_id": T1,
        "seq": seq,
        "timestamp": "2026-01-01T00:00:00.000Z",
        "data": vars(examples.EVENTS[event_type]) | data,
    }


async def idle(peer: Peer) -> None:
    """Answer nothing until the client goes."""
    await peer.socket.wait_closed()


def closes(code: int, reason: str = "") -> Script:
    """A script that closes at once."""

    async def script(peer: Peer) -> None:
        await peer.socket.close(code, reason)

    return script


async def forever() -> None:
    """Wait."""
    await asyncio.Event().wait()
