"""One input to a server from outside, and what came back."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from tests.support.handshakes import handshake
from tests.support.wire import HEADER_END, ConnectionLost, Wire, framed

PATIENCE: Final = 60.0  # seconds for an answer, on a machine that is busy
ALIVE: Final = {"command": "ping", "id": "alive?"}
NOTHING: Final = "nothing"


@dataclass(frozen=True)
class Outcome:
    """What a server made of an input.

    Attributes:
        what: The HTTP status, or the close code; where the connection lives the code of the
            error, ``reply``, or ``nothing``; ``None`` where the server hung up without a word.
        words: All that was said.
    """

    what: int | str | None
    words: str = ""

    def is_as_expected(self, what: int | str | None, words: str) -> bool:
        """Whether it is that, and says each of the ``words``, which have ``…`` between them."""
        return self.what == what and all(word in self.words for word in words.split("…"))


def knock(port: int, request: bytes) -> Outcome:
    """Send the bytes of a handshake."""
    received = b""
    door = socket.create_connection(("127.0.0.1", port), PATIENCE)
    with door, suppress(ConnectionError):
        door.sendall(request)
        while HEADER_END not in received or b" 101 " not in received[:15]:
            data = door.recv(1 << 16)
            if not data:
                break
            received += data
    if not received:
        return Outcome(None)
    return Outcome(int(received.split()[1]), received.decode("latin-1"))


def say(port: int, data: bytes, request: bytes | None = None) -> Outcome:
    """Send bytes on a connection of its own, behind a good handshake and the hello; then a ping.

    Whoever is answered neither to the bytes nor to the ping gets a `ConnectionLost` without a
    code, which is not caught.
    """
    with Wire(port, timeout=PATIENCE, request=request or handshake()) as wire:
        bodies = wire.bodies()
        next(bodies)
        with suppress(ConnectionError):
            wire.socket.sendall(data)
            wire.send(ALIVE)
        said: list[dict[str, Any]] = []
        try:
            for body in bodies:
                frame = json.loads(body)
                if frame.get("id") == ALIVE["id"]:
                    break
                said.append(frame)
        except ConnectionLost as lost:
            if lost.code is None:
                raise
            return Outcome(lost.code, str(lost))
    answers = [frame for frame in said if frame["type"] in ("reply", "error")]
    words = json.dumps(answers, ensure_ascii=False)
    if not answers:
        return Outcome(NOTHING)
    return Outcome(answers[0].get("code", "reply"), words)


def text(content: str) -> bytes:
    """A text frame."""
    return framed(0x1, content.encode())
