"""Tasks from their start to their terminal event, in simulated time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import orjson
import pytest

from agentsrv.agents.base import StepContext, TaskContext
from agentsrv.errors import ModelError, PermanentError
from agentsrv.models.plan import ExecutionPlan, ExplainedPlan, Step
from agentsrv.models.task import TaskState
from agentsrv.orchestrator import logs
from tests.orchestrator.people import SlowStore
from tests.orchestrator.world import World, check_log, crashed, die, running, step
from tests.simulation import simulate


async def quick(step: Step, ctx: StepContext) -> str:
    """Answer at once."""
    return f"{step.step_id} after {', '.join(ctx.outputs) or 'nothing'}"


async def slow(step: Step, ctx: StepContext) -> AsyncIterator[str]:
    """Write a word a second, for a minute."""
    for number in range(60):
        yield f"word {number} "
        await asyncio.sleep(1)


def failing(times: int, error: type[BaseException] = ValueError) -> Callable[..., Any]:
    """An agent that fails so many times before it succeeds."""

    async def agent(step: Step, ctx: StepContext) -> str:
        if ctx.attempt <= times:
            raise error(f"attempt {ctx.attempt}")
        return "at last"

    return agent


def test_a_task_tells_each_step_in_order():
    """Planned, started, written, completed: the whole log of a task of two steps."""

    async def story() -> None:
        world = World()
        world.agent(quick)
        async with running(world):
            task = await world.create(step("a", "quick"), step("b", "quick", "a"))
            end = await world.reader.until(task)
        assert world.reader.types(task) == [
            "task_created", "task_queued", "task_started", "plan_created",
            "step_started", "partial_output", "step_completed",
            "step_started", "partial_output", "step_completed",
            "task_completed",
        ]  # fmt: skip
        assert end.data["final_output"] == "b after a"
        check_log(await world.log(task))
        assert world.reader.of(task) == await world.log(task)

    simulate(story())


def test_retries_wait_twice_as_long_each_time():
    """Attempts start after 0, 0.1, 0.2 and 0.4 s, and the log counts them."""

    async def story() -> None:
        world = World()
        world.agent(failing(3), name="flaky")
        async with running(world):
            task = await world.create(step("a", "flaky"))
            await world.reader.until(task)
            assert asyncio.get_running_loop().time() == pytest.approx(0.7)
        retries = [r.data for r in world.reader.of(task) if r.event_type == "step_retrying"]
        assert [(r["attempt"], r["next_attempt"], r["retry_in"], r["retry_count"], r["reason"])
                for r in retries] == [
            (1, 2, 0.1, 1, "error"), (2, 3, 0.2, 2, "error"), (3, 4, 0.4, 3, "error"),
        ]  # fmt: skip
        assert world.reader.types(task)[-1] == "task_completed"

    simulate(story())


@pytest.mark.parametrize(
    "error", [ValueError, SystemExit, KeyboardInterrupt, asyncio.CancelledError, TimeoutError]
)
def test_an_agent_that_always_raises_fails_its_task(error):
    """Whatever is raised, four attempts are made, and the worker lives on."""

    async def story() -> None:
        world = World()
        world.agent(failing(99, error), name="broken")
        world.agent(quick)
        async with running(world):
            task = await world.create(step("a", "broken"), step("b", "quick", "a"))
            end = await world.reader.until(task)
            other = await world.create(step("a", "quick"))
            assert (await world.reader.until(other)).event_type == "task_completed"
        assert end.event_type == "task_failed"
        assert (end.data["failed_step"], end.data["retry_count"]) == ("a", 3)
        assert world.reader.types(task).count("step_started") == 4
        assert world.reader.types(task)[-3:] == ["step_failed", "step_skipped", "task_failed"]

    simulate(story())


def test_a_service_that_wants_to_be_left_alone_is():
    """A retry waits at least as long as the error says, and never longer than the cap."""
    wanted = [5.0, 0.0, 3600.0]

    async def agent(step: Step, ctx: StepContext) -> str:
        if ctx.attempt <= len(wanted):
            raise ModelError("busy", retry_after=wanted[ctx.attempt - 1])
        return "at last"

    async def story() -> None:
        world = World()
        world.agent(agent)
        async with running(world):
            task = await world.create(step("a", "agent"))
            await world.reader.until(task)
        log = world.reader.of(task)
        waits = [r.data["retry_in"] for r in log if r.event_type == "step_retrying"]
        assert waits == [5.0, 0.2, 60.0]

    simulate(story())


def test_a_permanent_error_is_not_retried():
    """PermanentError fails the step at its first attempt."""

    async def story() -> None:
        world = World()
        world.agent(failing(99, PermanentError), name="broken")
        async with running(world):
            task = await world.create(step("a", "broken"))
            end = await world.reader.until(task)
        assert world.reader.types(task).count("step_started") == 1
        assert "PermanentError: attempt 1" in end.data["error_message"]

    simulate(story())


def test_a_time_out_counts_as_a_failure():
    """An attempt beyond its time is cancelled and retried, and the text of it is dropped."""

    async def story() -> None:
        world = World()
        world.agent(slow, timeout=2.5, retries=1)
        async with running(world):
            task = await world.create(step("a", "slow"))
            end = await world.reader.until(task)
        [retry] = [r.data for r in world.reader.of(task) if r.event_type == "step_retrying"]
        assert retry["reason"] == "timeout"
        assert end.data["partial_output"] == "word 0 word 1 word 2 "
        assert end.data["error_message"] == "no result within 2.5 s"
        snapshot = await world.status(task)
        assert snapshot["steps"][0]["output"] == "word 0 word 1 word 2 "

    simulate(story())


def test_a_degraded_step_lets_the_plan_go_on():
    """The retriever's failure is told, and the task completes without it."""

    async def story() -> None:
        world = World()
        world.agent(failing(99), name="retriever", on_failure="degrade")
        world.agent(quick)
        async with running(world):
            task = await world.create(step("a", "retriever"), step("b", "quick", "a"))
            end = await world.reader.until(task)
        assert end.event_type == "task_completed"
        assert (end.data["degraded"], end.data["missing_steps"]) == (True, ["a"])
        assert end.data["final_output"] == "b after nothing"
        [failed] = [r.data for r in world.reader.of(task) if r.event_type == "step_failed"]
        assert failed["degraded"] is True

    simulate(story())


def test_independent_steps_run_at_the_same_time():
    """A diamond of one-second steps takes three seconds, and its order is the plan's."""

    async def second(step: Step, ctx: StepContext) -> str:
        await asyncio.sleep(1)
        return step.step_id

    async def story() -> None:
        world = World()
        world.agent(second)
        async with running(world):
            task = await world.create(
                step("top", "second"),
                step("left", "second", "top"),
                step("right", "second", "top"),
                step("end", "second", "left", "right"),
            )
            await world.reader.until(task)
            assert asyncio.get_running_loop().time() == pytest.approx(3)
        started = [
            r.data["step_id"] for r in world.reader.of(task) if r.event_type == "step_started"
        ]
        assert started == ["top", "left", "right", "end"]

    simulate(story())


def test_one_failure_stops_the_other_branches():
    """The sibling is cancelled with what it had written, the rest is skipped."""

    async def story() -> None:
        world = World()
        world.agent(slow)
        world.agent(failing(99), name="broken", retries=0)
        async with running(world):
            task = await world.create(
                step("a", "slow"), step("b", "broken"), step("c", "slow", "a", "b")
            )
            end = await world.reader.until(task)
        log = world.reader.of(task)
        assert end.event_type == "task_failed"
        assert [r.data["partial_output"] for r in log if r.event_type == "step_cancelled"] == [
            "word 0 "
        ]
        assert [r.data["step_id"] for r in log if r.event_type == "step_skipped"] == ["c"]
        check_log(log)

    simulate(story())


@pytest.mark.parametrize(
    ("agent", "reason"),
    [
        (lambda: 7, "yielded int; expected str"),
        (lambda: "\ud800", "not Unicode"),
    ],
)
def test_a_wrong_piece_fails_the_step(agent, reason):
    """What is no text is not written, and the message says what was found."""

    async def writer(step: Step, ctx: StepContext) -> AsyncIterator[Any]:
        yield "good "
        yield agent()

    async def story() -> None:
        world = World()
        world.agent(writer)
        async with running(world):
            task = await world.create(step("a", "writer"))
            end = await world.reader.until(task)
        assert reason in end.data["error_message"]
        assert end.data["partial_output"] == "good "
        assert world.reader.types(task).count("step_started") == 1

    simulate(story())


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, {"a": object()}, 1 << 70, b"bytes"])
def test_a_result_that_is_no_json_fails_the_step(value):
    """The log holds only what every program reads alike."""

    async def agent(step: Step, ctx: StepContext) -> Any:
        return value

    async def story() -> None:
        world = World()
        world.agent(agent)
        async with running(world):
            task = await world.create(step("a", "agent"))
            end = await world.reader.until(task)
        assert end.event_type == "task_failed"
        assert "not JSON" in end.data["error_message"]

    simulate(story())


def test_a_structured_result_is_the_final_output():
    """A sink without text stands in the output as JSON, and dependants are given the value."""

    async def agent(step: Step, ctx: StepContext) -> Any:
        return {"found": 3}

    async def reader(step: Step, ctx: StepContext) -> Any:
        ctx.set_result(ctx.results["a"]["found"] + 1)

    async def story() -> None:
        world = World()
        world.agent(agent)
        world.agent(reader)
        async with running(world):
            task = await world.create(step("a", "agent"), step("b", "reader", "a"))
            end = await world.reader.until(task)
        assert end.data["final_output"] == "4"

    simulate(story())


def test_params_reach_the_agent_validated():
    """A parameter is converted by its annotation; one without a value takes its default."""

    async def shout(step: Step, ctx: StepContext, times: int = 2, mark: str = "!") -> str:
        return ctx.task_description + mark * times

    async def story() -> None:
        world = World()
        world.agent(shout)
        async with running(world):
            task = await world.create(agent="shout", params={"times": 3})
            end = await world.reader.until(task)
        assert end.data["final_output"] == "do it!!!"

    simulate(story())


# Planning.


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (lambda: ExecutionPlan(steps=(step("a", "nobody"),)), "wants agent 'nobody'"),
        (lambda: ExecutionPlan(steps=(step("a", "quick", "a"),)), "ValidationError"),
        (lambda: "a plan", "returned str; expected ExecutionPlan"),
        (lambda: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_planner_that_fails_fails_the_task(plan, message):
    """The message says what the planner did wrong."""

    async def planner(task_description: str, ctx: TaskContext) -> ExecutionPlan:
        return plan()  # type: ignore[no-any-return]

    async def story() -> None:
        world = World()
        world.agent(quick)
        world.registry.planner = planner
        async with running(world):
            task = await world.create()
            end = await world.reader.until(task)
        assert world.reader.types(task)[2:] == ["task_started", "task_failed"]
        assert message in end.data["error_message"]

    simulate(story())


def test_a_planner_is_asked_again():
    """A planner that fails for a while is retried like a step."""
    asked = []

    async def planner(task_description: str, ctx: TaskContext) -> ExecutionPlan:
        asked.append(asyncio.get_running_loop().time())
        if len(asked) == 1:
            raise OSError("not yet")
        if len(asked) == 2:
            raise ModelError("busy", retry_after=7.0)
        return ExecutionPlan(steps=(step("a", "quick"),))

    async def story() -> None:
        world = World()
        world.agent(quick)
        world.registry.planner = planner
        async with running(world):
            task = await world.create()
            assert (await world.reader.until(task)).event_type == "task_completed"
        assert asked == pytest.approx([0, 0.1, 7.1])

    simulate(story())


def test_a_plan_tells_where_it_came_from():
    """A plan that explains itself is passed on with its explanation, any other without one."""

    async def planner(task_description: str, ctx: TaskContext) -> ExecutionPlan:
        return ExplainedPlan(steps=(step("a", "quick"),), planned_by="dice", reason="a six")

    async def story() -> None:
        world = World()
        world.agent(quick)
        world.registry.planner = planner
        async with running(world):
            planned = await world.create()
            given = await world.create(step("a", "quick"))
            origins = [
                (record.data["planned_by"], record.data["reason"])
                for task in (planned, given)
                for record in (await world.reader.until(task, "plan_created"),)
            ]
        assert origins == [("dice", "a six"), (None, None)]

    simulate(story())


# Cancellation.


def test_cancel_reaches_a_running_coroutine():
    """The agent sees CancelledError, cleans up in peace, and the terminal event is the last."""
    seen = []

    async def careful(step: Step, ctx: StepContext) -> AsyncIterator[str]:
        yield "begun"
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append("cancelled")
            await asyncio.sleep(1)
            seen.append("cleaned up")
            raise

    async def story() -> None:
        world = World()
        world.agent(careful)
        async with running(world):
            task = await world.create(step("a", "careful"), step("b", "careful", "a"))
            await world.reader.until(task, "partial_output")
            result = await world.cancel(task, reason="enough")
            assert (result["status"], result["already"]) == ("cancelling", False)
            again = await world.cancel(task)
            assert (again["status"], again["already"]) == ("cancelling", True)
            end = await world.reader.until(task)
            late = await world.cancel(task)
            assert (late["status"], late["already"]) == ("cancelled", True)
            await asyncio.sleep(10)
        assert seen == ["cancelled", "cleaned up"]
        assert world.reader.types(task)[-3:] == [
            "task_cancelling", "step_cancelled", "task_cancelled",
        ]  # fmt: skip
        assert (end.data["reason"], end.data["by"], end.data["stopped"]) == (
            "enough", "somebody", True,
        )  # fmt: skip
        check_log(await world.log(task))

    simulate(story())


def test_a_cancel_stops_at_once_and_takes_one_commit():
    """The work does not run on for as long as the commit takes, and its end is in that commit."""
    at: list[float] = []

    async def sleeps(step: Step, ctx: StepContext) -> str:
        clock = asyncio.get_running_loop().time
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            at.append(clock())
            raise
        return "awake"

    async def story() -> None:
        clock = asyncio.get_running_loop().time
        world = World(SlowStore())
        world.agent(sleeps)
        async with running(world):
            task = await world.create(step("a", "sleeps"))
            await world.reader.until(task, "step_started")
            await asyncio.sleep(1)  # nothing is being committed
            asked = clock()
            result = await world.cancel(task)
            await world.reader.until(task)
            assert result["status"] == "cancelling"
            assert at == [asked]
            assert clock() - asked == pytest.approx(1.0)
        assert world.reader.types(task)[-3:] == [
            "task_cancelling", "step_cancelled", "task_cancelled",
        ]  # fmt: skip

    simulate(story())


def test_cancel_of_a_pending_and_a_queued_task_is_at_once():
    """Where nothing runs, the task is cancelled without a word between."""

    async def story() -> None:
        world = World(concurrency=1)
        world.agent(slow)
        async with running(world):
            busy = await world.create(step("a", "slow"))
            await world.reader.until(busy, "partial_output")
            queued = await world.create(step("a", "slow"))
            pending = await world.create(step("a", "slow"), execute=False)
            assert world.store.queued == 1
            for task in (queued, pending):
                result = await world.cancel(task)
                assert (result["status"], result["already"]) == ("cancelled", False)
                assert (await world.status(task))["status"] == "cancelled"
            assert world.store.queued == 0
            await world.cancel(busy)
            await world.reader.until(busy)
            assert world.reader.types(queued) == [
                "task_created", "task_queued", "task_cancelled",
            ]  # fmt: skip

    simulate(story())


def test_cancel_of_a_retrying_task_is_at_once():
    """A step in its back-off is stopped there; its next attempt never begins."""

    async def story() -> None:
        world = World()
        world.agent(failing(99), name="flaky", retry_base=30.0)
        async with running(world):
            task = await world.create(step("a", "flaky"))
            await world.reader.until(task, "step_retrying")
            assert (await world.cancel(task))["status"] == "cancelled"
            await world.reader.until(task)
            assert asyncio.get_running_loop().time() < 1
            await asyncio.sleep(60)
        assert world.reader.types(task)[-3:] == [
            "step_retrying", "step_cancelled", "task_cancelled",
        ]  # fmt: skip

    simulate(story())


def test_cancel_while_the_plan_is_made():
    """The planner's coroutine is cancelled as well."""

    async def planner(task_description: str, ctx: TaskContext) -> ExecutionPlan:
        await asyncio.sleep(60)
        raise AssertionError("never here")

    async def story() -> None:
        world = World()
        world.registry.planner = planner
        async with running(world):
            task = await world.create()
            await world.reader.until(task, "task_started")
            await world.cancel(task)
            await world.reader.until(task)
            assert asyncio.get_running_loop().time() < 1
        assert world.reader.types(task)[-2:] == ["task_cancelling", "task_cancelled"]

    simulate(story())


def test_a_stubborn_step_is_fenced_off():
    """After the grace period its writing is refused, and its slot stays taken till it ends."""

    async def stubborn(step: Step, ctx: StepContext) -> AsyncIterator[str]:
        for number in range(20):
            try:
                await asyncio.sleep(1)
            except asyncio.CancelledError:
                continue
            yield f"{number} "

    async def story() -> None:
        world = World(concurrency=1, grace=3.0)
        world.agent(stubborn)
        world.agent(quick)
        async with running(world):
            task = await world.create(step("a", "stubborn"))
            await world.reader.until(task, "partial_output")
            runner = world.worker.live(task)
            assert runner is not None
            await world.cancel(task)
            end = await world.reader.until(task)
            assert end.data["stopped"] is False
            assert asyncio.get_running_loop().time() == pytest.approx(4)
            behind = await world.create(step("a", "quick"))
            assert world.worker.running == 1
            await world.reader.until(behind)
            assert asyncio.get_running_loop().time() == pytest.approx(20, abs=1.1)
            assert world.around.measures.refused > 10
            assert world.around.measures.orphaned == 1
        check_log(await world.log(task))

    simulate(story())


def test_a_step_that_ends_well_while_it_is_cancelled_is_completed():
    """Its result is kept, and the task is cancelled all the same."""

    async def finishing(step: Step, ctx: StepContext) -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "saved"
        return "never"

    async def story() -> None:
        world = World()
        world.agent(finishing)
        async with running(world):
            task = await world.create(step("a", "finishing"), step("b", "finishing", "a"))
            await world.reader.until(task, "step_started")
            await world.cancel(task)
            end = await world.reader.until(task)
        assert world.reader.types(task)[-3:] == [
            "partial_output", "step_completed", "task_cancelled",
        ]  # fmt: skip
        assert end.data["stopped"] is True

    simulate(story())


def test_an_agent_that_fails_in_its_clean_up_is_cancelled_nonetheless():
    """An error raised instead of CancelledError starts no retry."""

    async def clumsy(step: Step, ctx: StepContext) -> str:
        try:
            await asyncio.sleep(60)
        finally:
            raise RuntimeError("cannot clean up")

    async def story() -> None:
        world = World()
        world.agent(clumsy)
        async with running(world):
            task = await world.create(step("a", "clumsy"))
            await world.reader.until(task, "step_started")
            await world.cancel(task)
            await world.reader.until(task)
        assert world.reader.types(task)[-2:] == ["step_cancelled", "task_cancelled"]

    simulate(story())


def test_cancel_wins_over_a_failure_that_winds_down():
    """A task that is failing slowly and is cancelled meanwhile ends as cancelled."""

    async def stubborn(step: Step, ctx: StepContext) -> str:
        while True:
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                if asyncio.get_running_loop().time() > 8:
                    raise
                await asyncio.sleep(20)

    async def story() -> None:
        world = World(grace=5)
        world.agent(stubborn)
        world.agent(failing(99), name="broken", retries=0)
        async with running(world):
            task = await world.create(step("a", "stubborn"), step("b", "broken"))
            await world.reader.until(task, "step_failed")
            await asyncio.sleep(1)
            await world.cancel(task)
            end = await world.reader.until(task)
            check_log(world.reader.of(task))
        assert end.event_type == "task_cancelled"

    simulate(story())


# Recovery.


def test_a_task_goes_on_behind_its_completed_steps():
    """After a crash completed steps do not run again; the one under way begins anew."""
    ran = []

    async def counting(step: Step, ctx: StepContext) -> AsyncIterator[str]:
        ran.append((step.step_id, ctx.attempt, ctx.step_key))
        yield f"{step.step_id} "
        await asyncio.sleep(1)
        yield "done"

    async def story() -> None:
        world = World()
        world.agent(counting)
        async with running(world):
            task = await world.create(step("a", "counting"), step("b", "counting", "a"))
            successor = await crashed(world, task, "step_started", "b")
            async with running(successor):
                await successor.subscribe(task)
                end = await successor.reader.until(task)
                log = await successor.log(task)
        check_log(log)
        assert end.data["final_output"] == "b done"
        assert ran == [("a", 1, f"{task}/a"), ("b", 1, f"{task}/b"), ("b", 2, f"{task}/b")]
        recovered = [r.data for r in log if r.event_type == "task_recovered"]
        assert [r["completed_steps"] for r in recovered] == [["a"]]
        retry = next(r.data for r in log if r.event_type == "step_retrying")
        assert (retry["reason"], retry["retry_count"], retry["next_attempt"]) == ("recovered", 0, 2)

    simulate(story())


def test_a_task_that_was_being_cancelled_is_cancelled_after_the_crash():
    """The intent was committed; the successor carries it out."""

    async def story() -> None:
        world = World()

        async def deaf(step: Step, ctx: StepContext) -> str:
            while asyncio.get_running_loop().time() < 30:
                try:
                    await asyncio.sleep(30)
                except asyncio.CancelledError:
                    continue
            return "late"

        world.agent(deaf)
        async with running(world):
            task = await world.create(step("a", "deaf"))
            await world.reader.until(task, "step_started")
            await world.cancel(task, reason="stop")
            successor = await crashed(world, task, "task_cancelling")
            async with running(successor):
                await successor.subscribe(task)
                end = await successor.reader.until(task)
                check_log(await successor.log(task))
        assert (end.event_type, end.data["reason"]) == ("task_cancelled", "stop")

    simulate(story())


def test_a_task_that_loses_its_worker_too_often_fails():
    """It may be what kills the worker: the sixth recovery is its last."""

    async def story() -> None:
        world = World()
        world.agent(slow)
        world.worker.start()
        task = await world.create(step("a", "slow"))
        for _ in range(6):
            world = await crashed(world, task, "step_started")
            await world.store.open()
            world.worker.start()
            await world.subscribe(task, (await world.log(task))[-1].seq)
        await world.reader.until(task)
        log = await world.log(task)
        await world.worker.drain(0.001)
        check_log(log)
        assert log[-1].event_type == "task_failed"
        assert "lost its worker 6 times" in log[-1].data["error_message"]

    simulate(story())


def test_an_agent_that_is_gone_fails_the_recovered_task():
    """The application may have changed between the crash and the start."""

    async def story() -> None:
        world = World()
        world.agent(slow)
        async with running(world):
            task = await world.create(step("a", "slow"))
            await world.reader.until(task, "step_started")
            die(world)
            successor = World(world.store)
            async with running(successor):
                await successor.subscribe(task)
                end = await successor.reader.until(task)
        assert "wants agent 'slow'" in end.data["error_message"]

    simulate(story())


# Everything at once.


@pytest.mark.parametrize("seed", range(150))
def test_any_interleaving_keeps_the_promises(seed, monkeypatch):
    """Shuffled order, random failures, cancels at random moments: every log is well formed."""
    monkeypatch.setattr(logs, "SNAPSHOT_FROM", 16)
    chance = random.Random(seed)
    violations: list[str] = []

    async def moody(step: Step, ctx: StepContext) -> AsyncIterator[str]:
        for _ in range(chance.randrange(4)):
            yield "text "
            await asyncio.sleep(chance.choice([0, 0, 0.01, 0.3]))
            if chance.random() < 0.2:
                raise ValueError("moody")

    async def live(world: World) -> str:
        names = "abcde"[: chance.randrange(1, 6)]
        steps = [
            step(name, "moody", *(other for other in names[:place] if chance.random() < 0.4))
            for place, name in enumerate(names)
        ]
        task = await world.create(*steps)
        if chance.random() < 0.7:
            await asyncio.sleep(chance.choice([0, 0.001, 0.01, 0.11, 0.35, 1]))
            await world.cancel(task, grace=chance.choice([0, 1]))
        end = await world.reader.until(task)
        snapshot = await world.status(task)
        if snapshot["status"] != end.data["status"] or snapshot["seq"] != end.seq:
            violations.append(f"{task}: {snapshot['status']} is not {end}")
        return task

    async def story() -> None:
        world = World(concurrency=chance.choice([1, 3, 10]))
        world.agent(moody, retries=1)
        async with running(world):
            stories: list[Coroutine[Any, Any, str]] = [live(world) for _ in range(6)]
            tasks = await asyncio.gather(*stories)
            for task in tasks:
                log = await world.log(task)
                check_log(log)
                assert world.reader.of(task) == log
                kept = await world.store.state(task)
                bodies = await world.store.read(task, 0, len(log))
                snapshot = TaskState.fold(task, bodies).snapshot()
                assert (kept is None) is (len(log) < logs.SNAPSHOT_FROM)
                assert kept is None or orjson.loads(kept) == snapshot
                assert await world.status(task) == snapshot
        assert not violations

    simulate(story(), seed)
