"""Exponential back-off: the seconds to wait before each further attempt."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count

_DOUBLINGS = 64  # reaches every cap; 2.0 ** n would overflow beyond 1023


def wait(failures: int, base: float, cap: float) -> float:
    """Return the seconds to wait after that many failures: ``base · 2^(n-1)``, at most ``cap``."""
    return min(cap, base * 2.0 ** min(max(failures - 1, 0), _DOUBLINGS))


def backoff(base: float, cap: float, jitter: float = 0.0) -> Iterator[float]:
    """Yield the seconds to wait after the first failure, the second, and so on, without end.

    Args:
        base: Seconds of the first wait.
        cap: Seconds of the longest wait.
        jitter: The fraction of each wait by which it is randomly shortened, so that clients that
            failed together do not retry together.
    """
    for failures in count(1):
        yield wait(failures, base, cap) * (1.0 - jitter * random.random())  # noqa: S311 - to spread
