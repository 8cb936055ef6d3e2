"""Reads the next command of a socket: limits first, then parsing; answers invalid frames."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol, TypeVar

from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from agentsrv.error_text import redact
from agentsrv.errors import AgentsrvError, RateLimitedError
from agentsrv.protocol.session import Refusal
from agentsrv.server.batching import MAX_READ_PAUSE, BatchedConnection
from agentsrv.server.limits import READ_PAUSE
from agentsrv.server.loop_scheduler import BYTES_PER_UNIT, CHEAP_UNITS, SMALL_MESSAGE, cost_of

BAD_FRAMES: Final = 4400  # close code: too many consecutive frames were invalid

R_co = TypeVar("R_co", covariant=True)


class Reader(Protocol[R_co]):
    """Parses the frames of one connection: a session."""

    def receive(self, text: str) -> R_co | Refusal:
        """Return the command in a text frame, or the refusal of an invalid one."""

    def unread(self, text: str, refusal: AgentsrvError) -> bytes:
        """Return the answer to a frame that is refused without being parsed."""


async def next_request(socket: BatchedConnection, session: Reader[R_co]) -> R_co | None:
    """Return the next command of a client; ``None`` if the connection is over.

    Before a message is parsed, it waits for room for its answer and for its turn in the loop, and
    its cost is taken from the client's rate. A message over the rate is refused unparsed, and the
    connection is not read for at least ``READ_PAUSE`` seconds, so a flooding client delays only
    itself. Invalid frames are answered. A binary frame, and the last of too many invalid frames,
    closes the connection.
    """
    while True:
        try:
            message = await socket.recv()
        except ConnectionClosed:
            return None
        await socket.wait_for_room()  # a client that reads no answers gets no further ones
        cost = 1 if len(message) <= SMALL_MESSAGE else cost_of(message)
        if socket.has_more or cost > CHEAP_UNITS:
            await socket.wait_for_turn(cost)
        if isinstance(message, bytes):
            await close(socket, CloseCode.UNSUPPORTED_DATA, "expected text frames")
            return None
        try:
            socket.quota.take(cost)
        except RateLimitedError as refusal:
            socket.measures.limited += 1
            frame = session.unread(message, refusal)
            # Receiving the message was work as well. Its text is released before the pause.
            charged = socket.quota.charge(len(message) // BYTES_PER_UNIT)
            seconds = max(READ_PAUSE, min(charged, MAX_READ_PAUSE))
            del message
            socket.pause_reading(seconds)
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
    """Send the posted frames, then close the connection with a code."""
    socket.flush()
    await socket.close(code, redact(reason))
