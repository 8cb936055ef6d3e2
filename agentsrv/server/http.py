"""Plain HTTP on the WebSocket's port: health, pages, and a word to those who came by browser."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from agentsrv.errors import AgentsrvError
from agentsrv.server.pages import Page

WEBSOCKET_PATHS: Final = ("/", "/ws")
METHODS: Final = ("GET", "HEAD")
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


class Doorkeeper:
    """Decides about each HTTP request: plain answer, refusal, or on to the handshake.

    A web page of another origin must not reach a server on this machine, and a name that only
    resolves to it (DNS rebinding) is not its name; so both headers are checked on loopback too.

    Args:
        host: The address that is listened on.
        pages: What is served, by its path.
        check_ready: Raises an `AgentsrvError` where the server would take no new work.
    """

    def __init__(
        self, host: str, pages: Mapping[str, Page], check_ready: Callable[[], Awaitable[None]]
    ) -> None:
        self._pages = pages
        self._check_ready = check_ready
        self._hosts = LOOPBACK | {host}
        self._any_host = host in ("0.0.0.0", "::", "")  # noqa: S104 - compared, not bound

    async def __call__(self, connection: ServerConnection, request: Request) -> Response | None:
        """The answer, or ``None`` to go on with the WebSocket handshake."""
        path = request.path.partition("?")[0]
        refusal = self._refuse(connection, request)
        if refusal is not None:
            return refusal
        if "websocket" not in request.headers.get("Upgrade", "").lower():
            response = await self._plain(connection, request, path)
            if request.method == "HEAD":
                response.body = b""
            return response
        if path not in WEBSOCKET_PATHS:
            return connection.respond(
                HTTPStatus.NOT_FOUND, f"No WebSocket at {path}; there is one at / and /ws.\n"
            )
        return None

    def _refuse(self, connection: ServerConnection, request: Request) -> Response | None:
        hosts = request.headers.get_all("Host")
        origins = request.headers.get_all("Origin")
        if len(hosts) != 1 or len(origins) > 1:
            return connection.respond(
                HTTPStatus.BAD_REQUEST,
                f"Found {len(hosts)} Host and {len(origins)} Origin headers; "
                "expected one Host and at most one Origin.\n",
            )
        if not self._any_host and _hostname(f"//{hosts[0]}") not in self._hosts:
            return connection.respond(
                HTTPStatus.FORBIDDEN, f"{hosts[0]!r} is not a name of this server.\n"
            )
        if origins and _netloc(origins[0]) != hosts[0].lower():
            return connection.respond(
                HTTPStatus.FORBIDDEN, f"Pages of {origins[0]!r} may not use this server.\n"
            )
        return None

    async def _plain(self, connection: ServerConnection, request: Request, path: str) -> Response:
        if request.method not in METHODS:
            response = connection.respond(
                HTTPStatus.METHOD_NOT_ALLOWED, f"Found {request.method}; expected GET or HEAD.\n"
            )
            response.headers["Allow"] = ", ".join(METHODS)
            return response
        if path in self._pages:
            return self._pages[path].respond(request)
        if path == "/healthz":
            return connection.respond(HTTPStatus.OK, "ok\n")
        if path == "/readyz":
            try:
                await self._check_ready()
            except AgentsrvError as refusal:
                text = f"not ready: {refusal.message}\n"
                return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, text)
            return connection.respond(HTTPStatus.OK, "ready\n")
        if path in WEBSOCKET_PATHS:
            response = connection.respond(
                HTTPStatus.UPGRADE_REQUIRED,
                "This is agentsrv. Speak WebSocket to it, for example: wscat -c ws://HOST:PORT\n",
            )
            response.headers["Upgrade"] = "websocket"
            return response
        return connection.respond(HTTPStatus.NOT_FOUND, f"Nothing at {path}.\n")


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None
