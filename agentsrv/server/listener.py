"""Listener: accepts connections, announces the shutdown, and closes connections in time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Final

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.frames import CloseCode
from websockets.typing import Subprotocol

from agentsrv.delivery.broker import EventBroker
from agentsrv.engine.commands import CommandHandler
from agentsrv.error_text import redact
from agentsrv.errors import OverloadedError
from agentsrv.models.commands import COMMANDS, MAX_DESCRIPTION
from agentsrv.protocol import PROTOCOL, frames
from agentsrv.protocol.session import Session
from agentsrv.protocol.strict_json import MAX_DEPTH, MAX_VALUES
from agentsrv.server.auth.authenticator import Authenticator
from agentsrv.server.auth.handshake import ConnectionAuth, MakeConnectionAuth, identify
from agentsrv.server.batching import QUEUE, STRANGER_FRAME, BatchedConnection, connection_class
from agentsrv.server.connection import Connection
from agentsrv.server.http import HttpRoutes
from agentsrv.server.limits import ConnectionLimiter
from agentsrv.server.loop_scheduler import LoopScheduler
from agentsrv.server.metrics import MetricsPage
from agentsrv.server.open_files import raise_open_file_limit
from agentsrv.server.requests import close
from agentsrv.server.startup_checks import tls_context
from agentsrv.server.static_files import StaticPages
from agentsrv.settings import Settings
from agentsrv.telemetry.server_metrics import ServerMetrics
from agentsrv.telemetry.websockets_logging import hide_frame_dumps

BACKLOG: Final = 1024  # connections that the kernel holds until they are accepted
CLOSE_TIMEOUT: Final = 5.0  # seconds for a closing handshake
PASSING: Final = 100  # sockets in addition to the connections: handshakes and plain requests
RECONNECT_IN: Final = 1.0  # seconds that clients should wait when the server restarts

_log = logging.getLogger("agentsrv.listener")

Adapter = Callable[
    [BatchedConnection, MakeConnectionAuth, CommandHandler, EventBroker], Awaitable[None]
]
"""Serves one authenticated connection in a subprotocol other than agentsrv's own."""


class Listener:
    """The server's port. Owns the handlers of all connections."""

    def __init__(
        self,
        command_handler: CommandHandler,
        broker: EventBroker,
        settings: Settings,
        authenticator: Authenticator,
        measures: ServerMetrics,
        *,
        version: str,
        adapters: Mapping[str, Adapter] = MappingProxyType({}),
    ) -> None:
        self._command_handler = command_handler
        self._broker = broker
        self._settings = settings
        self._authenticator = authenticator
        self._version = version
        self._adapters = adapters
        self._sockets: set[BatchedConnection] = set()
        self._measures = measures
        self.limiter: ConnectionLimiter
        """The quotas that sockets are counted in; set by ``start``."""
        self._server: Server

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._sockets)

    @property
    def behind(self) -> int:
        """How many of them do not read what was sent to them."""
        return sum(socket.paused for socket in self._sockets)

    @property
    def port(self) -> int:
        """The TCP port."""
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        """The URL for clients."""
        host, scheme = self._settings.host, "ws" if self._settings.tls_cert is None else "wss"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    async def start(self) -> None:
        """Bind the address and accept connections.

        Raises:
            ConfigurationError: TLS cannot be set up.
            OSError: The address is in use or does not belong to this machine.
        """
        settings = self._settings
        tls = tls_context(settings)
        fit = raise_open_file_limit(settings.max_connections + PASSING) - PASSING
        self._most = min(settings.max_connections, max(1, fit))
        if self._most < settings.max_connections:
            _log.warning(
                "at most %d connections are accepted because of the limit of open files", self._most
            )
        loop = asyncio.get_running_loop()
        self.limiter = ConnectionLimiter(settings, self._most + PASSING, loop.time)
        handshakes: dict[str, Any] = (
            {"ssl_handshake_timeout": settings.open_timeout} if tls is not None else {}
        )
        self._server = await serve(
            self._handle,
            settings.host,
            settings.port,
            create_connection=connection_class(
                self.limiter,
                self._measures,
                LoopScheduler(loop.call_soon),
                stall_timeout=settings.stall_timeout,
                max_frame=settings.max_frame,
            ),
            process_request=HttpRoutes(
                settings,
                self._authenticator,
                StaticPages(self._version),
                MetricsPage(self._measures, self._authenticator, settings.metrics_principal),
                self._command_handler.check_ready,
            ),
            select_subprotocol=self._select_subprotocol,
            compression=None,  # it costs a quarter of the events/s and 40 KiB per connection
            server_header=f"agentsrv/{self._version}",
            open_timeout=settings.open_timeout,
            ping_interval=settings.ping_interval,
            ping_timeout=settings.ping_timeout,
            close_timeout=CLOSE_TIMEOUT,
            max_size=min(STRANGER_FRAME, settings.max_frame),  # until the client is authenticated
            max_queue=QUEUE,
            logger=hide_frame_dumps(logging.getLogger("agentsrv.websocket")),
            backlog=BACKLOG,
            reuse_port=settings.processes > 1,
            ssl=tls,
            **handshakes,
        )

    def say_goodbye(self, reason: str) -> None:
        """Accept no more connections, and announce the shutdown to every client."""
        self._server.close(close_connections=False)
        for socket in self._sockets:
            if socket.subprotocol not in self._adapters:  # other protocols have no such frame
                socket.post([frames.goaway(reason, RECONNECT_IN)])

    async def close(self) -> None:
        """Close every connection with 1012, and abort those that do not answer.

        Returns after at most ``CLOSE_TIMEOUT`` and a second.
        """
        closing = [
            asyncio.create_task(close(socket, CloseCode.SERVICE_RESTART, "the server restarts"))
            for socket in self._sockets
        ]
        if closing:
            await asyncio.wait(closing, timeout=CLOSE_TIMEOUT)
        for socket in list(self._sockets):
            socket.transport.abort()
        handlers = set(self._server.handler_tasks)
        if handlers:
            await asyncio.wait(handlers, timeout=0.5)
        for handler in self._server.handler_tasks:
            handler.cancel()  # Server.wait_closed() would wait for it

    async def _handle(self, socket: ServerConnection) -> None:
        assert isinstance(socket, BatchedConnection)
        identity = socket.identity
        try:
            self._check_room()
            if identity is not None:
                socket.identify(identity)
        except OverloadedError as refusal:
            await socket.close(CloseCode.TRY_AGAIN_LATER, redact(refusal.message))
            return
        adapter = self._adapters.get(socket.subprotocol or "")
        session = Session(is_authenticated=identity is not None)
        self._sockets.add(socket)
        self._measures.opened += 1
        socket.forget_handshake()
        if adapter is None:
            socket.post([self._hello(socket)])
        try:
            if identity is None:
                seconds = self._settings.auth_timeout
                identity = await identify(socket, session, self._authenticator, seconds)
            if identity is not None:
                socket.identity = identity
                admit = partial(
                    ConnectionAuth, socket, authenticator=self._authenticator, identity=identity
                )
                if adapter is None:
                    await self._serve(socket, session, admit)
                else:
                    await adapter(socket, admit, self._command_handler, self._broker)
        finally:
            self._sockets.discard(socket)

    def _check_room(self) -> None:
        if len(self._sockets) >= self._most:
            raise OverloadedError(f"connection limit reached ({self._most} are open)")

    async def _serve(
        self, socket: BatchedConnection, session: Session, admit: MakeConnectionAuth
    ) -> None:
        with admit(session) as admission:
            await Connection(socket, session, admission, self._command_handler, self._broker).run()

    def _hello(self, socket: BatchedConnection) -> bytes:
        settings, is_known = self._settings, socket.identity is not None
        limits = {
            "max_frame": settings.max_frame,
            "max_depth": MAX_DEPTH,
            "max_values": MAX_VALUES,
            "max_description": MAX_DESCRIPTION,
            "queue_limit": settings.queue_limit,
            "command_rate": settings.command_rate,
            "command_burst": settings.command_burst,
            "principal_connections": settings.principal_connections,
            "principal_running": settings.principal_running,
            "principal_queued": settings.principal_queued,
            "principal_subscriptions": settings.principal_subscriptions,
        }
        return frames.hello(
            version=self._version,
            connection_id=str(socket.id),
            authenticated=is_known and self._authenticator.is_required,
            limits=limits
            if is_known
            else limits
            | {
                "auth_timeout": settings.auth_timeout,
                "max_auth_frame": min(STRANGER_FRAME, settings.max_frame),
            },
            commands=list(COMMANDS),
        )

    def _select_subprotocol(
        self, _: ServerConnection, offered: Sequence[Subprotocol]
    ) -> Subprotocol | None:
        known = (PROTOCOL, *self._adapters)
        return next((Subprotocol(name) for name in known if name in offered), None)
