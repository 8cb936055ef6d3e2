"""Identity: on whose behalf a connection acts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

ANONYMOUS: Final = "anonymous"  # who everybody is where nobody is asked
NOT_ACCEPTED: Final = "the token is not accepted"  # why is for the log, not for who tries


@dataclass(frozen=True, slots=True)
class Identity:
    """On whose behalf a connection acts, and until when."""

    principal: str
    expires_at: float = math.inf
    """Seconds since the epoch."""
    key_id: str | None = None
    """The API key that it rests on, which may be revoked."""


EVERYBODY: Final = Identity(ANONYMOUS)
