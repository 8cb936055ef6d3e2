"""Reports a connection that is lost, or does not answer, to the user of a command that waits.

The client reports a lost connection at once. A connection that is open but silent (a stopped
server, a cut network) is noticed by the client's own pings only after 20 to 40 seconds. Therefore a
``ping`` command is sent each second, and one without a reply within a second is reported. The
connection is kept, because the server may only be busy.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from agentsrv.client import Client, Outage
from agentsrv.errors import AgentsrvError

PING_INTERVAL: Final = 1.0  # seconds between two pings, and for the reply to each
TASK_CONTINUES: Final = "the task continues on the server"


class ConnectionWatch:
    """Reports each trouble with a connection once, and its end.

    Args:
        tell: Called with a sentence for the user.
        clock: Seconds of a monotonic clock.
    """

    def __init__(
        self, tell: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tell = tell
        self._clock = clock
        self._since: float | None = None
        self.trouble = ""
        """The current trouble, in words; empty without one."""

    def changed(self, outage: Outage | None) -> None:
        """Record what the client reports."""
        if outage is None:
            self._end("connected again")
        else:
            self._begin(outage.reason)

    def silent(self) -> None:
        """Record that a ping was not answered in time."""
        if self._since is None:
            self._begin("the server does not answer")

    def answered(self) -> None:
        """Record that a ping was answered."""
        self._end("the server answers again")

    def _begin(self, reason: str) -> None:
        self.trouble = reason
        if self._since is None:
            self._since = self._clock()
            self._tell(f"{reason}; {TASK_CONTINUES}, trying again")

    def _end(self, how: str) -> None:
        since, self._since = self._since, None
        self.trouble = ""
        if since is not None:
            self._tell(f"{how} after {self._clock() - since:.0f} s; no event is missing")


@asynccontextmanager
async def watched(client: Client, tell: Callable[[str], None]) -> AsyncIterator[ConnectionWatch]:
    """Report troubles with the connection within the block."""
    watch = ConnectionWatch(tell)
    client.on_connection = watch.changed
    pulse = asyncio.create_task(_ping(client, watch), name="agentsrv-pulse")
    try:
        yield watch
    finally:
        client.on_connection = None
        pulse.cancel()
        await asyncio.wait({pulse})


async def _ping(client: Client, watch: ConnectionWatch) -> None:
    while True:
        await asyncio.sleep(PING_INTERVAL)
        answer = asyncio.ensure_future(client.ping())
        try:
            done, _ = await asyncio.wait({answer}, timeout=PING_INTERVAL)
            if not done:
                watch.silent()
            await answer
        except AgentsrvError:
            return  # the command that waits for the task raises it
        finally:
            answer.cancel()
        watch.answered()
