"""Shares and rates: pure functions and buckets, with the time as an argument."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

MAX_LIST: Final = 500  # tasks on a page


class Use(NamedTuple):
    """The usage of one server by one principal."""

    connections: int = 0
    subscriptions: int = 0
    rate: float = 0.0
    """Commands a second that it sent lately, including refused ones."""


def fair_share(rate: float, others: Sequence[float]) -> float:
    """Return the max-min fair share of ``rate`` for one participant.

    ``others`` are the demands of the other participants. A demand below its equal part is granted
    in full, and the participants with higher demands share the rest equally. The result is never
    less than an equal part, and the granted shares together never exceed ``rate``.
    """
    left, sharing = rate, len(others) + 1
    for wanted in sorted(others):
        if wanted >= left / sharing:
            break
        left -= wanted
        sharing -= 1
    return left / sharing


class TokenBucket:
    """Admits ``rate`` tokens a second, and up to ``burst`` at once after a pause.

    Times are seconds of a monotonic clock.
    """

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = now

    def change(self, rate: float, burst: float, now: float) -> None:
        """Set another rate and burst from now on; keep the available tokens up to ``burst``."""
        self._refill(now)
        self._rate = rate
        self._burst = burst

    def take(self, now: float, tokens: float = 1.0) -> float:
        """Take all of the tokens, or none.

        A request for more than ``burst`` is admitted when the bucket is full; the rest is owed.

        Returns:
            0.0 if the tokens were taken; otherwise the seconds until enough are available.
        """
        self._refill(now)
        missing = min(tokens, self._burst) - self._tokens
        if missing > 0:
            return missing / self._rate
        self._tokens -= tokens
        return 0.0

    def charge(self, now: float, tokens: float) -> float:
        """Take tokens for work that is already done, even if they are not available.

        Returns:
            Seconds until the debt is paid; 0.0 without a debt.
        """
        self._refill(now)
        self._tokens -= tokens
        return max(0.0, -self._tokens / self._rate)

    def _refill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
