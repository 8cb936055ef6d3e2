"""The codes with which a server closes a connection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Close:
    """The meaning of a close code, and whether a client should connect again."""

    meaning: str
    reconnect: bool


CLOSES: Final[dict[int, Close]] = {
    1002: Close("the client sent a frame that violates RFC 6455", reconnect=False),
    1003: Close("the client sent a binary frame", reconnect=False),
    1007: Close("a text frame that is not UTF-8", reconnect=False),
    1009: Close(
        "a message over `max_frame`, or over 16 KiB before authentication, or one in more than "
        "4096 fragments",
        reconnect=False,
    ),
    1011: Close("a fault of the server, or no pong in time", reconnect=True),
    1012: Close("the server stops or restarts", reconnect=True),
    1013: Close(
        "too many connections, in total or of the principal; it comes instead of `hello`, or after "
        "`auth`",
        reconnect=True,
    ),
    4400: Close("twenty invalid frames in a row", reconnect=False),
    4401: Close(
        "no token in time, or a token that is not accepted or no longer valid",
        reconnect=False,
    ),
    4408: Close("the client read nothing for 10 s", reconnect=True),
}
