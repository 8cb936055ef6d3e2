import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsrv.models.retry import LOCAL, MAX_DELAY, RETRIES, RetryPolicy


def test_the_waits_of_local_agents_are_those_of_the_protocol():
    """Attempts 2, 3 and 4 follow after 0.1, 0.2 and 0.4 seconds, each time."""
    assert [LOCAL.delay(retry) for retry in (1, 2, 3)] == [0.1, 0.2, 0.4]


@pytest.mark.parametrize(("chance", "waits"), [(0.0, [1, 2, 4]), (1.0, [0.5, 1, 2])])
def test_jitter_shortens_a_wait_by_up_to_half(chance, waits):
    """So no retry comes earlier than the one before it could have."""
    policy = RetryPolicy()
    assert [policy.delay(retry, chance=lambda: chance) for retry in (1, 2, 3)] == waits


@given(st.integers(1, 100), st.floats(0, 60), st.floats(0, 1))
def test_jitter_does_not_shorten_the_wait_that_a_service_asks_for(retry, wanted, chance):
    """Nor is any wait longer than the cap."""
    assert wanted <= RetryPolicy().delay(retry, wanted, lambda: chance) <= MAX_DELAY


@pytest.mark.parametrize(
    ("at_least", "expected"), [(None, 0.2), (0.0, 0.2), (0.1, 0.2), (7.0, 7.0), (1e9, MAX_DELAY)]
)
def test_a_service_may_ask_for_a_longer_delay(at_least, expected):
    """Never for a shorter one, nor for one beyond the cap."""
    assert LOCAL.delay(2, at_least) == expected


def test_three_retries_follow_the_first_attempt():
    """By default four attempts may fail before the step has."""
    policy = RetryPolicy()
    assert RETRIES == 3
    assert [policy.allows(failures) for failures in range(1, 6)] == [True, True, True, False, False]


def test_no_retries_means_one_attempt():
    """With no retries the first failure is the last."""
    assert not RetryPolicy(retries=0).allows(1)


def test_the_cap_is_reached_at_the_eleventh_retry():
    """The delay doubles until it meets the cap, and stays there."""
    assert LOCAL.delay(10) == pytest.approx(51.2)
    assert LOCAL.delay(11) == LOCAL.delay(12) == MAX_DELAY


@given(st.floats(0, 1e308), st.integers(1, 10**30))
def test_delays_grow_up_to_the_cap(base, retry):
    """No delay overflows, exceeds the cap or is shorter than the one before it."""
    policy = RetryPolicy(base=base, jitter=False)
    assert 0 <= policy.delay(retry) <= policy.delay(retry + 1) <= MAX_DELAY
