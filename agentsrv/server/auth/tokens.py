"""Verifies JSON Web Tokens.

Theory of operation
===================

A token is accepted if all of these hold. Otherwise it is refused, with the same message for every
reason except expiry:

- Its signature is valid for the configured algorithm. The token's own ``alg`` is never used, so a
  client cannot choose a weaker one.
- Its key is known (`signing_keys`), selected by the token's ``kid``.
- ``iss`` and ``aud`` are the configured ones, ``exp`` is in the future; clocks may differ by
  ``LEEWAY``.
- ``sub`` is a printable name of at most ``MAX_SUBJECT`` characters, and none of the reserved names.

The principal is ``sub``, and the identity expires at ``exp`` plus ``LEEWAY``.
"""

from __future__ import annotations

import logging
from typing import Final

import jwt

from agentsrv.errors import UnauthenticatedError
from agentsrv.server.auth.identity import ANONYMOUS, NOT_ACCEPTED, Identity
from agentsrv.server.auth.keys import RESERVED
from agentsrv.server.auth.signing_keys import KeySource

LEEWAY: Final = 30.0  # seconds by which clocks may differ
MAX_SUBJECT: Final = 256  # characters of a principal
CLAIMS: Final = ("exp", "iss", "aud", "sub")

_log = logging.getLogger("agentsrv.listener")


class TokenVerifier:
    """Accepts tokens that are signed, current and meant for this server; see the module."""

    def __init__(self, keys: KeySource, *, algorithm: str, issuer: str, audience: str) -> None:
        self._keys = keys
        self._algorithm = algorithm
        self._issuer = issuer
        self._audience = audience

    async def identify(self, token: str, source: str = "") -> Identity:
        """Return the identity of a token that came from the address ``source``.

        Raises:
            UnauthenticatedError: The token is not accepted. Only an expired token has a message of
                its own; other reasons are in the log.
        """
        try:
            return await self._verify(token, source)
        except jwt.ExpiredSignatureError:
            raise UnauthenticatedError("the token has expired") from None
        except Exception as error:  # noqa: BLE001 - a malformed token may raise anything
            _log.info("a token was refused: %s", type(error).__name__)
            raise UnauthenticatedError(NOT_ACCEPTED) from None

    async def _verify(self, token: str, source: str) -> Identity:
        key = await self._keys.find(jwt.get_unverified_header(token).get("kid"), source)
        if key is None:
            raise jwt.InvalidKeyError
        claims = jwt.decode(
            token,
            key,
            algorithms=[self._algorithm],
            issuer=self._issuer,
            audience=self._audience,
            leeway=LEEWAY,
            options={"require": list(CLAIMS)},
        )
        subject = claims["sub"]
        if not (0 < len(subject) <= MAX_SUBJECT and subject.isprintable()):
            raise jwt.InvalidTokenError
        if subject in (ANONYMOUS, RESERVED):
            raise jwt.InvalidTokenError
        return Identity(subject, expires_at=float(claims["exp"]) + LEEWAY)
