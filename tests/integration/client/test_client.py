import asyncio
from contextlib import aclosing

import pytest

from agentsrv import ExecutionPlan, Step
from agentsrv.client import Client, Options, Record, TaskCancelledError, TaskFailedError
from agentsrv.client.connection import ReconnectingConnection
from agentsrv.errors import ConflictError, InvalidCommandError, InvalidStateError, NotFoundError
from agentsrv.models import events as e
from agentsrv.settings import Settings
from tests.support.fake_server import FakeServer, idle


async def numbers(client, task_id, after_seq=0):
    """The numbers of a task's events."""
    async with aclosing(client.events(task_id, after_seq)) as events:
        return [record.seq async for record in events]


async def test_run_returns_the_result_and_tells_every_event(client):
    """From the first event to the terminal one, in order."""
    seen: list[Record] = []
    completed = await client.run(
        "Count", agent="chatter", params={"pieces": 5}, on_event=seen.append
    )
    assert completed.final_output == "0 1 2 3 4 "
    assert [record.seq for record in seen] == list(range(1, len(seen) + 1))
    assert isinstance(seen[0].event, e.TaskCreated)
    assert seen[-1].is_terminal


async def test_run_awaits_what_is_told_asynchronously(client):
    """A coroutine function as on_event holds the next event back."""
    seen = []

    async def slowly(record):
        await asyncio.sleep(0)
        seen.append(record.event_type)

    await client.run("Count", agent="chatter", on_event=slowly, metadata={"for": "a test"})
    assert seen[-1] == "task_completed"


async def test_a_failed_task_is_an_error(client):
    """It carries the terminal event."""
    with pytest.raises(TaskFailedError, match="out of paper") as failure:
        await client.run("Print", agent="broken")
    assert failure.value.event.failed_step == "step_001"


async def test_a_cancelled_task_is_an_error(client):
    """It carries who cancelled it, why, and what was written."""
    running = asyncio.create_task(client.run("Wait", agent="endless", idempotency_key="k"))
    while (page := await client.list(status="running"))["total"] == 0:
        pass
    task_id = page["tasks"][0]["task_id"]
    async with aclosing(client.events(task_id)) as events:
        async for record in events:
            if record.event_type == "partial_output":
                break
    reply = await client.cancel(idempotency_key="k", reason="enough", grace=1)
    assert (reply["status"], reply["already"]) == ("cancelling", False)
    with pytest.raises(TaskCancelledError, match="enough") as cancelled:
        await running
    assert cancelled.value.event.partial_output == "so far"
    assert (await client.cancel(task_id))["already"]


async def test_a_deadline_fails_the_task(client):
    """It is counted from the execution on."""
    with pytest.raises(TaskFailedError, match=r"the deadline of 0\.05 s has passed"):
        await client.run("Wait", agent="endless", deadline=0.05)


async def test_a_failed_task_is_resumed(client):
    """What it had completed is taken over, and only the rest is tried again."""
    plan = {
        "steps": [
            {"step_id": "a", "agent": "chatter"},
            {"step_id": "b", "agent": "broken", "depends_on": ["a"]},
        ]
    }
    with pytest.raises(TaskFailedError) as first:
        await client.run("Print", plan=plan)
    seen: list[Record] = []
    with pytest.raises(TaskFailedError):
        await client.run("Print", resume_from=first.value.task_id, on_event=seen.append)
    completed = [record for record in seen if record.event_type == "step_completed"]
    assert [record.data["cached"] for record in completed] == [True]


async def test_a_task_may_end_with_its_client(server, client):
    """Somebody else sees it cancelled when the connection is gone."""
    async with Client(server.url) as other:
        created = await other.create("Wait", agent="endless", execute=True, on_disconnect="cancel")
    last = [record async for record in client.events(created["task_id"])][-1]
    assert last.data["reason"] == "the client disconnected"


async def test_every_command_is_answered(client):
    """Create, execute, status, list, agents and ping, as a user calls them."""
    created = await client.create("Count", agent="chatter", metadata={"a": "b"})
    assert (created["status"], created["replayed"]) == ("pending", False)
    task_id = created["task_id"]
    assert (await client.execute(task_id))["status"] == "queued"
    await numbers(client, task_id)
    snapshot = await client.status(task_id)
    assert (snapshot["status"], snapshot["steps"][0]["status"]) == ("completed", "completed")
    page = await client.list(status="completed", limit=1)
    assert [task["task_id"] for task in page["tasks"]] == [task_id]
    assert {agent["name"] for agent in await client.agents()} == {"chatter", "broken", "endless"}
    assert 0 <= await client.ping() < 5
    with pytest.raises(InvalidStateError):
        await client.execute(task_id)


async def test_a_plan_is_sent_as_it_is(client):
    """As an ExecutionPlan or as its JSON."""
    plan = ExecutionPlan(
        steps=(
            Step(step_id="a", agent="chatter"),
            Step(step_id="b", agent="chatter", depends_on=("a",)),
        )
    )
    for given in (plan, plan.model_dump(mode="json", exclude_none=True)):
        completed = await client.run("Count", plan=given, params={"pieces": 2})
        assert completed.final_output == "0 1 "


async def test_a_key_of_the_callers_makes_the_same_task_once(client):
    """And another task under the same key is a conflict."""
    first = await client.create("Count", agent="chatter", idempotency_key="once")
    again = await client.create("Count", agent="chatter", idempotency_key="once")
    assert (again["task_id"], again["replayed"]) == (first["task_id"], True)
    with pytest.raises(ConflictError):
        await client.create("Count again", agent="chatter", idempotency_key="once")


async def test_the_beginning_of_an_id_is_enough_where_it_is_unambiguous(client):
    """The server resolves it."""
    created = [await client.create("Count", agent="chatter") for _ in range(20)]
    task_id = created[0]["task_id"]
    assert await client.resolve(task_id[:12]) == task_id
    with pytest.raises(NotFoundError, match="'zzz'"):
        await client.resolve("zzz")
    with pytest.raises(InvalidCommandError, match="expected one id"):
        await client.resolve("a b")


async def test_a_task_that_is_not_there_is_told_by_its_iterator(client):
    """At the first step."""
    with pytest.raises(NotFoundError):
        await numbers(client, "nothing")


async def test_iterators_of_one_task_are_independent(client):
    """From wherever they begin, each yields everything behind it, once."""
    created = await client.create(
        "Count", agent="chatter", params={"pieces": 300}, execute=True, subscribe=True
    )
    task_id = created["task_id"]
    starts = [0, 0, 2, 1, 0]
    lists = await asyncio.gather(*(numbers(client, task_id, start) for start in starts))
    last = lists[0][-1]
    assert lists == [list(range(start + 1, last + 1)) for start in starts]
    assert await numbers(client, task_id, last) == []


async def test_many_tasks_share_one_connection(client):
    """A hundred at once, each with its own events."""
    completed = await asyncio.gather(
        *(client.run("Count", agent="chatter", params={"pieces": n}) for n in range(1, 101))
    )
    assert [len(result.final_output.split()) for result in completed] == list(range(1, 101))
    assert len(client._subscriptions) == 0


async def test_a_slow_iterator_is_sent_no_more_than_its_buffer(server):
    """The rest waits in the log; a quick iterator and other commands are not held up."""
    options = Options(buffer=16)
    async with Client(server.url, options) as client:
        pieces = {"pieces": 300}
        created = await client.create("Count", agent="chatter", params=pieces, execute=True)
        task_id = created["task_id"]
        most, seen = 0, []
        async with aclosing(client.events(task_id)) as slow:
            async for record in slow:
                seen.append(record.seq)
                if len(seen) == 1:
                    assert (await numbers(client, task_id))[-1] > 300
                    assert await client.ping() < 1
                [subscription] = client._subscriptions._subscriptions.values()
                most = max(most, *(len(cursor._buffer) for cursor in subscription.cursors))
        assert seen == list(range(1, len(seen) + 1))
        assert len(seen) > 300
        assert most <= 16


async def test_closing_an_iterator_unsubscribes():
    """Nothing is sent for what nobody reads, also where the iterator was cancelled."""
    async with FakeServer(idle).running() as server, Client(server.url) as client:
        asked = []
        link: ReconnectingConnection = client._link
        link._send = lambda call: asked.append(call.body)  # type: ignore[method-assign]
        async with aclosing(client.events("abc")) as events:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await anext(events)
        client._subscriptions._subscriptions["abc"]._subscribed(0, {"seq": 3, "status": "running"})
    assert [b'"subscribe"' in asked[0], b'"unsubscribe"' in asked[1]] == [True, True]


async def test_a_server_that_restarts_is_bridged(application, tmp_path, hasty):
    """Its log is on disk: the iterator goes on, the task behind what it had completed."""
    seen = []

    async def follow(url, started):
        async with Client(url, hasty) as client:
            created = await client.create("Wait", agent="endless", execute=True)
            async with aclosing(client.events(created["task_id"])) as events:
                async for record in events:
                    seen.append(record)
                    if record.event_type == "partial_output" and not started.done():
                        started.set_result(None)
                    if record.event_type == "task_recovered":
                        await client.cancel(created["task_id"])

    started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    store = f"sqlite:///{tmp_path}/log.db"
    first = Settings(port=0, store=store, drain_timeout=0.01)
    async with application.running(first) as running:
        second = first.model_copy(update={"port": running.port})
        following = asyncio.create_task(follow(running.url, started))
        await started
    async with application.running(second):
        await following
    assert [record.seq for record in seen] == list(range(1, len(seen) + 1))
    assert seen[-1].event_type == "task_cancelled"
