"""What a user learns of a connection that is lost, or silent, while a command waits.

Two things are watched. The client reports a connection that ended, at once. A connection that is
open and silent (a stopped server, a cut network) would be noticed by the client's pings after 20 to
40 seconds only; so a ``ping`` command is sent each second, and one without an answer within a
second is reported. The connection is kept: the server may only be busy.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from agentsrv.client import Client, Outage
from agentsrv.errors import AgentsrvError

PULSE: Final = 1.0  # seconds between two pings, and for the answer to each
GOES_ON: Final = "the task continues on the server"


class ConnectionWatch:
    """Tells a function what is wrong with a connection, once, and when that is over."""

    def __init__(
        self, tell: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tell = tell
        self._clock = clock
        self._since: float | None = None
        self.trouble = ""
        """What is wrong now, in words; empty where nothing is."""

    def changed(self, outage: Outage | None) -> None:
        """Take note of what the client reports."""
        if outage is None:
            self._end("connected again")
        else:
            self._begin(outage.reason)

    def silent(self) -> None:
        """Take note that a ping was not answered in time."""
        if self._since is None:
            self._begin("the server does not answer")

    def answered(self) -> None:
        """Take note that one was."""
        self._end("the server answers again")

    def _begin(self, reason: str) -> None:
        self.trouble = reason
        if self._since is None:
            self._since = self._clock()
            self._tell(f"{reason}; {GOES_ON}, trying again")

    def _end(self, how: str) -> None:
        since, self._since = self._since, None
        self.trouble = ""
        if since is not None:
            self._tell(f"{how} after {self._clock() - since:.0f} s; no event is missing")


@asynccontextmanager
async def watched(client: Client, tell: Callable[[str], None]) -> AsyncIterator[ConnectionWatch]:
    """Report the connection's troubles within the block."""
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
        await asyncio.sleep(PULSE)
        answer = asyncio.ensure_future(client.ping())
        try:
            done, _ = await asyncio.wait({answer}, timeout=PULSE)
            if not done:
                watch.silent()
            await answer
        except AgentsrvError:
            return  # the command that waits for the task raises it
        finally:
            answer.cancel()
        watch.answered()
