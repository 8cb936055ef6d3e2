"""Retries of a step: how often an attempt is repeated, and after how long."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from agentsrv.backoff import wait

RETRIES = 3  # attempts after the first
RETRY_BASE = 1.0  # seconds before the first retry: a service that failed needs some to recover
LOCAL_BASE = 0.1  # seconds, of agents that compute here and call no service
MAX_DELAY = 60.0  # seconds; with the default base reached at the seventh retry


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential back-off: ``base · 2^(n-1)`` seconds before retry ``n``, counted from 1.

    With ``jitter`` each wait is shortened at random, by up to half, so that tasks that failed
    together do not return together ("equal jitter"). With the defaults the waits before the
    retries are 0.5 to 1, 1 to 2 and 2 to 4 s.
    """

    retries: int = RETRIES
    base: float = RETRY_BASE
    jitter: bool = True

    def delay(
        self,
        retry: int,
        at_least: float | None = None,
        chance: Callable[[], float] = random.random,
    ) -> float:
        """Seconds to wait before retry ``retry`` (from 1), at most ``MAX_DELAY``.

        ``at_least`` is the wait that an overloaded service asks for; jitter does not shorten it.
        ``chance`` returns a number from 0 to 1.
        """
        backed_off = wait(retry, self.base, MAX_DELAY)
        if self.jitter:
            backed_off = round(backed_off * (1.0 - chance() / 2.0), 3)
        return min(max(backed_off, at_least or 0.0), MAX_DELAY)

    def allows(self, failures: int) -> bool:
        """Whether another attempt may follow ``failures`` failed ones."""
        return failures <= self.retries


LOCAL = RetryPolicy(base=LOCAL_BASE, jitter=False)
"""Waits of 0.1, 0.2 and 0.4 s: for agents that call no service."""
