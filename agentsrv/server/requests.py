"""From a socket to the next command: what is none is answered on the way."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol, TypeVar

from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from agentsrv.errors import AgentsrvError, RateLimited
from agentsrv.protocol.session import Refusal
from agentsrv.server.gate import PAUSE
from agentsrv.server.outbox import OutboxConnection

BAD_FRAMES: Final = 4400  # close code: too many frames in a row that were no commands

R = TypeVar("R")


class Reader(Protocol[R]):
    """What reads the frames of one connection: a session."""

    def receive(self, text: str) -> R | Refusal:
        """What a text frame asks for."""

    def refused(self, refusal: AgentsrvError, request: R, /) -> bytes:
        """The frame that tells that a request is not carried out."""


async def next_request(socket: OutboxConnection, session: Reader[R]) -> R | None:
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
            socket.measures.limited += 1
            if not isinstance(received, Refusal):
                received = Refusal(session.refused(refusal, received), is_last=False)
            await asyncio.sleep(PAUSE)
        if not isinstance(received, Refusal):
            return received
        socket.post([received.frame])
        if received.is_last:
            await close(socket, BAD_FRAMES, "too many bad frames in a row")
            return None


async def close(socket: OutboxConnection, code: int, reason: str) -> None:
    """Close with a code, behind all that was posted."""
    socket.flush()
    await socket.close(code, reason)
