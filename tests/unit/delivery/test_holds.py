"""Holds: what happens to a task's events while commands on it are carried out."""

from __future__ import annotations

import asyncio

import pytest

from agentsrv.delivery.broker import EventBroker
from agentsrv.delivery.subscriptions import Hold, Subscriber
from agentsrv.errors import OverloadedError
from agentsrv.models import events as e
from agentsrv.models.outcome import CommandOutcome, Follow
from agentsrv.models.states import TaskStatus
from agentsrv.models.task import TaskState
from agentsrv.store.base import Append, NewTask
from agentsrv.store.memory import MemoryStore
from tests.support.store_listener import Heard
from tests.support.world import OWNER, Reader

START = [e.TaskCreated("x", None, {}, {}, None), e.TaskQueued(1)]
END = e.TaskCancelled("cancelled", None, OWNER, stopped=True, partial_output="")


class Desk:
    """A store, a broker and one connection; tasks are written by hand."""

    def __init__(self, limit: int | None = None) -> None:
        self.store = MemoryStore()
        self.broker = EventBroker(self.store, limit)
        self.reader = Reader()
        self.subscriber = Subscriber(self.broker, self.reader, OWNER)
        self.states: dict[str, TaskState] = {}

    async def open(self) -> None:
        """Have commits published."""
        await self.store.open(Heard(committed=self.broker.publish))

    async def create(self, task_id: str) -> None:
        """Commit a task's first two events."""
        self.states[task_id] = TaskState(task_id)
        bodies = [self._written(task_id, event) for event in START]
        await self.store.create(NewTask(task_id, OWNER, TaskStatus.QUEUED, "x", 0.0, b"{}", bodies))

    async def end(self, task_id: str) -> None:
        """Commit its last one."""
        state = self.states[task_id]
        expected = state.seq
        bodies = [self._written(task_id, END)]
        await self.store.append(
            Append(task_id, OWNER, 0, expected, bodies, TaskStatus.CANCELLED, 0.0)
        )

    def hold(self, task_id: str, after: int | None = None) -> Hold:
        """A hold of this connection."""
        return Hold(self.subscriber, task_id, after)

    def told(self, task_id: str) -> list[int]:
        """The numbers of the events that were delivered."""
        return [record.seq for record in self.reader.of(task_id)]

    def _written(self, task_id: str, event: e.Event) -> bytes:
        state, stamp = self.states[task_id], e.format_timestamp(0.0)
        state.apply(event, stamp)
        return e.encode(event, task_id, state.seq, stamp)


@pytest.fixture
async def desk() -> Desk:
    """One without a limit."""
    desk = Desk()
    await desk.open()
    return desk


def begun(task_id: str, head: int, after: int = 0, *, ended: bool = False) -> CommandOutcome:
    """The outcome of a command that follows a task."""
    return CommandOutcome({}, Follow(task_id, after, head, ended))


async def settle() -> None:
    """Let the reader work."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_commit_after_the_head_was_read_is_delivered(desk):
    """The hold has noted it, and the end of the task ends the subscription."""
    await desk.create("t1")
    with desk.hold("t1", after=0) as hold:
        await desk.end("t1")
        hold.accept(begun("t1", head=2))
        assert desk.told("t1") == []
    await settle()
    assert desk.told("t1") == [1, 2, 3]
    assert desk.reader.marks == [("t1", 2)]
    assert desk.broker.counts == {}


async def test_the_first_commit_of_a_new_task_is_not_read_from_the_store(desk, monkeypatch):
    """It is kept, and delivered when the hold is left."""
    monkeypatch.delattr(MemoryStore, "read_each")
    with desk.hold("t1", after=0) as hold:
        await desk.create("t1")
        hold.accept(begun("t1", head=2))
        assert desk.told("t1") == []
    assert desk.told("t1") == [1, 2]


async def test_a_command_may_be_about_the_task_of_its_idempotency_key(desk):
    """That one is held and followed; its commits since its head was read are found."""
    await desk.create("t1")
    with desk.hold("t2", after=0) as hold:
        await desk.end("t1")  # nothing has noted this
        hold.accept(begun("t1", head=2))
        assert not desk.broker.follows("t2")
        await settle()
        assert desk.told("t1") == []
    await settle()
    assert desk.told("t1") == [1, 2, 3]
    assert desk.reader.marks == [("t1", 2)]
    assert desk.broker.counts == {}


async def test_such_a_task_that_goes_on_is_followed_live(desk):
    """After the reader has found nothing more, commits are delivered at once."""
    await desk.create("t1")
    with desk.hold("t2", after=0) as hold:
        hold.accept(begun("t1", head=2))
    await settle()
    assert desk.told("t1") == [1, 2]
    await desk.end("t1")
    assert desk.told("t1") == [1, 2, 3]
    assert desk.broker.counts == {}


async def test_a_command_that_is_refused_leaves_nothing(desk):
    """Neither a hold nor a place among the subscriptions."""
    await desk.create("t1")
    with desk.hold("t1", after=0):
        assert desk.broker.counts == {OWNER: 1}
    assert desk.broker.counts == {}
    await desk.end("t1")
    await settle()
    assert desk.told("t1") == []


async def test_of_two_subscriptions_the_one_that_came_later_counts(desk):
    """Also where its command is completed first."""
    await desk.create("t1")
    await desk.end("t1")
    with desk.hold("t1", after=0) as first:
        with desk.hold("t1", after=2) as second:
            second.accept(begun("t1", head=3, after=2, ended=True))
        first.accept(begun("t1", head=3, ended=True))
    await settle()
    assert desk.told("t1") == [3]
    assert desk.broker.counts == {}


async def test_unsubscribe_ends_what_is_about_to_begin(desk):
    """The command is carried out, and nothing of the task is delivered."""
    await desk.create("t1")
    with desk.hold("t1", after=0) as hold:
        assert desk.subscriber.unsubscribe("t1")
        assert not desk.subscriber.unsubscribe("t1")
        hold.accept(begun("t1", head=2))
    await settle()
    assert desk.told("t1") == []
    assert desk.broker.counts == {}


async def test_a_connection_that_closes_during_a_command_follows_nothing(desk):
    """What the command would have begun has no reader."""
    await desk.create("t1")
    with desk.hold("t1", after=0) as hold:
        desk.subscriber.close()
        hold.accept(begun("t1", head=2))
    assert desk.broker.counts == {}


async def test_a_place_is_taken_before_the_command_is_carried_out():
    """So a task is not created and then refused its subscription."""
    desk = Desk(limit=1)
    await desk.open()
    with desk.hold("t1", after=0):
        with pytest.raises(OverloadedError, match="1 tasks, which is the limit"):
            desk.hold("t2", after=0).__enter__()
        with desk.hold("t3"):  # follows nothing
            pass
        with desk.hold("t1", after=0):  # the same task takes no other place
            pass
    assert desk.broker.counts == {}


async def test_all_commands_on_a_task_hold_its_events(desk):
    """They are delivered when the last one is left."""
    await desk.create("t1")
    with desk.hold("t1", after=0) as hold:
        hold.accept(begun("t1", head=2))
    await settle()
    with desk.hold("t1"):
        with desk.hold("t1"):
            await desk.end("t1")
        await settle()
        assert desk.told("t1") == [1, 2]
    assert desk.told("t1") == [1, 2, 3]


async def test_life_cycles_are_held_too(desk):
    """A subscription to all tasks gets them when the hold is left."""
    desk.subscriber.subscribe_all()
    with desk.hold("t1"):
        await desk.create("t1")
        await settle()
        assert desk.told("t1") == []
    await settle()
    assert desk.told("t1") == [1, 2]
