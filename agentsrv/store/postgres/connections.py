"""Connections to PostgreSQL: making them, their settings, and what each class of error means.

AWAY         may pass within seconds; the outcome of the statement is unknown
LOCKED_OUT   the server rejects new connections; may pass while a server runs
DAMAGED      a page cannot be read; other pages can
others       the statement itself was refused; repeating it does not help
"""

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

CONNECT_TIMEOUT: Final = 3.0  # seconds; less than a lease, so that another attempt fits in
ATTEMPT_TIMEOUT: Final = 5.0  # seconds for one attempt; a healthy server needs milliseconds
RETRY_PERIOD: Final = 2.0  # seconds in which a call is repeated, even if the lease is shorter
FIRST_RETRY_DELAY: Final = 0.05  # seconds; doubled before each further attempt
MAX_RETRY_DELAY: Final = 0.5  # seconds
retry_delays = partial(backoff, FIRST_RETRY_DELAY, MAX_RETRY_DELAY, jitter=0.5)
DEFAULT_PORT: Final = 5432
INVALID_URL: Final = (
    "the URL is not valid; expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with special "
    "characters of the password percent-encoded"
)
POOL_SIZE: Final = 4  # connections for reading

AWAY: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,  # the connection is closed, or no host takes writes
    asyncpg.OperatorInterventionError,  # the server stops or starts, or an administrator cut us off
    asyncpg.InsufficientResourcesError,  # its disk or its table of connections is full
    asyncpg.TransactionRollbackError,  # for example a deadlock with another node
    asyncpg.ReadOnlySQLTransactionError,  # this host was the primary
    asyncpg.InvalidTransactionStateError,
    asyncpg.InternalClientError,  # asyncpg, if an answer breaks off
    asyncpg.LockNotAvailableError,  # a lock_timeout is set for the role
)
"""Errors that may pass in a moment. The outcome of the statement is unknown."""
LOCKED_OUT: Final = (
    asyncpg.InvalidAuthorizationSpecificationError,  # a changed password, pg_hba.conf
    asyncpg.ObjectNotInPrerequisiteStateError,  # the database accepts no connections
    asyncpg.InvalidCatalogNameError,  # the database does not exist, perhaps during a restore
)
"""Errors of connecting. A running server waits for them to pass; a starting server exits."""
DAMAGED: Final = (asyncpg.DataCorruptedError, asyncpg.IndexCorruptedError)
"""A page cannot be read: its checksum or its content is wrong. Other pages can be read."""
FAILED: Final = (*AWAY, asyncpg.PostgresError)
"""Errors of work that is simply repeated later."""

SETTINGS: Final = {
    "application_name": "agentsrv",
    # The locks of a connection that died silently must be released before the lease expires.
    "idle_in_transaction_session_timeout": "5000",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
NOTIFIER_SETTINGS: Final = {
    **SETTINGS,
    # A NOTIFY is a commit; it need not wait for the disk or a standby.
    "synchronous_commit": "off",
}
READER_SETTINGS: Final = {
    **SETTINGS,
    "jit": "off",
    # Use indexes for small tables, too: a scan of the whole table would read damaged rows.
    "enable_seqscan": "off",
}
WRITER_SETTINGS: Final = {
    **READER_SETTINGS,
    # Always nested loops over an index: a plan that was made while the tables were small is kept
    # for the whole session, and rows that are locked in the order of the arrays cannot deadlock.
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "plan_cache_mode": "force_generic_plan",
}

_log = logging.getLogger("agentsrv.store")


async def connect(dsn: str, settings: dict[str, str] = SETTINGS) -> asyncpg.Connection:
    """Connect to all hosts of the DSN at once, and return the first that accepts writes.

    A host that does not answer so does not delay the others. The remaining connections are closed,
    also if the call is cancelled.

    Raises:
        AWAY: No host can be reached.
        LOCKED_OUT: The server rejects the connection.
        ConfigurationError: The DSN is not valid.
    """
    try:
        return await _connect_any(_hosts(dsn), settings)
    except ValueError:  # its text may contain a part of the password
        raise ConfigurationError(INVALID_URL) from None


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
            attempt.add_done_callback(_close_unused)
    # The answer of one server is more useful than "unreachable" from another.
    raise min(errors, key=lambda error: isinstance(error, AWAY))


def address_of(dsn: str) -> str:
    """The hosts and ports of a DSN, without user, password and database."""
    place = dsn.partition("://")[2]
    before, _, query = place.partition("?")
    hosts = before.rpartition("@")[2].partition("/")[0] or "localhost"
    named = [value for name, value in parse_qsl(query) if name == "host"]
    if named:
        hosts = ",".join(named)
    return ", ".join(
        host if _has_port(host) else f"{host}:{DEFAULT_PORT}" for host in hosts.split(",")
    )


def _has_port(host: str) -> bool:
    """Whether a host of a DSN has a port, or is a folder of sockets, which has none."""
    return host.startswith("/") or re.search(r"(^|[^:]|\]):\d+$", host) is not None


def explain(error: BaseException, dsn: str) -> str:
    """`` at HOST:PORT: …``: the text of an error, without any part of the password."""
    if isinstance(error, ConfigurationError):
        where = "" if error.message == INVALID_URL else f" at {address_of(dsn)}"
        return f"{where}: {error.message}"
    return f" at {address_of(dsn)}: {describe(error, _secrets(dsn))}"


def _secrets(dsn: str) -> list[str]:
    """The passwords of a DSN, as written and decoded, the longest first."""
    place = dsn.partition("://")[2]
    before, _, query = place.partition("?")
    user = before.rpartition("@")[0] or place.rpartition("@")[0]
    found = {user.partition(":")[2]}
    found |= {value for name, value in parse_qsl(query) if "password" in name}
    found |= {unquote(secret) for secret in found}
    return sorted((secret for secret in found if len(secret) > 1), key=len, reverse=True)


async def connect_pool(dsn: str) -> asyncpg.Pool:
    """A pool of connections for reading, which connect when they are first used."""

    async def connect_one(*_: Any, **__: Any) -> asyncpg.Connection:
        return await connect(dsn, READER_SETTINGS)

    return await asyncpg.create_pool(
        dsn, min_size=0, max_size=POOL_SIZE, connect=connect_one, reset=_keep_session
    )


def _hosts(dsn: str) -> list[str]:
    """One DSN for each host of a DSN."""
    parts = urlsplit(dsn)
    if "@" in parts.query + parts.fragment:  # a password with ? or # in it
        raise ValueError("an @ after the database")
    user, at, hosts = parts.netloc.rpartition("@")
    if "," not in hosts:
        return [dsn]
    return [parts._replace(netloc=user + at + host).geturl() for host in hosts.split(",")]


async def _connect(dsn: str, settings: dict[str, str]) -> asyncpg.Connection:
    return await asyncpg.connect(
        dsn,
        timeout=CONNECT_TIMEOUT,
        server_settings=settings,
        target_session_attrs="read-write",
        max_cached_statement_lifetime=0,
    )


def _close_unused(attempt: asyncio.Task[asyncpg.Connection]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().terminate()


async def _keep_session(_: asyncpg.Connection) -> None:
    """Do not reset a session: no code here changes it, and a reset doubles the time of a read."""


@contextmanager
def deadline(connection: asyncpg.Connection) -> Iterator[None]:
    """Close the connection if the block takes longer than ``ATTEMPT_TIMEOUT``.

    A cancellation is not enough: asyncpg then asks the server to end the statement, and waits for
    the answer over a network that may have failed.
    """
    timer = asyncio.get_running_loop().call_later(ATTEMPT_TIMEOUT, connection.terminate)
    try:
        yield
    finally:
        timer.cancel()


@asynccontextmanager
async def borrowed(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the pool, with a ``deadline``."""
    connection = await pool.acquire(timeout=ATTEMPT_TIMEOUT)
    try:
        with deadline(connection):
            yield connection
    finally:
        await pool.release(connection, timeout=ATTEMPT_TIMEOUT)


async def read(
    pool: asyncpg.Pool, clock: Callable[[], float], work: Callable[[Any], Awaitable[T]]
) -> T:
    """Execute ``work``; repeat it for ``RETRY_PERIOD`` seconds while the server is away.

    Raises:
        UnavailableError: The server stayed away, or refused a statement.
        DAMAGED: A page cannot be read.
    """
    give_up, delays = clock() + RETRY_PERIOD, retry_delays()
    while True:
        try:
            async with borrowed(pool) as connection:
                return await work(connection)
        except (*AWAY, *LOCKED_OUT) as error:
            if clock() > give_up:
                raise unavailable(error) from error
        except DAMAGED:
            raise
        except asyncpg.PostgresError as error:
            _log.exception("PostgreSQL refused a statement")
            raise unavailable(error) from error
        await asyncio.sleep(next(delays))


def unavailable(error: object) -> UnavailableError:
    """The error for callers, if an error did not pass."""
    reason = describe(error) if isinstance(error, BaseException) else error
    return UnavailableError(f"PostgreSQL cannot be used now: {reason}")


def store_damaged(error: BaseException) -> UnavailableError:
    """The error for a caller that needs a page which cannot be read."""
    return UnavailableError(f"the PostgreSQL store is damaged: {describe(error)}")
