"""NodeLease: renews this node's lease, and notices its loss before other nodes can take its tasks.

Theory of operation
===================
A node's lease is a row of ``node`` with an expiry time by the database's clock; only that clock
decides. A task belongs to the lease (``task.node``), so all tasks of a node change hands together,
and renewing costs one row however many tasks the node runs.

    renew      every ``Timing.renew_interval`` seconds, over a connection of its own, so that no
               other work delays it. ``renew_node`` extends the expiry, unless it has passed.
    lose       the node counts from *before* its last successful renewal, and ``margin`` seconds
               less than ``ttl``. At that time it gives up its tasks, without asking the database,
               which may be unreachable. So it has stopped before another node can claim them. It
               checks a clock every ``CLOCK_CHECK_INTERVAL`` seconds: timers stand still while the
               machine sleeps, ``boot_clock`` does not.
    reclaim    another node's sweep (``reclaim_tasks``) takes the tasks of expired leases, raises
               their epochs, and so fences the old node's appends.
    register   after a loss, the node gets a new lease with a new id and starts with no tasks.

        renewed in time                     not renewed until `until`, or expired by the database
      +-----------+                       +-----------------------------------------------+
      |           v                       |                                               v
      +------- held (id is set) ----------+                                    lost (id is None)
                    ^                                                             |
                    +------------------ registered: a new id ---------------------+

A crash and a stop differ (`LeaseEnd`): ``announce_stop`` marks the row before an orderly stop, and
``give_back`` releases the remaining tasks and deletes it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple

import asyncpg

from agentsrv.error_text import describe
from agentsrv.store.postgres import connections
from agentsrv.store.postgres.sql import queries
from agentsrv.store.shared import SWEEP_INTERVAL

RENEW_TIMEOUT: Final = 2.0  # seconds for one renewal, with a new connection if necessary
CLOCK_CHECK_INTERVAL: Final = 0.25  # seconds

_log = logging.getLogger("agentsrv.store")


class Timing(NamedTuple):
    """Seconds. Three renewals may fail before the lease is lost."""

    ttl: float = 10.0
    """From a renewal until other nodes may take the tasks."""
    margin: float = 2.0
    """How much earlier the node itself gives up its tasks: the time they have to stop."""
    renew_interval: float = 2.0
    sweep_interval: float = SWEEP_INTERVAL


DEFAULT_TIMING: Final = Timing()


def boot_clock() -> float:
    """Seconds, including those that the machine sleeps, if the system has such a clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class NodeLease:
    """A node's lease, and after a loss its next one; see the module.

    ``run`` is the task that renews it; the owner starts and cancels it. ``on_lost`` is called at
    each loss and must not raise.
    """

    id: int | None = None
    """The row in ``node`` to which claimed tasks belong; ``None`` after a loss."""

    def __init__(
        self,
        dsn: str,
        name: str,
        role: str,
        timing: Timing,
        clock: Callable[[], float],
        *,
        on_lost: Callable[[], None],
    ) -> None:
        self._dsn = dsn
        self._name = name
        self._role = role
        self._timing = timing
        self._clock = clock
        self._on_lost = on_lost
        self._queries = queries()
        self._connection: asyncpg.Connection | None = None
        self._is_lost = asyncio.Event()
        self.until = clock()
        """When the node gives up its tasks, by its own clock."""
        self.lag = 0.0
        self.writer = 0
        """The process's row in ``writer``, which exists as long as its leases are listed."""

    async def open(self, connection: asyncpg.Connection) -> None:
        """Register the first lease."""
        started = self._clock()
        await self._register(connection)
        self._extend(started)

    async def run(self) -> None:
        """Renew the lease and check the clock, until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._check_clock())
                group.create_task(self._renew_forever())
        finally:
            self._drop_connection()

    async def _check_clock(self) -> None:
        while True:
            await asyncio.sleep(CLOCK_CHECK_INTERVAL)
            if self.id is not None and self._clock() >= self.until:
                self._lose("it could not be renewed in time")

    async def _renew_forever(self) -> None:
        retries, delay = connections.retry_delays(), self._timing.renew_interval
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._is_lost.wait()
            self._is_lost.clear()
            try:
                async with asyncio.timeout(RENEW_TIMEOUT):
                    await self._renew()
            except connections.FAILED as error:
                if delay == self._timing.renew_interval:
                    _log.warning("the node's lease cannot be renewed now: %s", describe(error))
                self._drop_connection()
                delay = next(retries)
            else:
                retries, delay = connections.retry_delays(), self._timing.renew_interval

    async def _renew(self) -> None:
        """Renew the lease, or register another one after a loss."""
        started, lease = self._clock(), self.id
        if self._connection is None:
            self._connection = await connections.connect(self._dsn)
        if lease is None:
            await self._register(self._connection)
            _log.warning("node %s has a new lease", self._name)
            self._extend(started)
            return
        renewed = await self._queries.renew_node.fetch_value(
            self._connection, node=lease, ttl=self._timing.ttl, lag=self.lag
        )
        if self.id is None:  # lost by the node's clock during the query
            return
        if renewed is None:
            self._lose("it expired by the database's clock")
        else:
            self._extend(started)

    async def _register(self, connection: asyncpg.Connection) -> None:
        self.id = await self._queries.insert_node.fetch_value(
            connection,
            writer=self.writer,
            name=self._name,
            role=self._role,
            ttl=self._timing.ttl,
        )

    def _extend(self, since: float) -> None:
        self.until = since + self._timing.ttl - self._timing.margin

    def _lose(self, reason: str) -> None:
        _log.error("node %s lost its lease: %s; it stops all its tasks", self._name, reason)
        self.id = None
        self._is_lost.set()
        self._on_lost()

    def _drop_connection(self) -> None:
        if self._connection is not None:
            with suppress(Exception):
                self._connection.terminate()
            self._connection = None

    async def announce_stop(self, connection: asyncpg.Connection) -> None:
        """Record that the process stops: the end of its leases is not a crash."""
        if self.id is not None:
            await self._queries.announce_stop.execute(connection, node=self.id)

    async def give_back(self, connection: asyncpg.Connection) -> None:
        """Release the remaining tasks, and delete the lease and the published usage."""
        if self.id is not None:
            await self._queries.release_tasks.execute(connection, node=self.id)
            await self._queries.delete_node.execute(connection, node=self.id)
        await self._queries.delete_usage.execute(connection, writer=self.writer)
