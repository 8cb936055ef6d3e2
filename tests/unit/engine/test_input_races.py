"""Questions over crashes, cancels and each other: every race, in simulated time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from agentsrv.agents.agent import StepContext
from agentsrv.errors import (
    ConflictError,
    FencedError,
    InvalidInputError,
    InvalidStateError,
)
from agentsrv.models.plan import Step
from agentsrv.store.memory import MemoryStore
from tests.support.simulation import simulate
from tests.support.world import World, check_log, crashed, die, running, step
from tests.unit.engine.sample_agents import SlowStore, asker, only, question, sleeper

# Crashes.


@pytest.mark.parametrize("when", ["before the claim", "before it is asked again", "afterwards"])
def test_an_open_question_outlives_the_worker(when):
    """It is asked once, and answered while its task waits, comes to it again, or waits there."""
    ran = []

    async def agent(step: Step, ctx: StepContext) -> str:
        ran.append((step.step_id, ctx.attempt))
        await asyncio.sleep(10)
        return f"{step.step_id}: {await ctx.confirm('May I?')}" if step.step_id == "b" else ""

    async def story() -> None:
        world = World()
        world.agent(agent)
        async with running(world):
            task = await world.create(step("a", "agent"), step("b", "agent", "a"))
            successor = await crashed(world, task, "input_required")
            await successor.open()
            status = await successor.status(task)
            assert (status["status"], len(status["inputs"])) == ("input_required", 1)
            await successor.subscribe(task)
            input_id = await question(successor, task)
            if when == "before the claim":
                with pytest.raises(InvalidInputError, match='"perhaps" is not of type "boolean"'):
                    await successor.respond(input_id, "perhaps")
                await successor.respond(input_id, value=True)
                with pytest.raises(ConflictError):
                    await successor.respond(input_id, value=False)
            async with running(successor):
                if when != "before the claim":
                    await successor.reader.until(task, "task_recovered")
                    await asyncio.sleep(20 if when == "afterwards" else 5)
                    status = await successor.status(task)
                    assert [q["input_id"] for q in status["inputs"]] == [input_id]
                    assert status["steps"][1]["status"] == "input_required"
                    await successor.respond(input_id, value=True)
                end = await successor.reader.until(task)
        log = await successor.log(task)
        check_log(log)
        assert end.data["final_output"] == "b: True"
        assert len(only(log, "input_required")) == len(only(log, "input_received")) == 1
        assert ran == [("a", 1), ("b", 1), ("b", 2)]

    simulate(story())


def test_an_answer_in_the_log_outlives_the_worker():
    """The step runs again up to its question, and is given the answer without asking."""
    acted = []

    async def agent(step: Step, ctx: StepContext) -> str:
        answer = await ctx.confirm("May I?")
        acted.append((ctx.step_key, ctx.attempt, answer))
        await asyncio.sleep(10)
        return str(answer)

    async def story() -> None:
        world = World()
        world.agent(agent)
        async with running(world):
            task = await world.create(step("a", "agent"))
            await world.respond(await question(world, task), value=True)
            await asyncio.sleep(1)
            successor = await crashed(world, task, "input_received")
            async with running(successor):
                await successor.subscribe(task)
                end = await successor.reader.until(task)
        assert end.data["final_output"] == "True"
        assert acted == [(f"{task}/a", 1, True), (f"{task}/a", 2, True)]
        assert successor.reader.types(task).count("input_required") == 1

    simulate(story())


@pytest.mark.parametrize(("down", "taken"), [(4, 10), (50, 54)])
def test_the_time_for_an_answer_counts_from_the_first_asking(down, taken):
    """Also while no worker lives; then the default is taken when the step comes to it again."""

    async def agent(step: Step, ctx: StepContext) -> str:
        if ctx.attempt > 1:
            await asyncio.sleep(4)
        return str(await ctx.ask("How many?", int, default=7, timeout=10))

    async def story() -> None:
        world = World()
        world.agent(agent)
        async with running(world):
            task = await world.create(step("a", "agent"))
            successor = await crashed(world, task, "input_required")
            await asyncio.sleep(down)
            async with running(successor):
                await successor.subscribe(task)
                if down > 10:
                    with pytest.raises(ConflictError, match="could be answered until 2027"):
                        await successor.respond(f"{task}/a/1", 8)
                end = await successor.reader.until(task)
                assert asyncio.get_running_loop().time() == pytest.approx(taken)
        assert end.data["final_output"] == "7"

    simulate(story())


def test_a_drain_gives_a_task_that_asks_its_time():
    """Other code of the step may work; an answer is taken until the task is given back."""

    async def story() -> None:
        world = World()
        world.agent(asker)
        async with running(world):
            answered = await world.create(step("a", "asker"))
            task = await world.create(step("a", "asker"))
            await question(world, answered)
            input_id = await question(world, task)
            draining = asyncio.create_task(world.worker.drain(30))
            await asyncio.sleep(1)
            await world.respond(f"{answered}/a/1", value=True)
            assert (await world.reader.until(answered)).data["final_output"] == "a: True"
            await draining
            assert asyncio.get_running_loop().time() == pytest.approx(30)
            assert world.worker.live(task) is None
            successor = World(world.store, world.registry)
            async with running(successor):
                await successor.subscribe(task)
                await successor.respond(input_id, value=True)
                end = await successor.reader.until(task)
        assert end.data["final_output"] == "a: True"

    simulate(story())


# Cancelling.


def test_cancel_of_a_task_that_waits_for_answers_takes_no_longer_than_its_code():
    """The steps are cancelled like any others; the questions are closed."""

    async def flaky(step: Step, ctx: StepContext) -> str:
        raise ConnectionError("not yet")

    async def story() -> None:
        world = World()
        world.agent(asker)
        world.agent(flaky, retry_base=50.0)
        async with running(world):
            task = await world.create(step("a", "asker"), step("b", "asker"), step("c", "flaky"))
            await question(world, task, "b")
            await world.reader.until(task, "step_retrying")
            result = await world.cancel(task, reason="enough")
            assert (result["status"], result["already"]) == ("cancelling", False)
            await world.reader.until(task)
            assert asyncio.get_running_loop().time() < 1
            with pytest.raises(InvalidStateError, match="its task cancelled"):
                await world.respond(f"{task}/a/1", value=True)
        assert world.reader.types(task)[-5:] == [
            "task_cancelling", *["step_cancelled"] * 3, "task_cancelled",
        ]  # fmt: skip
        assert (await world.status(task))["inputs"] == []
        check_log(await world.log(task))

    simulate(story())


def test_cancel_beside_running_work_takes_its_usual_way():
    """A step that waits for an answer is cancelled with the others; nobody can answer any more."""
    cleaned = []

    async def careful(step: Step, ctx: StepContext) -> str:
        try:
            return str(await ctx.confirm("May I?"))
        finally:
            cleaned.append(step.step_id)
            await asyncio.sleep(1)

    async def story() -> None:
        world = World()
        world.agent(careful)
        world.agent(sleeper)
        async with running(world):
            task = await world.create(step("a", "careful"), step("b", "sleeper"))
            input_id = await question(world, task)
            assert (await world.cancel(task))["status"] == "cancelling"
            with pytest.raises(InvalidStateError, match="its task cancelling"):
                await world.respond(input_id, value=True)
            end = await world.reader.until(task)
        assert (cleaned, end.data["stopped"]) == (["a"], True)
        check_log(await world.log(task))

    simulate(story())


def test_a_step_that_is_cut_off_cannot_ask():
    """Nobody could answer: it is told, instead of waiting for ever."""
    told = []

    async def stubborn(step: Step, ctx: StepContext) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(20)
        try:
            await ctx.confirm("May I?")
        except FencedError as error:
            told.append(error.message)

    async def story() -> None:
        world = World()
        world.agent(stubborn)
        async with running(world):
            task = await world.create(step("a", "stubborn"))
            await world.reader.until(task, "step_started")
            await world.cancel(task)
            await world.reader.until(task)
            await asyncio.sleep(60)
            assert world.worker.running == 0
        assert told == [f"task {task} has ended for this step; the question cannot be asked"]

    simulate(story())


# Races.


def test_the_first_of_two_answers_wins():
    """Also in one turn, and while the first one's commit is under way; both are told the truth."""

    async def story() -> None:
        world = World(SlowStore())
        world.agent(asker)
        async with running(world):
            task = await world.create(step("a", "asker"))
            input_id = await question(world, task)
            asked = asyncio.get_running_loop().time()
            first, second = (
                asyncio.create_task(world.respond(input_id, value=value)) for value in (False, True)
            )
            with pytest.raises(ConflictError, match="is settled: accept by somebody"):
                await second
            assert asyncio.get_running_loop().time() == pytest.approx(asked + 1)
            assert await first == {"task_id": task, "input_id": input_id}
            end = await world.reader.until(task)
        assert end.data["final_output"] == "a: False"
        assert len(only(await world.log(task), "input_received")) == 1

    simulate(story())


def test_an_agent_is_given_only_a_committed_answer():
    """It waits for the commit, as the one who answered does: a crash undoes neither."""
    acted = []

    async def agent(step: Step, ctx: StepContext) -> None:
        await ctx.confirm("May I?")
        acted.append(asyncio.get_running_loop().time())

    async def story() -> None:
        world = World(SlowStore())
        world.agent(agent)
        async with running(world):
            task = await world.create(step("a", "agent"))
            input_id = await question(world, task)
            asked = asyncio.get_running_loop().time()
            answering = asyncio.create_task(world.respond(input_id, value=True))
            await asyncio.sleep(0.5)
            assert (acted, answering.done()) == ([], False)
            await world.reader.until(task)
            assert acted == [pytest.approx(asked + 1)]
            await answering

            task = await world.create(step("a", "agent"))
            input_id = await question(world, task)
            lost = asyncio.create_task(world.respond(input_id, value=True))
            await asyncio.sleep(0.5)
            die(world)  # the append is under way, and lands
            assert await lost == {"task_id": task, "input_id": input_id}
            assert len(acted) == 1
            assert only(await world.log(task), "input_received")[0]["value"] is True

    simulate(story())


@pytest.mark.seeds(10)
def test_an_answer_against_the_clock(seed):
    """At the very moment one of them wins: the reply, the log and the agent tell the same."""

    async def agent(step: Step, ctx: StepContext) -> str:
        return str(await ctx.ask("How many?", int, default=7, timeout=5))

    async def story() -> None:
        world = World()
        world.agent(agent)
        async with running(world):
            task = await world.create(step("a", "agent"))
            input_id = await question(world, task)
            left = 5 - asyncio.get_running_loop().time()
            await asyncio.sleep(left - random.Random(seed).choice([0, 1e-3, 1e-4, 1e-9]))
            try:
                await world.respond(input_id, 8)
                won = "8"
            except ConflictError:
                won = "7"
            end = await world.reader.until(task)
        [received] = only(await world.log(task), "input_received")
        assert end.data["final_output"] == won == str(received["value"])

    simulate(story(), seed)


@pytest.mark.seeds(10)
def test_an_answer_against_a_cancel(seed):
    """Whichever is first: an answer that was acknowledged is in the log, and the task ends."""

    async def story() -> None:
        world = World(SlowStore() if seed % 2 else MemoryStore())
        world.agent(asker)
        world.agent(sleeper)
        async with running(world):
            steps = [step("a", "asker"), step("b", "sleeper")][: 1 + seed // 2 % 2]
            task = await world.create(*steps)
            input_id = await question(world, task)
            cancelling = asyncio.create_task(world.cancel(task))
            try:
                acknowledged = await world.respond(input_id, value=True) is not None
            except InvalidStateError:
                acknowledged = False
            await cancelling
            await world.reader.until(task)
        log = await world.log(task)
        check_log(log)
        assert len(only(log, "input_received")) == acknowledged

    simulate(story(), seed)


# Everything at once.


@pytest.mark.seeds(30)
def test_any_interleaving_keeps_what_was_acknowledged(seed):
    """Shuffled order, crashes, failures, cancels, late and doubled answers: the log tells all."""
    chance = random.Random(seed)
    acknowledged: dict[str, Any] = {}
    given: dict[str, set[Any]] = {}

    async def curious(step: Step, ctx: StepContext) -> AsyncIterator[str]:
        for number in range(1, 3):
            await asyncio.sleep(chance.choice([0, 0.1, 1]))
            timeout = 20.0 if step.step_id == "a" else None
            answer = await ctx.ask(f"{number}?", int, default=-1, timeout=timeout)
            given.setdefault(f"{ctx.step_key}/{number}", set()).add(answer)
            if chance.random() < 0.2:
                raise ValueError("moody")
            yield str(answer)

    async def answer(world: World, task: str, value: int) -> None:
        while True:
            await asyncio.sleep(chance.choice([0, 0, 0.1, 1, 7]))
            status = await world.status(task)
            if status["status"] in ("completed", "failed", "cancelled"):
                return
            for asked in status["inputs"]:
                input_id = asked["input_id"]
                try:
                    await world.respond(input_id, value)
                except (ConflictError, InvalidStateError):
                    continue
                assert input_id not in acknowledged
                acknowledged[input_id] = value

    async def story() -> None:
        world = World()
        world.agent(curious, retries=2)
        await world.open()
        world.worker.start()
        tasks = [await world.create(step("a", "curious"), step("b", "curious")) for _ in range(3)]
        for _ in range(chance.randrange(4)):
            await impatient(world, tasks, chance.choice([0, 0.5, 3]))
            die(world)
            world = World(world.store, world.registry)
            await world.open()
            world.worker.start()
        clients = [answer(world, task, value) for task in tasks for value in (1, 2)]
        ending = asyncio.gather(*clients)
        if chance.random() < 0.3:
            await asyncio.sleep(chance.choice([0, 1, 5]))
            await world.cancel(tasks[0])
        await ending
        await world.worker.drain(0.001)
        for task in tasks:
            log = await world.log(task)
            check_log(log)
            asked = [data["input_id"] for data in only(log, "input_required")]
            received = {data["input_id"]: data["value"] for data in only(log, "input_received")}
            assert len(asked) == len(set(asked))
            assert len(received) == len(only(log, "input_received"))
            assert received.keys() <= set(asked)
            for input_id in asked:
                value = received.get(input_id, -1)
                # A client that was cancelled does not know what became of its answer, a 3.
                assert value in ({acknowledged[input_id]} if input_id in acknowledged else {-1, 3})
                assert given.get(input_id, set()) <= {received.get(input_id)}

    async def impatient(world: World, tasks: Sequence[str], seconds: float) -> None:
        clients = [asyncio.create_task(answer(world, task, 3)) for task in tasks]
        await asyncio.sleep(seconds)
        for client in clients:
            client.cancel()
        await asyncio.wait(clients)

    simulate(story(), seed)
