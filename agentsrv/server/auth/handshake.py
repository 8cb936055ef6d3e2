"""Authentication of a connection in its first frames, and its end when the token expires.

Theory of operation
===================

A client without a token in its handshake has ``auth_timeout`` seconds for an ``auth`` command
(`identify`). Until then it may only ``ping`` and ask for ``help``. A wrong token closes the
connection, so each attempt costs a handshake.

Afterwards, `ConnectionAuth` checks the identity with a timer: when the token expires, and at least
every ``RECHECK_INTERVAL`` seconds for revoked keys. An invalid identity closes the connection with
4401. The session is marked first, because the client may send commands until the close frame has
been answered. ``auth`` on an open connection replaces the token by a newer one of the same
principal, without interruption.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from typing import Any, Final, Protocol, Self

from websockets.frames import CloseCode

from agentsrv.errors import InvalidStateError, OverloadedError, UnauthenticatedError
from agentsrv.models import commands as c
from agentsrv.protocol import frames
from agentsrv.protocol.session import Session, help_reply
from agentsrv.server.auth.authenticator import UNAUTHENTICATED, Authenticator
from agentsrv.server.auth.identity import Identity
from agentsrv.server.batching import BatchedConnection
from agentsrv.server.requests import close, next_request

RECHECK_INTERVAL: Final = 10.0  # seconds within which a revoked key closes its connections

_log = logging.getLogger("agentsrv.listener")


async def identify(
    socket: BatchedConnection, session: Session, authenticator: Authenticator, seconds: float
) -> Identity | None:
    """Wait for the ``auth`` command of a connection; answer ``ping`` and ``help`` until then.

    The connection is closed with 4401 after ``seconds`` or for a token that is not accepted, and
    with 1013 if the principal has too many connections.

    Returns:
        The identity; ``None`` if the connection is over.
    """
    code: int = UNAUTHENTICATED
    try:
        async with asyncio.timeout(seconds):
            return await _ask(socket, session, authenticator)
    except TimeoutError:
        reason = f"no token within {seconds:g} s"
    except UnauthenticatedError as refusal:
        reason = refusal.message
    except OverloadedError as refusal:
        code, reason = CloseCode.TRY_AGAIN_LATER, refusal.message
    _log.info("refused %s: %s", socket.remote_address[0], reason, extra={"about": socket.about})
    await close(socket, code, reason)
    return None


async def _ask(
    socket: BatchedConnection, session: Session, authenticator: Authenticator
) -> Identity | None:
    while (request := await next_request(socket, session)) is not None:
        command, result = request.command, dict[str, Any]()
        if isinstance(command, c.Auth):
            try:
                token = command.token.get_secret_value()
                identity = await authenticator.identify(token, socket.quota.name)
                socket.identify(identity)
            except (UnauthenticatedError, OverloadedError) as refusal:
                socket.measures.commands[request.name, refusal.code] += 1
                socket.post([frames.error(request.name, command.id, refusal)])
                raise
            session.is_authenticated = True
            socket.post([frames.reply(request.name, command.id, {"principal": identity.principal})])
            return identity
        if isinstance(command, c.Help):
            result = help_reply()
        socket.post([frames.reply(request.name, command.id, result)])
    return None


class AuthenticatedSession(Protocol):
    """The part of a session that knows whether its connection is authenticated."""

    is_authenticated: bool


class ConnectionAuth:
    """The identity of a connection; closes the connection with 4401 when it is no longer valid.

    Used as a context manager around the connection's handler. After the identity has become
    invalid, frames of the client are no longer executed.
    """

    def __init__(
        self,
        socket: BatchedConnection,
        session: AuthenticatedSession,
        authenticator: Authenticator,
        identity: Identity,
    ) -> None:
        self._socket = socket
        self._session = session
        self._authenticator = authenticator
        self._identity = identity
        self._timer: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None

    @property
    def principal(self) -> str:
        """The principal of the connection, which does not change."""
        return self._identity.principal

    async def renew(self, token: str) -> dict[str, Any]:
        """Replace the token by another one of the same principal; return the result of ``auth``.

        Raises:
            UnauthenticatedError: The token is not accepted; the old one stays in use.
            InvalidStateError: The token belongs to another principal.
        """
        identity = await self._authenticator.identify(token)
        if identity.principal != self.principal:
            raise InvalidStateError(
                f"this connection belongs to {self.principal!r}; expected a new connection for "
                "another principal"
            )
        self._identity = identity
        self._stop()
        self._watch()
        return {"principal": identity.principal}

    def __enter__(self) -> Self:
        self._watch()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        if self._closing is not None:
            self._closing.cancel()

    def _watch(self) -> None:
        identity = self._identity
        if identity.key_id is None and math.isinf(identity.expires_at):
            return
        seconds = min(RECHECK_INTERVAL, self._authenticator.remaining(identity))
        self._timer = asyncio.get_running_loop().call_later(seconds, self._check)

    def _check(self) -> None:
        if self._authenticator.remaining(self._identity) > 0:
            self._watch()
            return
        text, extra = "a token of %r is no longer valid", {"about": self._socket.about}
        _log.info(text, self.principal, extra=extra)
        self._session.is_authenticated = False
        self._closing = asyncio.create_task(
            close(self._socket, UNAUTHENTICATED, "the token is no longer valid")
        )

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


MakeConnectionAuth = Callable[[AuthenticatedSession], ConnectionAuth]
"""Creates the `ConnectionAuth` of a connection with this session."""
