"""Back-off arithmetic: how often an attempt is repeated, and after how long."""

from __future__ import annotations

from dataclasses import dataclass

RETRIES = 3  # attempts after the first
RETRY_BASE = 0.1  # seconds before the first retry
MAX_DELAY = 60.0  # seconds; with the default base reached at the eleventh retry


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential back-off: ``base · 2^(n-1)`` seconds before retry ``n``, counted from 1.

    With the defaults attempts start after 0, 0.1, 0.2 and 0.4 s. There is no jitter: retries of
    one task's steps do not herd, and a reader of the log sees the same numbers each time.
    """

    retries: int = RETRIES
    base: float = RETRY_BASE

    def delay(self, retry: int, at_least: float | None = None) -> float:
        """Seconds to wait before retry ``retry`` (from 1), at most ``MAX_DELAY``.

        ``at_least`` is what a service that was asked too often wants to be left alone for.
        """
        # 2.0 ** n overflows beyond 1023; the cap is reached long before.
        backed_off = self.base * 2.0 ** min(retry - 1, 64)
        return min(max(backed_off, at_least or 0.0), MAX_DELAY)

    def allows(self, failures: int) -> bool:
        """Whether another attempt may follow ``failures`` failed ones."""
        return failures <= self.retries
