"""Reconnect: how long a client waits before it connects again, and how often it tries."""

from __future__ import annotations

from dataclasses import dataclass

from agentsrv.backoff import wait


@dataclass(frozen=True, slots=True)
class Reconnect:
    """Exponential back-off with full jitter: a random part of ``min(cap, base · 2^(n-1))``.

    A failure is an attempt that reached no server, or a connection on which nothing but the
    greeting arrived. With the defaults a client gives up after about a minute and a half.

    Attributes:
        base: Seconds that the first wait lasts at most.
        cap: Seconds that any wait lasts at most.
        attempts: Failures in a row after which the client gives up.
        first_attempts: The same before the first connection: ``async with Client(url)`` tells
            at once that there is no server, unless it is asked to wait for one.
    """

    base: float = 0.1
    cap: float = 10.0
    attempts: int = 25
    first_attempts: int = 1

    def ceiling(self, failures: int) -> float:
        """Seconds that the wait after ``failures`` failures lasts at most."""
        return wait(failures, self.base, self.cap)
