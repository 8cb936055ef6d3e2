"""Who somebody is: a token becomes an identity, for as long as it holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from agentsrv.errors import Unauthenticated
from agentsrv.server.keys import PREFIX, KeyRing, parse_keys
from agentsrv.settings import Settings

ANONYMOUS: Final = "anonymous"  # who everybody is where nobody is asked
UNAUTHENTICATED: Final = 4401  # close code: nobody who may be here, or not any more
SCHEME: Final = "bearer"
SUBPROTOCOL: Final = "bearer."  # before a token that a browser passes as a subprotocol


@dataclass(frozen=True, slots=True)
class Identity:
    """On whose behalf a connection acts, and until when."""

    principal: str
    expires_at: float = math.inf
    """Seconds since the epoch."""
    key_id: str | None = None
    """The API key that it rests on, which may be revoked."""


EVERYBODY: Final = Identity(ANONYMOUS)


class Authenticator:
    """Knows the tokens that are accepted.

    Args:
        keys: The API keys; ``None``: there are none.
        now: Seconds since the epoch.
    """

    def __init__(self, keys: KeyRing | None, now: Callable[[], float]) -> None:
        self._keys = keys
        self._now = now

    @property
    def is_required(self) -> bool:
        """Whether anybody is asked at all; if not, everybody is ``anonymous``."""
        return self._keys is not None

    async def identify(self, token: str) -> Identity:
        """Whose token it is.

        Raises:
            Unauthenticated: It is nobody's. The error does not quote it.
        """
        if not self.is_required:
            return EVERYBODY
        if self._keys is not None and token.startswith(PREFIX):
            key = self._keys.find(token)
            if key is not None:
                return Identity(key.principal, key_id=key.key_id)
        raise Unauthenticated("the token is not accepted")

    def holds(self, identity: Identity) -> bool:
        """Whether the identity may go on: it has not expired, and its key is not revoked."""
        if identity.expires_at <= self._now():
            return False
        return identity.key_id is None or (self._keys is not None and identity.key_id in self._keys)


def make_authenticator(settings: Settings, now: Callable[[], float]) -> Authenticator:
    """What ``settings`` say about who may come in.

    Raises:
        ConfigurationError: A file or a value cannot be used.
    """
    keys = None
    if settings.key_file is not None or settings.api_keys is not None:
        given = settings.api_keys.get_secret_value() if settings.api_keys is not None else ""
        keys = KeyRing(settings.key_file, parse_keys(given.replace(",", "\n"), "api_keys"))
    return Authenticator(keys, now)


def token_of(authorizations: Sequence[str], subprotocols: Sequence[str]) -> str | None:
    """The token that a handshake brings, if it brings one.

    Args:
        authorizations: Values of its ``Authorization`` headers.
        subprotocols: Values of its ``Sec-WebSocket-Protocol`` headers.

    Raises:
        Unauthenticated: There is more than one, or something else than a bearer token.
    """
    offered = [name.strip() for value in subprotocols for name in value.split(",")]
    tokens = [name[len(SUBPROTOCOL) :] for name in offered if name.startswith(SUBPROTOCOL)]
    for value in authorizations:
        scheme, _, token = value.strip().partition(" ")
        if scheme.lower() != SCHEME:
            raise Unauthenticated("expected Authorization: Bearer TOKEN")
        tokens.append(token.strip())
    if len(tokens) > 1:
        raise Unauthenticated(f"found {len(tokens)} tokens; expected one")
    return tokens[0] if tokens else None
