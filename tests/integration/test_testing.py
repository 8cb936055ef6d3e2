"""What an author's tests are given: it must itself be right."""

from __future__ import annotations

import pytest

from agentsrv import App, PermanentError
from agentsrv.client import Client
from agentsrv.testing import ManualClock, Script, serving


def app_of(script: Script, **options) -> App:
    """An application with one agent, ``actor``."""
    app = App()
    app.agent(name="actor", **options)(script.run)
    return app


async def kinds_of(client: Client, task_id: str) -> list[str]:
    """The types of a task's events so far."""
    seq = (await client.task(task_id).status()).seq
    kinds = []
    async for record in client.task(task_id).events():
        kinds.append(record.event_type)
        if record.seq == seq:
            break
    return kinds


async def test_a_server_in_one_line():
    """A client of a real server, whose store is gone with it."""
    async with serving(app_of(Script("It is done.")), max_step_output=5) as client:
        result = await client.start("x", agent="actor")
        records = [record async for record in result.events()]
    assert records[-1].event_type == "task_failed"
    assert "5 characters" in records[-1].data["error_message"]


async def test_a_script_is_played_attempt_by_attempt():
    """Errors, pieces and results come in the script's order; the last outcome stays."""
    script = Script(ValueError("no"), ["one ", 0, "two", ValueError("still no")], {"n": 1})
    async with serving(app_of(script, retries=3, retry_base=0)) as client:
        task = await client.start("x", agent="actor")
        records = [record async for record in task.events()]
    told = [record.data.get("error_message") for record in records]
    assert [text for text in told if text] == ["ValueError: no", "ValueError: still no"]
    assert "".join(r.data["output"] for r in records if "output" in r.data) == "one two"
    assert records[-2].data["result"] == {"n": 1}
    assert [call.attempt for call in script.calls] == [1, 2, 3]
    assert Script().calls == []


async def test_a_permanent_error_of_a_script_is_not_retried():
    """It is raised as it is."""
    script = Script(PermanentError("never"))
    async with serving(app_of(script)) as client:
        task = await client.start("x", agent="actor")
        records = [record async for record in task.events()]
    assert records[-1].event_type == "task_failed"
    assert len(script.calls) == 1


def test_a_clock_is_wound_through_the_back_off():
    """Attempts come at 0, 10, 30 and 70 seconds, and none a moment early."""
    clock, script = ManualClock(), Script(ValueError("no"))

    async def story() -> None:
        async with serving(app_of(script, retry_base=10, retry_jitter=False)) as client:
            task = await client.start("x", agent="actor")
            await clock.advance(0)
            for seconds, attempts in ((9.9, 1), (0.1, 2), (19.9, 2), (0.1, 3), (39.9, 3)):
                await clock.advance(seconds)
                assert len(script.calls) == attempts
            assert (await task.status()).status == "running"
            await clock.advance(0.1)
            assert len(script.calls) == 4
            assert (await task.status()).status == "failed"

    clock.run(story())
    assert clock.seconds == pytest.approx(70)


def test_what_falls_due_on_the_way_happens_in_its_order():
    """One long wind is as good as many short ones."""
    clock, script = ManualClock(), Script(["a", 10, "b", 10, "c"])

    async def story() -> list[str]:
        async with serving(
            app_of(script, timeout=15, retry_base=0.1, retry_jitter=False), ping_interval=3600
        ) as client:
            task = await client.start("x", agent="actor")
            await clock.advance(60)
            return await kinds_of(client, task.id)

    kinds = clock.run(story())
    assert kinds[-6:].count("step_retrying") == 1
    assert kinds.count("partial_output") == 4 * 2  # each attempt comes to its second piece
    assert clock.seconds == 60


async def test_a_clock_that_runs_no_test_is_told_so():
    """Winding it in any other loop would change nothing."""
    with pytest.raises(AssertionError, match=r"ManualClock\.run"):
        await ManualClock().advance(1)
