"""Connections to PostgreSQL: how they are made, and which errors say that it is away."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import asyncpg

from agentsrv.errors import Unavailable

T = TypeVar("T")

CONNECT: Final = 3.0  # seconds to connect: less than a lease, so that it can be tried again
ATTEMPT: Final = 5.0  # seconds for one try of anything: a healthy server needs milliseconds
PATIENCE: Final = 2.0  # seconds that a call is tried again, however short the lease is
PAUSE: Final = 0.05  # seconds until the second try; twice as long before each that follows
LONGEST_PAUSE: Final = 0.5  # seconds
POOL: Final = 4  # connections for reading

AWAY: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,  # the connection is closed, or no host takes writes
    asyncpg.OperatorInterventionError,  # the server stops, starts, or was told to cut us off
    asyncpg.InsufficientResourcesError,  # its disk or its table of connections is full
    asyncpg.TransactionRollbackError,  # a deadlock with another node, or the like
    asyncpg.ReadOnlySQLTransactionError,  # this host was the primary
    asyncpg.InvalidTransactionStateError,
    asyncpg.InternalClientError,  # what asyncpg makes of an answer that breaks off
)
"""What may be over in a moment. The outcome of what was tried is unknown."""
FAILED: Final = (*AWAY, asyncpg.PostgresError)
"""Whatever the server may do to work that is simply tried again later."""

SETTINGS: Final = {
    "application_name": "agentsrv",
    # A connection that died silently must let go of its locks before the lease ends.
    "idle_in_transaction_session_timeout": "5000",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
HINTS: Final = {
    **SETTINGS,
    # A NOTIFY is a commit; nobody need wait until the disk, or a standby, has it.
    "synchronous_commit": "off",
}
WRITER: Final = {
    **SETTINGS,
    "jit": "off",
    # Always by the index: a plan that was made when the tables were small is kept for good, and
    # rows that are locked in the order they are given in cannot deadlock.
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "plan_cache_mode": "force_generic_plan",
}

_log = logging.getLogger("agentsrv.store")


async def connect(dsn: str, settings: dict[str, str] = SETTINGS) -> asyncpg.Connection:
    """Connect to the host that takes writes, of those that the DSN names.

    All are tried at once: one that died without a word must not keep us from the others. Those
    that are not needed are let go, also where the call is cancelled.

    Raises:
        AWAY: None of them can be reached.
        asyncpg.PostgresError: The server does not let us in.
        ValueError: The DSN is none.
    """
    attempts = {asyncio.create_task(_connect(host, settings)) for host in _hosts(dsn)}
    pending, errors = attempts, list[BaseException]()
    try:
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for attempt in done:
                error = attempt.exception()
                if error is None:
                    attempts.remove(attempt)
                    return attempt.result()
                errors.append(error)
    finally:
        for attempt in attempts:
            attempt.cancel()
            attempt.add_done_callback(_let_go)
    # What a server says to us tells more than that another cannot be reached.
    raise min(errors, key=lambda error: isinstance(error, AWAY))


async def connect_pool(dsn: str) -> asyncpg.Pool:
    """Connections for reading, which are made when they are needed."""

    async def connect_one(*_: Any, **__: Any) -> asyncpg.Connection:
        return await connect(dsn)

    return await asyncpg.create_pool(
        dsn, min_size=0, max_size=POOL, connect=connect_one, reset=_keep
    )


def _hosts(dsn: str) -> list[str]:
    """A DSN for each host that the given one names."""
    parts = urlsplit(dsn)
    user, at, hosts = parts.netloc.rpartition("@")
    if "," not in hosts:
        return [dsn]
    return [parts._replace(netloc=user + at + host).geturl() for host in hosts.split(",")]


async def _connect(dsn: str, settings: dict[str, str]) -> asyncpg.Connection:
    return await asyncpg.connect(
        dsn,
        timeout=CONNECT,
        server_settings=settings,
        target_session_attrs="read-write",
        max_cached_statement_lifetime=0,
    )


def _let_go(attempt: asyncio.Task[asyncpg.Connection]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().terminate()


async def _keep(_: asyncpg.Connection) -> None:
    """Leave a session as it is: nothing here changes one, and resetting it doubles a read."""


@contextmanager
def deadline(connection: asyncpg.Connection) -> Iterator[None]:
    """Cut the connection off when the block takes longer than ``ATTEMPT``.

    To cancel the block would not do: asyncpg then asks the server to end the statement, and waits
    for that, over a network that may be just what has failed.
    """
    timer = asyncio.get_running_loop().call_later(ATTEMPT, connection.terminate)
    try:
        yield
    finally:
        timer.cancel()


@asynccontextmanager
async def borrowed(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    """A connection for reading, with a ``deadline``."""
    connection = await pool.acquire(timeout=ATTEMPT)
    try:
        with deadline(connection):
            yield connection
    finally:
        await pool.release(connection, timeout=ATTEMPT)


def pauses() -> Callable[[], float]:
    """Tells the seconds before each further try: growing, and nobody's the same."""
    pause = PAUSE

    def next_pause() -> float:
        nonlocal pause
        pause, now = min(2 * pause, LONGEST_PAUSE), pause
        return now * random.uniform(0.5, 1.0)  # noqa: S311 - to spread, not to hide

    return next_pause


async def reading(
    pool: asyncpg.Pool, clock: Callable[[], float], work: Callable[[Any], Awaitable[T]]
) -> T:
    """Do what may be done twice, and try again for ``PATIENCE`` seconds while nobody is there.

    Raises:
        Unavailable: Nobody came.
    """
    give_up, pause = clock() + PATIENCE, pauses()
    while True:
        try:
            async with borrowed(pool) as connection:
                return await work(connection)
        except AWAY as error:
            if clock() > give_up:
                raise unavailable(error) from error
        except asyncpg.PostgresError as error:
            _log.exception("PostgreSQL refused a statement")
            raise unavailable(error) from error
        await asyncio.sleep(pause())


def unavailable(error: object) -> Unavailable:
    """What is told of an error that did not pass."""
    return Unavailable(f"PostgreSQL cannot be used now: {error or type(error).__name__}")
