"""Questions, answers and messages: every rule, in simulated time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal

import pytest
from pydantic import BaseModel, field_validator

from agentsrv.agents.agent import StepContext
from agentsrv.engine import inputs
from agentsrv.errors import (
    ConflictError,
    InputDeclined,
    InputExpired,
    InvalidCommandError,
    InvalidInputError,
    InvalidStateError,
    NotFoundError,
    PermanentError,
    TooLargeError,
)
from agentsrv.models.commands import Respond
from agentsrv.models.plan import Step
from tests.support.simulation import simulate
from tests.support.world import OWNER, World, check_log, running, step
from tests.unit.engine.sample_agents import asker, only, question, sleeper


class Order(BaseModel):
    """What somebody wants."""

    item: str
    count: int = 1

    @field_validator("item")
    @classmethod
    def _is_for_sale(cls, item: str) -> str:
        if item == "moon":
            raise ValueError("the moon is not for sale")
        return item


# Asking and answering.


def test_a_question_is_told_and_its_answer_returned():
    """Asked, shown, answered, committed: the whole log, and the statuses on the way."""

    async def story() -> None:
        world = World()
        world.agent(asker)
        async with running(world):
            task = await world.create(step("a", "asker"))
            input_id = await question(world, task)
            waiting = await world.status(task)
            reply = await world.respond(input_id, value=True)
            end = await world.reader.until(task)
        assert input_id == f"{task}/a/1"
        asked = {
            "input_id": input_id,
            "step_id": "a",
            "attempt": 1,
            "prompt": "May I?",
            "schema": {"type": "boolean"},
            "options": None,
            "default": None,
            "expires_at": None,
        }
        assert waiting["status"] == waiting["steps"][0]["status"] == "input_required"
        assert waiting["inputs"] == [asked]
        assert reply == {"task_id": task, "input_id": input_id}
        assert end.data["final_output"] == "a: True"
        log = await world.log(task)
        assert only(log, "input_required") == [asked]
        assert only(log, "input_received") == [
            {"input_id": input_id, "step_id": "a", "action": "accept", "value": True, "by": OWNER}
        ]
        assert (await world.status(task))["inputs"] == []
        check_log(log)

    simulate(story())


SCHEMAS: list[tuple[dict[str, Any], Any, Any]] = [
    ({}, "yes", "yes"),
    ({"type": bool}, False, False),
    ({"type": int}, 3, 3),
    ({"type": str}, "yes", "yes"),
    ({"type": Order}, {"item": "tea"}, Order(item="tea")),
    ({"type": list[Order]}, [{"item": "tea", "count": 2}], [Order(item="tea", count=2)]),
    ({"type": Literal["a", "b"]}, "b", "b"),
    ({"options": ["now", "later"]}, "later", "later"),
    ({"options": [1, 2], "type": int}, 2, 2),
    ({"type": {"type": "object", "required": ["n"]}}, {"n": [1]}, {"n": [1]}),
    ({"type": {"type": "string"}, "options": ["x"]}, "x", "x"),
]


@pytest.mark.parametrize(("asked", "value", "expected"), SCHEMAS, ids=str)
def test_an_answer_has_the_type_that_was_asked_for(asked, value, expected):
    """A type of Python's, a model or a union of values; a JSON Schema gives JSON."""
    got = []

    async def agent(step: Step, ctx: StepContext) -> None:
        got.append(await ctx.ask("What?", **asked))

    async def story() -> None:
        world = World()
        world.agent(agent)
        async with running(world):
            task = await world.create(step("a", "agent"))
            await world.respond(await question(world, task), value)
            await world.reader.until(task)
        assert got == [expected]
        assert type(got[0]) is type(expected)

    simulate(story())


WRONG: list[tuple[dict[str, Any], Any, str]] = [
    ({"type": bool}, "yes", 'found "yes"; value: Input should be a valid boolean'),
    ({}, 1, "valid string"),
    ({}, None, "found null"),
    ({"type": int}, "3", "valid integer"),
    ({"type": Order}, {"count": 2}, r"value\.item: Field required"),
    ({"type": Order}, {"item": "moon"}, "not for sale"),
    ({"options": ["now", "later"]}, "never", r'expected one of \["now","later"\]'),
    ({"options": [1]}, True, "expected one of"),
    ({"type": {"type": "object", "required": ["n"]}}, {}, '"n" is a required property'),
    ({"type": {"items": {"minimum": 3}}}, [4, 1], r"value\.1: 1 is less than the minimum"),
    ({"type": {"type": "string", "format": "date"}}, "soon", "date"),
]


@pytest.mark.parametrize(("asked", "value", "reason"), WRONG, ids=str)
def test_a_wrong_answer_is_told_and_leaves_the_question_open(asked, value, reason):
    """What was found and what was expected; the log has nothing of it."""

    async def agent(step: Step, ctx: StepContext) -> None:
        await ctx.ask("What?", **asked)

    async def story() -> None:
        world = World()
        world.agent(agent)
        async with running(world):
            task = await world.create(step("a", "agent"))
            input_id = await question(world, task)
            with pytest.raises(InvalidInputError, match=reason) as refusal:
                await world.respond(input_id, value)
            assert refusal.value.details
            assert refusal.value.details[0]["field"].startswith("value")
            assert (await world.status(task))["inputs"][0]["input_id"] == input_id
            assert only(await world.log(task), "input_received") == []
            await world.respond(input_id, action="decline")
            await world.reader.until(task)

    simulate(story())


def test_an_answer_beyond_the_limit_is_refused():
    """The log does not take what a frame could hold."""

    async def agent(step: Step, ctx: StepContext) -> None:
        await ctx.ask("What?", str)

    async def story() -> None:
        world = World()
        world.agent(agent)
        async with running(world):
            task = await world.create(step("a", "agent"))
            input_id = await question(world, task)
            with pytest.raises(TooLargeError, match="65539 bytes; expected at most 65536"):
                await world.respond(input_id, "x" * (inputs.MAX_ANSWER + 1))
            await world.respond(input_id, "x" * (inputs.MAX_ANSWER - 2))
            assert (await world.reader.until(task)).event_type == "task_completed"

    simulate(story())


def test_who_declines_fails_the_step_unless_the_agent_minds():
    """InputDeclined is not retried: the same answer would be given again."""

    async def polite(step: Step, ctx: StepContext) -> str:
        try:
            await ctx.confirm("May I?")
        except InputDeclined as declined:
            return declined.message
        return "never"

    async def story() -> None:
        world = World()
        world.agent(asker)
        world.agent(polite)
        async with running(world):
            ends = []
            for name in ("asker", "polite"):
                task = await world.create(step("a", name))
                await world.respond(await question(world, task), action="decline")
                ends.append(await world.reader.until(task))
                assert world.reader.types(task).count("step_started") == 1
        reason = "somebody declined to answer: May I?"
        assert ends[0].data["error_message"] == f"InputDeclined: {reason}"
        assert ends[1].data["final_output"] == reason

    simulate(story())


def test_the_default_is_taken_when_the_time_is_over():
    """Neither before nor after; the log tells that nobody answered."""

    async def agent(step: Step, ctx: StepContext) -> str:
        return str(await ctx.ask("How many?", int, default=7, timeout=30))

    async def story() -> None:
        world = World()
        world.agent(agent)
        async with running(world):
            task = await world.create(step("a", "agent"))
            end = await world.reader.until(task)
            assert asyncio.get_running_loop().time() == pytest.approx(30)
            with pytest.raises(ConflictError, match="is settled: expire by server"):
                await world.respond(f"{task}/a/1", 8)
        assert end.data["final_output"] == "7"
        [received] = only(await world.log(task), "input_received")
        assert (received["action"], received["value"], received["by"]) == ("expire", 7, "server")
        [asked] = only(await world.log(task), "input_required")
        assert asked["default"] == 7
        assert asked["expires_at"] == "2027-01-15T08:00:30.000Z"

    simulate(story())


def test_a_question_that_an_attempt_left_behind_does_not_count_in_the_next():
    """The next attempt's time limit stands still while it asks, and counts again afterwards."""
    left: list[asyncio.Task[int]] = []

    async def agent(step: Step, ctx: StepContext) -> str:
        if ctx.attempt == 1:
            left.append(
                asyncio.ensure_future(ctx.ask("Old?", int, default=1, timeout=40, key="old"))
            )
            await asyncio.sleep(1)
            raise RuntimeError("once")
        answer = await ctx.ask("New?", int, default=2, timeout=60, key="new")
        await asyncio.sleep(4)
        return str(answer)

    async def story() -> None:
        world = World()
        world.agent(agent, timeout=5, retries=1, retry_base=1.0)
        async with running(world):
            task = await world.create(step("a", "agent"))
            end = await world.reader.until(task)
            assert await left[0] == 1
        assert (end.event_type, end.data["final_output"]) == ("task_completed", "2")

    simulate(story())


LATE: list[Callable[[StepContext], Any]] = [
    lambda ctx: ctx.progress(1, 2, "late"),
    lambda ctx: ctx.ask("Late?", int, key="late", default=1, timeout=5),
]


@pytest.mark.parametrize("late", LATE)
@pytest.mark.parametrize("after", [0.5, 2.0])  # in the back-off, in the next attempt
def test_what_an_attempt_left_behind_is_refused_later(late: Callable[..., Any], after: float):
    """It would pass for the next attempt's; the code that comes too late is told."""
    refused: list[BaseException] = []

    async def comes_late(ctx: StepContext) -> None:
        await asyncio.sleep(after)
        try:
            await late(ctx)
        except InvalidStateError as error:
            refused.append(error)

    async def agent(step: Step, ctx: StepContext) -> str:
        if ctx.attempt == 1:
            refused_later.append(asyncio.create_task(comes_late(ctx)))
            raise RuntimeError("once")
        await asyncio.sleep(5)
        return "done"

    refused_later: list[asyncio.Task[None]] = []

    async def story() -> None:
        world = World()
        world.agent(agent, retries=1, retry_base=1.0)
        async with running(world):
            task = await world.create(step("a", "agent"))
            assert (await world.reader.until(task)).data["final_output"] == "done"
            log = await world.log(task)
        assert not only(log, "step_progress")
        assert not only(log, "input_required")

    simulate(story())
    assert "of attempt 1 of step" in str(refused[0])
    assert "is over" in str(refused[0])


class Checked(BaseModel):
    """An answer with a validator of the author."""

    value: int

    @field_validator("value")
    @classmethod
    def _check(cls, value: int) -> int:
        if value < 0:
            raise RAISED[-1]
        return value


class NoText(ValueError):
    """A refusal that cannot be told."""

    def __str__(self) -> str:
        raise SystemExit(3)


RAISED: list[BaseException] = []


@pytest.mark.parametrize(
    "error",
    [
        KeyError("own"),
        SystemExit("own"),
        KeyboardInterrupt("own"),
        asyncio.CancelledError("own"),
        GeneratorExit("own"),
        StopIteration("own"),
        StopAsyncIteration("own"),
        PermanentError("own"),
        BaseExceptionGroup("own", [SystemExit(3)]),
        NoText(),
    ],
)
@pytest.mark.parametrize("retries", [0, 1])
def test_a_validator_that_fails_fails_the_attempt(error: BaseException, retries: int):
    """The client is refused, the attempt fails with the error, the next one asks again."""

    async def agent(step: Step, ctx: StepContext) -> str:
        return str((await ctx.ask("Which?", Checked)).value)

    async def story() -> None:
        RAISED.append(error)
        world = World()
        world.agent(agent, retries=retries)
        async with running(world):
            task = await world.create(step("a", "agent"))
            asked = await question(world, task)
            with pytest.raises(InvalidInputError, match="a validator of the question fails"):
                await world.respond(asked, {"value": -1})
            if retries:
                await world.reader.until(task, "step_retrying")
                await asyncio.sleep(1)
                await world.respond(asked, {"value": 7})
            end = await world.reader.until(task)
            log = await world.log(task)
        assert end.event_type == ("task_completed" if retries else "task_failed")
        [failure] = only(log, "step_retrying") + only(log, "step_failed")
        assert "a validator of the question" in failure["error_message"]
        raised = "SystemExit" if isinstance(error, NoText) else type(error).__name__
        assert raised in failure["error_message"]

    simulate(story())


def test_a_question_that_two_wait_for_expires_once(caplog):
    """Both are given the default; the log has it once, and nobody tries it twice."""

    async def agent(step: Step, ctx: StepContext) -> str:
        asks = (ctx.ask("Which?", int, default=7, timeout=5, key="which") for _ in range(2))
        return str(await asyncio.gather(*asks))

    async def story() -> None:
        world = World()
        world.agent(agent)
        async with running(world):
            task = await world.create(step("a", "agent"))
            end = await world.reader.until(task)
        assert end.data["final_output"] == "[7, 7]"
        assert len(only(await world.log(task), "input_received")) == 1

    simulate(story())
    assert not [record for record in caplog.records if record.name == "asyncio"]


def test_without_a_default_the_time_that_is_over_fails_the_step():
    """InputExpired is not retried either; an agent may catch it."""
    caught = []

    async def patient(step: Step, ctx: StepContext) -> None:
        try:
            await ctx.confirm("May I?", timeout=1)
        except InputExpired as error:
            caught.append(error.message)

    async def story() -> None:
        world = World()
        world.agent(asker)
        world.agent(patient)
        async with running(world):
            task = await world.create(step("a", "asker"), params={"wait": 5.0})
            end = await world.reader.until(task)
            assert asyncio.get_running_loop().time() == pytest.approx(5)
            other = await world.create(step("a", "patient"))
            assert (await world.reader.until(other)).event_type == "task_completed"
        assert end.data["error_message"] == "InputExpired: no answer in time: May I?"
        assert end.data["retry_count"] == 0
        assert caught == ["no answer in time: May I?"]

    simulate(story())


def test_several_questions_are_open_at_once():
    """Of one step and of several; each is answered by itself, in any order."""

    async def curious(step: Step, ctx: StepContext) -> str:
        questions = (ctx.ask(f"{word}?", str) for word in ("Who", "What"))
        return " ".join(await asyncio.gather(*questions))

    async def story() -> None:
        world = World()
        world.agent(curious)
        async with running(world):
            task = await world.create(step("a", "curious"), step("b", "curious"))
            await question(world, task, "b")
            asked = {q["input_id"]: q["prompt"] for q in (await world.status(task))["inputs"]}
            assert asked == {
                f"{task}/a/1": "Who?",
                f"{task}/a/2": "What?",
                f"{task}/b/1": "Who?",
                f"{task}/b/2": "What?",
            }
            with pytest.raises(InvalidCommandError, match="asks 4 questions; name one of"):
                await world.command_handler.question(OWNER, task)
            for left, input_id in enumerate(reversed(asked), start=-3):
                await world.respond(input_id, input_id.rpartition("/")[2])
                status = await world.status(task)
                assert len(status["inputs"]) == -left
            end = await world.reader.until(task)
        assert end.data["final_output"] == "1 2\n\n1 2"

    simulate(story())


def test_the_one_open_question_of_a_task_need_not_be_named():
    """For people who type; a task that asks nothing says so."""

    async def story() -> None:
        world = World()
        world.agent(asker)
        async with running(world):
            task = await world.create(step("a", "asker"))
            input_id = await question(world, task)
            for name in (task, input_id):
                assert (await world.command_handler.question(OWNER, name)).input_id == input_id
            await world.respond(input_id, value=True)
            await world.reader.until(task)
            with pytest.raises(NotFoundError, match="asks nothing now"):
                await world.command_handler.question(OWNER, task)
            with pytest.raises(ConflictError):
                await world.command_handler.question(OWNER, input_id)
            with pytest.raises(NotFoundError, match=r"no task 'nowhere'"):
                await world.command_handler.question(OWNER, "nowhere")

    simulate(story())


def test_what_was_not_asked_is_not_found():
    """Of an unknown task, of an unknown question and of another principal's: answered alike."""

    async def story() -> None:
        world = World()
        world.agent(asker)
        async with running(world):
            task = await world.create(step("a", "asker"))
            input_id = await question(world, task)
            for name in (f"{task}/a/2", f"{task}/b/1", f"{task}", "nowhere/a/1", "/", "x"):
                with pytest.raises(NotFoundError, match=f"there is no question '{name}'"):
                    await world.respond(name, value=True)
            command = Respond(input_id=input_id, value=True)
            with pytest.raises(NotFoundError, match=f"there is no question '{input_id}'"):
                await world.command_handler.respond("eve", command)
            await world.respond(input_id, value=True)
            await world.reader.until(task)

    simulate(story())


# Asked once.


def test_an_answer_outlives_a_failed_attempt():
    """The next attempt is given it at once, without asking again."""

    async def flaky(step: Step, ctx: StepContext) -> str:
        answer = await ctx.confirm("May I?")
        if ctx.attempt < 3:
            raise ConnectionError("later")
        return str(answer)

    async def story() -> None:
        world = World()
        world.agent(flaky)
        async with running(world):
            task = await world.create(step("a", "flaky"))
            await world.respond(await question(world, task), value=True)
            end = await world.reader.until(task)
        assert end.data["final_output"] == "True"
        assert world.reader.types(task).count("input_required") == 1
        assert world.reader.types(task).count("step_started") == 3

    simulate(story())


def test_an_open_question_outlives_the_attempt_that_asked_it():
    """It can be answered between two attempts, and the next one is given the answer."""

    async def hasty(step: Step, ctx: StepContext) -> str:
        if ctx.attempt == 1:
            async with asyncio.TaskGroup() as group:
                group.create_task(ctx.confirm("May I?"))
                await asyncio.sleep(1)
                raise ConnectionError("gone")
        return str(await ctx.confirm("May I?"))

    async def story(at: float) -> None:
        world = World()
        world.agent(hasty, retry_base=10.0)
        async with running(world):
            task = await world.create(step("a", "hasty"))
            input_id = await question(world, task)
            await asyncio.sleep(at)
            status = await world.status(task)
            assert status["status"] == "input_required"
            assert status["steps"][0]["status"] == ("retrying" if at < 10 else "input_required")
            await world.respond(input_id, value=False)
            end = await world.reader.until(task)
            assert asyncio.get_running_loop().time() == pytest.approx(max(at, 11))
        assert end.data["final_output"] == "False"
        assert world.reader.types(task).count("input_required") == 1

    simulate(story(5))
    simulate(story(30))


def test_an_ask_that_is_given_up_leaves_the_question_to_the_step():
    """The agent's own time-out ends the waiting; the step's end closes the question."""

    async def impatient(step: Step, ctx: StepContext) -> str:
        for _ in range(2):
            try:
                async with asyncio.timeout(5):
                    await ctx.confirm("May I?", key="may")
            except TimeoutError:
                continue
        return "without"

    async def story() -> None:
        world = World()
        world.agent(impatient)
        world.agent(sleeper)
        async with running(world):
            task = await world.create(step("a", "impatient"), step("b", "sleeper"))
            await world.reader.until(task, "step_completed", "a")
            status = await world.status(task)
            assert (status["status"], status["inputs"]) == ("running", [])
            with pytest.raises(InvalidStateError, match="is closed: its step is completed"):
                await world.respond(f"{task}/a/may", value=True)
            end = await world.reader.until(task)
        assert end.event_type == "task_completed"
        assert world.reader.types(task).count("input_required") == 1

    simulate(story())


def test_a_key_names_one_question():
    """However often it is asked, and with whatever words; numbers count those without a key."""
    got = []

    async def agent(step: Step, ctx: StepContext) -> None:
        got.append(await asyncio.gather(*(ctx.ask("Who?", str, key="who") for _ in range(3))))
        got.append(await ctx.ask("And who?", str, key="who"))
        got.append(await ctx.ask("Why?", str))

    async def story() -> None:
        world = World()
        world.agent(agent)
        async with running(world):
            task = await world.create(step("a", "agent"))
            await world.respond(await question(world, task), "me")
            await asyncio.sleep(1)
            await world.respond(f"{task}/a/1", "so")
            await world.reader.until(task)
        assert got == [["me"] * 3, "me", "so"]
        asked = [data["input_id"] for data in only(await world.log(task), "input_required")]
        assert asked == [f"{task}/a/who", f"{task}/a/1"]

    simulate(story())


def test_an_answer_is_not_given_to_another_question():
    """A number whose prompt has changed between attempts fails the step; a key allows it."""

    async def drafting(step: Step, ctx: StepContext, key: str | None = None) -> str:
        answer = await ctx.confirm(f"Send draft {ctx.attempt}?", key=key)
        if ctx.attempt == 1:
            raise ConnectionError("once more")
        return str(answer)

    async def story() -> None:
        world = World()
        world.agent(drafting)
        async with running(world):
            ends = []
            for params in ({}, {"key": "send"}):
                task = await world.create(step("a", "drafting"), params=params)
                await world.respond(await question(world, task), value=True)
                ends.append(await world.reader.until(task))
        assert "was 'Send draft 1?' in an earlier attempt" in ends[0].data["error_message"]
        assert "give questions that may change a key" in ends[0].data["error_message"]
        assert ends[1].data["final_output"] == "True"

    simulate(story())


def test_an_answer_to_another_schema_fails_the_step_for_good():
    """A key promises the same schema: no retry can mend the answer in the log."""

    async def agent(step: Step, ctx: StepContext) -> None:
        await ctx.ask("How many?", str if ctx.attempt == 1 else int, key="n")
        raise ConnectionError("once more")

    async def story() -> None:
        world = World()
        world.agent(agent)
        async with running(world):
            task = await world.create(step("a", "agent"))
            await world.respond(await question(world, task), "many")
            end = await world.reader.until(task)
        assert 'the answer in the log, "many", does not fit' in end.data["error_message"]
        assert world.reader.types(task).count("step_started") == 2

    simulate(story())


BAD_QUESTIONS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ""}, "has 0 characters"),
    ({"prompt": "x" * 32_769}, "expected 1 to 32768"),
    ({"key": "12"}, "not digits alone"),
    ({"key": ""}, "expected 1 to 64 of letters"),
    ({"key": "a/b"}, "expected 1 to 64 of letters"),
    ({"key": "x" * 65}, "expected 1 to 64 of letters"),
    ({"timeout": 0}, "expected seconds above 0"),
    ({"type": bool, "default": "no"}, "the question's default: found"),
    ({"options": ["a"], "default": "b"}, "expected one of"),
    ({"type": {"type": "sting"}}, "not a JSON Schema"),
    ({"type": {"$ref": "https://schemas.example/x"}}, "without external references"),
    ({"type": print}, "expected a type or a JSON Schema"),
]


@pytest.mark.parametrize(("asked", "reason"), BAD_QUESTIONS, ids=str)
def test_what_cannot_be_asked_fails_the_step_at_once(asked, reason):
    """An author's mistake is told in words and not retried."""

    async def agent(step: Step, ctx: StepContext) -> None:
        await ctx.ask(**({"prompt": "What?"} | asked))

    async def story() -> None:
        world = World()
        world.agent(agent)
        async with running(world):
            task = await world.create(step("a", "agent"))
            end = await world.reader.until(task)
        assert reason in end.data["error_message"]
        assert world.reader.types(task).count("step_started") == 1
        assert "input_required" not in world.reader.types(task)

    simulate(story())


def test_a_step_may_not_ask_without_end():
    """An agent that asks in a loop is stopped, whoever goes on answering."""

    async def pest(step: Step, ctx: StepContext) -> None:
        while True:
            await ctx.confirm("Now?", default=False, timeout=1)

    async def story() -> None:
        world = World()
        world.agent(pest)
        async with running(world):
            task = await world.create(step("a", "pest"))
            end = await world.reader.until(task)
        assert "may ask 100 questions" in end.data["error_message"]
        assert world.reader.types(task).count("input_required") == inputs.MAX_QUESTIONS

    simulate(story())


def test_the_time_limit_of_an_attempt_stands_still_while_people_think():
    """What is left of it counts on with the answer."""

    async def agent(step: Step, ctx: StepContext, work: float) -> str:
        await asyncio.sleep(1)
        await asyncio.gather(ctx.confirm("May I?"), ctx.confirm("Really?"))
        await asyncio.sleep(work)
        return "in time"

    async def story() -> None:
        world = World()
        world.agent(agent, timeout=3, retries=0)
        async with running(world):
            ends, answered = [], 0.0
            for work in (1.5, 2.5):
                task = await world.create(step("a", "agent"), params={"work": work})
                for number in (1, 2):
                    await question(world, task)
                    await asyncio.sleep(1000)
                    await world.respond(f"{task}/a/{number}", value=True)
                answered = asyncio.get_running_loop().time()
                ends.append(await world.reader.until(task))
            assert asyncio.get_running_loop().time() == pytest.approx(answered + 2)
        assert ends[0].data["final_output"] == "in time"
        assert ends[1].data["error_message"] == "no result within 3 s"

    simulate(story())


def test_the_deadline_of_a_task_counts_on():
    """A task that waits for an answer fails at its deadline, and its question is closed."""

    async def story() -> None:
        world = World()
        world.agent(asker)
        async with running(world):
            task = await world.create(step("a", "asker"), deadline=60)
            end = await world.reader.until(task)
            assert asyncio.get_running_loop().time() == pytest.approx(60)
            with pytest.raises(InvalidStateError, match="its step is cancelled, its task failed"):
                await world.respond(f"{task}/a/1", value=True)
        assert end.data["error_message"] == "the deadline of 60 s has passed"
        check_log(await world.log(task))

    simulate(story())
