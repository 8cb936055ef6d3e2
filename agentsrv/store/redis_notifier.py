"""RedisNotifier: hints over the publish and subscribe of a Redis server.

For clusters of many nodes: there each NOTIFY wakes every listener within PostgreSQL. Nothing is
stored in Redis, and nothing is lost with it.
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

PAUSE: Final = 0.05  # seconds until the second try to connect; twice as long before each after it
LONGEST_PAUSE: Final = 0.5  # seconds
PING: Final = 10.0  # seconds between looks whether a silent connection is still one

_log = logging.getLogger("agentsrv.notifier")
_pauses = partial(backoff, PAUSE, LONGEST_PAUSE, jitter=0.5)


class RedisNotifier:
    """A bus over any server that speaks the protocol of Redis; ``redis://host:port``.

    Raises:
        ValueError: The URL is none.
    """

    def __init__(self, url: str) -> None:
        parse_url(url)
        self._url = url
        self._client: Redis | None = None

    async def listen(
        self, channel: str, heard: Callable[[bytes], None], missed: Callable[[], None]
    ) -> None:
        """See ``Notifier.listen``."""
        is_away, pauses = False, _pauses()
        while True:
            client = Redis.from_url(self._url, health_check_interval=int(PING))
            try:
                async with aclosing(client), client.pubsub() as subscription:
                    await subscription.subscribe(channel)
                    self._client = client
                    is_away, pauses = False, _pauses()
                    missed()
                    while True:
                        message = await subscription.get_message(
                            ignore_subscribe_messages=True, timeout=PING
                        )
                        if message is not None:
                            heard(message["data"])
            except (RedisError, OSError) as error:
                if not is_away:
                    told = "the bus cannot be used now; nodes ask the store meanwhile: %s"
                    _log.warning(told, describe(error))
                is_away = True
                await asyncio.sleep(next(pauses))
            finally:
                self._client = None

    async def publish(self, channel: str, payloads: Sequence[bytes]) -> None:
        """See ``Notifier.publish``."""
        if self._client is None:
            raise ConnectionError("the bus is not connected")
        async with self._client.pipeline(transaction=False) as pipeline:
            for payload in payloads:
                pipeline.publish(channel, payload)
            await pipeline.execute()
