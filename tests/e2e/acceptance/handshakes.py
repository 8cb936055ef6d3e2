"""What comes before a WebSocket: requests, and the status and words that each is answered with.

``None`` as a status: the server hangs up without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tests.support.handshakes import handshake
from tests.support.issuer import bad
from tests.support.principals import ADA_KEY, BOB_KEY

Row = tuple[bytes, int | str | None, str]
Rows = dict[str, Row]
UPGRADED: Final = "Switching Protocols"
NO_NAME: Final = "is not a name of this server; add it to allowed_hosts"
NOT_YOURS: Final = "may not use this server"
REFUSED: Final = "WWW-Authenticate: Bearer…the token is not accepted"

GOOD: Final[Rows] = {
    "a handshake": (handshake(), 101, UPGRADED),
    "the other path": (handshake(line="GET /ws HTTP/1.1"), 101, UPGRADED),
    "a query": (handshake(line="GET /?a=b HTTP/1.1"), 101, UPGRADED),
    "a token as subprotocol": (
        handshake(f"Sec-WebSocket-Protocol: agentsrv.v1, bearer.{ADA_KEY}", Authorization=None),
        101, "Sec-WebSocket-Protocol: agentsrv.v1\r\n",
    ),
    "a token to come": (handshake(Authorization=None), 101, UPGRADED),
    "the same origin": (handshake("Origin: http://127.0.0.1"), 101, UPGRADED),
    "subprotocols of others": (handshake("Sec-WebSocket-Protocol: graphql-ws"), 101, UPGRADED),
    "an offer to compress": (
        handshake("Sec-WebSocket-Extensions: permessage-deflate"), 101, UPGRADED,
    ),
    "an extension that nobody knows": (handshake("Sec-WebSocket-Extensions: x; y=1"), 101, UPGRADED),
}  # fmt: skip

HOSTS: Final[Rows] = {
    "no Host": (handshake(Host=None), 400, "Found 0 Host…expected one Host"),
    "two Hosts": (handshake("Host: 127.0.0.1"), 400, "Found 2 Host…expected one Host"),
    "empty Host": (handshake(Host=""), 403, f"'' {NO_NAME}"),
    "foreign Host": (handshake(Host="evil.example"), 403, f"'evil.example' {NO_NAME}"),
    "our address in front of it": (handshake(Host="127.0.0.1.evil.example"), 403, NO_NAME),
    "Host with a user": (handshake(Host="127.0.0.1@evil.example"), 403, NO_NAME),
    "Host that is none": (handshake(Host="[::"), 403, f"'[::' {NO_NAME}"),
    "Host with a port that is none": (handshake(Host="127.0.0.1:x"), 403, NO_NAME),
    "another address as Host": (handshake(Host="192.0.2.1"), 403, NO_NAME),
    "foreign Origin": (
        handshake("Origin: https://evil.example"), 403, f"'https://evil.example' {NOT_YOURS}",
    ),
    "Origin null": (handshake("Origin: null"), 403, f"'null' {NOT_YOURS}"),
    "empty Origin": (handshake("Origin:"), 403, f"'' {NOT_YOURS}"),
    "Origin of another scheme": (handshake("Origin: https://127.0.0.1"), 403, NOT_YOURS),
    "Origin on another port": (handshake("Origin: http://127.0.0.1:1"), 403, NOT_YOURS),
    "Origin with our name in front": (
        handshake("Origin: http://127.0.0.1.evil.example"), 403, NOT_YOURS,
    ),
    "Origin that is none": (handshake("Origin: http://["), 403, NOT_YOURS),
    "two Origins": (
        handshake("Origin: http://127.0.0.1", "Origin: http://127.0.0.1"), 400,
        "2 Origin headers…at most one Origin",
    ),
    "two Origins in one": (
        handshake("Origin: http://127.0.0.1, http://evil.example"), 403, NOT_YOURS,
    ),
}  # fmt: skip

REQUESTS: Final[Rows] = {
    "unknown path": (handshake(line="GET /chat HTTP/1.1"), 404, "No WebSocket at /chat…/ws"),
    "path above": (handshake(line="GET /ws/../chat HTTP/1.1"), 404, "No WebSocket at"),
    "path of another case": (handshake(line="GET /WS HTTP/1.1"), 404, "No WebSocket at /WS"),
    "path with an escape": (handshake(line="GET /%77s HTTP/1.1"), 404, "No WebSocket at"),
    "whole URL as path": (handshake(line="GET http://127.0.0.1/ HTTP/1.1"), 404, "No WebSocket at"),
    "no path": (handshake(line="GET  HTTP/1.1"), 404, "No WebSocket at"),
    "path too long": (handshake(line=f"GET /{'a' * 9000} HTTP/1.1"), 414, "expected no more than 8192 bytes"),
    "another version": (handshake(Sec_WebSocket_Version="8"), 400, "8"),
    "version no number": (handshake(Sec_WebSocket_Version="new"), 400, "new"),
    "no version": (handshake(Sec_WebSocket_Version=None), 400, "Sec-WebSocket-Version"),
    "two versions": (handshake("Sec-WebSocket-Version: 13"), 400, "Sec-WebSocket-Version"),
    "no key": (handshake(Sec_WebSocket_Key=None), 400, "Sec-WebSocket-Key"),
    "short key": (handshake(Sec_WebSocket_Key="AAEC"), 400, "Sec-WebSocket-Key"),
    "key no base64": (handshake(Sec_WebSocket_Key="$"), 400, "Sec-WebSocket-Key"),
    "two keys": (
        handshake("Sec-WebSocket-Key: AAECAwQFBgcICQoLDA0ODw=="), 400, "Sec-WebSocket-Key",
    ),
    "no Connection": (handshake(Connection=None), 426, "Connection"),
    "Upgrade to something else": (
        handshake(line="GET /ws HTTP/1.1", Upgrade="h2c"), 426, "Connect by WebSocket",
    ),
    "Upgrade and nothing else": (
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\r\n", 426, "Connection",
    ),
    "Upgrade to both": (handshake(Upgrade="h2c, websocket"), 426, ""),
    "POST": (handshake(line="POST / HTTP/1.1"), 405, "unsupported HTTP method: POST"),
    "a method of nobody": (handshake(line="BREW / HTTP/1.1"), 405, "unsupported HTTP method: BREW"),
    "HTTP/1.0": (handshake(line="GET / HTTP/1.0"), 505, "unsupported HTTP version: HTTP/1.0"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", None, ""),
    "a TLS greeting": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\n", None, ""),
    "no HTTP": (b"hello\r\n\r\n", None, ""),
    "an empty line first": (b"\r\n" + handshake(), 101, UPGRADED),
    "a body": (handshake("Content-Length: 5") + b"hello", None, ""),
    "a body in chunks": (handshake("Transfer-Encoding: chunked") + b"0\r\n\r\n", None, ""),
    "a header that is long": (handshake(f"X-Long: {'a' * 9000}"), 431, "expected no more than 8192 bytes"),
    "a header of a megabyte": (handshake(f"X-Long: {'a' * (1 << 20)}"), 431, "expected no more than 8192 bytes"),
    "a thousand headers": (handshake(*["X-Many: a"] * 1000), 431, "expected no more than 128 headers"),
    "a header without a name": (handshake(": a"), None, ""),
    "a header without a colon": (handshake("X-None"), None, ""),
    "a header with a null": (handshake("X-Null: \0"), None, ""),
    "a header over two lines": (handshake("X-Folded: a\r\n b"), None, ""),
    "a subprotocol that is none": (
        handshake("Sec-WebSocket-Protocol: a b", Authorization=None), 400, "Sec-WebSocket-Protocol",
    ),
    "an extension that is none": (handshake("Sec-WebSocket-Extensions: ;"), 101, UPGRADED),
}  # fmt: skip

TOKENS: Final[Rows] = {
    "a wrong key": (handshake(Authorization=f"Bearer {ADA_KEY[:-8]}{BOB_KEY[-8:]}"), 401, REFUSED),
    "a key cut": (handshake(Authorization=f"Bearer {ADA_KEY[:-1]}"), 401, REFUSED),
    "a key and more": (handshake(Authorization=f"Bearer {ADA_KEY} x"), 401, REFUSED),
    "a key without a scheme": (handshake(Authorization=ADA_KEY), 401, "expected"),
    "a scheme without a key": (handshake(Authorization="Bearer"), 401, REFUSED),
    "a scheme and a space": (handshake(Authorization="Bearer "), 401, REFUSED),
    "another scheme": (handshake(Authorization="Token YWRhOmFkYQ=="), 401, "expected"),
    "a scheme for a proxy": (handshake(Authorization="Basic YWRhOmFkYQ=="), 101, UPGRADED),
    "an empty Authorization": (handshake(Authorization=""), 401, "expected"),
    "a token that is long": (handshake(Authorization=f"Bearer {'x' * 7000}"), 401, REFUSED),
    "a token that is no text": (handshake(Authorization="Bearer \xff\xfe"), 401, REFUSED),
    "two tokens": (handshake(f"Authorization: Bearer {ADA_KEY}"), 401, "expected"),
    "a token in each place": (
        handshake(f"Sec-WebSocket-Protocol: agentsrv.v1, bearer.{ADA_KEY}"), 401, "expected",
    ),
    "a wrong key as subprotocol": (
        handshake(f"Sec-WebSocket-Protocol: agentsrv.v1, bearer.{ADA_KEY[:-1]}", Authorization=None),
        401, REFUSED,
    ),
    "an empty key as subprotocol": (
        handshake("Sec-WebSocket-Protocol: agentsrv.v1, bearer.", Authorization=None), 401, "",
    ),
}  # fmt: skip


def plain(path: str, *more: str, method: str = "GET", host: str | None = "localhost") -> bytes:
    """A request without an upgrade."""
    line = f"{method} {path} HTTP/1.1"
    return handshake(
        *more, line=line, Upgrade=None, Connection=None, Authorization=None, Host=host,
        Sec_WebSocket_Key=None, Sec_WebSocket_Version=None,
    )  # fmt: skip


PLAIN: Final[Rows] = {
    "health": (plain("/healthz"), 200, "ok"),
    "health with a query": (plain("/healthz?now"), 200, "ok"),
    "health without a body": (plain("/healthz", method="HEAD"), 200, ""),
    "readiness": (plain("/readyz"), 200, "ready"),
    "no upgrade": (plain("/"), 200, "text/html"),
    "no upgrade at the other path": (plain("/ws"), 426, "Upgrade: websocket…Connect by WebSocket"),
    "health without a Host": (plain("/healthz", host=None), 400, "Found 0 Host"),
    "health by two Hosts": (plain("/healthz", "Host: localhost"), 400, "Found 2 Host"),
    "health by another's name": (plain("/healthz", host="evil.example"), 403, NO_NAME),
    "the schema by another's name": (plain("/asyncapi.json", host="evil.example"), 403, NO_NAME),
    "Host with a bracket": (plain("/", host="["), 403, NO_NAME),
    "a page elsewhere": (plain("/", "Origin: https://evil.example"), 403, NOT_YOURS),
    "pages elsewhere": (plain("/", "Origin: a", "Origin: b"), 400, "2 Origin"),
    "POST to health": (plain("/healthz", method="POST"), 405, "Allow: GET, HEAD…Found POST"),
    "OPTIONS": (plain("*", method="OPTIONS"), 405, "Found OPTIONS; expected GET or HEAD"),
    "TRACE": (plain("/", method="TRACE"), 405, "Found TRACE"),
    **{
        f"nothing at {path}": (plain(path), 404, "Nothing at /")
        for path in ("/nothing", "/.env", "//", "//[", "/../etc/passwd", "/healthz/", "/%00")
    },
    **{
        f"{name} key that nobody asked for at {path}": (
            handshake(line=f"GET {path} HTTP/1.1", Upgrade=None, Authorization=f"Bearer {key}"),
            {"/": 200, "/ws": 426, "/healthz": 200}.get(path, 404), "",
        )
        for path in ("/", "/ws", "/chat", "/healthz", "/.env", "//")
        for name, key in (("a good", ADA_KEY), ("a wrong", ADA_KEY[:-1]))
    },
}  # fmt: skip


def tokens() -> Iterator[tuple[str, Row]]:
    """JSON Web Tokens that nobody should accept."""
    for name, token in bad().items():
        told = "the token has expired" if name.startswith("expired") else REFUSED
        told = told if token else ""
        yield f"JWT: {name}", (handshake(Authorization=f"Bearer {token}"), 401, told)


def rows() -> Rows:
    """All of them, by what is special about each."""
    return {**GOOD, **HOSTS, **REQUESTS, **TOKENS, **dict(tokens()), **PLAIN}
