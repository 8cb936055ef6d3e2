"""HTTP on the WebSocket's port: health, pages, and the checks of WebSocket handshakes."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from agentsrv.error_text import redact
from agentsrv.errors import AgentsrvError, OverloadedError, UnauthenticatedError
from agentsrv.server.auth.authenticator import Authenticator, token_of
from agentsrv.server.auth.identity import ANONYMOUS_IDENTITY
from agentsrv.server.batching import BatchedConnection
from agentsrv.server.metrics import PATH, MetricsPage
from agentsrv.server.startup_checks import client_address, host_of, is_address, origin_of
from agentsrv.server.static_files import StaticPages
from agentsrv.settings import Settings

WEBSOCKET_PATHS: Final = ("/", "/ws")
METHODS: Final = ("GET", "HEAD")
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
MAX_ORIGIN_LOGGED: Final = 200  # characters
ANY_ADDRESS: Final = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - compared, not bound

_log = logging.getLogger("agentsrv.listener")


class HttpRoutes:
    """Answers each HTTP request, refuses it, or lets the WebSocket handshake continue.

    A web page of another origin must not reach a server on this machine, and a name that only
    resolves to it (DNS rebinding) must not be accepted. ``Host`` and ``Origin`` are therefore
    checked on loopback as well. Addresses cannot be rebound, so a server that listens on all its
    addresses accepts any address as ``Host``.

    Args:
        settings: Host names, allowed origins and trusted proxies.
        authenticator: Checks tokens.
        pages: The static files.
        metrics: The page of measurements.
        check_ready: Raises an `AgentsrvError` if the server accepts no new work.
    """

    def __init__(
        self,
        settings: Settings,
        authenticator: Authenticator,
        pages: StaticPages,
        metrics: MetricsPage,
        check_ready: Callable[[], Awaitable[None]],
    ) -> None:
        self._authenticator = authenticator
        self._accepts_clients = settings.role != "worker"
        self._pages = pages
        self._metrics = metrics
        self._check_ready = check_ready
        self._hosts = LOOPBACK | {settings.host.lower(), *map(host_of, settings.allowed_hosts)}
        self._origins = set(map(origin_of, settings.allowed_origins))
        self._schemes = ["http"] if settings.tls_cert is None else ["https"]
        if settings.behind_proxy:
            self._schemes = ["http", "https"]  # the proxy's scheme is unknown
        self._proxies = settings.trusted_proxies if settings.behind_proxy else ()
        self._any_address = settings.host in ANY_ADDRESS

    async def __call__(self, connection: ServerConnection, request: Request) -> Response | None:
        """Return the response, or ``None`` to continue with the WebSocket handshake."""
        path = request.path.partition("?")[0]
        response = self._refuse(connection, request)
        if response is None and "websocket" not in request.headers.get("Upgrade", "").lower():
            response = await self._plain(connection, request, path)
            if request.method == "HEAD":
                response.body = b""
            return response
        if response is None and path not in WEBSOCKET_PATHS:
            return connection.respond(
                HTTPStatus.NOT_FOUND, f"No WebSocket at {path}; there is one at / and /ws.\n"
            )
        if response is None and not self._accepts_clients:
            return connection.respond(
                HTTPStatus.SERVICE_UNAVAILABLE, "This server only runs tasks; connect to another.\n"
            )
        if response is None:
            response = await self._identify(connection, request)
        if response is not None:
            address, about = self._address(connection, request), {"connection_id": connection.id}
            text, remedy = "refused %s: HTTP %d%s", self._remedy(request)
            _log.info(text, address, response.status_code, remedy, extra={"about": about})
        return response

    async def _identify(self, connection: ServerConnection, request: Request) -> Response | None:
        """Check the token of the handshake, if it has one and authentication is required."""
        assert isinstance(connection, BatchedConnection)
        if not self._authenticator.is_required:
            connection.identity = ANONYMOUS_IDENTITY
            return None
        headers = request.headers
        try:
            token = token_of(
                headers.get_all("Authorization"), headers.get_all("Sec-WebSocket-Protocol")
            )
            if token is not None:
                source = self._address(connection, request)
                connection.identity = await self._authenticator.identify(token, source)
            else:
                connection.locate(self._address(connection, request))
        except OverloadedError as refusal:
            response = _refusal(connection, HTTPStatus.TOO_MANY_REQUESTS, refusal)
            response.headers["Retry-After"] = "1"
            return response
        except UnauthenticatedError as refusal:
            response = _refusal(connection, HTTPStatus.UNAUTHORIZED, refusal)
            response.headers["WWW-Authenticate"] = "Bearer"
            return response
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
        if not self._is_ours(_hostname(f"//{hosts[0]}")):
            return connection.respond(
                HTTPStatus.FORBIDDEN,
                f"{hosts[0]!r} is not a name of this server; add it to allowed_hosts.\n",
            )
        if origins and not self._may_connect(origins[0], hosts[0]):
            response = connection.respond(
                HTTPStatus.FORBIDDEN, f"Pages of {origins[0]!r} may not use this server.\n"
            )
            # Browsers hide the failure of a WebSocket from pages; this header lets a page read it.
            response.headers["Access-Control-Allow-Origin"] = "*"
            return response
        return None

    def _remedy(self, request: Request) -> str:
        """Return advice for the log about a refused origin; quotes only a valid origin."""
        host = request.headers.get_all("Host")
        origin = origin_of(",".join(request.headers.get_all("Origin")))
        if origin is None or len(host) != 1 or self._may_connect(origin, host[0]):
            return ""
        origin = origin[:MAX_ORIGIN_LOGGED]
        return (
            f", because pages of {origin} are not allowed; to allow them: "
            f"allowed_origins (--allowed-origins={origin})"
        )

    async def _plain(self, connection: ServerConnection, request: Request, path: str) -> Response:
        if request.method not in METHODS:
            response = connection.respond(
                HTTPStatus.METHOD_NOT_ALLOWED, f"Found {request.method}; expected GET or HEAD.\n"
            )
            response.headers["Allow"] = ", ".join(METHODS)
            return response
        if path == PATH:
            return await self._metrics.respond(connection, request)
        if path == "/healthz":
            return connection.respond(HTTPStatus.OK, "ok\n")
        if path == "/readyz":
            try:
                await self._check_ready()
            except AgentsrvError as refusal:
                status = HTTPStatus.SERVICE_UNAVAILABLE
                return _refusal(connection, status, refusal, "not ready: ")
            return connection.respond(HTTPStatus.OK, "ready\n")
        page = await self._pages.find(path)
        if page is not None:
            return page.respond(request)
        if path in WEBSOCKET_PATHS:
            response = connection.respond(
                HTTPStatus.UPGRADE_REQUIRED,
                "This is agentsrv. Connect by WebSocket, for example: wscat -c ws://HOST:PORT\n",
            )
            response.headers["Upgrade"] = "websocket"
            return response
        return connection.respond(HTTPStatus.NOT_FOUND, f"Nothing at {path}.\n")

    def _address(self, connection: ServerConnection, request: Request) -> str:
        """Return the client's address."""
        peer = connection.remote_address[0]
        return client_address(peer, request.headers.get_all("X-Forwarded-For"), self._proxies)

    def _is_ours(self, host: str | None) -> bool:
        return host in self._hosts or (self._any_address and host is not None and is_address(host))

    def _may_connect(self, origin: str, host: str) -> bool:
        """Whether it is an allowed origin, or the server's own under the client's ``Host``."""
        found = origin_of(origin)
        own = [origin_of(f"{scheme}://{host}") for scheme in self._schemes]
        return found is not None and (found in own or found in self._origins)


def _refusal(
    connection: ServerConnection, status: HTTPStatus, refusal: AgentsrvError, prefix: str = ""
) -> Response:
    return connection.respond(status, f"{prefix}{redact(refusal.message)}\n")


def _hostname(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # urlsplit checks the port only when it is read
        return parts.hostname
    except ValueError:
        return None
