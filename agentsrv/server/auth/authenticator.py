"""Authenticator: turns tokens into identities.

Theory of operation
===================

A token is an API key if it begins with ``agentsrv_``, otherwise a JSON Web Token. It arrives in the
``Authorization`` header, as a subprotocol (browsers cannot set headers), or in an ``auth`` frame.

`Authenticator.remaining` answers for how long an identity is still valid, so that connections can
be closed when a token expires or a key is revoked. Errors do not quote the token and do not reveal
which part of it was wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from agentsrv.errors import ConfigurationError, UnauthenticatedError, missing_extra
from agentsrv.models.commands import MAX_TOKEN
from agentsrv.server.auth.identity import ANONYMOUS_IDENTITY, NOT_ACCEPTED, Identity
from agentsrv.server.auth.keys import PREFIX, KeyRing, parse_keys
from agentsrv.settings import Settings

if TYPE_CHECKING:
    from agentsrv.server.auth.tokens import TokenVerifier

UNAUTHENTICATED: Final = 4401  # close code: no valid token, or no longer valid
SCHEME: Final = "bearer"
PROXY_SCHEMES: Final = frozenset({"basic", "digest", "negotiate", "ntlm"})
"""Schemes of credentials for a proxy, which this server ignores."""
SUBPROTOCOL: Final = "bearer."  # prefix of a token that a browser sends as a subprotocol


class Authenticator:
    """Checks tokens.

    Args:
        keys: The API keys; ``None`` if API keys are not accepted.
        tokens: Verifies JSON Web Tokens; ``None`` if they are not accepted.
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
        """Whether clients must authenticate; otherwise all of them are ``anonymous``."""
        return self._keys is not None or self._tokens is not None

    async def identify(self, token: str, source: str = "") -> Identity:
        """Return the identity of a token that came from the address ``source``.

        Raises:
            UnauthenticatedError: The token is not accepted. The error does not quote it.
        """
        if not self.is_required:
            return ANONYMOUS_IDENTITY
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
        """Return the seconds for which the identity is valid; 0 if its key was revoked."""
        if identity.key_id is not None and (
            self._keys is None or identity.key_id not in self._keys
        ):
            return 0.0
        return max(0.0, identity.expires_at - self._now())


async def open_authenticator(settings: Settings, now: Callable[[], float]) -> Authenticator:
    """Return the authenticator for ``settings``.

    Raises:
        ConfigurationError: A file, a URL or a value is invalid, or the extra is missing.
    """
    keys = None
    if settings.key_file is not None or settings.api_keys is not None:
        lines = settings.api_keys.get_secret_value() if settings.api_keys is not None else ""
        keys = KeyRing(settings.key_file, parse_keys(lines.replace(",", "\n"), "api_keys"))
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
    """Return the token of a handshake; ``None`` if it contains none.

    Credentials for a proxy in front of the server are ignored, because browsers send them as well.

    Args:
        authorizations: Values of its ``Authorization`` headers.
        subprotocols: Values of its ``Sec-WebSocket-Protocol`` headers.

    Raises:
        UnauthenticatedError: There are several tokens, or credentials other than a bearer token.
    """
    offered = [name.strip() for value in subprotocols for name in value.split(",")]
    tokens = [name[len(SUBPROTOCOL) :] for name in offered if name.startswith(SUBPROTOCOL)]
    for value in authorizations:
        scheme, _, token = value.strip().partition(" ")
        if scheme.lower() in PROXY_SCHEMES:
            continue
        if scheme.lower() != SCHEME:
            raise UnauthenticatedError("expected Authorization: Bearer TOKEN")
        tokens.append(token.strip())
    if len(tokens) > 1:
        raise UnauthenticatedError(f"found {len(tokens)} tokens; expected one")
    return tokens[0] if tokens else None
