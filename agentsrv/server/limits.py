"""Quotas: limits on the connections and the work of each principal and each address.

Theory of operation
===================

Every socket is counted in exactly one `Quota` at any time, and moves as more becomes known:

    accepted                      quota of its address, or of the proxy that it comes through
    request without a token       quota of the address in ``X-Forwarded-For`` (`assign_address`)
    authenticated                 quota of its principal (`assign_principal`)

`ConnectionLimiter` has one `QuotaTable` for each of the three kinds (proxies are unlimited) and
counts all sockets. IPv6 clients are counted by /64 network, because one customer has all of its
addresses.

A `Quota` limits three things together for all its connections: their number; work, by a token
bucket (`take` refuses a command that is not affordable, `charge` records work that is already done
and returns a pause); and incomplete large messages, which occupy memory (`begin_large`).

A quota without connections is kept until its bucket is full again. Otherwise a client could
reconnect to get a full bucket.

In a cluster, `set_remote_usage` adds the usage on other nodes: connections are counted, and the
rate is divided by `fair_share`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any, Final

from agentsrv.errors import OverloadedError, RateLimitedError
from agentsrv.models.usage import TokenBucket, Use, fair_share
from agentsrv.server.startup_checks import unmapped
from agentsrv.settings import Settings

DEFAULT_COMMAND_RATE: Final = 500.0  # commands per second of a principal; a task takes one or two
DEFAULT_CONNECTIONS: Final = 100  # of a principal, or unauthenticated from an address
IPV6_PREFIX: Final = 64  # bits of the network that one customer has
MIN_MEASURED: Final = 1.0  # seconds over which a rate is measured, at least
READ_PAUSE: Final = 0.1  # seconds for which a connection is not read after a refused command
MAX_LARGE_MESSAGES: Final = 8  # incomplete large messages of one quota


def with_default_limits(settings: Settings, *, is_guarded: bool) -> Settings:
    """Return the settings with defaults for the limits that were not set; ``None`` is no limit.

    Without authentication there is only one principal, and therefore no limits per principal.
    """
    if not is_guarded:
        return settings
    defaults: dict[str, Any] = {
        "command_rate": DEFAULT_COMMAND_RATE,
        "principal_connections": DEFAULT_CONNECTIONS,
        "principal_running": max(1, settings.concurrency // 2),
        "address_connections": DEFAULT_CONNECTIONS,
    }
    missing = {
        name: value for name, value in defaults.items() if name not in settings.model_fields_set
    }
    return settings.model_copy(update=missing)


class Quota:
    """The usage and limits of one principal or address, for all its connections together."""

    __slots__ = (
        *("_bucket", "_large", "_quotas", "_rate", "_spent", "_waiting"),
        *("connections", "name"),
    )

    def __init__(self, name: str, quotas: QuotaTable, bucket: TokenBucket | None) -> None:
        self.name = name
        self.connections = 0
        self._quotas = quotas
        self._bucket = bucket
        self._spent = 0.0  # units since the last `measure`
        self._rate = 0.0
        self._large = 0
        self._waiting: list[Callable[[], None]] = []

    def take(self, cost: float = 1.0) -> None:
        """Spend the units of a command, or none of them.

        Args:
            cost: Units of work; see ``loop_scheduler.cost_of``.

        Raises:
            RateLimitedError: The bucket has too few units. The connection should not be read for
                ``READ_PAUSE`` seconds, so that refusing costs little.
        """
        if self._bucket is None:
            return
        self._spent += cost
        wait = self._bucket.take(self._quotas.now(), cost)
        if wait:
            raise RateLimitedError(
                "command rate exceeded; hello.limits has the rate, and a large command counts as "
                "several",
                retry_after=max(READ_PAUSE, wait),
            )

    def charge(self, cost: float) -> float:
        """Spend units for work that has been done, such as the parsing of control frames.

        Returns:
            Seconds for which the connection should not be read; usually 0.0.
        """
        if self._bucket is None:
            return 0.0
        self._spent += cost
        wait = self._bucket.charge(self._quotas.now(), cost)
        return max(READ_PAUSE, wait) if wait else 0.0

    def begin_large(self, begin: Callable[[], None]) -> bool:
        """Start to receive the rest of a large message, or wait for a free place.

        Returns:
            Whether it may be received now. If not, ``begin`` is called later.
        """
        if self._large == MAX_LARGE_MESSAGES:
            self._waiting.append(begin)
            return False
        self._large += 1
        return True

    def end_large(self, begin: Callable[[], None]) -> None:
        """Release the place of a large message that is complete or will not be received.

        Args:
            begin: The argument of ``begin_large``.
        """
        if begin in self._waiting:
            self._waiting.remove(begin)
        elif self._waiting:
            self._waiting.pop(0)()
        else:
            self._large -= 1

    def measure(self, seconds: float) -> float:
        """Return the units per second: the mean of the last ``seconds`` and the previous value."""
        self._rate = (self._rate + self._spent / seconds) / 2
        self._spent = 0.0
        return self._rate

    def set_rate(self, rate: float, burst: float) -> None:
        """Change the bucket's rate and burst, if it has a bucket."""
        if self._bucket is not None:
            self._bucket.change(rate, burst, self._quotas.now())

    def belongs_to(self, quotas: QuotaTable) -> bool:
        """Whether it is a quota of this table."""
        return self._quotas is quotas

    def move(self, quotas: QuotaTable, name: str) -> Quota:
        """Move one connection to the quota ``name`` of another table; return that quota.

        Raises:
            OverloadedError: That quota's connections are used up; the connection stays here.
        """
        other = quotas.acquire(name)
        self.release()
        return other

    def release(self) -> None:
        """Release one connection."""
        self._quotas.release(self)


class QuotaTable:
    """Quotas by name, for all principals or addresses with connections.

    A quota without connections is kept until its bucket is certainly full again, so that a new
    connection does not refill it.

    Args:
        connections: Maximum number of connections of each; ``None`` for no limit.
        rate: Units of work per second of each; ``None`` for no limit.
        burst: Units that each may spend at once.
        now: A monotonic clock, in seconds.
    """

    def __init__(
        self,
        connections: int | None,
        rate: float | None,
        burst: int,
        now: Callable[[], float],
    ) -> None:
        self._connections = connections
        self._rate = rate
        self._burst = burst
        self.now = now
        self._quotas: dict[str, Quota] = {}
        self._expires_at: dict[str, float] = {}
        """Time at which a quota without connections can be deleted; in ascending order."""
        self._elsewhere: Mapping[str, Sequence[Use]] = {}
        self._measured_at = now()

    def __len__(self) -> int:
        """Return the number of quotas in the table."""
        return len(self._quotas)

    def acquire(self, name: str) -> Quota:
        """Count one connection; release it with ``Quota.release``.

        Raises:
            OverloadedError: The connections of ``name`` are used up.
        """
        self._expire()
        quota = self._quotas.get(name)
        used = sum(use.connections for use in self._elsewhere.get(name, ()))
        used += quota.connections if quota is not None else 0
        if self._connections is not None and used >= self._connections:
            raise OverloadedError(f"connection limit reached ({used} of yours are open)")
        if quota is None:
            quota = self._quotas[name] = Quota(name, self, self._new_bucket(name))
        self._expires_at.pop(name, None)
        quota.connections += 1
        return quota

    def release(self, quota: Quota) -> None:
        """See ``Quota.release``."""
        quota.connections -= 1
        if not quota.connections:
            refilled = self._burst / self._rate if self._rate is not None else 0.0
            self._expires_at[quota.name] = self.now() + refilled
        self._expire()

    def usage(self, subscriptions: Mapping[str, int]) -> Iterator[tuple[str, Use]]:
        """Yield each name with its usage; ``subscriptions`` has the subscriptions by name.

        Rates are smoothed: half the rate since the last call, half the rate before it.
        """
        self._expire()
        before, self._measured_at = self._measured_at, self.now()
        seconds = max(self._measured_at - before, MIN_MEASURED)
        for name, quota in self._quotas.items():
            rate = quota.measure(seconds)
            yield name, Use(quota.connections, subscriptions.get(name, 0), rate)

    def set_remote_usage(self, elsewhere: Mapping[str, Sequence[Use]]) -> None:
        """Count the usage on other nodes from now on; a rate is divided among the nodes."""
        before, self._elsewhere = self._elsewhere, elsewhere
        for name in before.keys() | elsewhere.keys():
            quota = self._quotas.get(name)
            if quota is not None and self._rate is not None:
                quota.set_rate(*self._local_share(name, self._rate))

    def _expire(self) -> None:
        now = self.now()
        while self._expires_at:
            name = next(iter(self._expires_at))
            if self._expires_at[name] > now:
                return
            del self._expires_at[name], self._quotas[name]

    def _new_bucket(self, name: str) -> TokenBucket | None:
        if self._rate is None:
            return None
        return TokenBucket(*self._local_share(name, self._rate), self.now())

    def _local_share(self, name: str, rate: float) -> tuple[float, float]:
        """Return this node's share of the rate and of the burst."""
        share = fair_share(rate, [use.rate for use in self._elsewhere.get(name, ())])
        return share, max(1.0, self._burst * share / rate)


class ConnectionLimiter:
    """Counts each socket in a quota, from the moment at which it is accepted.

    Args:
        settings: The limits, with defaults.
        sockets: Maximum number of sockets.
        now: A monotonic clock, in seconds.
    """

    def __init__(self, settings: Settings, sockets: int, now: Callable[[], float]) -> None:
        rate, burst = settings.command_rate, settings.command_burst
        self.principals = QuotaTable(settings.principal_connections, rate, burst, now)
        """The quotas of authenticated principals."""
        self._strangers = QuotaTable(settings.address_connections, rate, burst, now)
        self._proxied = QuotaTable(None, None, burst, now)
        trusted = settings.trusted_proxies if settings.behind_proxy else ()
        self._proxies = [ip_network(name, strict=False) for name in trusted]
        self._sockets = sockets
        self._open = 0

    def accept(self, peer: Sequence[Any] | None) -> Quota:
        """Count an accepted socket in the quota of its address, unlimited for a trusted proxy.

        Args:
            peer: The address of the other end; ``None`` if it has closed the socket already.

        Raises:
            OverloadedError: The sockets, or the unauthenticated ones of this address, are used up.
        """
        if self._open >= self._sockets:
            raise OverloadedError(f"socket limit reached ({self._open} are open)")
        address = unmapped(peer[0]) if peer else ""
        quotas = self._proxied if self._is_proxy(address) else self._strangers
        quota = quotas.acquire(_network(address))
        self._open += 1
        return quota

    def assign_address(self, quota: Quota, address: str) -> Quota:
        """Move a connection without a token to the quota of the client's address.

        Raises:
            OverloadedError: The unauthenticated connections of this address are used up.
        """
        if quota.belongs_to(self._strangers):
            return quota
        return quota.move(self._strangers, _network(address))

    def assign_principal(self, quota: Quota, principal: str) -> Quota:
        """Move an authenticated connection to the quota of its principal.

        Raises:
            OverloadedError: The connections of the principal are used up.
        """
        return quota.move(self.principals, principal)

    def release(self, quota: Quota) -> None:
        """Count a socket that has been closed."""
        quota.release()
        self._open -= 1

    def _is_proxy(self, address: str) -> bool:
        return bool(address) and any(ip_address(address) in net for net in self._proxies)


def _network(address: str) -> str:
    """Return an IPv4 address, or the network of an IPv6 address."""
    if ":" not in address:
        return address
    six = IPv6Address(address.partition("%")[0])
    return str(six.ipv4_mapped or ip_network((six, IPV6_PREFIX), strict=False))
