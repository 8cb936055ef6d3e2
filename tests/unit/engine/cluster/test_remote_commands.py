import asyncio

import orjson
import pytest

from agentsrv.agents.agent import StepContext
from agentsrv.engine.cluster import remote_commands
from agentsrv.errors import (
    ConflictError,
    InvalidInputError,
    InvalidStateError,
    NotFoundError,
    UnavailableError,
)
from agentsrv.models.commands import Send
from agentsrv.models.plan import Step
from tests.support.shared_memory import LEASE, Place
from tests.support.simulation import simulate
from tests.support.world import OWNER, check_log, step
from tests.unit.engine.sample_agents import asker, only, question, sleeper
from tests.unit.engine.simulated_cluster import Member, cluster


async def listener(step: Step, ctx: StepContext) -> str:
    """Wait for three messages, and tell them."""
    found = []
    async for message in ctx.messages():
        found.append(str(message))
        if len(found) == 3:
            break
    return " ".join(found)


async def started(members: list[Member], agent: str = "sleeper") -> str:
    """A task that the first node runs and the second follows."""
    first, second = members
    task = await first.create(step("a", agent))
    await second.subscribe(task)
    await first.reader.until(task, "step_started")
    return task


def hop(agent=sleeper, *, drops: float = 0.0, latency: float = 0.01):
    """Run a story with two nodes, of which the second runs nothing."""

    def run(story):
        async def told() -> None:
            place = Place(drops=drops, latency=latency)
            async with cluster(place, "ab", gateways="b") as members:
                members[0].agent(agent)
                await story(members, place)

        simulate(told())

    return run


@pytest.mark.parametrize("drops", [0.0, 1.0], ids=["hints", "no hints"])
def test_a_task_is_cancelled_from_another_node(drops):
    """The node that runs it decides; the reply is of what is committed, and again it is no news."""

    @hop(drops=drops)
    async def story(members, place):
        task = await started(members)
        began = asyncio.get_running_loop().time()
        reply = await members[1].cancel(task, reason="enough", grace=1)
        assert reply == {"task_id": task, "status": "cancelling", "already": False}
        assert asyncio.get_running_loop().time() - began < (3 if drops else 0.1)
        again = await members[1].cancel(task)
        assert again["already"]
        end = await members[1].reader.until(task)
        assert (end.event_type, end.data["reason"], end.data["by"]) == (
            "task_cancelled",
            "enough",
            OWNER,
        )
        log = await members[1].log(task)
        check_log(log)
        assert only(log, "task_cancelling")[0]["grace"] == 1
        assert not any(place.is_open(number) for number in place.letters)


def test_a_question_is_answered_from_another_node():
    """By its agent's own check; refusals come back as the same errors, and change nothing."""

    @hop(asker)
    async def story(members, place):
        _, other = members
        task = await started(members, "asker")
        input_id = await question(other, task)
        with pytest.raises(
            InvalidInputError, match='found "perhaps"; value: Input should be a valid boolean'
        ):
            await other.respond(input_id, "perhaps")
        with pytest.raises(NotFoundError, match="there is no question"):
            await other.respond(f"{task}/a/7", value=True)
        assert await other.respond(input_id, value=True) == {"task_id": task, "input_id": input_id}
        end = await other.reader.until(task)
        assert end.data["final_output"] == "a: True"
        with pytest.raises(ConflictError):
            await other.respond(input_id, value=False)
        log = await other.log(task)
        assert only(log, "input_received")[0]["by"] == OWNER


def test_messages_are_sent_from_another_node():
    """Each once, with its number in the log, also where several come at once."""

    @hop(listener)
    async def story(members, place):
        here, other = members
        task = await started(members, "listener")
        replies = await asyncio.gather(
            other.send(task, "one"), here.send(task, "two"), other.send(task, {"number": 3})
        )
        await other.reader.until(task)
        sent = {r.seq for r in await other.log(task) if r.event_type == "message_received"}
        assert {reply["seq"] for reply in replies} == sent
        with pytest.raises(InvalidStateError):
            await other.send(task, "four")


def test_who_may_not_see_a_task_learns_nothing_of_it():
    """The asking node refuses it, and posts nothing."""

    @hop()
    async def story(members, place):
        task = await started(members)
        with pytest.raises(NotFoundError):
            await members[1].command_handler.send("eve", Send(task_id=task, message="hi"))
        assert not place.letters


def test_a_message_outlives_the_node_that_it_was_for():
    """The next one that runs the task finds it, and answers whoever still waits."""

    async def story() -> None:
        place = Place(latency=0.01)
        async with cluster(place, "abc", gateways="b") as (here, other, next_one):
            here.agent(sleeper)
            next_one.worker._concurrency = 0
            task = await started([here, other])
            here.door.cut()  # it runs, and hears nothing
            asking = asyncio.create_task(other.cancel(task, reason="gone"))
            await asyncio.sleep(1)
            here.kill()
            next_one.worker._concurrency = 1
            assert not (await asking)["already"]
            await other.reader.until(task)
            log = await other.log(task)
            check_log(log)
            assert len(only(log, "task_cancelled")) == 1

    simulate(story())


def test_a_task_that_nobody_runs_any_more_is_decided_here():
    """The message is taken back, so that nobody acts on it later."""

    async def story() -> None:
        place = Place(latency=0.01)
        async with cluster(place, "ab", gateways="b") as (here, other):
            here.agent(sleeper)
            task = await started([here, other])
            here.kill()
            asking = asyncio.create_task(other.cancel(task))
            await asyncio.sleep(LEASE + 3)
            assert (await asking)["status"] == "cancelling"
            assert [letter.is_withdrawn for letter in place.letters.values()] == [True]
            log = await other.log(task)
            assert log[-1].event_type == "task_cancelling"

    simulate(story())


def test_a_node_that_does_not_answer_is_not_waited_for_for_ever():
    """``unavailable``: and it is certain that the command will not be carried out."""

    @hop()
    async def story(members, place):
        here, other = members
        task = await started(members)
        here.remote_commands._apply_messages = _nothing  # it holds its lease, and reads no inbox
        with pytest.raises(UnavailableError, match="does not answer"):
            await other.send(task, "hello")
        del here.remote_commands._apply_messages
        await asyncio.sleep(5)
        assert not only(await other.log(task), "message_received")


async def _nothing() -> bool:
    return False


def test_a_message_that_was_taken_back_takes_its_event_along():
    """Who decided it anyway is fenced off: the task goes on behind its log."""

    @hop(listener)
    async def story(members, place):
        here, other = members
        task = await started(members, "listener")
        append = here.door.append

        def late(given):
            for number, _ in given.replies:
                place.letters[number].is_withdrawn = True
            return append(given)

        here.door.append = late
        place.post(task, letter("late"))
        await other.reader.until(task, "task_recovered")
        here.door.append = append
        for text in ("one", "two", "three"):
            await other.send(task, text)
        end = await other.reader.until(task)
        assert end.data["final_output"] == "one two three"
        check_log(await other.log(task))


def letter(message) -> bytes:
    """A message as a node posts it."""
    return orjson.dumps(
        {"by": OWNER, "command": {"command": "send", "task_id": "t", "message": message}}
    )


def test_a_message_that_cannot_be_read_is_answered_as_a_fault():
    """With an incident; the node goes on."""

    @hop()
    async def story(members, place):
        other = members[1]
        task = await started(members)
        number = place.post(task, b"{}")
        await asyncio.sleep(2)
        reply = orjson.loads(place.letters[number].reply)
        assert reply["error"]["code"] == "internal"
        assert "incident" in reply["error"]["message"]
        assert not (await other.cancel(task))["already"]


def test_nobody_is_asked_twice_at_once():
    """A message that is read again before its reply is committed is not carried out again."""

    @hop(listener, latency=0.5)
    async def story(members, place):
        here, other = members
        task = await started(members, "listener")
        sending = asyncio.create_task(other.send(task, "once"))
        while not sending.done():
            here.listener.inbox()
            await asyncio.sleep(0.05)
        await asyncio.sleep(2)
        assert len(only(await other.log(task), "message_received")) == 1
        assert not here.remote_commands._applied - here.remote_commands._written
        await asyncio.sleep(2)
        assert not here.remote_commands._applied


def test_cancelling_the_caller_does_not_cancel_the_command():
    """It is carried out, and its reply is nobody's."""

    @hop()
    async def story(members, place):
        task = await started(members)
        asking = asyncio.create_task(members[1].cancel(task))
        while not place.letters:  # noqa: ASYNC110 - in virtual time
            await asyncio.sleep(0.001)
        asking.cancel()
        end = await members[1].reader.until(task)
        assert end.event_type == "task_cancelled"
        assert not members[1].remote_commands._replies


def test_the_reply_timeout_is_longer_than_a_lease():
    """Or a node's death would be told as an error, though the task goes on."""
    assert remote_commands.REPLY_TIMEOUT > LEASE
