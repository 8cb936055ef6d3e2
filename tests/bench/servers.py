"""The yardsticks, each a process of its own: ``python servers.py NAME LOOP``.

bare     ``websockets``' own server: one command, 14 event frames, each by ``await ws.send``
corked   the same frames in one write
tasks    starts an asyncio task for each ``create``, and cancels it at ``cancel``

Each tells on standard error where it listens, and serves until SIGTERM. Pongs are not waited for:
a client under load sends none.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from typing import Any

import orjson
from websockets.asyncio.server import ServerConnection, serve

from agentsrv.bench.app import EVENTS
from agentsrv.cli.serving import loop_factory

EVENT_BYTES = 250  # of one event, about what agentsrv's are


def frame(name: str, task_id: str, seq: int) -> bytes:
    """One event."""
    event = {"type": "event", "event_type": name, "task_id": task_id, "seq": seq}
    missing = EVENT_BYTES - len(orjson.dumps(event)) - len(',"data":""')
    # A copy: bytes straight from orjson keep 4 KiB for as long as they live.
    return bytes(bytearray(orjson.dumps({**event, "data": "x" * missing})))


def frames() -> list[bytes]:
    """The events of one task; encoding is not what the bare server is measured for."""
    names = ["task_created", *["step_progress"] * (EVENTS - 2), "task_completed"]
    return [frame(name, "0" * 16, seq) for seq, name in enumerate(names, 1)]


FRAMES = frames()


async def bare(socket: ServerConnection) -> None:
    """Answer each command by a send per frame."""
    async for message in socket:
        orjson.loads(message)
        for event in FRAMES:
            await socket.send(event, text=True)


async def corked(socket: ServerConnection) -> None:
    """Answer each command by one write."""
    async for message in socket:
        orjson.loads(message)
        for event in FRAMES:
            socket.protocol.send_text(event)
        socket.transport.write(b"".join(socket.protocol.data_to_send()))
        await socket.drain()


async def tasks(socket: ServerConnection) -> None:
    """Run each ``create`` as an asyncio task that writes an event each ``pause`` seconds."""
    running: dict[str, asyncio.Task[None]] = {}

    async def tick(task_id: str, params: dict[str, Any]) -> None:
        try:
            for seq in range(params["events"]):
                await socket.send(frame("step_progress", task_id, seq), text=True)
                await asyncio.sleep(params["pause"])
        except asyncio.CancelledError:
            await socket.send(frame("task_cancelled", task_id, 0), text=True)
            raise

    try:
        async for message in socket:
            command = orjson.loads(message)
            if command["command"] == "create":
                task_id = f"{len(running):016x}"
                running[task_id] = asyncio.create_task(tick(task_id, command["params"]))
            else:
                running[command["task_id"]].cancel()
    finally:
        for task in running.values():
            task.cancel()


async def main(name: str) -> None:
    """Serve ``name`` until SIGTERM."""
    handler = {"bare": bare, "corked": corked, "tasks": tasks}[name]
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with serve(
        handler, "127.0.0.1", 0, compression=None, ping_timeout=3600, close_timeout=0.1
    ) as server:
        port = server.sockets[0].getsockname()[1]
        print(f"listening on ws://127.0.0.1:{port}", file=sys.stderr, flush=True)
        await stop.wait()


if __name__ == "__main__":
    logging.disable()  # a load client goes without a closing handshake
    with asyncio.Runner(loop_factory=loop_factory(sys.argv[2])) as runner:  # type: ignore[arg-type]
        runner.run(main(sys.argv[1]))
