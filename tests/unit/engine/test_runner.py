"""Tasks from their start to their terminal event, in simulated time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import orjson
import pytest

from agentsrv.agents.agent import StepContext, TaskContext
from agentsrv.errors import ModelError, PermanentError
from agentsrv.models.plan import ExecutionPlan, ExplainedPlan, Step
from agentsrv.models.task import TaskState
from agentsrv.store import replay as logs
from tests.support.simulation import simulate
from tests.support.world import World, check_log, running, step
from tests.unit.engine.sample_agents import failing, quick, slow


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
        (lambda: b"x", "yielded bytes; expected str"),
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


@pytest.mark.parametrize("value", [float("nan"), {"a": object()}, 1 << 70, (x for x in "a")])
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
        assert "result is refused: result" in end.data["error_message"]

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
        assert 0.5 <= asked[1] <= 1.0
        assert asked[2] - asked[1] == pytest.approx(7.0)

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


# Everything at once.


@pytest.mark.seeds(40)
def test_any_interleaving_keeps_the_promises(seed, monkeypatch):
    """Shuffled order, random failures, cancels at random moments: every log is well formed."""
    monkeypatch.setattr(logs, "MIN_SNAPSHOT_EVENTS", 16)
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
                assert (kept is None) is (len(log) < logs.MIN_SNAPSHOT_EVENTS)
                assert kept is None or orjson.loads(kept) == snapshot
                assert await world.status(task) == snapshot
        assert not violations

    simulate(story(), seed)
