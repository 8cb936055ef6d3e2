"""NodeLease: says that a node lives, sees when it does not, and takes from those that died.

A lease is a row that expires by the database's clock, which is the only one that counts there.
The node itself counts from before its last successful beat, and by less, so that it has given
its tasks up before anybody can have them, without being able to ask.
"""

# ruff: noqa: S608 - statements are put together from constants of this file only

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
from agentsrv.store.shared import SWEEP

REMEMBERED: Final = "1 day"  # how long a lost node is shown
ANSWERED: Final = "1 hour"  # how long a message is kept: whoever posted it has long withdrawn it
TRY: Final = 2.0  # seconds that a beat may take, with a new connection if need be
WATCH: Final = 0.25  # seconds between looks at the clock: timers stand still while a machine sleeps


class Timing(NamedTuple):
    """Seconds. Three beats may fail before the lease is lost."""

    ttl: float = 10.0
    """From a beat until others may have the tasks."""
    margin: float = 2.0
    """So much earlier the node itself takes its lease for lost: its tasks need it to stop."""
    beat: float = 2.0
    sweep: float = SWEEP


DEFAULT_TIMING: Final = Timing()
REGISTER: Final = """
INSERT INTO node (writer, name, role, expires_at)
VALUES ($1, $2, $3, clock_timestamp() + make_interval(secs => $4)) RETURNING id
"""
BEAT: Final = """
UPDATE node SET expires_at = clock_timestamp() + make_interval(secs => $2), lag = $3,
    beaten_at = clock_timestamp(), backend = pg_backend_pid()
WHERE id = $1 AND expires_at > clock_timestamp() RETURNING id
"""
STOPS: Final = "UPDATE node SET stops = true WHERE id = $1"
FORGET: Final = f"""
DELETE FROM node WHERE expires_at < clock_timestamp() - interval '{REMEMBERED}'
    AND NOT EXISTS (SELECT FROM task WHERE task.node = node.id);
DELETE FROM use WHERE at < clock_timestamp() - interval '{REMEMBERED}';
DELETE FROM writer WHERE NOT EXISTS (SELECT FROM node WHERE node.writer = writer.id);
DELETE FROM inbox WHERE at < clock_timestamp() - interval '{ANSWERED}'
    AND (withdrawn OR reply IS NOT NULL)
"""
GIVE_BACK: Final = """
UPDATE task SET node = NULL, ready = 0, lease_end = lease_end % 2 WHERE node = $1
"""

_log = logging.getLogger("agentsrv.store")


def boot_clock() -> float:
    """Seconds that also pass while the machine sleeps, where the system has such a clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class NodeLease:
    """A node's lease, and after a loss its next one.

    ``run`` is the task that renews it; whoever starts it cancels it. It has a connection of its
    own, so that no other work can hold up a beat. ``on_lost`` is called at each loss and must not
    raise.
    """

    id: int | None = None
    """The lease that claimed tasks hang on; ``None`` from its loss until there is another."""

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
        self._connection: asyncpg.Connection | None = None
        self._is_lost = asyncio.Event()
        self.until = clock()
        self.lag = 0.0
        self.writer = 0
        """The process's row, which lives as long as its leases are remembered."""

    async def open(self, connection: asyncpg.Connection) -> None:
        """Have the first lease."""
        started = self._clock()
        await self._register(connection)
        self._hold(started)

    async def run(self) -> None:
        """Beat, and watch the clock, until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._watch())
                group.create_task(self._beat_forever())
        finally:
            self._drop()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH)
            if self.id is not None and self._clock() >= self.until:
                self._lose("it could not be renewed in time")

    async def _beat_forever(self) -> None:
        pauses, delay = connections.pauses(), self._timing.beat
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._is_lost.wait()
            self._is_lost.clear()
            try:
                async with asyncio.timeout(TRY):
                    await self._beat()
            except connections.FAILED as error:
                if delay == self._timing.beat:
                    _log.warning("the node's lease cannot be renewed now: %s", describe(error))
                self._drop()
                delay = next(pauses)
            else:
                pauses, delay = connections.pauses(), self._timing.beat

    async def _beat(self) -> None:
        started, lease = self._clock(), self.id
        if self._connection is None:
            self._connection = await connections.connect(self._dsn)
        if lease is None:
            await self._register(self._connection)
            _log.warning("node %s has a new lease", self._name)
        elif await self._connection.fetchval(BEAT, lease, self._timing.ttl, self.lag) is None:
            if self.id is not None:
                self._lose("it was over by the database's clock")
            return
        elif self.id is None:  # lost by our clock meanwhile
            return
        self._hold(started)

    async def _register(self, connection: asyncpg.Connection) -> None:
        self.id = await connection.fetchval(
            REGISTER, self.writer, self._name, self._role, self._timing.ttl
        )

    def _hold(self, since: float) -> None:
        self.until = since + self._timing.ttl - self._timing.margin

    def _lose(self, reason: str) -> None:
        _log.error("node %s lost its lease: %s; all its tasks are given up", self._name, reason)
        self.id = None
        self._is_lost.set()
        self._on_lost()

    def _drop(self) -> None:
        if self._connection is not None:
            with suppress(Exception):
                self._connection.terminate()
            self._connection = None

    async def announce_stop(self, connection: asyncpg.Connection) -> None:
        """Declare that the process stops: its tasks have not lost it to a crash."""
        if self.id is not None:
            await connection.execute(STOPS, self.id)

    async def give_back(self, connection: asyncpg.Connection) -> None:
        """Let others have at once what is still held, and be forgotten."""
        if self.id is not None:
            await connection.execute(GIVE_BACK, self.id)
            await connection.execute("DELETE FROM node WHERE id = $1", self.id)
        await connection.execute("DELETE FROM use WHERE writer = $1", self.writer)
