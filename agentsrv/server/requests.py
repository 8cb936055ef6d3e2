"""From a socket to the next command: limits first, then parsing; invalid frames are answered."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol, TypeVar

from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from agentsrv.error_text import redact
from agentsrv.errors import AgentsrvError, RateLimitedError
from agentsrv.protocol.session import Refusal
from agentsrv.server.batching import MAX_REST, BatchedConnection
from agentsrv.server.limits import PAUSE
from agentsrv.server.loop_scheduler import BYTES_PER_UNIT, CHEAP, SMALL, cost_of

BAD_FRAMES: Final = 4400  # close code: too many frames in a row that were no commands

R_co = TypeVar("R_co", covariant=True)


class Reader(Protocol[R_co]):
    """What reads the frames of one connection: a session."""

    def receive(self, text: str) -> R_co | Refusal:
        """What a text frame asks for."""

    def unread(self, text: str, refusal: AgentsrvError) -> bytes:
        """The answer to a frame that is refused without being parsed."""


async def next_request(socket: BatchedConnection, session: Reader[R_co]) -> R_co | None:
    """The next command of a client; ``None`` where the connection is over.

    A message waits until there is room for its answer and it is its turn, and is charged to the
    client's rate, before it is parsed. One above the rate is refused unparsed, and then nothing is
    read for ``PAUSE`` seconds, so a flooding client delays only itself. Invalid frames are
    answered; a binary frame, and the last of too many invalid ones, closes the connection.
    """
    while True:
        try:
            message = await socket.recv()
        except ConnectionClosed:
            return None
        await socket.room()  # a client that does not read its answers is asked nothing more
        cost = 1 if len(message) <= SMALL else cost_of(message)
        if socket.has_more or cost > CHEAP:
            await socket.turn(cost)
        if isinstance(message, bytes):
            await close(socket, CloseCode.UNSUPPORTED_DATA, "expected text frames")
            return None
        try:
            socket.quota.take(cost)
        except RateLimitedError as refusal:
            socket.measures.limited += 1
            frame = session.unread(message, refusal)
            # Receiving it was work, too; and it is not needed while the client waits.
            seconds = max(PAUSE, min(socket.quota.charge(len(message) // BYTES_PER_UNIT), MAX_REST))
            del message
            socket.rest(seconds)
            await asyncio.sleep(seconds)
            socket.post([frame])
            continue
        received = session.receive(message)
        if not isinstance(received, Refusal):
            return received
        socket.post([received.frame])
        if received.is_last:
            await close(socket, BAD_FRAMES, "too many bad frames in a row")
            return None


async def close(socket: BatchedConnection, code: int, reason: str) -> None:
    """Close with a code, behind all that was posted."""
    socket.flush()
    await socket.close(code, redact(reason))
