"""Who somebody is: a token becomes an identity, for as long as it holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from agentsrv.errors import ConfigurationError, UnauthenticatedError, missing_extra
from agentsrv.models.commands import MAX_TOKEN
from agentsrv.server.auth.identity import EVERYBODY, NOT_ACCEPTED, Identity
from agentsrv.server.auth.keys import PREFIX, KeyRing, parse_keys
from agentsrv.settings import Settings

if TYPE_CHECKING:
    from agentsrv.server.auth.tokens import TokenVerifier

UNAUTHENTICATED: Final = 4401  # close code: nobody who may be here, or not any more
SCHEME: Final = "bearer"
OF_PROXIES: Final = frozenset({"basic", "digest", "negotiate", "ntlm"})
"""Schemes of credentials that are never for this server."""
SUBPROTOCOL: Final = "bearer."  # before a token that a browser passes as a subprotocol


class Authenticator:
    """Knows the tokens that are accepted.

    Args:
        keys: The API keys; ``None``: none are taken.
        tokens: Knows JSON Web Tokens; ``None``: none are taken.
        now: Seconds since the epoch.
    """

    def __init__(
        self, keys: KeyRing | None, tokens: TokenVerifier | None, now: Callable[[], float]
    ) -> None:
        self._keys = keys
        self._tokens = tokens
        self._now = now

    @property
    def is_required(self) -> bool:
        """Whether anybody is asked at all; if not, everybody is ``anonymous``."""
        return self._keys is not None or self._tokens is not None

    async def identify(self, token: str, source: str = "") -> Identity:
        """Whose token it is, which came from the address ``source``.

        Raises:
            UnauthenticatedError: It is nobody's. The error does not quote it.
        """
        if not self.is_required:
            return EVERYBODY
        if len(token) > MAX_TOKEN:
            raise UnauthenticatedError(NOT_ACCEPTED)
        if token.startswith(PREFIX):
            key = self._keys.find(token) if self._keys is not None else None
            if key is not None:
                return Identity(key.principal, key_id=key.key_id)
        elif self._tokens is not None:
            return await self._tokens.identify(token, source)
        raise UnauthenticatedError(NOT_ACCEPTED)

    def remaining(self, identity: Identity) -> float:
        """Seconds for which the identity may go on; 0 where its key was revoked."""
        if identity.key_id is not None and (
            self._keys is None or identity.key_id not in self._keys
        ):
            return 0.0
        return max(0.0, identity.expires_at - self._now())


async def open_authenticator(settings: Settings, now: Callable[[], float]) -> Authenticator:
    """What ``settings`` say about who may come in.

    Raises:
        ConfigurationError: A file, a URL or a value cannot be used, or the extra is missing.
    """
    keys = None
    if settings.key_file is not None or settings.api_keys is not None:
        given = settings.api_keys.get_secret_value() if settings.api_keys is not None else ""
        keys = KeyRing(settings.key_file, parse_keys(given.replace(",", "\n"), "api_keys"))
    return Authenticator(keys, await _open_tokens(settings), now)


async def _open_tokens(settings: Settings) -> TokenVerifier | None:
    algorithm, issuer = settings.jwt_algorithm, settings.jwt_issuer
    audience, jwks = settings.jwt_audience, settings.jwt_jwks
    if not (algorithm or issuer or audience or jwks or settings.jwt_key):
        return None
    if not (algorithm and issuer and audience):
        raise ConfigurationError(
            f"jwt_algorithm is {algorithm!r}, jwt_issuer {issuer!r}, jwt_audience {audience!r}; "
            "JSON Web Tokens need all three"
        )
    if find_spec("jwt") is None or find_spec("cryptography") is None:
        raise ConfigurationError(missing_extra("authentication by JSON Web Tokens", "jwt"))
    from agentsrv.server.auth.signing_keys import open_keys  # noqa: PLC0415 - an extra
    from agentsrv.server.auth.tokens import TokenVerifier  # noqa: PLC0415 - the same

    keys = await open_keys(settings.jwt_key, jwks, algorithm)
    return TokenVerifier(keys, algorithm=algorithm, issuer=issuer, audience=audience)


def token_of(authorizations: Sequence[str], subprotocols: Sequence[str]) -> str | None:
    """The token that a handshake brings, if it brings one.

    Credentials for a proxy in front of the server are ignored: browsers send them along.

    Args:
        authorizations: Values of its ``Authorization`` headers.
        subprotocols: Values of its ``Sec-WebSocket-Protocol`` headers.

    Raises:
        UnauthenticatedError: There is more than one, or something else than a bearer token.
    """
    offered = [name.strip() for value in subprotocols for name in value.split(",")]
    tokens = [name[len(SUBPROTOCOL) :] for name in offered if name.startswith(SUBPROTOCOL)]
    for value in authorizations:
        scheme, _, token = value.strip().partition(" ")
        if scheme.lower() in OF_PROXIES:
            continue
        if scheme.lower() != SCHEME:
            raise UnauthenticatedError("expected Authorization: Bearer TOKEN")
        tokens.append(token.strip())
    if len(tokens) > 1:
        raise UnauthenticatedError(f"found {len(tokens)} tokens; expected one")
    return tokens[0] if tokens else None
