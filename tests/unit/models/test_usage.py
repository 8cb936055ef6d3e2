from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsrv.models.usage import TokenBucket, fair_share


def test_a_burst_and_then_the_rate():
    """So many at once, then one for each interval, and the wait is told exactly."""
    bucket = TokenBucket(rate=2.0, burst=3, now=10.0)
    assert [bucket.take(10.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert bucket.take(10.25) == 0.25
    assert bucket.take(10.5) == 0.0
    assert bucket.take(10.5) == 0.5


def test_a_quiet_time_fills_it_up_to_the_burst():
    """And no further."""
    bucket = TokenBucket(rate=100.0, burst=2, now=0.0)
    assert bucket.take(0.0) == bucket.take(0.0) == 0.0
    assert [bucket.take(3600.0) > 0 for _ in range(3)] == [False, False, True]


def test_another_rate_holds_from_the_change_on():
    """What was refilled before stays, as far as the new burst has room."""
    bucket = TokenBucket(rate=2.0, burst=10, now=0.0)
    for _ in range(10):
        assert bucket.take(0.0) == 0.0
    bucket.change(rate=1.0, burst=10, now=1.0)
    assert [bucket.take(2.0) for _ in range(4)] == [0.0, 0.0, 0.0, 1.0]
    bucket.change(rate=4.0, burst=2, now=12.0)
    assert [bucket.take(12.0) for _ in range(3)] == [0.0, 0.0, 0.25]


@pytest.mark.parametrize(
    ("others", "part"),
    [
        ([], 12.0),
        ([0.0, 0.0], 12.0),
        ([3.0], 9.0),
        ([6.0], 6.0),
        ([100.0], 6.0),
        ([100.0, 100.0], 4.0),
        ([2.0, 100.0], 5.0),
        ([100.0, 5.0, 1.0], 3.5 + 1 / 6),
    ],
)
def test_a_part_is_what_others_leave_and_an_equal_one_at_least(others, part):
    """Those who want less than the others have that; the others have the same."""
    assert fair_share(12.0, others) == pytest.approx(part)


@given(wanted=st.lists(st.floats(0, 1000), min_size=1, max_size=8), rate=st.floats(0.1, 1000))
def test_parts_are_never_more_than_the_whole(wanted, rate):
    """And nothing of the whole is left while somebody wants more than he has."""
    parts = [fair_share(rate, wanted[:n] + wanted[n + 1 :]) for n in range(len(wanted))]
    taken = [min(part, want) for part, want in zip(parts, wanted, strict=True)]
    assert sum(taken) == pytest.approx(min(rate, sum(wanted)))
    assert min(parts) >= rate / len(wanted) * 0.999


@given(
    rate=st.floats(0.1, 1000),
    burst=st.integers(1, 50),
    pauses=st.lists(st.floats(0, 2), max_size=200),
)
def test_never_more_than_the_burst_and_the_rate(rate, burst, pauses):
    """In any time; and whoever waits as long as told is let through."""
    now = 0.0
    bucket = TokenBucket(rate, burst, now)
    times: list[float] = []
    for pause in pauses:
        now += pause
        wait = bucket.take(now)
        if wait:
            now += wait * 1.000001
            assert bucket.take(now) == pytest.approx(0.0, abs=1e-6)
        times.append(now)
    for place, first in enumerate(times):
        within = [last for last in times[place:] if last - first <= 1.0]
        assert len(within) <= burst + rate * 1.0 + 1.001
