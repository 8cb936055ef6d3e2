"""Identity: the principal of a connection."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

ANONYMOUS: Final = "anonymous"  # the principal of all clients without authentication
NOT_ACCEPTED: Final = "the token is not accepted"  # clients do not learn the reason; the log has it


@dataclass(frozen=True, slots=True)
class Identity:
    """The principal of a connection, and the time until which its token is valid."""

    principal: str
    expires_at: float = math.inf
    """Seconds since the epoch."""
    key_id: str | None = None
    """The API key of the token, if it is one; it may be revoked."""


ANONYMOUS_IDENTITY: Final = Identity(ANONYMOUS)
