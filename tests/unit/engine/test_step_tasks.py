"""A crash is a loss of a step with an open question unless all of its tasks wait for answers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator

from agentsrv.agents.agent import Agent, StepContext
from agentsrv.agents.registry import Registry
from agentsrv.engine import crash_suspects as suspects
from agentsrv.engine import steps
from agentsrv.errors import InvalidInputError
from agentsrv.models.plan import Step
from agentsrv.store.memory import MemoryStore
from tests.support.shared_memory import LEASE, Place
from tests.support.simulation import simulate
from tests.support.world import World, running, step
from tests.unit.engine.simulated_cluster import Member

FOR_EVER = 100_000.0  # seconds


class Marks:
    """The marks of a store, by the slot; nothing outlives the process."""

    def __init__(self) -> None:
        self.found: dict[int, tuple[str, str, int]] = {}
        self._slots = 0

    def enter(self, task_id: str, step_id: str, attempt: int) -> int:
        """See ``agentsrv.store.attempt_marks.AttemptMarks``."""
        self._slots += 1
        self.found[self._slots] = (task_id, step_id, attempt)
        return self._slots

    def leave(self, slot: int) -> None:
        """Likewise."""
        del self.found[slot]


def asked(ctx: StepContext, name: str) -> Awaitable[int]:
    """A question, by its key."""
    return ctx.ask(f"{name}?", int, key=name)


def later(work: Awaitable[Any]) -> asyncio.Task[Any]:
    """A task of its own."""

    async def run() -> Any:
        return await work

    return asyncio.create_task(run())


async def work() -> None:
    """Take for ever."""
    await asyncio.sleep(FOR_EVER)


# Those that only wait.


async def _plainly(ctx: StepContext) -> None:
    await asked(ctx, "a")


async def _in_a_task(ctx: StepContext) -> None:
    await later(asked(ctx, "a"))


async def _gathered(ctx: StepContext) -> None:
    await asyncio.gather(asked(ctx, "a"), asked(ctx, "b"))


async def _in_a_group(ctx: StepContext) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(_plainly(ctx))
        group.create_task(_in_a_task(ctx))


async def _gathered_groups(ctx: StepContext) -> None:
    await asyncio.gather(_in_a_group(ctx), asked(ctx, "b"))


async def _with_wait_for(ctx: StepContext) -> None:
    await asyncio.wait_for(_plainly(ctx), FOR_EVER)


async def _with_a_timeout(ctx: StepContext) -> None:
    async with asyncio.timeout(FOR_EVER):
        await _gathered(ctx)


async def _after_a_helper(ctx: StepContext) -> None:
    helper = asyncio.create_task(asyncio.sleep(3))
    await asked(ctx, "a")
    await helper


async def _after_work_of_its_own(ctx: StepContext) -> None:
    question = later(asked(ctx, "a"))
    await asyncio.sleep(3)
    await question


async def _after_a_forgotten_helper(ctx: StepContext) -> None:
    for _ in range(3):
        asyncio.create_task(asyncio.sleep(0))  # noqa: RUF006 - it is forgotten
    await asyncio.sleep(1)
    await asked(ctx, "a")


async def _after_another_answer(ctx: StepContext) -> None:
    await asyncio.gather(asked(ctx, "answered"), asked(ctx, "a"))


async def _after_a_question_given_up(ctx: StepContext) -> None:
    try:
        async with asyncio.timeout(1):
            await asked(ctx, "b")
    except TimeoutError:
        await asked(ctx, "a")


# Those that may do something at any time.


async def _asks_beside_work(ctx: StepContext) -> None:
    question = later(asked(ctx, "a"))
    await work()
    await question


async def _works_beside_a_question(ctx: StepContext) -> None:
    beside = asyncio.create_task(work())
    await asked(ctx, "a")
    await beside


async def _gathers_work(ctx: StepContext) -> None:
    await asyncio.gather(asked(ctx, "a"), work())


async def _groups_work(ctx: StepContext) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(_plainly(ctx))
        group.create_task(work())


async def _works_in_a_group(ctx: StepContext) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(_plainly(ctx))
        await work()


async def _goes_on_after_an_answer(ctx: StepContext) -> None:
    async def one() -> None:
        await asked(ctx, "answered")
        await work()

    await asyncio.gather(one(), asked(ctx, "a"))


async def _goes_on_after_a_failure(ctx: StepContext) -> None:
    async def one() -> None:
        await asked(ctx, "answered")
        raise ValueError("of one, while the other waits")

    with suppress(ValueError):
        await asyncio.gather(one(), asked(ctx, "a"))
    await work()


async def _goes_on_after_a_while(ctx: StepContext) -> None:
    question = later(asked(ctx, "a"))
    await asyncio.wait({question}, timeout=1)
    await work()


async def _waits_with_a_time_limit(ctx: StepContext) -> None:
    await asyncio.wait({later(asked(ctx, "a"))}, timeout=FOR_EVER)


async def _gives_a_question_up(ctx: StepContext) -> None:
    question = later(asked(ctx, "a"))
    try:
        async with asyncio.timeout(1):
            await asked(ctx, "b")
    except TimeoutError:
        await work()
    await question


async def _waits_for_something_else(ctx: StepContext) -> None:
    question = later(asked(ctx, "a"))
    await asyncio.get_running_loop().create_future()
    await question


async def _waits_for_a_message(ctx: StepContext) -> None:
    question = later(asked(ctx, "a"))
    async for _ in ctx.messages():
        pass
    await question


async def _left_work_behind(ctx: StepContext) -> None:
    if ctx.attempt == 1:
        left.append(asyncio.create_task(work()))
        raise ValueError("once")
    await asked(ctx, "a")


async def _asks_by_a_grandchild(ctx: StepContext) -> None:
    async def child() -> None:
        await asyncio.gather(asked(ctx, "a"), _groups_work(ctx))

    await later(child())


left: list[asyncio.Task[None]] = []
Doing = Callable[[StepContext], Awaitable[None]]
WAIT: list[Doing] = [
    _plainly,
    _in_a_task,
    _gathered,
    _in_a_group,
    _gathered_groups,
    _with_wait_for,
    _with_a_timeout,
    _after_a_helper,
    _after_work_of_its_own,
    _after_a_forgotten_helper,
    _after_another_answer,
    _after_a_question_given_up,
]
WORK: list[Doing] = [
    _asks_beside_work,
    _works_beside_a_question,
    _gathers_work,
    _groups_work,
    _works_in_a_group,
    _goes_on_after_an_answer,
    _goes_on_after_a_failure,
    _goes_on_after_a_while,
    _waits_with_a_time_limit,
    _gives_a_question_up,
    _waits_for_something_else,
    _waits_for_a_message,
    _left_work_behind,
    _asks_by_a_grandchild,
]


@pytest.mark.parametrize("seed", [None, 1, 2])
@pytest.mark.parametrize("is_generator", [False, True])
@pytest.mark.parametrize("doing", [*WAIT, *WORK])
def test_a_step_is_marked_unless_it_only_waits(doing: Doing, is_generator: bool, seed: int | None):
    """With a question open for a minute; the mark is back when the answers have come."""

    async def agent(step: Step, ctx: StepContext) -> None:
        await doing(ctx)
        await work()

    async def generator(step: Step, ctx: StepContext) -> AsyncIterator[str]:
        yield "text "
        await doing(ctx)
        await work()

    async def story() -> None:
        store, marks = MemoryStore(), Marks()
        store.marks = marks  # type: ignore[assignment]
        world = World(store)
        world.agent(generator if is_generator else agent, name="it")
        async with running(world):
            task = await world.create(step("a", "it"))
            await world.reader.until(task, "input_required")
            await asyncio.sleep(5)
            for asked in (await world.status(task))["inputs"]:
                if asked["input_id"].endswith("answered"):
                    await world.respond(asked["input_id"], 1)
            await asyncio.sleep(60)
            open_questions = (await world.status(task))["inputs"]
            assert open_questions
            assert len(marks.found) == (doing in WORK)
            for asked in open_questions:
                await world.respond(asked["input_id"], 1)
            await asyncio.sleep(10)
            assert len(marks.found) == 1
            await world.cancel(task)
            await world.reader.until(task)
        assert not marks.found

    simulate(story(), seed)


@pytest.mark.parametrize("latency", [0.0, 0.2])
@pytest.mark.parametrize("doing", [*WAIT, *WORK])
def test_the_node_that_continues_a_task_knows_whether_it_only_waited(doing: Doing, latency: float):
    """Two nodes die that run it, the second amid an attempt that asks nothing new."""

    async def agent(step: Step, ctx: StepContext) -> None:
        await doing(ctx)
        await work()

    async def story() -> None:
        place, registry = Place(random.Random(0), latency=latency), Registry()
        registry.add(Agent.of(agent, retry_base=0.1))
        task = ""
        members = [Member(place.door(name), registry) for name in "abc"]
        for member in members:
            await member.start()
            task = task or await member.create(step("a", "agent"))
            await asyncio.sleep(LEASE + 10)
            for asked in (await member.status(task))["inputs"]:
                if asked["input_id"].endswith("answered"):
                    await member.respond(asked["input_id"], 1)
            await asyncio.sleep(60)
            assert (await member.status(task))["inputs"]
            if member is not members[-1]:
                member.kill()
        losses = [record.event_type for record in await members[-1].log(task)].count("step_lost")
        await members[-1].stop()
        # What the first attempt has left behind is in no other process.
        assert losses == (0 if doing in WAIT else 1 if doing is _left_work_behind else 2)

    simulate(story())


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_suspect_waits_for_its_turn_after_a_question_that_it_gives_up(monkeypatch, at_once: int):
    """Whatever ends the question: two suspects never run beside each other."""
    monkeypatch.setattr(steps, "SUSPECT_LOSSES", 0)
    monkeypatch.setattr(suspects, "SUSPECT_LOSSES", 0)
    running_now: set[str] = set()

    async def agent(step: Step, ctx: StepContext) -> None:
        async def one(number: int) -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await asked(ctx, f"q{number}")

        for _ in range(2):
            await asyncio.gather(*map(one, range(at_once)))
            assert not running_now - {ctx.task_id}
            running_now.add(ctx.task_id)
            await asyncio.sleep(1)
            running_now.discard(ctx.task_id)

    async def story() -> None:
        world = World(MemoryStore())
        world.agent(agent, retries=0)
        async with running(world):
            tasks = [await world.create(step("a", "agent")) for _ in range(3)]
            for task in tasks:
                assert (await world.reader.until(task)).event_type == "task_completed"

    simulate(story())


@pytest.mark.parametrize("answer", [1, -1, 0])
def test_a_step_is_marked_while_its_validators_run(answer: int):
    """Whether they accept the answer, refuse it or fail: a crash in them is the step's."""
    seen: list[int] = []
    marks = Marks()

    def check(value: int) -> int:
        seen.append(len(marks.found))
        if value < 0:
            raise ValueError("negative")
        return 1 // value

    async def agent(step: Step, ctx: StepContext) -> None:
        await ctx.ask("How many?", Annotated[int, AfterValidator(check)])

    async def story() -> None:
        store = MemoryStore()
        store.marks = marks  # type: ignore[assignment]
        world = World(store)
        world.agent(agent, retries=0)
        async with running(world):
            task = await world.create(step("a", "agent"))
            asked = (await world.reader.until(task, "input_required")).data["input_id"]
            assert not marks.found
            with suppress(InvalidInputError):
                await world.respond(asked, answer)
            if answer < 0:
                assert not marks.found
                await world.cancel(task)
            await world.reader.until(task)
        assert not marks.found

    simulate(story())
    assert seen[0] == 1
