"""Whose turn it is, whatever is done to the queue."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsrv.errors import OverloadedError
from agentsrv.store.queue import QueueLimits, TaskQueue

OWNERS = ["ann", "bob", "eve", "joe"]
LIMIT = 3


def queued(queue: TaskQueue, owner: str, *task_ids: str) -> None:
    """Queue and commit."""
    for task_id in task_ids:
        queue.check(owner)
        queue.put(task_id, owner)
    queue.commit_new()


def test_a_thousand_tasks_do_not_delay_anothers_first():
    """It is claimed behind one of theirs, and then they alternate."""
    queue = TaskQueue(QueueLimits())
    queued(queue, "ann", *(f"a{number}" for number in range(1000)))
    assert queue.claim(2) == ["a0", "a1"]
    queued(queue, "bob", "b0", "b1", "b2")
    assert queue.claim(5) == ["a2", "b0", "a3", "b1", "a4"]
    queued(queue, "eve", "e0")
    assert queue.claim(4) == ["b2", "a5", "e0", "a6"]
    assert (len(queue), queue.waiting("ann"), queue.waiting("bob")) == (993, 993, 0)


def test_who_comes_back_again_and_again_does_not_pass_the_others():
    """A queue that is short each time is no way to the front."""
    queue = TaskQueue(QueueLimits())
    queued(queue, "ann", "a0", "a1")
    for number in range(4):
        queued(queue, "bob", f"b{number}")
        queued(queue, "eve", f"e{number}")
        if number < 2:
            assert f"a{number}" in queue.claim(3)


def test_an_owner_at_its_limit_is_passed_over_and_goes_on_when_one_ends():
    """The others are not held up, and the slot that becomes free is told."""
    queue = TaskQueue(QueueLimits(running=2))
    queued(queue, "ann", "a0", "a1", "a2", "a3")
    queued(queue, "bob", "b0")
    assert queue.claim(9) == ["a0", "b0", "a1"]
    assert queue.claim(9) == []
    assert queue.drop("b0", "bob") is False
    assert queue.drop("a0", "ann") is True
    assert queue.claim(9) == ["a2"]
    queue.lose("a1", "ann")
    assert queue.claim(9) == ["a1"], "what was lost goes first, and counts"
    assert queue.claim(9) == []


def test_lost_tasks_go_first_and_are_not_held_back():
    """A limit that became lower since they began does not keep them."""
    queue = TaskQueue(QueueLimits(running=1))
    queued(queue, "bob", "b0")
    for task_id in ("a0", "a1", "a2"):
        queue.lose(task_id, "ann")
    assert queue.claim(2) == ["a0", "a1"]
    assert queue.claim(9) == ["a2", "b0"]
    assert queue.lose_all() == ["a0", "a1", "a2", "b0"]
    assert queue.claim(9) == ["a0", "a1", "a2", "b0"]


def test_what_is_not_committed_is_counted_and_not_claimed():
    """Until it is settled; what ends before is gone."""
    queue = TaskQueue(QueueLimits(total=2))
    queue.put("a0", "ann")
    queue.put("a1", "ann")
    assert (len(queue), queue.claim(9)) == (2, [])
    with pytest.raises(OverloadedError):
        queue.check("ann")
    queue.drop("a0", "ann")
    queue.commit_new()
    assert (len(queue), queue.claim(9), queue.claim(9)) == (1, ["a1"], [])


def test_a_full_queue_keeps_nobodys_first_task_out():
    """Others' tasks are no reason to refuse the only one of somebody."""
    queue = TaskQueue(QueueLimits(total=3, waiting=3))
    queued(queue, "ann", "a0", "a1", "a2")
    queued(queue, "bob", "b0")
    with pytest.raises(OverloadedError, match=r"^3 of your tasks are waiting already") as refusal:
        queue.check("ann")
    assert refusal.value.retry_after == 1.0
    with pytest.raises(OverloadedError, match=r"^4 tasks are waiting already"):
        queue.check("bob")
    queue.check("eve")


@given(data=st.data(), running=st.sampled_from([None, 1, LIMIT]))
def test_nobody_waits_for_more_than_one_task_of_each_other(data, running):
    """From the queueing of an owner's first task on, as long as it may have one more running."""
    queue = TaskQueue(QueueLimits(total=20, waiting=8, running=running))
    waiting: dict[str, list[str]] = {owner: [] for owner in OWNERS}
    leased: dict[str, str] = {}
    passed: dict[str, Counter[str]] = {}  # who was served while somebody waited for a turn
    for number in range(data.draw(st.integers(1, 60))):
        owner = data.draw(st.sampled_from(OWNERS))
        match data.draw(st.sampled_from(["put", "put", "claim", "claim", "end", "cancel"])):
            case "put":
                try:
                    queued(queue, owner, task_id := f"{owner}{number}")
                except OverloadedError:
                    assert waiting[owner], "refused although it has nothing there"
                else:
                    waiting[owner].append(task_id)
            case "claim":
                limit = data.draw(st.integers(0, 4))
                claimed = queue.claim(limit)
                for task_id in claimed:
                    (whose,) = (name for name in OWNERS if task_id in waiting[name])
                    assert waiting[whose].pop(0) == task_id
                    leased[task_id] = whose
                    passed.pop(whose, None)
                    for counts in passed.values():
                        counts[whose] += 1
                if len(claimed) < limit:
                    assert not _due(waiting, leased, running)
            case "end" if leased:
                task_id = data.draw(st.sampled_from(sorted(leased)))
                queue.drop(task_id, leased.pop(task_id))
            case "cancel" if waiting[owner]:
                task_id = data.draw(st.sampled_from(waiting[owner]))
                waiting[owner].remove(task_id)
                queue.drop(task_id, owner)
        due = _due(waiting, leased, running)
        passed = {name: passed.get(name, Counter()) for name in due}
        for counts in passed.values():
            assert max(counts.values(), default=0) <= 1
        assert len(queue) == sum(map(len, waiting.values()))
        assert all(queue.waiting(name) == len(waiting[name]) for name in OWNERS)
    for task_id, owner in leased.items():
        queue.drop(task_id, owner)
    for owner in OWNERS:
        for task_id in waiting[owner]:
            queue.drop(task_id, owner)
    kept = [
        *(queue._new, queue._lines, queue._turns, queue._lost, queue._leased),
        *(queue._waiting, queue._running),
    ]
    assert kept == [{}] * len(kept), "nobody is remembered"


def _due(waiting: dict[str, list[str]], leased: dict[str, str], running: int | None) -> list[str]:
    """Who waits and may have one more running."""
    has = Counter(leased.values())
    return [
        owner
        for owner, line in waiting.items()
        if line and (running is None or has[owner] < running)
    ]
