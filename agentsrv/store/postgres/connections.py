"""Connections to PostgreSQL: how they are made, and which errors say that it is away."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import asyncpg

from agentsrv.backoff import backoff
from agentsrv.error_text import describe
from agentsrv.errors import ConfigurationError, UnavailableError

T = TypeVar("T")

CONNECT: Final = 3.0  # seconds to connect: less than a lease, so that it can be tried again
ATTEMPT: Final = 5.0  # seconds for one try of anything: a healthy server needs milliseconds
PATIENCE: Final = 2.0  # seconds that a call is tried again, however short the lease is
PAUSE: Final = 0.05  # seconds until the second try; twice as long before each that follows
LONGEST_PAUSE: Final = 0.5  # seconds
pauses = partial(backoff, PAUSE, LONGEST_PAUSE, jitter=0.5)
PORT: Final = 5432  # where a DSN names none
INVALID: Final = (
    "the URL is not valid; expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with special "
    "characters of the password percent-encoded"
)
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
    asyncpg.LockNotAvailableError,  # a lock_timeout that somebody has set for the role
)
"""What may be over in a moment. The outcome of what was tried is unknown."""
SHUT_OUT: Final = (
    asyncpg.InvalidAuthorizationSpecificationError,  # a password that was changed, pg_hba.conf
    asyncpg.ObjectNotInPrerequisiteStateError,  # the database takes no connections
    asyncpg.InvalidCatalogNameError,  # the database is gone, perhaps while it is restored
)
"""Errors of connecting. A server that runs waits for them to pass as well; one that starts ends."""
DAMAGED: Final = (asyncpg.DataCorruptedError, asyncpg.IndexCorruptedError)
"""A page cannot be read: its checksum is wrong, or what is on it. Other pages can be."""
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
READER: Final = {
    **SETTINGS,
    "jit": "off",
    # By the index also where a table is small: a scan of all of it would meet damaged rows.
    "enable_seqscan": "off",
}
WRITER: Final = {
    **READER,
    # Always by the index: a plan that was made when the tables were small is kept for good, and
    # rows that are locked in the order they are given in cannot deadlock.
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
        SHUT_OUT: The server does not let us in.
        ConfigurationError: The DSN is not valid.
    """
    try:
        return await _connect_any(_hosts(dsn), settings)
    except ValueError:  # its text may be a part of the password
        raise ConfigurationError(INVALID) from None


async def _connect_any(hosts: Sequence[str], settings: dict[str, str]) -> asyncpg.Connection:
    attempts = {asyncio.create_task(_connect(host, settings)) for host in hosts}
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


def address_of(dsn: str) -> str:
    """The hosts and ports that a DSN names, without user, password and database."""
    place = dsn.partition("://")[2]
    before, _, query = place.partition("?")
    hosts = before.rpartition("@")[2].partition("/")[0] or "localhost"
    named = [value for name, value in parse_qsl(query) if name == "host"]
    if named:
        hosts = ",".join(named)
    return ", ".join(host if _has_port(host) else f"{host}:{PORT}" for host in hosts.split(","))


def _has_port(host: str) -> bool:
    """Whether a host of a DSN has a port, or needs none because it is a folder of sockets."""
    return host.startswith("/") or re.search(r"(^|[^:]|\]):\d+$", host) is not None


def explain(error: BaseException, dsn: str) -> str:
    """`` at HOST:PORT: …``: what an error says, without anything that is a part of the password."""
    if isinstance(error, ConfigurationError):
        where = "" if error.message == INVALID else f" at {address_of(dsn)}"
        return f"{where}: {error.message}"
    return f" at {address_of(dsn)}: {describe(error, _secrets(dsn))}"


def _secrets(dsn: str) -> list[str]:
    """The passwords of a DSN as they are written and decoded, the longest first."""
    place = dsn.partition("://")[2]
    before, _, query = place.partition("?")
    user = before.rpartition("@")[0] or place.rpartition("@")[0]
    found = {user.partition(":")[2]}
    found |= {value for name, value in parse_qsl(query) if "password" in name}
    found |= {unquote(secret) for secret in found}
    return sorted((secret for secret in found if len(secret) > 1), key=len, reverse=True)


async def connect_pool(dsn: str) -> asyncpg.Pool:
    """Connections for reading, which are made when they are needed."""

    async def connect_one(*_: Any, **__: Any) -> asyncpg.Connection:
        return await connect(dsn, READER)

    return await asyncpg.create_pool(
        dsn, min_size=0, max_size=POOL, connect=connect_one, reset=_keep
    )


def _hosts(dsn: str) -> list[str]:
    """A DSN for each host that the given one names."""
    parts = urlsplit(dsn)
    if "@" in parts.query + parts.fragment:  # a password with ? or # in it
        raise ValueError("an @ behind the database")
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


async def reading(
    pool: asyncpg.Pool, clock: Callable[[], float], work: Callable[[Any], Awaitable[T]]
) -> T:
    """Do what may be done twice, and try again for ``PATIENCE`` seconds while nobody is there.

    Raises:
        Unavailable: Nobody came.
        DAMAGED: A page cannot be read.
    """
    give_up, waits = clock() + PATIENCE, pauses()
    while True:
        try:
            async with borrowed(pool) as connection:
                return await work(connection)
        except (*AWAY, *SHUT_OUT) as error:
            if clock() > give_up:
                raise unavailable(error) from error
        except DAMAGED:
            raise
        except asyncpg.PostgresError as error:
            _log.exception("PostgreSQL refused a statement")
            raise unavailable(error) from error
        await asyncio.sleep(next(waits))


def unavailable(error: object) -> UnavailableError:
    """What is told of an error that did not pass."""
    told = describe(error) if isinstance(error, BaseException) else error
    return UnavailableError(f"PostgreSQL cannot be used now: {told}")


def damage(error: BaseException) -> UnavailableError:
    """The refusal of what needs a page that cannot be read."""
    return UnavailableError(f"the PostgreSQL store is damaged: {describe(error)}")
