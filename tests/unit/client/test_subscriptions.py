from collections.abc import Callable
from typing import Any

import pytest

from agentsrv.client.errors import ConnectionClosedError, ReplyLostError, SequenceGapError
from agentsrv.client.subscriptions import EventIterator, Outcome, TaskSubscriptions
from agentsrv.errors import NotFoundError, SeqAheadError
from agentsrv.models.events import Record

LIMIT = 4
TASK = "t1"


class Wire:
    """The other end of a client's feeds: a log, and the commands that were sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[dict[str, Any], Callable[[Outcome], None]]] = []
        self.subscriptions = TaskSubscriptions(
            lambda fields, on_outcome: self.sent.append((fields, on_outcome)), LIMIT
        )
        self.subscriptions.up()

    def commands(self) -> list[tuple[str, int | None]]:
        """What was sent, without being answered, so far."""
        return [(fields["command"], fields.get("after_seq")) for fields, _ in self.sent]

    def answer(self, seq: int = 0, status: str = "running") -> None:
        """Carry the oldest command out."""
        _, on_outcome = self.sent.pop(0)
        on_outcome({"task_id": TASK, "status": status, "seq": seq})

    def refuse(self, error: Exception) -> None:
        """Refuse the oldest command."""
        _, on_outcome = self.sent.pop(0)
        on_outcome(error)  # type: ignore[arg-type]

    def send(self, first: int, last: int, terminal: bool = False) -> None:
        """Deliver events."""
        for seq in range(first, last + 1):
            ends = terminal and seq == last
            kind = "task_completed" if ends else "step_progress"
            self.subscriptions.take(Record(kind, TASK, seq, "", {}))


@pytest.fixture
def wire() -> Wire:
    """A connection that is up."""
    return Wire()


async def take(iterator: EventIterator, count: int) -> list[int]:
    """Read numbers of events."""
    records = [await iterator.next() for _ in range(count)]
    return [record.seq for record in records if record is not None]


async def test_an_iterator_subscribes_behind_its_place_and_ends_with_the_terminal_event(wire):
    """One subscription brings everything, and nothing is asked behind the end."""
    iterator = wire.subscriptions.open(TASK, 2)
    assert wire.commands() == [("subscribe", 2)]
    wire.answer(seq=3)
    wire.send(3, 5, terminal=True)
    assert await take(iterator, 4) == [3, 4, 5]
    wire.subscriptions.close(iterator)
    assert wire.commands() == []
    assert len(wire.subscriptions) == 0


async def test_an_iterator_at_the_end_of_a_log_is_at_its_end(wire):
    """The reply tells that nothing follows."""
    iterator = wire.subscriptions.open(TASK, 5)
    wire.answer(seq=5, status="completed")
    assert await iterator.next() is None


async def test_a_full_buffer_unsubscribes_and_half_an_empty_one_asks_again(wire):
    """A slow iterator holds no more than its limit, and gets the rest from the log."""
    iterator = wire.subscriptions.open(TASK, 0)
    wire.answer(seq=0)
    wire.send(1, 7)  # the last three were under way
    assert wire.commands() == [("unsubscribe", None)]
    wire.answer()
    assert await take(iterator, 1) == [1]
    assert wire.commands() == []
    assert await take(iterator, 1) == [2]
    assert wire.commands() == [("subscribe", 4)]
    wire.answer(seq=7)
    wire.send(5, 6)
    assert await take(iterator, 4) == [3, 4, 5, 6]


async def test_an_iterator_that_asks_again_waits_for_the_answer_to_unsubscribe(wire):
    """Changes of one subscription go one by one, so that each answer tells where it is."""
    iterator = wire.subscriptions.open(TASK, 0)
    wire.answer(seq=0)
    wire.send(1, 5)
    await take(iterator, 4)
    assert wire.commands() == [("unsubscribe", None)]
    wire.answer()
    assert wire.commands() == [("subscribe", 4)]


async def test_two_iterators_share_a_subscription_that_begins_behind_the_slower_one(wire):
    """Each yields its events once, although the second makes the server send some again."""
    first = wire.subscriptions.open(TASK, 0)
    wire.answer(seq=2)
    wire.send(1, 2)
    assert await take(first, 2) == [1, 2]
    second = wire.subscriptions.open(TASK, 1)
    assert wire.commands() == [("subscribe", 1)]
    wire.send(3, 3)  # of the first subscription, which goes on until it is replaced
    wire.answer(seq=3)
    wire.send(2, 4, terminal=True)
    assert await take(first, 3) == [3, 4]
    assert await take(second, 4) == [2, 3, 4]


async def test_closing_the_last_iterator_unsubscribes(wire):
    """While another one reads, the subscription stays."""
    first, second = wire.subscriptions.open(TASK, 0), wire.subscriptions.open(TASK, 0)
    wire.answer(seq=0)
    assert wire.commands() == []
    wire.subscriptions.close(first)
    assert wire.commands() == []
    wire.subscriptions.close(second)
    assert wire.commands() == [("unsubscribe", None)]
    wire.answer()
    assert len(wire.subscriptions) == 0


async def test_a_hole_is_an_error_behind_what_came_before_it(wire):
    """What is in order is yielded; then the hole is told."""
    iterator = wire.subscriptions.open(TASK, 0)
    wire.answer(seq=3)
    wire.send(1, 1)
    wire.send(3, 3)
    assert await take(iterator, 1) == [1]
    with pytest.raises(SequenceGapError, match="found event 3 after event 1; expected 2"):
        await iterator.next()


async def test_a_place_beyond_the_log_is_refused_also_beside_another_iterator(wire):
    """The server is asked where the log ends, and only the one beyond it fails."""
    first = wire.subscriptions.open(TASK, 0)
    wire.answer(seq=2)
    ahead = wire.subscriptions.open(TASK, 9)
    assert wire.commands() == [("subscribe", 0)]
    wire.answer(seq=2)
    with pytest.raises(SeqAheadError, match="has 2 events; found after_seq 9"):
        await ahead.next()
    wire.send(1, 2)
    assert await take(first, 2) == [1, 2]


async def test_a_refused_subscription_fails_the_iterator(wire):
    """The iterator raises what the server said."""
    iterator = wire.subscriptions.open(TASK, 0)
    wire.refuse(NotFoundError("there is no such task"))
    with pytest.raises(NotFoundError):
        await iterator.next()


async def test_a_subscription_that_cannot_go_on_fails_the_iterators_behind_what_they_have(wire):
    """Those that have read to the end do not notice; a later iterator asks again."""
    iterator = wire.subscriptions.open(TASK, 0)
    wire.answer(seq=5)
    wire.send(1, 2)
    wire.subscriptions.end_by_server(TASK, NotFoundError("the task is not kept any more"))
    wire.subscriptions.end_by_server("another", NotFoundError("of nobody"))
    assert await take(iterator, 2) == [1, 2]
    with pytest.raises(NotFoundError, match="not kept"):
        await iterator.next()
    wire.subscriptions.close(iterator)
    wire.subscriptions.open(TASK, 2)
    assert wire.commands() == [("subscribe", 2)]


async def test_a_new_connection_resumes_behind_what_was_buffered(wire):
    """Answers of the old one count no more."""
    iterator = wire.subscriptions.open(TASK, 0)
    wire.answer(seq=0)
    wire.send(1, 2)
    other = wire.subscriptions.open("t2", 0)
    wire.subscriptions.down()
    wire.refuse(ReplyLostError("lost"))
    wire.subscriptions.close(other)
    wire.subscriptions.up()
    assert wire.commands() == [("subscribe", 2)]
    wire.answer(seq=2)
    wire.send(3, 3, terminal=True)
    assert await take(iterator, 3) == [1, 2, 3]


async def test_the_events_of_a_new_task_are_buffered_without_a_command(wire):
    """``create`` has subscribed; the iterator yields all events."""
    iterator = wire.subscriptions.open_new(TASK)
    wire.send(1, 3)
    assert await take(iterator, 3) == [1, 2, 3]
    assert wire.commands() == []


async def test_the_events_of_a_new_task_that_are_not_read_are_bounded(wire):
    """A full buffer unsubscribes; the rest is requested once half of it has been read."""
    iterator = wire.subscriptions.open_new(TASK)
    wire.send(1, LIMIT + 1)
    assert wire.commands() == [("unsubscribe", None)]
    wire.answer()
    assert await take(iterator, 2) == [1, 2]
    assert wire.commands() == [("subscribe", LIMIT)]


async def test_a_new_task_that_is_not_read_is_unsubscribed(wire):
    """Closing its iterator ends the subscription that ``create`` made."""
    iterator = wire.subscriptions.open_new(TASK)
    wire.subscriptions.close(iterator)
    assert wire.commands() == [("unsubscribe", None)]
    wire.send(1, 1)
    wire.answer()
    assert len(wire.subscriptions) == 0


async def test_a_client_that_gives_up_fails_every_iterator(wire):
    """Behind what is buffered, each iterator raises."""
    iterator = wire.subscriptions.open(TASK, 0)
    wire.answer(seq=0)
    wire.send(1, 1)
    wire.subscriptions.down()
    wire.subscriptions.fail(ConnectionClosedError("the client is closed"))
    assert await take(iterator, 1) == [1]
    with pytest.raises(ConnectionClosedError):
        await iterator.next()
