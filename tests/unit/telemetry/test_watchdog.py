"""The watchdog sees a loop that does not turn."""

from __future__ import annotations

import asyncio
import logging
import time

from agentsrv.telemetry.server_metrics import Histogram
from agentsrv.telemetry.watchdog import Watchdog


def block(seconds: float) -> None:
    """Do what an agent must not."""
    time.sleep(seconds)


async def test_a_blocked_loop_is_told_once_with_its_stack(caplog):
    """The log names the function that blocks; a loop that turns is not mentioned. Its lag is counted."""
    caplog.set_level(logging.WARNING, "agentsrv.watchdog")
    lag = Histogram((0.2,))
    with Watchdog(0.05, lag) as watchdog:
        await asyncio.sleep(0.1)
        assert watchdog.stalls == 0
        block(0.3)
        await asyncio.sleep(0.02)
    assert watchdog.stalls == 1
    assert len(caplog.messages) == 1
    assert "in block" in caplog.messages[0]
    assert lag.counts[1] >= 1
    assert lag.total > 0.2
