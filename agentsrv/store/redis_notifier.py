"""RedisNotifier: notifications over PUBLISH and SUBSCRIBE of a Redis server.

For clusters of many nodes: each NOTIFY wakes every listening backend of PostgreSQL, which Redis
saves. Redis stores nothing, so its loss loses only notifications.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Final

from redis.asyncio import Redis
from redis.asyncio.connection import parse_url
from redis.exceptions import RedisError

from agentsrv.backoff import backoff
from agentsrv.error_text import describe

FIRST_RETRY_DELAY: Final = 0.05  # seconds; doubled before each further attempt to connect
MAX_RETRY_DELAY: Final = 0.5  # seconds
PING_INTERVAL: Final = 10.0  # seconds without a message after which the connection is tested

_log = logging.getLogger("agentsrv.notifier")
_retry_delays = partial(backoff, FIRST_RETRY_DELAY, MAX_RETRY_DELAY, jitter=0.5)


class RedisNotifier:
    """A notifier over any server that speaks the protocol of Redis.

    Args:
        url: ``redis://host:port``.

    Raises:
        ValueError: The URL is invalid.
    """

    def __init__(self, url: str) -> None:
        parse_url(url)
        self._url = url
        self._client: Redis | None = None

    async def listen(
        self, channel: str, heard: Callable[[bytes], None], missed: Callable[[], None]
    ) -> None:
        """See ``Notifier.listen``."""
        is_away, delays = False, _retry_delays()
        while True:
            client = Redis.from_url(self._url, health_check_interval=int(PING_INTERVAL))
            try:
                async with aclosing(client), client.pubsub() as subscription:
                    await subscription.subscribe(channel)
                    self._client = client
                    is_away, delays = False, _retry_delays()
                    missed()
                    while True:
                        message = await subscription.get_message(
                            ignore_subscribe_messages=True, timeout=PING_INTERVAL
                        )
                        if message is not None:
                            heard(message["data"])
            except (RedisError, OSError) as error:
                if not is_away:
                    _log.warning(
                        "Redis cannot be used now; nodes query the store instead: %s",
                        describe(error),
                    )
                is_away = True
                await asyncio.sleep(next(delays))
            finally:
                self._client = None

    async def publish(self, channel: str, payloads: Sequence[bytes]) -> None:
        """See ``Notifier.publish``."""
        if self._client is None:
            raise ConnectionError("the notifier is not connected")
        async with self._client.pipeline(transaction=False) as pipeline:
            for payload in payloads:
                pipeline.publish(channel, payload)
            await pipeline.execute()
