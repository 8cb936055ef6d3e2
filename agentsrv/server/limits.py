"""How much of the server each principal has, and each address that has not said who it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any, Final

from agentsrv.errors import OverloadedError, RateLimitedError
from agentsrv.models.usage import TokenBucket, Use, fair_share
from agentsrv.server.startup_checks import unmapped
from agentsrv.settings import Settings

RATE: Final = 500.0  # commands a second of a principal; a task takes one or two
CONNECTIONS: Final = 100  # of a principal, or of an address that has not said who it is
NETWORK: Final = 64  # bits of an IPv6 address that one customer has
MEASURED: Final = 1.0  # seconds over which a rate is measured, at least
PAUSE: Final = 0.1  # seconds for which a connection is not read after a command too many
LARGE_AT_ONCE: Final = 8  # large messages of a principal that are received side by side


def with_default_limits(settings: Settings, *, is_guarded: bool) -> Settings:
    """The settings with defaults for the limits that were not set; ``None`` is no limit.

    Where nobody is asked who they are, everybody is one principal, and nothing is to be divided.
    """
    if not is_guarded:
        return settings
    defaults: dict[str, Any] = {
        "command_rate": RATE,
        "principal_connections": CONNECTIONS,
        "principal_running": max(1, settings.concurrency // 2),
        "address_connections": CONNECTIONS,
    }
    left_open = {
        name: value for name, value in defaults.items() if name not in settings.model_fields_set
    }
    return settings.model_copy(update=left_open)


class Quota:
    """What one principal, or one address, uses at the moment: all its connections together."""

    __slots__ = (
        *("_asked", "_bucket", "_large", "_rate", "_quotas", "_waiting"),
        *("connections", "name"),
    )

    def __init__(self, name: str, quotas: QuotaTable, bucket: TokenBucket | None) -> None:
        self.name = name
        self.connections = 0
        self._quotas = quotas
        self._bucket = bucket
        self._asked = 0.0
        self._rate = 0.0
        self._large = 0
        self._waiting: list[Callable[[], None]] = []

    def take(self, cost: float = 1.0) -> None:
        """Take what a command costs, or nothing.

        Args:
            cost: Units of work; see ``turns.cost_of``.

        Raises:
            RateLimitedError: The command is too much. The connection should not be read for
                ``PAUSE`` seconds, so that refusing costs little.
        """
        if self._bucket is None:
            return
        self._asked += cost
        wait = self._bucket.take(self._quotas.now(), cost)
        if wait:
            raise RateLimitedError(
                "command rate exceeded; hello.limits has the rate, and a large command counts as "
                "several",
                retry_after=max(PAUSE, wait),
            )

    def charge(self, cost: float) -> float:
        """Charge for work that is done, such as the parsing of control frames.

        Returns:
            Seconds for which the connection should not be read; mostly 0.0.
        """
        if self._bucket is None:
            return 0.0
        self._asked += cost
        wait = self._bucket.charge(self._quotas.now(), cost)
        return max(PAUSE, wait) if wait else 0.0

    def begin_large(self, begin: Callable[[], None]) -> bool:
        """Receive the rest of a large message, if there are not ``LARGE_AT_ONCE`` others.

        Returns:
            Whether it may be received now. If not, ``begin`` is called when it may.
        """
        if self._large == LARGE_AT_ONCE:
            self._waiting.append(begin)
            return False
        self._large += 1
        return True

    def end_large(self, begin: Callable[[], None]) -> None:
        """Take note that a large message is complete, or will not be received.

        Args:
            begin: What ``begin_large`` was given.
        """
        if begin in self._waiting:
            self._waiting.remove(begin)
        elif self._waiting:
            self._waiting.pop(0)()
        else:
            self._large -= 1

    def measure(self, seconds: float) -> float:
        """Commands a second: half of it is of the last ``seconds``, half is what it was before."""
        self._rate = (self._rate + self._asked / seconds) / 2
        self._asked = 0.0
        return self._rate

    def limit(self, rate: float, burst: float) -> None:
        """Let this rate hold from now on, where one does."""
        if self._bucket is not None:
            self._bucket.change(rate, burst, self._quotas.now())

    def is_in(self, quotas: QuotaTable) -> bool:
        """Whether it is one of these."""
        return self._quotas is quotas

    def move(self, quotas: QuotaTable, name: str) -> Quota:
        """Take a connection of another share in place of one of this.

        Raises:
            Overloaded: That one has as many as it may have; this one keeps it.
        """
        other = quotas.enter(name)
        self.leave()
        return other

    def leave(self) -> None:
        """Give a connection back."""
        self._quotas.leave(self)


class QuotaTable:
    """The shares of all who have a connection, by name.

    One whose last connection has gone is kept until its bucket is full again for certain: to
    connect again does not fill it.

    Args:
        connections: How many each may have; ``None`` for any number.
        rate: Commands a second of each; ``None`` for any number.
        burst: Commands that each may send at once.
        now: Seconds of a clock that does not go back.
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
        self._left: dict[str, float] = {}
        """When those without a connection can be forgotten, the first one first."""
        self._elsewhere: Mapping[str, Sequence[Use]] = {}
        self._measured_at = now()

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._quotas)

    def enter(self, name: str) -> Quota:
        """Take a connection; give it back with ``Quota.leave``.

        Raises:
            Overloaded: It has as many as it may have.
        """
        self._forget()
        quota = self._quotas.get(name)
        used = sum(use.connections for use in self._elsewhere.get(name, ()))
        used += quota.connections if quota is not None else 0
        if self._connections is not None and used >= self._connections:
            raise OverloadedError(f"{used} of your connections are open, which is the limit")
        if quota is None:
            quota = self._quotas[name] = Quota(name, self, self._new_bucket(name))
        self._left.pop(name, None)
        quota.connections += 1
        return quota

    def leave(self, quota: Quota) -> None:
        """See ``Quota.leave``."""
        quota.connections -= 1
        if not quota.connections:
            refilled = self._burst / self._rate if self._rate is not None else 0.0
            self._left[quota.name] = self.now() + refilled
        self._forget()

    def measure(self, subscriptions: Mapping[str, int]) -> Iterator[tuple[str, Use]]:
        """What each one uses, of whom there are so many subscriptions.

        Rates are those since this was called last, and a little of before.
        """
        self._forget()
        before, self._measured_at = self._measured_at, self.now()
        seconds = max(self._measured_at - before, MEASURED)
        for name, quota in self._quotas.items():
            rate = quota.measure(seconds)
            yield name, Use(quota.connections, subscriptions.get(name, 0), rate)

    def learn(self, elsewhere: Mapping[str, Sequence[Use]]) -> None:
        """Count what they use in other places, too, from now on; a rate is divided among all."""
        before, self._elsewhere = self._elsewhere, elsewhere
        for name in before.keys() | elsewhere.keys():
            quota = self._quotas.get(name)
            if quota is not None and self._rate is not None:
                quota.limit(*self._part(name, self._rate))

    def _forget(self) -> None:
        now = self.now()
        while self._left:
            name = next(iter(self._left))
            if self._left[name] > now:
                return
            del self._left[name], self._quotas[name]

    def _new_bucket(self, name: str) -> TokenBucket | None:
        if self._rate is None:
            return None
        return TokenBucket(*self._part(name, self._rate), self.now())

    def _part(self, name: str, rate: float) -> tuple[float, float]:
        """The rate and the burst that is left of it elsewhere."""
        part = fair_share(rate, [use.rate for use in self._elsewhere.get(name, ())])
        return part, max(1.0, self._burst * part / rate)


class ConnectionLimiter:
    """Whose share each socket uses, from the moment on at which it is accepted.

    Args:
        settings: The limits, filled in.
        sockets: How many there may be, whatever they are used for.
        now: Seconds of a clock that does not go back.
    """

    def __init__(self, settings: Settings, sockets: int, now: Callable[[], float]) -> None:
        rate, burst = settings.command_rate, settings.command_burst
        self.principals = QuotaTable(settings.principal_connections, rate, burst, now)
        """The shares of those who have said who they are."""
        self._strangers = QuotaTable(settings.address_connections, rate, burst, now)
        self._proxied = QuotaTable(None, None, burst, now)
        trusted = settings.trusted_proxies if settings.behind_proxy else ()
        self._proxies = [ip_network(name, strict=False) for name in trusted]
        self._sockets = sockets
        self._open = 0

    def open(self, peer: Sequence[Any] | None) -> Quota:
        """The share of a socket that was accepted: that of its address.

        Who comes by one of our proxies has none until more is known.

        Args:
            peer: The socket's other end; ``None`` where that has gone already.

        Raises:
            Overloaded: There are too many sockets, or too many of strangers at this address.
        """
        if self._open >= self._sockets:
            raise OverloadedError(f"{self._open} sockets are open, which is the limit")
        address = unmapped(peer[0]) if peer else ""
        quotas = self._proxied if self._is_proxy(address) else self._strangers
        quota = quotas.enter(_network(address))
        self._open += 1
        return quota

    def from_address(self, quota: Quota, address: str) -> Quota:
        """The share of a connection without a token, whose request tells where it is from.

        Raises:
            Overloaded: There are too many of strangers at this address.
        """
        if quota.is_in(self._strangers):
            return quota
        return quota.move(self._strangers, _network(address))

    def of_principal(self, quota: Quota, principal: str) -> Quota:
        """The share of a connection that has said who it is.

        Raises:
            Overloaded: The principal has as many connections as it may have.
        """
        return quota.move(self.principals, principal)

    def close(self, quota: Quota) -> None:
        """Take note that a socket has gone."""
        quota.leave()
        self._open -= 1

    def _is_proxy(self, address: str) -> bool:
        return bool(address) and any(ip_address(address) in net for net in self._proxies)


def _network(address: str) -> str:
    """The address, or the network of which somebody has all addresses."""
    if ":" not in address:
        return address
    six = IPv6Address(address.partition("%")[0])
    return str(six.ipv4_mapped or ip_network((six, NETWORK), strict=False))
