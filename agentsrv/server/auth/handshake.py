"""The way in and, when a token does not hold any more, out."""

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

RECHECK: Final = 10.0  # seconds within which an open connection's key is found revoked

_log = logging.getLogger("agentsrv.listener")


async def identify(
    socket: BatchedConnection, session: Session, authenticator: Authenticator, seconds: float
) -> Identity | None:
    """Wait for a connection to say who it is; until then it may ping and ask for help.

    A connection that does not within ``seconds``, or by a token that is nobody's, is closed with
    4401; one too many of whose it is with 1013.

    Returns:
        Who it is; ``None`` where the connection is over.
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
            socket.post([frames.reply(request.name, command.id, _told(identity))])
            return identity
        if isinstance(command, c.Help):
            result = help_reply()
        socket.post([frames.reply(request.name, command.id, result)])
    return None


class AuthenticatedSession(Protocol):
    """What is to be told where a connection may do nothing any more: a session."""

    is_authenticated: bool


class ConnectionAuth:
    """Who a connection is; where that does not hold any more, it is closed with 4401.

    Within the ``with`` block it looks when the token expires, and every ``RECHECK`` seconds
    whether a key was revoked. A client that goes on sending while it is closed is answered no more.
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
        """On whose behalf the connection acts, as long as it lives."""
        return self._identity.principal

    async def renew(self, token: str) -> dict[str, Any]:
        """Go on by another token of the same principal; the result of ``auth``.

        Raises:
            UnauthenticatedError: It is nobody's; the connection goes on as before.
            InvalidStateError: It is somebody else's.
        """
        identity = await self._authenticator.identify(token)
        if identity.principal != self.principal:
            raise InvalidStateError(
                f"this connection is {self.principal!r}; expected another connection for another "
                "principal"
            )
        self._identity = identity
        self._stop()
        self._watch()
        return _told(identity)

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
        seconds = min(RECHECK, self._authenticator.remaining(identity))
        self._timer = asyncio.get_running_loop().call_later(seconds, self._check)

    def _check(self) -> None:
        if self._authenticator.remaining(self._identity) > 0:
            self._watch()
            return
        told, extra = "a token of %r does not count any more", {"about": self._socket.about}
        _log.info(told, self.principal, extra=extra)
        self._session.is_authenticated = False
        self._closing = asyncio.create_task(
            close(self._socket, UNAUTHENTICATED, "the token does not count any more")
        )

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


MakeConnectionAuth = Callable[[AuthenticatedSession], ConnectionAuth]
"""Admits the client of one connection, whose frames the given session reads."""


def _told(identity: Identity) -> dict[str, Any]:
    return {"principal": identity.principal}
