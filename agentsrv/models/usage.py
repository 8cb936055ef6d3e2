"""How much of something may be used: pure, with the time as an argument."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

MAX_LIST: Final = 500  # tasks on a page


class Use(NamedTuple):
    """What a principal uses of one server."""

    connections: int = 0
    subscriptions: int = 0
    rate: float = 0.0
    """Commands a second that it sent lately, refused ones among them."""


def fair_share(rate: float, others: Sequence[float]) -> float:
    """What somebody may have of ``rate`` beside others, by what those want of it.

    Who wants little has that, and all who want more have the same. So it is never less than an
    equal part, and all that others leave; and what everybody has by it of what he wants is
    together never more than ``rate``.
    """
    left, sharing = rate, len(others) + 1
    for wanted in sorted(others):
        if wanted >= left / sharing:
            break
        left -= wanted
        sharing -= 1
    return left / sharing


class TokenBucket:
    """Lets ``rate`` a second through, and ``burst`` at once where it was quiet before.

    Times are seconds of a clock that does not go back.
    """

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = now

    def change(self, rate: float, burst: float, now: float) -> None:
        """Let another rate and burst hold from now on; a token that is there stays, if it fits."""
        self._refill(now)
        self._rate = rate
        self._burst = burst

    def take(self, now: float, tokens: float = 1.0) -> float:
        """Take tokens, or none of them.

        More than ``burst`` are let through when the bucket is full; the rest is then owed.

        Returns:
            0.0, or the seconds until there are enough; then none was taken.
        """
        self._refill(now)
        missing = min(tokens, self._burst) - self._tokens
        if missing > 0:
            return missing / self._rate
        self._tokens -= tokens
        return 0.0

    def charge(self, now: float, tokens: float) -> float:
        """Take tokens for work that is already done, whether they are there or not.

        Returns:
            Seconds until what is owed is paid back; 0.0 if nothing is owed.
        """
        self._refill(now)
        self._tokens -= tokens
        return max(0.0, -self._tokens / self._rate)

    def _refill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
