"""How long a client waits before it connects again, and how many attempts it makes."""

from __future__ import annotations

from dataclasses import dataclass

from agentsrv.backoff import wait


@dataclass(frozen=True, slots=True)
class Reconnect:
    """Exponential back-off with full jitter: a random part of ``min(cap, base · 2^(n-1))``.

    A failure is an attempt that reached no server, or a connection on which no frame arrived after
    the greeting. With the defaults a client gives up after about a minute and a half.

    Attributes:
        base: Maximum of the first wait, in seconds.
        cap: Maximum of any wait, in seconds.
        attempts: Failures in a row after which the client gives up.
        first_attempts: The same before the first connection. With the default, entering a client
            raises at the first failure.
    """

    base: float = 0.1
    cap: float = 10.0
    attempts: int = 25
    first_attempts: int = 1

    def ceiling(self, failures: int) -> float:
        """Return the maximum of the wait after ``failures`` failures, in seconds."""
        return wait(failures, self.base, self.cap)
