"""What tasks share: results that are used again, and agents that do only so much at a time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agentsrv.agents.agent import StepContext
from agentsrv.engine import cache as caching
from agentsrv.engine.cache import CachedResult, ResultCache, cache_key
from agentsrv.models.commands import Create
from agentsrv.models.plan import ExecutionPlan, Step
from tests.support.simulation import simulate
from tests.support.world import World, check_log, create, running, step


async def ended(world: World, *steps: Step, **fields: Any) -> list[dict[str, Any]]:
    """Run a task; return what its ``step_completed`` say."""
    task = await world.create(*steps, **fields)
    await world.reader.until(task)
    check_log(await world.log(task))
    return [dict(r.data) for r in world.reader.of(task) if r.event_type == "step_completed"]


def test_the_same_is_not_done_twice():
    """The second task is told the first one's text and result, and the log says so."""
    calls = 0

    async def costly(step: Step, ctx: StepContext):
        nonlocal calls
        calls += 1
        yield f"text {calls}"
        ctx.set_result({"n": calls})

    async def story() -> None:
        world = World()
        world.agent(costly, cache=60)
        async with running(world):
            first = await ended(world, step("a", "costly"))
            again = await ended(world, step("a", "costly"))
            task = world.reader.records[-1].task_id
            text = [r.data["output"] for r in world.reader.of(task) if "output" in r.data]
            await asyncio.sleep(61)
            late = await ended(world, step("a", "costly"))
        assert [found[0]["cached"] for found in (first, again, late)] == [False, True, False]
        assert again[0]["result"] == first[0]["result"] == {"n": 1}
        assert text == ["text 1"]
        assert late[0]["result"] == {"n": 2}

    simulate(story())


def test_who_changes_what_was_found_changes_it_for_nobody_else():
    """Each step is given a copy of its own."""
    cache, key = ResultCache(), cache_key("ann", "agent", 1)
    result = {"passages": [1]}
    cache.put(key, CachedResult("", result), expires_at=10)
    result["passages"].append(2)
    for _ in range(2):
        found = cache.get(key, 5)
        assert found is not None
        assert found.result == {"passages": [1]}
        found.result["passages"].clear()


@pytest.mark.parametrize(
    "other",
    [
        {"description": "another"},
        {"params": {"depth": 2}},
        {"step_params": {"depth": 2}},
        {"input": {"page": 2}},
        {"before": "other"},
        {"principal": "somebody else"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_another_question_is_asked_anew(other):
    """Whatever the agent can see makes a difference, and so does who asks."""
    calls = 0

    async def costly(step: Step, ctx: StepContext, depth: int = 1) -> str:
        nonlocal calls
        calls += 1
        return "found"

    async def source(step: Step, ctx: StepContext) -> str:
        return step.description

    async def story() -> None:
        world = World()
        world.agent(costly, cache=60)
        world.agent(source)

        async def ask(
            principal: str = "ann", description: str = "do it", before: str = "same", **rest: Any
        ) -> None:
            params = rest.pop("params", {})
            rest = {name.removeprefix("step_"): value for name, value in rest.items()}
            plan = ExecutionPlan(
                steps=(
                    Step(step_id="s", agent="source", description=before),
                    Step(step_id="c", agent="costly", depends_on=("s",), **rest),
                )
            )
            command = Create(task_description=description, plan=plan, params=params, execute=True)
            told = await create(world, world.subscriber, principal, command)
            await world.reader.until(told["task_id"])

        async with running(world):
            await ask()
            await ask()
            assert calls == 1
            await ask(**other)
        assert calls == 2

    simulate(story())


def test_a_failure_is_not_kept():
    """What fails is tried again by the next task too."""
    is_ready = asyncio.Event()

    async def moody(step: Step, ctx: StepContext) -> str:
        if not is_ready.is_set():
            raise ValueError("not yet")
        return "now"

    async def story() -> None:
        world = World()
        world.agent(moody, cache=60, retries=0)
        async with running(world):
            assert await ended(world, step("a", "moody")) == []
            is_ready.set()
            assert [found["cached"] for found in await ended(world, step("a", "moody"))] == [False]

    simulate(story())


async def asks(ctx: StepContext) -> str:
    """Ask, and be given the default."""
    return str(await ctx.confirm("Sure?", default=True, timeout=1))


async def reads(ctx: StepContext) -> str:
    """Read a message."""
    return str(await anext(ctx.messages()))


async def reads_in_vain(ctx: StepContext) -> str:
    """Wait for a message for a second."""
    try:
        return str(await asyncio.wait_for(anext(ctx.messages()), 1))
    except TimeoutError:
        return "none"


@pytest.mark.parametrize("listens", [asks, reads, reads_in_vain])
def test_what_depends_on_people_is_not_kept(listens):
    """Each task asks its own people, and reads its own messages."""

    async def agent(step: Step, ctx: StepContext) -> str:
        return str(await listens(ctx))

    async def story() -> None:
        world = World()
        world.agent(agent, cache=60)
        async with running(world):
            for number in range(2):
                task = await world.create(step("a", "agent"))
                await world.reader.until(task, "step_started")
                if listens is reads:
                    await world.send(task, number)
                await world.reader.until(task)
                (done,) = (r for r in world.reader.of(task) if r.event_type == "step_completed")
                assert not done.data["cached"]
                if listens is reads:
                    assert (await world.status(task))["final_output"] == str(number)

    simulate(story())


def test_the_cache_is_bounded(monkeypatch):
    """The least recently used goes first, by number and by size; what is too large is not kept."""
    monkeypatch.setattr(caching, "MAX_ENTRIES", 3)
    cache = ResultCache()
    keys = [cache_key("ann", "agent", number) for number in range(4)]
    assert len(set(keys)) == 4
    for key in keys[:3]:
        cache.put(key, CachedResult("x", None), expires_at=10)
    assert cache.get(keys[0], 5)
    cache.put(keys[3], CachedResult("y", {"n": 1}), expires_at=10)
    assert [cache.get(key, 5) is not None for key in keys] == [True, False, True, True]
    assert cache.get(keys[0], 10) is None
    monkeypatch.setattr(caching, "MAX_BYTES", 160)
    cache.put(keys[0], CachedResult("x" * 7, None), expires_at=10)
    assert cache.get(keys[0], 5) is None
    cache.put(keys[0], CachedResult("x" * 6, None), expires_at=10)
    assert cache.get(keys[0], 5) == CachedResult("x" * 6, None)


def test_an_agent_does_only_so_much_at_a_time():
    """Over all tasks; those that wait have not started, and begin in their order."""
    running_now = most = 0

    async def narrow(step: Step, ctx: StepContext) -> str:
        nonlocal running_now, most
        running_now += 1
        most = max(most, running_now)
        await asyncio.sleep(1)
        running_now -= 1
        return "done"

    async def story() -> None:
        world = World()
        world.agent(narrow, concurrency=2)
        async with running(world):
            tasks = [await world.create(step("a", "narrow"), step("b", "narrow")) for _ in range(3)]
            await asyncio.sleep(0.5)
            started = [world.reader.types(task).count("step_started") for task in tasks]
            assert started == [1, 1, 0]  # a branch's turn comes in the order of asking
            for task in tasks:
                assert (await world.reader.until(task)).event_type == "task_completed"
            assert asyncio.get_running_loop().time() == pytest.approx(3)
        assert most == 2

    simulate(story())


def test_who_waits_for_its_turn_is_cancelled_at_once():
    """None of its code runs; and the turn is not lost to those behind it."""

    async def narrow(step: Step, ctx: StepContext) -> str:
        await asyncio.sleep(10)
        return "done"

    async def story() -> None:
        world = World()
        world.agent(narrow, concurrency=1)
        async with running(world):
            tasks = [await world.create(step("a", "narrow")) for _ in range(3)]
            await asyncio.sleep(1)
            assert (await world.cancel(tasks[1]))["status"] == "cancelled"
            assert asyncio.get_running_loop().time() == pytest.approx(1)
            await world.reader.until(tasks[2])
            assert asyncio.get_running_loop().time() == pytest.approx(20)

    simulate(story())


def test_a_back_off_leaves_the_turn_to_others():
    """Only attempts count."""

    async def moody(step: Step, ctx: StepContext) -> str:
        if ctx.attempt == 1 and step.step_id == "a":
            raise ValueError("later")
        return "done"

    async def story() -> None:
        world = World()
        world.agent(moody, concurrency=1, retry_base=50)
        async with running(world):
            first = await world.create(step("a", "moody"))
            second = await world.create(step("b", "moody"))
            await world.reader.until(second)
            assert asyncio.get_running_loop().time() == 0
            await world.reader.until(first)
            assert asyncio.get_running_loop().time() == pytest.approx(50)

    simulate(story())


def test_fifty_steps_side_by_side_take_as_long_as_one():
    """A fan-out of fifty, gathered by one: each starts before any has ended."""

    async def part(step: Step, ctx: StepContext) -> str:
        await asyncio.sleep(0.1)
        return step.step_id

    async def gather(step: Step, ctx: StepContext) -> str:
        return " ".join(ctx.outputs)

    async def story() -> None:
        world = World()
        world.agent(part)
        world.agent(gather)
        names = [f"p{number:02}" for number in range(50)]
        async with running(world):
            steps = [step(name, "part") for name in names]
            task = await world.create(*steps, step("all", "gather", *names))
            end = await world.reader.until(task)
            assert asyncio.get_running_loop().time() == pytest.approx(0.1)
        assert end.data["final_output"] == " ".join(names)
        types = [
            r.event_type for r in world.reader.of(task) if r.data.get("step_id", "all") != "all"
        ]
        assert types[:50] == ["step_started"] * 50
        check_log(await world.log(task))

    simulate(story())
