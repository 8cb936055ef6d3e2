import asyncio
import json
from contextlib import aclosing

import pytest

from agentsrv import ExecutionPlan, Step
from agentsrv.client import Client, Options, Record, TaskCancelledError, TaskFailedError
from agentsrv.client.connection import ReconnectingConnection
from agentsrv.errors import ConflictError, InvalidStateError, NotFoundError
from agentsrv.models import events as e
from agentsrv.protocol import examples
from agentsrv.settings import Settings
from tests.support.clients import run_task
from tests.support.fake_server import T1, FakeServer, idle


async def numbers(client, task_id, after_seq=0):
    """The numbers of a task's events."""
    async with aclosing(client.task(task_id).events(after_seq)) as events:
        return [record.seq async for record in events]


async def test_run_returns_the_result_and_tells_every_event(client):
    """From the first event to the terminal one, in order."""
    seen: list[Record] = []
    completed = await run_task(
        client, "Count", agent="chatter", params={"pieces": 5}, on_event=seen.append
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

    await run_task(client, "Count", agent="chatter", on_event=slowly, metadata={"for": "a test"})
    assert seen[-1] == "task_completed"


async def test_the_result_has_the_fields_of_the_last_event(client):
    """For a handle that has seen no event, too; and again."""
    task = await client.start("Count", agent="chatter", params={"pieces": 2})
    result = await task.result()
    assert (result.task_id, result.final_output) == (task.id, "0 1 ")
    assert (result.degraded, result.missing_steps) == (False, ())
    assert result.duration >= 0
    for handle in (task, client.task(task.id)):
        assert await handle.result() == result


async def test_a_timeout_of_the_result_leaves_the_task_running(client):
    """The same handle can wait again."""
    task = await client.start("Wait", agent="endless")
    with pytest.raises(TimeoutError):
        await task.result(timeout=0.05)
    assert (await task.status()).status == "running"
    await task.cancel("enough")
    with pytest.raises(TaskCancelledError, match="enough"):
        await task.result(timeout=10)


async def test_the_result_of_an_ended_task_reads_its_last_event_only(client, monkeypatch):
    """The status says which one it is."""
    task = await client.start("Count", agent="chatter", params={"pieces": 5})
    await task.result()
    requested = []
    open_iterator = client._subscriptions.open

    def spy(task_id, after_seq):
        requested.append(after_seq)
        return open_iterator(task_id, after_seq)

    monkeypatch.setattr(client._subscriptions, "open", spy)
    await client.task(task.id).result()
    assert requested == [(await task.status()).seq - 1]


async def test_a_handle_that_is_dropped_unsubscribes(client):
    """Its events were buffered from the first one on, and nobody can read them any more."""
    task = await client.start("Wait", agent="endless")
    assert len(client._subscriptions) == 1
    task_id = task.id
    del task
    async with asyncio.timeout(10):
        while len(client._subscriptions):  # noqa: ASYNC110 - until the reply to unsubscribe
            await asyncio.sleep(0.001)
    assert (await client.task(task_id).status()).status == "running"


async def test_a_start_whose_caller_is_cancelled_unsubscribes():
    """The reply comes after the caller has gone."""

    async def late(peer):
        command = await peer.receive()
        await peer.reply(await peer.receive())  # a ping: the caller has gone by now
        await peer.reply(command, task_id=T1, seq=2)
        await peer.reply(await peer.receive())
        await idle(peer)

    async with FakeServer(late).running() as server, Client(server.url) as client:
        starting = asyncio.create_task(client.start("x"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        starting.cancel()
        await client.ping()
        async with asyncio.timeout(10):
            while len(server.asked) < 3:  # noqa: ASYNC110 - until the server has received it
                await asyncio.sleep(0.001)
    assert [command["command"] for command in server.asked] == ["create", "ping", "unsubscribe"]


async def test_a_task_can_be_started_without_its_events(client):
    """``subscribe=False`` is for tasks that are not followed here."""
    task = await client.start("Wait", agent="endless", subscribe=False)
    assert len(client._subscriptions) == 0
    await task.cancel()
    with pytest.raises(TaskCancelledError):
        await task.result()


async def test_fields_of_a_newer_server_are_ignored():
    """In every reply, and in the values inside of them."""
    new = {"new": {"a": 1}}

    async def newer(peer):
        for _ in range(5):
            command = await peer.receive()
            reply = json.loads(json.dumps(examples.REPLIES[command["command"]]))
            for name in ("steps", "tasks", "agents"):
                reply[name] = [{**item, **new} for item in reply.get(name, [])]
            await peer.reply(command, **reply, **new)

    async with FakeServer(newer).running() as server, Client(server.url) as client:
        task = await client.create("x")
        snapshot = await task.status()
        assert snapshot.steps[0].output == examples.REPLIES["status"]["steps"][0]["output"]
        assert (await client.list()).tasks[0].task_id == task.id
        assert (await client.agents())[0].name == "greeter"
        assert (await task.cancel()).status == "cancelling"


async def test_a_failed_task_is_an_error(client):
    """It carries the terminal event."""
    with pytest.raises(TaskFailedError, match="out of paper") as failure:
        await run_task(client, "Print", agent="broken")
    assert failure.value.event.failed_step == "step_001"


async def test_a_cancelled_task_is_an_error(client):
    """It carries who cancelled it, why, and what was written."""
    running = asyncio.create_task(run_task(client, "Wait", agent="endless", idempotency_key="k"))
    while (page := await client.list(status="running")).total == 0:
        pass
    task_id = page.tasks[0].task_id
    async with aclosing(client.task(task_id).events()) as events:
        async for record in events:
            if record.event_type == "partial_output":
                break
    reply = await client.cancel(idempotency_key="k", reason="enough", grace=1)
    assert (reply.status, reply.already) == ("cancelling", False)
    with pytest.raises(TaskCancelledError, match="enough") as cancelled:
        await running
    assert cancelled.value.event.partial_output == "so far"
    assert (await client.task(task_id).cancel()).already


async def test_a_deadline_fails_the_task(client):
    """It is counted from the execution on."""
    with pytest.raises(TaskFailedError, match=r"the deadline of 0\.05 s has passed"):
        await run_task(client, "Wait", agent="endless", deadline=0.05)


async def test_a_failed_task_is_resumed(client):
    """What it had completed is taken over, and only the rest is tried again."""
    plan = {
        "steps": [
            {"step_id": "a", "agent": "chatter"},
            {"step_id": "b", "agent": "broken", "depends_on": ["a"]},
        ]
    }
    with pytest.raises(TaskFailedError) as first:
        await run_task(client, "Print", plan=plan)
    seen: list[Record] = []
    with pytest.raises(TaskFailedError):
        await run_task(client, "Print", resume_from=first.value.task_id, on_event=seen.append)
    completed = [record for record in seen if record.event_type == "step_completed"]
    assert [record.data["cached"] for record in completed] == [True]


async def test_a_task_may_end_with_its_client(server, client):
    """Somebody else sees it cancelled when the connection is gone."""
    async with Client(server.url) as other:
        bound = await other.start("Wait", agent="endless", on_disconnect="cancel")
    last = [record async for record in client.task(bound.id).events()][-1]
    assert last.data["reason"] == "the client disconnected"


async def test_every_command_is_answered(client):
    """Create, execute, status, list, agents and ping, as a user calls them."""
    task = await client.create("Count", agent="chatter", metadata={"a": "b"})
    assert task.replayed is False
    assert (await task.status()).status == "pending"
    await task.execute()
    assert (await task.result(timeout=10)).final_output
    snapshot = await task.status()
    assert (snapshot.status, snapshot.steps[0].status) == ("completed", "completed")
    page = await client.list(status="completed", limit=1)
    assert [row.task_id for row in page.tasks] == [task.id]
    assert {agent.name for agent in await client.agents()} == {"chatter", "broken", "endless"}
    assert 0 <= await client.ping() < 5
    with pytest.raises(InvalidStateError):
        await task.execute()


async def test_a_plan_is_sent_as_it_is(client):
    """As an ExecutionPlan or as its JSON."""
    plan = ExecutionPlan(
        steps=(
            Step(step_id="a", agent="chatter"),
            Step(step_id="b", agent="chatter", depends_on=("a",)),
        )
    )
    for given in (plan, plan.model_dump(mode="json", exclude_none=True)):
        completed = await run_task(client, "Count", plan=given, params={"pieces": 2})
        assert completed.final_output == "0 1 "


async def test_a_key_of_the_callers_makes_the_same_task_once(client):
    """And another task under the same key is a conflict."""
    first = await client.create("Count", agent="chatter", idempotency_key="once")
    again = await client.create("Count", agent="chatter", idempotency_key="once")
    assert (again.id, again.replayed) == (first.id, True)
    with pytest.raises(ConflictError):
        await client.create("Count again", agent="chatter", idempotency_key="once")


async def test_the_beginning_of_an_id_is_enough_where_it_is_unambiguous(client):
    """The server resolves it."""
    created = [await client.create("Count", agent="chatter") for _ in range(20)]
    task_id = created[0].id
    assert (await client.find(task_id[:12])).id == task_id
    with pytest.raises(NotFoundError, match="'zzz'"):
        await client.find("zzz")
    with pytest.raises(NotFoundError, match="'ab'"):
        await client.find("ab")


async def test_a_task_that_is_not_there_is_told_by_its_iterator(client):
    """At the first step."""
    with pytest.raises(NotFoundError):
        await numbers(client, "nothing")


async def test_iterators_of_one_task_are_independent(client):
    """From wherever they begin, each yields everything behind it, once."""
    created = await client.start("Count", agent="chatter", params={"pieces": 300})
    task_id = created.id
    starts = [0, 0, 2, 1, 0]
    lists = await asyncio.gather(*(numbers(client, task_id, start) for start in starts))
    last = lists[0][-1]
    assert lists == [list(range(start + 1, last + 1)) for start in starts]
    assert await numbers(client, task_id, last) == []


async def test_many_tasks_share_one_connection(client):
    """A hundred at once, each with its own events."""
    completed = await asyncio.gather(
        *(run_task(client, "Count", agent="chatter", params={"pieces": n}) for n in range(1, 101))
    )
    assert [len(result.final_output.split()) for result in completed] == list(range(1, 101))
    assert len(client._subscriptions) == 0


async def test_a_slow_iterator_is_sent_no_more_than_its_buffer(server):
    """The rest waits in the log; a quick iterator and other commands are not held up."""
    options = Options(buffer=16)
    async with Client(server.url, options) as client:
        pieces = {"pieces": 300}
        created = await client.start("Count", agent="chatter", params=pieces)
        task_id = created.id
        most, seen = 0, []
        async with aclosing(client.task(task_id).events()) as slow:
            async for record in slow:
                seen.append(record.seq)
                if len(seen) == 1:
                    assert (await numbers(client, task_id))[-1] > 300
                    assert await client.ping() < 1
                [subscription] = client._subscriptions._subscriptions.values()
                most = max(most, *(len(iterator._buffer) for iterator in subscription.iterators))
        assert seen == list(range(1, len(seen) + 1))
        assert len(seen) > 300
        assert most <= 16


async def test_closing_an_iterator_unsubscribes():
    """Nothing is sent for what nobody reads, also where the iterator was cancelled."""
    async with FakeServer(idle).running() as server, Client(server.url) as client:
        asked = []
        connection: ReconnectingConnection = client._connection
        connection._write = lambda command: asked.append(command.body)  # type: ignore[method-assign]
        async with aclosing(client.task("abc").events()) as events:
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
            created = await client.start("Wait", agent="endless")
            async with aclosing(created.events()) as events:
                async for record in events:
                    seen.append(record)
                    if record.event_type == "partial_output" and not started.done():
                        started.set_result(None)
                    if record.event_type == "task_recovered":
                        await created.cancel()

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
