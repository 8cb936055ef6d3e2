"""The page ``/metrics``: measurements of the server for Prometheus."""

from __future__ import annotations

from http import HTTPStatus
from importlib.util import find_spec
from typing import Final

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from agentsrv.errors import UnauthenticatedError, missing_extra
from agentsrv.server.auth.authenticator import Authenticator, token_of
from agentsrv.telemetry.server_metrics import ServerMetrics

PATH: Final = "/metrics"


class MetricsPage:
    """Public if clients need no authentication; otherwise for the token of one principal.

    Other principals must not learn how many tasks run, and by which agents.

    Args:
        measures: The measurements.
        authenticator: Checks the token.
        principal: The principal that may read the page.
    """

    def __init__(
        self, measures: ServerMetrics, authenticator: Authenticator, principal: str
    ) -> None:
        self._measures = measures
        self._authenticator = authenticator
        self._principal = principal

    async def respond(self, connection: ServerConnection, request: Request) -> Response:
        """Return the response to a GET."""
        if self._authenticator.is_required:
            refusal = await self._refuse(connection, request)
            if refusal is not None:
                return refusal
        if find_spec("prometheus_client") is None:
            return connection.respond(
                HTTPStatus.NOT_IMPLEMENTED,
                missing_extra("/metrics", "metrics") + "\n",
            )
        from agentsrv.telemetry import prometheus  # noqa: PLC0415 - an extra

        response = connection.respond(HTTPStatus.OK, "")
        response.body = prometheus.page(self._measures)
        del response.headers["Content-Type"]
        del response.headers["Content-Length"]
        response.headers["Content-Type"] = prometheus.CONTENT_TYPE
        response.headers["Content-Length"] = str(len(response.body))
        response.headers["Cache-Control"] = "no-store"
        return response

    async def _refuse(self, connection: ServerConnection, request: Request) -> Response | None:
        try:
            token = token_of(request.headers.get_all("Authorization"), ())
            identity = await self._authenticator.identify(token or "")
        except UnauthenticatedError as refusal:
            response = connection.respond(HTTPStatus.UNAUTHORIZED, f"{refusal.message}\n")
            response.headers["WWW-Authenticate"] = "Bearer"
            return response
        if identity.principal != self._principal:
            return connection.respond(
                HTTPStatus.FORBIDDEN, f"Metrics are for {self._principal!r} only.\n"
            )
        return None
