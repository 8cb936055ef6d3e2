"""Who a client says it is: a token for good, or one that is asked for before each connection."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from agentsrv.client.errors import ServerUnavailableError
from agentsrv.errors import ConfigurationError

TokenSource = Callable[[], str | Awaitable[str]]
"""Gives the token that counts now; it may be a coroutine function."""
Token = str | TokenSource

TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, section 2.1


class Tokens:
    """Makes the headers of a handshake.

    Raises:
        ConfigurationError: The token cannot be one.
    """

    def __init__(self, token: Token | None) -> None:
        self._source = token if callable(token) else None
        self._headers = {} if token is None or callable(token) else _headers(token)

    @property
    def renews(self) -> bool:
        """Whether the next connection may have another token."""
        return self._source is not None

    async def headers(self) -> Mapping[str, str]:
        """For the next handshake.

        Raises:
            ConfigurationError: What the source gives cannot be a token.
            ServerUnavailableError: It gives none; it may be asked again.
        """
        if self._source is None:
            return self._headers
        try:
            given = self._source()
            token = await given if inspect.isawaitable(given) else given
        except Exception as error:
            raise ServerUnavailableError(f"the source of tokens gives none: {error!r}") from error
        return _headers(token)


def _headers(token: object) -> dict[str, str]:
    text = token.strip() if isinstance(token, str) else ""  # a file ends with a line end
    if not TOKEN.fullmatch(text):
        raise ConfigurationError(
            "invalid token: it is empty or contains characters that HTTP headers do not allow"
        )
    return {"Authorization": f"Bearer {text}"}
