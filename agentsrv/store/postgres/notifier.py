"""PostgresNotifier: LISTEN and NOTIFY over one connection of its own.

A NOTIFY is sent after the commit, in its own transaction: inside a transaction that writes, it
takes a lock on the whole database, and all commits wait for each other. LISTEN needs one lasting
connection; it does not work through a pooler in transaction mode.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import asyncpg

from agentsrv.error_text import redact_url
from agentsrv.errors import ConfigurationError, missing_extra
from agentsrv.store.notifier import Notifier
from agentsrv.store.postgres import connections

PING_INTERVAL: Final = 10.0  # seconds without a notification after which the connection is tested
NOTIFY: Final = "SELECT pg_notify($1, payload) FROM unnest($2::text[]) AS payload"


class PostgresNotifier:
    """A notifier that needs no server except the store's PostgreSQL."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: asyncpg.Connection | None = None
        self._lock = asyncio.Lock()  # a connection executes one statement at a time

    async def listen(
        self, channel: str, heard: Callable[[bytes], None], missed: Callable[[], None]
    ) -> None:
        """See ``Notifier.listen``."""

        def hear(_connection: Any, _pid: int, _channel: str, payload: str) -> None:
            heard(payload.encode())

        delays = connections.retry_delays()
        while True:
            try:
                await self._listen_once(channel, hear, missed)
            except connections.FAILED:
                await asyncio.sleep(next(delays))
            else:
                delays = connections.retry_delays()

    async def _listen_once(
        self, channel: str, hear: Callable[[Any, int, str, str], None], missed: Callable[[], None]
    ) -> None:
        """Listen until the connection is lost."""
        connection = await connections.connect(self._dsn, connections.NOTIFIER_SETTINGS)
        try:
            closed = asyncio.Event()
            connection.add_termination_listener(lambda _: closed.set())
            async with asyncio.timeout(connections.ATTEMPT_TIMEOUT):
                await connection.add_listener(channel, hear)
            self._connection = connection
            missed()
            while not closed.is_set():
                try:
                    async with asyncio.timeout(PING_INTERVAL):
                        await closed.wait()
                except TimeoutError:
                    async with asyncio.timeout(connections.ATTEMPT_TIMEOUT):
                        await self.publish(channel, [])
        finally:
            self._connection = None
            connection.terminate()

    async def publish(self, channel: str, payloads: Sequence[bytes]) -> None:
        """See ``Notifier.publish``."""
        async with self._lock:
            if self._connection is None:
                raise ConnectionError("the notifier is not connected")
            texts = [payload.decode() for payload in payloads]
            await self._connection.execute(NOTIFY, channel, texts)


def open_notifier(bus: Notifier | str | None, dsn: str) -> Notifier:
    """The notifier that a URL names; by default the PostgreSQL server itself.

    Raises:
        ConfigurationError: The URL is not one of Redis, or the extra is missing.
    """
    if bus is None:
        return PostgresNotifier(dsn)
    if not isinstance(bus, str):
        return bus
    if not bus.startswith(("redis://", "rediss://", "unix://")):
        raise ConfigurationError(f"bus is {redact_url(bus)!r}; expected redis://host:port")
    try:
        from agentsrv.store.redis_notifier import RedisNotifier  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigurationError(missing_extra("a bus over Redis", "redis")) from error
    try:
        return RedisNotifier(bus)
    except ValueError:  # its text may contain a part of the password
        raise ConfigurationError(
            "bus is no valid URL; expected redis://:PASSWORD@HOST:PORT, with special characters "
            "of the password percent-encoded"
        ) from None
