"""Maps connection failures to exceptions, and decides whether to reconnect.

`connect_error` is for a failure to connect, `close_error` for the end of a connection. The error
that they return is ``retryable`` if the client should connect again. Its message says what was
found at the address and what to try, and names the address without user, password and query.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit, urlunsplit

import orjson
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidMessage,
    InvalidProxy,
    InvalidStatus,
    InvalidURI,
    NegotiationError,
    ProxyError,
)

from agentsrv.client.errors import (
    ConnectionClosedError,
    NotAServerError,
    ProtocolError,
    ServerUnavailableError,
)
from agentsrv.client.trust import untrusted
from agentsrv.errors import AgentsrvError, ConfigurationError, UnauthenticatedError
from agentsrv.protocol import PROTOCOL
from agentsrv.protocol.close_codes import CLOSES

if TYPE_CHECKING:
    from agentsrv.protocol.frame_types import Hello

UNAUTHENTICATED: Final = 4401  # close code: the token is missing or no longer valid
FORBIDDEN: Final = 4403  # close code: the origin or the host is not allowed
# In addition to the server's own codes: a proxy that stops, and a missing closing handshake.
RECONNECT_AFTER: Final = {code for code, close in CLOSES.items() if close.reconnect} | {1001, 1006}
INVALID_FRAME_CODES: Final = (1002, 1003, 1007, 1009)  # sent by us about the server's frames
TRANSIENT_STATUSES: Final = (429, 500, 502, 503, 504)  # HTTP, mostly from a proxy
MAX_QUOTE: Final = 120  # characters of a foreign response in a message
CHECK: Final = "check the host and the port"
BANNERS: Final = {
    "SSH-": "an SSH server",
    "220": "a mail or FTP server",
    "+OK": "a POP3 server",
    "* OK": "an IMAP server",
    "-ERR": "a Redis server",
    "HTTP/": "an HTTP server without WebSockets",
}
"""How the first line of other protocols begins."""
REASONS: Final = {
    errno.ECONNREFUSED: "the connection was refused; start the server, or check the port",
    errno.EHOSTUNREACH: f"the host cannot be reached; {CHECK} and the network",
    errno.ENETUNREACH: f"the network cannot be reached; {CHECK} and the network",
    errno.ETIMEDOUT: f"the connection timed out; {CHECK} and the firewall",
}


def read_hello(body: bytes | str, url: str) -> Hello:
    """Return the first frame of a connection.

    Raises:
        NotAServerError: It is not a greeting of this protocol.
        UnauthenticatedError: The server requires a token, and none was given.
    """
    from agentsrv.client import frames  # noqa: PLC0415 - it imports pydantic

    try:
        hello: Hello = orjson.loads(body)
        if hello["protocol"] == PROTOCOL:
            frames.check("hello", hello)
            if "auth_timeout" in hello["limits"]:
                raise UnauthenticatedError(
                    f"{address(url)} requires authentication; expected a token "
                    "(token=, --token or AGENTSRV_TOKEN)"
                )
            return hello
        found = repr(hello["protocol"])[:MAX_QUOTE]
    except (ValueError, KeyError, TypeError, ProtocolError):
        found = "a WebSocket that sends no greeting of agentsrv"
    raise NotAServerError(f"{address(url)}: found {found}; expected {PROTOCOL!r}; {CHECK}")


def address(url: str) -> str:
    """Return the URL without user, password, query and fragment."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def connect_error(error: BaseException, url: str) -> AgentsrvError | None:
    """Return the error for a failure to connect; ``None`` for a cancellation and the like."""
    where = address(url)
    match error:
        case AgentsrvError():
            return error
        case ConnectionClosed():
            return close_error(error, url)
        case InvalidStatus():
            return _status(error, where)
        case InvalidProxy():
            return ConfigurationError(
                f"{where}: the environment names a proxy that cannot be used: {error.msg}; "
                "correct HTTP_PROXY, HTTPS_PROXY or ALL_PROXY, or set NO_PROXY"
            )
        case ImportError():
            return ConfigurationError(
                f"{where}: the environment names a SOCKS proxy, which needs "
                "pip install python-socks; or set NO_PROXY"
            )
        case ProxyError():
            return ServerUnavailableError(
                f"no server at {where}: the proxy of the environment refuses: {error}; "
                "check HTTP_PROXY, HTTPS_PROXY and ALL_PROXY, or set NO_PROXY"
            )
        case InvalidURI():
            return NotAServerError(
                f"{where} redirects to {address(error.uri)}; expected a WebSocket; {CHECK}"
            )
        case InvalidMessage():
            return _foreign(error, url, where)
        case NegotiationError():
            return NotAServerError(
                f"{where}: found a WebSocket of another protocol; expected {PROTOCOL!r}; {CHECK}"
            )
        case InvalidHandshake():
            return NotAServerError(
                f"{where}: the handshake is not that of a WebSocket: {error}; {CHECK}"
            )
        case ssl.SSLError():
            return _tls(error, where)
        case TimeoutError():
            return ServerUnavailableError(
                f"no server at {where}: no answer in time; {CHECK} and the firewall"
            )
        case OSError() | ValueError():
            return ServerUnavailableError(f"no server at {where}: {_reason(error, url)}")
        case _:
            return None


def close_error(closed: ConnectionClosed, url: str, *, renews: bool = False) -> AgentsrvError:
    """Return the error for the end of a connection.

    Args:
        closed: The closing handshake, or its absence.
        url: The address of the server.
        renews: Whether the next connection may have another token.
    """
    where = address(url)
    if closed.rcvd is None:
        if closed.sent is not None and closed.sent.code in INVALID_FRAME_CODES:
            return ProtocolError(f"the frames of {where} cannot be taken: {closed.sent}")
        is_silent = closed.sent is not None and "ping" in closed.sent.reason
        why = "no answer to a ping" if is_silent else "it ended without a closing handshake"
        return ServerUnavailableError(f"the connection to {where} was lost: {why}")
    code, reason = closed.rcvd.code, closed.rcvd.reason
    if code == UNAUTHENTICATED and renews:
        return ServerUnavailableError(f"{where} requires another token: {reason or code}")
    if code in (UNAUTHENTICATED, FORBIDDEN):
        return UnauthenticatedError(f"{where} refuses the connection: {reason or code}")
    if code in RECONNECT_AFTER:
        return ServerUnavailableError(
            f"{where} closed the connection ({code} {reason})".replace(" )", ")")
        )
    message = f"{where} closed the connection for good ({code} {reason})"
    return ConnectionClosedError(message.replace(" )", ")"))


def _status(error: InvalidStatus, where: str) -> AgentsrvError:
    """Return the error for an HTTP response other than 101."""
    status = error.response.status_code
    text = _first_line(error.response.body)
    found = f"HTTP {status}{f' ({text})' if text else ''}"
    if status == HTTPStatus.UNAUTHORIZED:
        return UnauthenticatedError(
            f"{where} rejects the token, or requires one: {found}; check the token"
        )
    if status == HTTPStatus.FORBIDDEN:
        return UnauthenticatedError(
            f"{where} refuses the connection: {found}; the server or a proxy in front of it does "
            "not allow this host, origin or user"
        )
    if status in TRANSIENT_STATUSES:
        return ServerUnavailableError(
            f"no server at {where}: found {found}; the servers behind a proxy may be down"
        )
    return NotAServerError(
        f"{where}: found an HTTP server that answers {found}; expected a WebSocket; {CHECK}, and "
        "the path"
    )


def _foreign(error: InvalidMessage, url: str, where: str) -> AgentsrvError:
    """Return the error for a peer that does not speak HTTP/1.1, or sent nothing."""
    for cause in _causes(error):
        line = str(cause).rpartition(": ")[2] if isinstance(cause, ValueError) else ""
        if "HTTP" not in str(cause) or not line:
            continue
        found = next((name for begin, name in BANNERS.items() if line.startswith(begin)), None)
        quoted = repr(line[:MAX_QUOTE])
        return NotAServerError(
            f"{where}: found {found or 'another protocol'}, which sent {quoted}; "
            f"expected a WebSocket; {CHECK}"
        )
    other = "if it speaks TLS, try wss://; if not, " if urlsplit(url).scheme == "ws" else ""
    return ServerUnavailableError(
        f"no server at {where}: the handshake got no answer in HTTP before the connection ended; "
        f"{other}{CHECK}"
    )


def _tls(error: ssl.SSLError, where: str) -> AgentsrvError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return ServerUnavailableError(untrusted(error, where))
    if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
        return ServerUnavailableError(f"{where}: found a port without TLS; try ws://, or {CHECK}")
    return ServerUnavailableError(
        f"{where}: the TLS handshake failed: {error.reason or error.strerror or error}; {CHECK}"
    )


def _reason(error: Exception, url: str) -> str:
    if isinstance(error, socket.gaierror):
        return f"the name {urlsplit(url).hostname!r} cannot be resolved ({error.strerror}); {CHECK}"
    if isinstance(error, ConnectionError) and error.errno is None:
        other = "; if it does not speak TLS, try ws://" if urlsplit(url).scheme == "wss" else ""
        return f"the connection ended during the handshake{other}"
    if isinstance(error, OSError):
        return REASONS.get(error.errno or 0) or error.strerror or str(error) or repr(error)
    return str(error) or repr(error)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _first_line(body: bytes | bytearray | None) -> str:
    """Return the first line of a text; nothing for HTML, JSON or binary data."""
    text = (body or b"")[: 4 * MAX_QUOTE].decode(errors="replace").strip()
    line = text.splitlines()[0][:MAX_QUOTE] if text else ""
    return "" if line.startswith(("<", "{")) or not line.isprintable() else line
