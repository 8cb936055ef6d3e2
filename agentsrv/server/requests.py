"""From a socket to the next command: what is none is answered on the way."""

from __future__ import annotations

from typing import Final, Protocol, TypeVar

from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from agentsrv.protocol.session import Refusal
from agentsrv.server.outbox import OutboxConnection

BAD_FRAMES: Final = 4400  # close code: too many frames in a row that were no commands

R_co = TypeVar("R_co", covariant=True)


class Reader(Protocol[R_co]):
    """What reads the frames of one connection: a session."""

    def receive(self, text: str) -> R_co | Refusal:
        """What a text frame asks for."""


async def next_request(socket: OutboxConnection, session: Reader[R_co]) -> R_co | None:
    """The next command of a client; ``None`` where the connection is over.

    A frame that is none is refused; a binary one, and the last of too many that are none, closes
    the connection.
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
