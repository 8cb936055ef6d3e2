"""How often something may be done: pure, with the time as an argument."""

from __future__ import annotations


class TokenBucket:
    """Lets ``rate`` a second through, and ``burst`` at once where it was quiet before.

    Times are seconds of a clock that does not go back.
    """

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: int, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._at = now

    def take(self, now: float) -> float:
        """Take a token.

        Returns:
            0.0, or the seconds until there is one; then none was taken.
        """
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return 0.0
        return (1.0 - self._tokens) / self._rate
