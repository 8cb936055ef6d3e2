"""JSON Web Tokens: whose they are, and until when."""

from __future__ import annotations

import logging
from typing import Final

import jwt

from agentsrv.errors import UnauthenticatedError
from agentsrv.server.auth.identity import ANONYMOUS, NOT_ACCEPTED, Identity
from agentsrv.server.auth.keys import RESERVED
from agentsrv.server.auth.signing_keys import Keys

LEEWAY: Final = 30.0  # seconds by which clocks may differ
MAX_SUBJECT: Final = 256  # characters of a principal
CLAIMS: Final = ("exp", "iss", "aud", "sub")

_log = logging.getLogger("agentsrv.listener")


class TokenVerifier:
    """Knows whose a token is, if it is signed, current and meant for this server.

    The algorithm is the configured one and never the token's to choose.
    """

    def __init__(self, keys: Keys, *, algorithm: str, issuer: str, audience: str) -> None:
        self._keys = keys
        self._algorithm = algorithm
        self._issuer = issuer
        self._audience = audience

    async def identify(self, token: str, source: str = "") -> Identity:
        """Whose token it is, which came from the address ``source``.

        Raises:
            UnauthenticatedError: It is not accepted. The log tells why, the error only if it has
                expired.
        """
        try:
            return await self._verify(token, source)
        except jwt.ExpiredSignatureError:
            raise UnauthenticatedError("the token has expired") from None
        except Exception as error:  # noqa: BLE001 - whatever a stranger's bytes make a parser raise
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
