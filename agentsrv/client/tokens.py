"""The client's token: a constant, or a function that is called before each connection."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from agentsrv.client.errors import ServerUnavailableError
from agentsrv.errors import ConfigurationError

TokenSource = Callable[[], str | Awaitable[str]]
"""Returns the current token; it may be a coroutine function."""
Token = str | TokenSource

TOKEN_PATTERN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, section 2.1


class Tokens:
    """Makes the headers of a handshake.

    Raises:
        ConfigurationError: The token contains characters that HTTP headers do not allow.
    """

    def __init__(self, token: Token | None) -> None:
        self._source = token if callable(token) else None
        self._headers = {} if token is None or callable(token) else _headers(token)

    @property
    def renews(self) -> bool:
        """Whether the next connection may use another token."""
        return self._source is not None

    async def headers(self) -> Mapping[str, str]:
        """Return the headers of the next handshake.

        Raises:
            ConfigurationError: The function returned an invalid token.
            ServerUnavailableError: The function raised an error. It is called again before the
                next attempt.
        """
        if self._source is None:
            return self._headers
        try:
            returned = self._source()
            token = await returned if inspect.isawaitable(returned) else returned
        except Exception as error:
            raise ServerUnavailableError(f"the token function failed: {error!r}") from error
        return _headers(token)


def _headers(token: object) -> dict[str, str]:
    text = token.strip() if isinstance(token, str) else ""  # a file ends with a line end
    if not TOKEN_PATTERN.fullmatch(text):
        raise ConfigurationError(
            "invalid token: it is empty or contains characters that HTTP headers do not allow"
        )
    return {"Authorization": f"Bearer {text}"}
