"""Exponential back-off."""

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsrv.backoff import backoff, wait


def test_each_wait_is_twice_as_long_up_to_the_cap():
    """After the first failure it is the base."""
    assert list(islice(backoff(0.5, 3.0), 5)) == [0.5, 1.0, 2.0, 3.0, 3.0]


@pytest.mark.parametrize("failures", [100, 1100, 10**9])
def test_many_failures_reach_the_cap(failures):
    """No number of them is too large."""
    assert wait(failures, 0.001, 60.0) == 60.0


@given(st.floats(0.001, 10), st.floats(0.001, 100), st.floats(0, 1))
def test_chance_shortens_a_wait_by_up_to_its_part(base, cap, jitter):
    """A wait is never longer than it would be without it."""
    for failures, seconds in enumerate(islice(backoff(base, cap, jitter), 10), start=1):
        longest = wait(failures, base, cap)
        assert longest * (1 - jitter) <= seconds <= longest


def test_two_who_failed_together_do_not_return_together():
    """With jitter their waits differ."""
    assert list(islice(backoff(1, 60, 0.5), 5)) != list(islice(backoff(1, 60, 0.5), 5))
