"""Shares of the server, with a clock that is set."""

from __future__ import annotations

from typing import Any

import pytest

from agentsrv.errors import OverloadedError, RateLimitedError
from agentsrv.models.usage import Use
from agentsrv.server.limits import (
    READ_PAUSE,
    ConnectionLimiter,
    Quota,
    QuotaTable,
    with_default_limits,
)
from agentsrv.settings import Settings


class Clock:
    """Seconds that go by when they are told to."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        """The seconds."""
        return self.seconds


@pytest.fixture
def clock():
    """A clock that stands."""
    return Clock()


def limiter(clock: Clock, sockets: int = 100, **settings: Any) -> ConnectionLimiter:
    """A gate by these settings."""
    return ConnectionLimiter(Settings(**settings), sockets, clock)


def taken(quota: Quota, times: int) -> int:
    """How many of so many commands are let through."""
    count = 0
    for _ in range(times):
        try:
            quota.take()
        except RateLimitedError:
            continue
        count += 1
    return count


def test_all_connections_of_a_principal_share_one_bucket(clock):
    """And another principal has its own."""
    quotas = QuotaTable(None, 10.0, 5, clock)
    first, second, other = quotas.acquire("ann"), quotas.acquire("ann"), quotas.acquire("bob")
    assert (taken(first, 4), taken(second, 4), taken(other, 9)) == (4, 1, 5)
    clock.seconds += 0.2
    assert (taken(second, 4), taken(first, 4)) == (2, 0)


def test_a_refusal_tells_how_long_to_wait(clock):
    """Until there is a token, and at least as long as nothing is read."""
    for rate, wait in ((100.0, READ_PAUSE), (0.5, 2.0)):
        quota = QuotaTable(None, rate, 1, clock).acquire("ann")
        quota.take()
        with pytest.raises(RateLimitedError) as refusal:
            quota.take()
        assert refusal.value.retry_after == wait


def test_connections_are_counted_and_given_back(clock):
    """One too many is refused, for as long as there are so many."""
    quotas = QuotaTable(2, None, 1, clock)
    first, _ = quotas.acquire("ann"), quotas.acquire("ann")
    quotas.acquire("bob")
    with pytest.raises(OverloadedError, match="2 of yours are open"):
        quotas.acquire("ann")
    first.release()
    assert quotas.acquire("ann").connections == 2


def test_to_connect_anew_is_no_way_to_a_full_bucket(clock):
    """The share is kept until it is full again by itself, and then forgotten."""
    quotas = QuotaTable(None, 10.0, 20, clock)
    quota = quotas.acquire("ann")
    assert taken(quota, 99) == 20
    quota.release()
    clock.seconds += 1.0
    again = quotas.acquire("ann")
    assert taken(again, 99) == 10
    again.release()
    clock.seconds += 2.0
    quotas.acquire("bob")
    assert len(quotas) == 1, "only bob is remembered"


def test_nobody_is_remembered_without_a_reason(clock):
    """Where there is no rate, a principal is forgotten with its last connection."""
    quotas = QuotaTable(5, None, 1, clock)
    for number in range(1000):
        quotas.acquire(f"p{number}").release()
    assert len(quotas) == 0


def test_connections_elsewhere_count(clock):
    """Those of all places together; whoever is in stays, and is not counted twice."""
    quotas = QuotaTable(5, None, 1, clock)
    first = quotas.acquire("ann")
    quotas.set_remote_usage({"ann": [Use(1), Use(2)]})
    quotas.acquire("ann")
    with pytest.raises(OverloadedError, match="5 of yours are open"):
        quotas.acquire("ann")
    quotas.acquire("bob")
    quotas.set_remote_usage({"ann": [Use(9)]})
    first.release()
    with pytest.raises(OverloadedError, match="10 of yours are open"):
        quotas.acquire("ann")
    quotas.set_remote_usage({})
    assert quotas.acquire("ann").connections == 2


def test_who_was_refused_for_what_is_elsewhere_is_not_remembered(clock):
    """Nothing grows by it."""
    quotas = QuotaTable(1, 10.0, 1, clock)
    quotas.set_remote_usage({f"p{number}": [Use(1)] for number in range(100)})
    for number in range(100):
        with pytest.raises(OverloadedError):
            quotas.acquire(f"p{number}")
    assert len(quotas) == 0


def test_a_rate_is_divided_with_what_is_wanted_elsewhere(clock):
    """For those who are here and for those who come; nobody else has less."""
    quotas = QuotaTable(None, 10.0, 20, clock)
    here, other = quotas.acquire("ann"), quotas.acquire("bob")
    assert taken(here, 99) == taken(other, 99) == 20
    quotas.set_remote_usage({"ann": [Use(rate=4.0)], "eve": [Use(rate=500.0)]})
    clock.seconds += 1.0
    assert (taken(here, 99), taken(other, 99)) == (6, 10)
    assert taken(quotas.acquire("eve"), 99) == 10, "half of a burst"
    clock.seconds += 60.0
    assert taken(here, 99) == 12
    quotas.set_remote_usage({})
    clock.seconds += 1.0
    assert taken(here, 99) == 10


def test_what_is_used_is_measured(clock):
    """Connections, subscriptions, and commands a second with the refused ones."""
    quotas = QuotaTable(None, 10.0, 5, clock)
    ann, _ = quotas.acquire("ann"), quotas.acquire("ann")
    quotas.acquire("bob")
    taken(ann, 80)
    clock.seconds += 2.0
    assert dict(quotas.usage({"bob": 3})) == {"ann": Use(2, 0, 20.0), "bob": Use(1, 3, 0.0)}
    taken(ann, 30)
    clock.seconds += 1.0
    assert dict(quotas.usage({})) == {"ann": Use(2, 0, 25.0), "bob": Use(1, 0, 0.0)}
    clock.seconds += 1.0
    assert dict(quotas.usage({}))["ann"].rate == 12.5


def test_sockets_are_counted_whatever_they_are_used_for(clock):
    """One too many is turned away until another has gone."""
    small = limiter(clock, sockets=2)
    first = small.accept(("192.0.2.1", 1))
    small.accept(("192.0.2.2", 1))
    with pytest.raises(OverloadedError, match="socket limit reached"):
        small.accept(("192.0.2.3", 1))
    small.release(first)
    small.accept(None)


def test_strangers_are_counted_by_address_until_they_say_who_they_are(clock):
    """Then they are their principal's, and the address has its place back."""
    door = limiter(clock, address_connections=1, principal_connections=2)
    stranger = door.accept(("192.0.2.1", 1))
    with pytest.raises(OverloadedError):
        door.accept(("192.0.2.1", 2))
    ann = door.assign_principal(stranger, "ann")
    second = door.assign_principal(door.accept(("192.0.2.1", 2)), "ann")
    third = door.accept(("192.0.2.1", 3))
    with pytest.raises(OverloadedError):
        door.assign_principal(third, "ann")
    with pytest.raises(OverloadedError):
        door.accept(("192.0.2.1", 4))  # the third is still a stranger
    door.release(third)
    door.release(second)
    door.release(ann)
    door.assign_principal(door.accept(("192.0.2.1", 5)), "ann")


def test_an_address_of_version_6_counts_as_its_network(clock):
    """Whoever has one has 2**64 of them."""
    door = limiter(clock, address_connections=1)
    door.accept(("2001:db8::1", 1, 0, 0))
    with pytest.raises(OverloadedError):
        door.accept(("2001:db8::2:3", 1, 0, 0))
    door.accept(("2001:db8:0:1::1", 1, 0, 0))
    door.accept(("fe80::1%eth0", 1, 0, 2))
    door.accept(("::ffff:192.0.2.1", 1, 0, 0))
    door.accept(("::ffff:192.0.2.2", 1, 0, 0))
    with pytest.raises(OverloadedError):
        door.accept(("192.0.2.1", 1))


def test_behind_a_proxy_the_request_tells_the_address(clock):
    """The proxy's own is not counted; that of who comes directly is, and is counted once."""
    door = limiter(clock, behind_proxy=True, trusted_proxies="10.0.0.0/8", address_connections=1)
    many = [door.accept(("10.0.0.1", port)) for port in range(3)]
    one = door.assign_address(many[0], "192.0.2.1")
    assert door.assign_address(one, "192.0.2.1") is one
    with pytest.raises(OverloadedError):
        door.assign_address(many[1], "192.0.2.1")
    door.assign_address(many[1], "192.0.2.2")
    mapped = [door.accept(("::ffff:10.0.0.1", port)) for port in range(3)]
    door.assign_address(mapped[0], "192.0.2.3")
    with pytest.raises(OverloadedError):
        door.accept(("192.0.2.1", 1))


def test_limits_that_are_left_open_are_filled_in_where_principals_are_told_apart():
    """Those that were set hold anywhere."""
    names = ("command_rate", "principal_connections", "principal_running", "address_connections")
    alone = with_default_limits(Settings(), is_guarded=False)
    assert [getattr(alone, name) for name in names] == [None] * 4
    guarded = with_default_limits(Settings(concurrency=7), is_guarded=True)
    assert [getattr(guarded, name) for name in names] == [500.0, 100, 3, 100]
    given = Settings(command_rate=1.5, principal_running=9)
    for is_guarded in (True, False):
        filled = with_default_limits(given, is_guarded=is_guarded)
        assert (filled.command_rate, filled.principal_running) == (1.5, 9)
    assert with_default_limits(Settings(concurrency=1), is_guarded=True).principal_running == 1
