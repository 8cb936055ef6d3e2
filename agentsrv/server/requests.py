"""From a socket to the next command: what is none is answered on the way."""

from __future__ import annotations

import asyncio
from typing import Final

from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from agentsrv.errors import RateLimited
from agentsrv.protocol import frames
from agentsrv.protocol.session import Refusal, Request, Session
from agentsrv.server.gate import PAUSE
from agentsrv.server.outbox import OutboxConnection

BAD_FRAMES: Final = 4400  # close code: too many frames in a row that were no commands


async def next_request(socket: OutboxConnection, session: Session) -> Request | None:
    """The next command of a client; ``None`` where the connection is over.

    A frame that is none is refused; a binary one, and the last of too many that are none, closes
    the connection. Every frame counts as a command. One too many is refused, and then nothing is
    read for a moment, so that whoever goes on is held up and not the others.
    """
    while True:
        try:
            message = await socket.recv()
        except ConnectionClosed:
            return None
        await socket.room()  # whoever does not read answers is asked nothing more
        if isinstance(message, bytes):
            await close(socket, CloseCode.UNSUPPORTED_DATA, "expected text frames")
            return None
        received = session.receive(message)
        try:
            socket.share.take()
        except RateLimited as refusal:
            if isinstance(received, Request):
                refused = frames.error(received.name, received.command.id, refusal)
                received = Refusal(refused, is_last=False)
            await asyncio.sleep(PAUSE)
        if isinstance(received, Request):
            return received
        socket.post([received.frame])
        if received.is_last:
            await close(socket, BAD_FRAMES, "too many bad frames in a row")
            return None


async def close(socket: OutboxConnection, code: int, reason: str) -> None:
    """Close with a code, behind all that was posted."""
    socket.flush()
    await socket.close(code, reason)
