"""Exponential back-off: the seconds before each further attempt at something that has failed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count

_DOUBLINGS = 64  # after which every cap is reached; 2.0 ** n overflows beyond 1023


def wait(failures: int, base: float, cap: float) -> float:
    """Return the seconds to wait after that many failures: ``base · 2^(n-1)``, at most ``cap``."""
    return min(cap, base * 2.0 ** min(max(failures - 1, 0), _DOUBLINGS))


def backoff(base: float, cap: float, jitter: float = 0.0) -> Iterator[float]:
    """Yield the seconds to wait after the first failure, the second, and so on without an end.

    Args:
        base: Seconds of the first wait.
        cap: Seconds of the longest wait.
        jitter: The part of each wait by which chance may shorten it, so that those who failed
            together do not return together.
    """
    for failures in count(1):
        yield wait(failures, base, cap) * (1.0 - jitter * random.random())  # noqa: S311 - to spread
