from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsrv.models.limits import TokenBucket


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
