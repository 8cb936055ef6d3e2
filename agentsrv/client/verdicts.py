"""What the ways in which a connection fails mean: whether to connect again, and what to say."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

import orjson
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidMessage,
    InvalidStatus,
)

from agentsrv.client.errors import Closed, NoServer, NotAllowed, NotAServer, ProtocolViolation
from agentsrv.errors import AgentsrvError
from agentsrv.protocol import PROTOCOL
from agentsrv.protocol.closes import CLOSES
from agentsrv.protocol.replies import Hello

UNAUTHENTICATED: Final = 4401  # close code: nobody who may be here, or not any more
REFUSED: Final = 4403  # close code: the origin or the host is none that may
# Beside what servers of ours close with: a proxy in between goes away, or there was no close.
RECONNECT_AFTER: Final = {code for code, close in CLOSES.items() if close.reconnect} | {1001, 1006}
OUR_COMPLAINTS: Final = (1002, 1003, 1007, 1009)  # close codes that tell of the server's frames
TRANSIENT_STATUS: Final = (429, 500, 502, 503, 504)  # HTTP, mostly of a proxy in between


def greeting(body: bytes | str, url: str) -> Hello:
    """Read the first frame.

    Raises:
        NotAServer, NotAllowed: It is no greeting, or asks for a token.
    """
    try:
        hello: Hello = orjson.loads(body)
        if hello["protocol"] == PROTOCOL and isinstance(hello["limits"], dict):
            if "auth_timeout" in hello["limits"]:
                raise NotAllowed(f"{url} asks who you are; expected a token")
            return hello
        found = repr(hello["protocol"])
    except (ValueError, KeyError, TypeError):
        found = "no greeting of agentsrv"
    raise NotAServer(f"{url} answers with {found}; expected {PROTOCOL!r}")


def refusal(error: BaseException, url: str) -> AgentsrvError | None:
    """What a failure to connect means; ``None`` where it is none."""
    match error:
        case AgentsrvError():
            return error
        case ConnectionClosed():
            return verdict(error)
        case InvalidStatus():
            status = error.response.status_code
            if status in (401, 403):
                what = "the token" if status == HTTPStatus.UNAUTHORIZED else "the connection"
                return NotAllowed(f"{url} refuses {what} (HTTP {status})")
            kind = NoServer if status in TRANSIENT_STATUS else NotAServer
            return kind(f"{url} answers with HTTP {status}; expected a WebSocket")
        case InvalidMessage():
            return NoServer(f"{url} broke the handshake off, or does not speak HTTP")
        case InvalidHandshake():
            return NotAServer(f"{url} does not shake hands: {error}")
        case TimeoutError():
            return NoServer(f"no answer from {url} in time")
        case OSError():
            return NoServer(f"no server at {url}: {error.strerror or error}")
        case _:
            return None


def verdict(closed: ConnectionClosed, *, renews: bool = False) -> AgentsrvError:
    """Whether to connect again after a close: then the error is retryable.

    ``renews`` says that the next connection may have another token.
    """
    if closed.rcvd is None:
        if closed.sent is not None and closed.sent.code in OUR_COMPLAINTS:
            return ProtocolViolation(f"the server's frames cannot be taken: {closed.sent}")
        return NoServer("the connection was lost")
    code, reason = closed.rcvd.code, closed.rcvd.reason
    if code == UNAUTHENTICATED and renews:
        return NoServer(f"the server asks for another token: {reason or code}")
    if code in (UNAUTHENTICATED, REFUSED):
        return NotAllowed(f"the server refuses: {reason or code}")
    if code in RECONNECT_AFTER:
        return NoServer(f"the server closed the connection ({code} {reason})".rstrip())
    return Closed(f"the server closed the connection for good ({code} {reason})".rstrip())
