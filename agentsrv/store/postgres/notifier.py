"""PostgresNotifier: LISTEN and NOTIFY over one connection of its own.

A NOTIFY within a transaction that writes would make all commits of the server wait for each
other; so it goes after the commit, by itself. LISTEN needs a connection that stays the same one:
a pooler in transaction mode breaks it.
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

PING: Final = 10.0  # seconds between looks whether a silent connection is still one
NOTIFY: Final = "SELECT pg_notify($1, payload) FROM unnest($2::text[]) AS payload"


class PostgresNotifier:
    """The bus that needs nothing but the store's own server."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: asyncpg.Connection | None = None
        self._busy = asyncio.Lock()  # a connection does one thing at a time

    async def listen(
        self, channel: str, heard: Callable[[bytes], None], missed: Callable[[], None]
    ) -> None:
        """See ``Notifier.listen``."""

        def hear(_connection: Any, _pid: int, _channel: str, payload: str) -> None:
            heard(payload.encode())

        pauses = connections.pauses()
        while True:
            try:
                await self._stay(channel, hear, missed)
            except connections.FAILED:
                await asyncio.sleep(next(pauses))
            else:
                pauses = connections.pauses()

    async def _stay(
        self, channel: str, hear: Callable[[Any, int, str, str], None], missed: Callable[[], None]
    ) -> None:
        """Listen as long as the connection holds."""
        connection = await connections.connect(self._dsn, connections.HINTS)
        try:
            closed = asyncio.Event()
            connection.add_termination_listener(lambda _: closed.set())
            async with asyncio.timeout(connections.ATTEMPT):
                await connection.add_listener(channel, hear)
            self._connection = connection
            missed()
            while not closed.is_set():
                try:
                    async with asyncio.timeout(PING):
                        await closed.wait()
                except TimeoutError:
                    async with asyncio.timeout(connections.ATTEMPT):
                        await self.publish(channel, [])
        finally:
            self._connection = None
            connection.terminate()

    async def publish(self, channel: str, payloads: Sequence[bytes]) -> None:
        """See ``Notifier.publish``."""
        async with self._busy:
            if self._connection is None:
                raise ConnectionError("the bus is not connected")
            texts = [payload.decode() for payload in payloads]
            await self._connection.execute(NOTIFY, channel, texts)


def open_bus(bus: Notifier | str | None, dsn: str) -> Notifier:
    """The bus that is meant.

    Raises:
        ConfigurationError: The URL is none of a bus that there is, or the extra is missing.
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
    except ValueError:  # its text may be a part of the password
        raise ConfigurationError(
            "bus is no valid URL; expected redis://:PASSWORD@HOST:PORT, with special characters "
            "of the password percent-encoded"
        ) from None
