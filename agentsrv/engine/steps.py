"""StepRun: one step through its attempts, with time-outs, back-off and degradation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Collection, Coroutine, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from contextvars import Token
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from pydantic import ValidationError

from agentsrv.agents.agent import Agent, StepContext
from agentsrv.agents.params import complaint
from agentsrv.agents.questions import Question
from agentsrv.agents.values import ValueRefusedError, copied, to_json
from agentsrv.engine.agent_errors import is_authors, take_back
from agentsrv.engine.cache import Found, key_of
from agentsrv.engine.crash_suspects import SUSPECT_AT
from agentsrv.engine.environment import TaskEnvironment
from agentsrv.engine.failures import examine, log_failure
from agentsrv.engine.inputs import InputBroker
from agentsrv.engine.journal import MAX_PIECE, Journal
from agentsrv.engine.step_tasks import StepTasks
from agentsrv.error_text import redact
from agentsrv.errors import AgentsrvError, InvalidStateError
from agentsrv.models import events as e
from agentsrv.models.plan import Step
from agentsrv.models.states import StepStatus
from agentsrv.models.task import StepState
from agentsrv.models.text import REPLACEMENT, fitted, joined, split
from agentsrv.telemetry import logs

if TYPE_CHECKING:
    from agentsrv.telemetry.tracing import AttemptSpan

T = TypeVar("T")

MAX_ERROR = 2000  # characters of an error message in the log
FIRST_LOOK: Final = 0.1  # seconds until the tasks of a step that has asked are looked at again
LAST_LOOK: Final = 5.0  # seconds between two looks, which become longer

# Before Python 3.13 a TaskGroup that failed inside of a time limit makes it raise the latter.
_EXPIRED: Final = (TimeoutError, asyncio.CancelledError)

_log = logging.getLogger("agentsrv.step")


class Outcome(Enum):
    """How a step ended."""

    COMPLETED = auto()
    DEGRADED = auto()
    FAILED = auto()


@dataclass(slots=True)
class TaskInfo:
    """What is the same for every step of a task."""

    task_id: str
    description: str
    params: Mapping[str, Any]
    principal: str
    environment: TaskEnvironment
    inputs: InputBroker
    stopped: bool = False
    """Whether ``TaskRunner.stop`` has cancelled the steps; nothing else sets it."""


class AttemptFailedError(Exception):
    """An attempt of a step failed; the message is what the log tells."""

    def __init__(
        self,
        message: str,
        *,
        permanent: bool = False,
        reason: Literal["error", "timeout"] = "error",
        retry_after: float | None = None,
        traceback: list[e.TracebackFrame] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.traceback = traceback
        self.permanent = permanent
        self.reason = reason
        self.retry_after = retry_after

    def redact(self, secrets: Collection[str]) -> None:
        """Leave credentials and ``secrets`` out of the message, and what is too long."""
        self.message = redact(self.message, secrets)[:MAX_ERROR]
        self.args = (self.message,)


class StepRun:
    """One step on its way; ``run`` is part of one of its task's branches.

    Cancelling ``run`` cancels the agent at its next ``await`` and writes nothing: whether the
    step is cancelled or only given up by this worker is for the runner to say.
    """

    def __init__(
        self,
        step: Step,
        agent: Agent,
        task: TaskInfo,
        journal: Journal,
        dependencies: Mapping[str, StepState],
    ) -> None:
        self.step = step
        self.state = journal.state.steps[step.step_id]
        """The step as its log tells it."""
        self._agent = agent
        self._task = task
        self._key = f"{task.task_id}/{step.step_id}"
        self._journal = journal
        self._dependencies = dependencies
        self._policy = (
            agent.retry
            if step.max_retries is None
            else replace(agent.retry, retries=step.max_retries)
        )
        self._timeout = agent.timeout if step.timeout is None else step.timeout
        self._has_params = bool(agent.params.fields) or agent.params.takes_all
        self._offset = 0
        self._half = ""  # a first half of a surrogate pair, which waits for the second one
        self._has_halves = False  # and it was logged
        self._has_reported = False  # a report that was not valid; and it was logged
        self._limit: asyncio.Timeout | None = None  # of the attempt that runs
        self._left = 0.0  # seconds of it when the first open question was asked
        self._asking = 0  # questions that are waited for
        self._has_listened = False  # for messages; then its result is of this task alone
        self._started = 0.0  # the attempt, of the monotonic clock
        self.about: Mapping[str, object] = {}
        """Fields of the log that name the attempt; also read from the stack by the watchdog."""
        self._said: Token[Mapping[str, object]] | None = None  # to the log; while an attempt runs
        self._span: AttemptSpan | None = None  # of the attempt, where the server is traced
        store = task.environment.store
        self._counts_losses = store.marks is not None or store.commits_starts
        self._mark = -1  # in the store's marks, while code of the attempt runs
        self._has_turn = False  # as a suspect
        self._taking: asyncio.Lock | None = None  # while a suspect waits for another turn
        self._step_tasks = StepTasks()
        self._loop = asyncio.get_running_loop()
        self._look: asyncio.Handle | None = None  # whether only answers are waited for
        self._is_look_near = False  # so near that a further question changes nothing

    @property
    def cancelled_event(self) -> e.StepCancelled:
        """What the log says when the step is stopped now."""
        state = self.state
        return e.StepCancelled(self.step.step_id, state.attempt, fitted(state.output))

    @property
    def is_attempting(self) -> bool:
        """Whether an attempt is under way: code of the author runs, or waits for an answer."""
        return self._said is not None

    async def run(self, own: asyncio.Task[Any]) -> Outcome:
        """Make attempts until one succeeds or none is left; ``own`` is the running task.

        Raises:
            asyncio.CancelledError: The runner stops the step; what it had written is kept.
        """
        suspects = self._task.environment.suspects
        while True:
            try:
                if self._agent.concurrency is None:
                    if suspects.closed or self.state.losses >= SUSPECT_AT:
                        await self._take_turn()
                    await self._attempt(self.state.attempt + 1, own)
                else:
                    async with self._task.environment.semaphore_for(self._agent):
                        if suspects.closed or self.state.losses >= SUSPECT_AT:
                            await self._take_turn()
                        await self._attempt(self.state.attempt + 1, own)
            except AttemptFailedError as failure:
                failure.redact(self._task.inputs.secrets)
                self._settle(failure.reason, failure)
                if own.cancelling() and not self._task.stopped:
                    await take_back(own)
                if self._task.stopped:
                    raise asyncio.CancelledError from failure
                if failure.permanent or not self._policy.allows(self.state.failures + 1):
                    return self._fail(failure)
                await self._back_off(failure)
            except asyncio.CancelledError:
                self._settle("cancelled")
                raise
            except GeneratorExit:  # the loop is gone, and with it the context
                raise
            except BaseException as error:
                self._settle("lost", error)
                raise
            else:
                self._settle("completed")
                if own.cancelling() and not self._task.stopped:
                    await take_back(own)
                return Outcome.COMPLETED

    async def _attempt(self, attempt: int, own: asyncio.Task[Any]) -> None:
        """Call the agent once; what it raises becomes `AttemptFailedError` or a cancellation."""
        step, limit = self.step, None
        self._step_tasks.begin(own)
        self._offset = self._asking = 0
        self._half, self._limit = "", None
        self._journal.append(
            e.StepStarted(step.step_id, attempt, self._agent.name, step.description)
        )
        self._started = monotonic()
        self.about = {
            "principal": self._task.principal,
            "task_id": self._task.task_id,
            "step_id": step.step_id,
            "attempt": attempt,
        }
        self._said = logs.about.set(self.about)
        if self._task.environment.tracing is not None:
            self._span = self._task.environment.tracing.attempt(
                self._agent.name, self._key, attempt
            )
        loop = asyncio.get_running_loop()
        started = loop.time()
        context = self._context(attempt)
        key = None if self._agent.cache is None else self._cache_key(context)
        if key is not None and self._repeat(key, attempt):
            return
        if self._counts_losses:
            self._enter()
            if self._task.environment.store.commits_starts:
                await self._journal.commit()
        try:
            if self._timeout is None:
                result = await self._call(context)
            else:
                async with asyncio.timeout(self._timeout) as limit:
                    self._limit = limit
                    result = await self._call(context)
            if result is not None:
                result = _check(result, self._task.environment.limits.result)
        except AttemptFailedError:
            raise
        except BaseException as error:
            if not is_authors(error, stopped=self._task.stopped):
                raise
            why = examine(error, self._agent, self._task.inputs.secrets)
            log_failure(_log, f"step {self._key}", error, why, self._task.inputs.secrets)
            shown = why.traceback if self._task.environment.tracebacks else None
            if limit is not None and limit.expired() and isinstance(error, _EXPIRED):
                message = f"no result within {self._timeout} s"
                raise AttemptFailedError(message, reason="timeout", traceback=shown) from error
            raise AttemptFailedError(
                why.message,
                permanent=why.permanent,
                retry_after=why.retry_after,
                traceback=shown,
            ) from error
        duration = round(loop.time() - started, 6)
        self._journal.append(
            e.StepCompleted(
                step.step_id, attempt, "completed", result, cached=False, duration=duration
            )
        )
        is_personal = bool(self.state.questions) or self._has_listened
        if key is not None and self._agent.cache is not None and not is_personal:
            found = Found(self.state.output, result)
            self._task.environment.cache.put(
                key, found, asyncio.get_running_loop().time() + self._agent.cache
            )

    def _settle(self, outcome: str, error: BaseException | None = None) -> None:
        """Record how the attempt that runs has ended, if one does; free the turn in any case."""
        if self._counts_losses or self._has_turn:
            self._stand_down()
        if self._said is None:
            return
        logs.about.reset(self._said)
        self._said = None
        self._step_tasks.own = self._step_tasks.code = None
        if self._look is not None:
            self._look.cancel()
            self._look, self._is_look_near = None, False
        seconds = monotonic() - self._started
        self._task.environment.measures.attempts[self._agent.name, outcome].observe(seconds)
        if self._span is not None:
            self._span.end(outcome, error)

    async def _take_turn(self) -> None:
        """Wait until code of the step may run, after a crash of the server."""
        losses = self.state.losses
        await self._task.environment.suspects.admit(self, losses)
        self._has_turn = losses >= SUSPECT_AT

    async def _take_turn_again(self) -> None:
        """The same after an answer, by whichever task of the step comes first."""
        self._taking = self._taking or asyncio.Lock()
        async with self._taking:
            if not self._has_turn:
                await self._take_turn()
                if self._said is None:  # the attempt has ended without the task that asked
                    self._stand_down()

    def _enter(self) -> None:
        """Mark that code of the attempt runs: a crash is a loss of it."""
        marks = self._task.environment.store.marks
        if marks is None:
            self._journal.works(self.step.step_id)
        elif self._mark < 0:
            self._mark = marks.enter(self._task.task_id, self.step.step_id, self.state.attempt)

    def _leave(self) -> None:
        """Take the mark away."""
        marks = self._task.environment.store.marks
        if marks is None:
            self._journal.rests(self.step.step_id)
        elif self._mark >= 0:
            marks.leave(self._mark)
            self._mark = -1

    def _stand_down(self) -> None:
        """Take down that no code of the attempt runs: a crash from now on is no loss of it."""
        self._leave()
        if self._has_turn:
            self._task.environment.suspects.leave(self)
            self._has_turn = False

    def _cache_key(self, context: StepContext) -> bytes:
        """Of all that the agent can see, but for who it is that asks."""
        step = self.step
        seen = (context.task_description, step.description, step.input, dict(context.params))
        made = (dict(context.outputs), dict(context.results))
        return key_of(context.principal, self._agent.name, *seen, *made)

    def _repeat(self, key: bytes, attempt: int) -> bool:
        """Complete the step with what its agent found for the same before, if it did."""
        found = self._task.environment.cache.get(key, asyncio.get_running_loop().time())
        if found is None:
            return False
        self._write(attempt, found.output)
        step_id, result = self.step.step_id, found.result
        self._journal.append(
            e.StepCompleted(step_id, attempt, "completed", result, cached=True, duration=0.0)
        )
        return True

    async def _call(self, context: StepContext) -> Any:
        try:
            arguments = self._agent.params.arguments(context.params) if self._has_params else {}
        except ValidationError as error:  # told by code of the author: the others were checked
            raise AttemptFailedError(complaint(error), permanent=True) from error
        running = self._step_tasks.code = self._agent.run(context.step, context, **arguments)
        if hasattr(running, "__aiter__"):
            async with aclosing(running) as pieces:
                async for piece in pieces:
                    self._write(context.attempt, piece)
                    if self._journal.is_full:
                        await self._journal.wait_for_capacity()
            value = None
        else:
            value = await running
        if isinstance(value, str):
            self._write(context.attempt, value)
            value = None
        if self._half:
            self._write(context.attempt, "", is_last=True)
        return context.result if value is None else value

    def _write(self, attempt: int, piece: object, *, is_last: bool = False) -> None:
        if not isinstance(piece, str):
            kind = type(piece).__name__
            message = f"the agent yielded {kind}; expected str; ctx.set_result takes other values"
            raise AttemptFailedError(message, permanent=True)
        if type(piece) is not str:  # whose methods may tell anything
            piece = str.__str__(piece)
        if self._half or not piece.isascii():
            piece = self._joined(piece, is_last=is_last)
        if not piece:
            return
        limits = self._task.environment.limits
        room = min(limits.step - self._offset, limits.task - self._journal.written)
        kept = piece if len(piece) <= room else piece[: max(room, 0)]
        for start in range(0, len(kept), MAX_PIECE):
            part = kept if len(kept) <= MAX_PIECE else kept[start : start + MAX_PIECE]
            self._journal.write(self.step.step_id, attempt, self._offset, part)
            self._offset += len(part)
            if part is not kept:
                self._journal.mark()
        if self._has_turn and self.state.progressed:
            self._task.environment.suspects.leave(self)
            self._has_turn = False
        if len(kept) < len(piece):
            message = (
                f"the output is too long: a step may write {limits.step} characters "
                f"(max_step_output) and a task {limits.task} (max_task_output); the rest is cut off"
            )
            raise AttemptFailedError(message, permanent=True)

    def _joined(self, piece: str, *, is_last: bool) -> str:
        """A piece with its surrogate pairs joined; half a pair at its end waits for the next."""
        text = self._half + piece
        whole, self._half = (joined(text), "") if is_last else split(text)
        if whole.count(REPLACEMENT) > text.count(REPLACEMENT) and not self._has_halves:
            self._has_halves = True
            _log.warning(
                "step %s: the agent's text has half a surrogate pair; it is replaced by U+FFFD",
                self._key,
            )
        return whole

    def _too_late(self, attempt: int, what: str) -> InvalidStateError:
        """The refusal of what code does that an attempt has left behind."""
        return InvalidStateError(
            f"found {what} of attempt {attempt} of step {self._key}, which is over; expected it "
            "before the end: wait for the tasks that the agent starts (asyncio.TaskGroup)"
        )

    def _at_home(self, work: Coroutine[Any, Any, T]) -> Awaitable[T]:
        """``work`` in the server's loop, for code of the author that runs in another one.

        An agent may use its context in a thread, by ``asyncio.run(ctx.progress(…))``.
        """
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def _report(self, attempt: int, done: Any, total: Any, message: Any) -> None:
        if asyncio.get_running_loop() is not self._loop:
            await self._at_home(self._report(attempt, done, total, message))
            return
        if attempt != self.state.attempt or self._said is None:
            raise self._too_late(attempt, "a progress report")
        event = e.StepProgress(self.step.step_id, attempt, done, total, message)
        if event.done is not done or event.total is not total or event.message is not message:
            self._log_report(event, done, total, message)
        self._journal.append(event)
        if self._journal.is_full:
            await self._journal.wait_for_capacity()

    def _log_report(self, event: e.StepProgress, done: Any, total: Any, message: Any) -> None:
        """Log, once for a step, that a report is not what the agent gave."""
        if self._has_reported:
            return
        self._has_reported = True
        _log.warning(
            "step %s: a progress report of (%s) is logged as (%r, %r, %.80r); expected numbers "
            "from 0 to the total, and a message of at most %d characters",
            self._key,
            ", ".join(type(value).__name__ for value in (done, total, message)),
            *(event.done, event.total, event.message, e.MAX_MESSAGE),
        )

    async def _ask(self, attempt: int, question: Question) -> e.InputReceived:
        if asyncio.get_running_loop() is not self._loop:
            return await self._at_home(self._ask(attempt, question))
        if attempt != self.state.attempt or self._said is None:
            raise self._too_late(attempt, "a question")
        check = partial(self._check_answer, question)
        with self._waiting() as task:
            try:
                return await self._task.inputs.ask(self.step.step_id, attempt, question, check)
            finally:
                if self.is_attempting and not self._task.stopped:
                    await self._wake(task)

    async def _wake(self, task: asyncio.Task[Any] | None) -> None:
        """Let the task's code run again, after an answer or without one."""
        if self.state.losses >= SUSPECT_AT:  # an answer that an earlier attempt had is no progress
            await self._take_turn_again()
        self._step_tasks.answered(task)
        self._enter()
        if self._journal.is_due:  # nothing was answered, and a crash would be nobody's loss
            with suppress(AgentsrvError):  # then the journal is lost, and the task is stopped
                await self._journal.commit()

    async def _message(self, number: int) -> Any:
        if asyncio.get_running_loop() is not self._loop:
            return await self._at_home(self._message(number))
        self._has_listened = True
        return await self._task.inputs.message(number)

    def _check_answer(self, question: Question, value: Any) -> None:
        """Validate an answer, which calls code of the author.

        A crash is a loss of the step where the store has marks. The log could tell of it only by
        a commit before each answer.
        """
        if self._task.environment.store.marks is None or self._mark >= 0:
            question.check(value)
            return
        self._enter()
        try:
            question.check(value)
        finally:
            self._leave()

    @contextmanager
    def _waiting(self) -> Iterator[asyncio.Task[Any] | None]:
        """Wait for an answer in the running task: the attempt's time stands still.

        As soon as the step only waits, a crash is no loss of it. A wait that outlives its
        attempt, because the agent left it behind, changes no time of the next one.
        """
        clock, limit, attempt = asyncio.get_running_loop().time, self._limit, self.state.attempt
        task = self._step_tasks.ask()
        self._asking += 1
        self._look_at_tasks()
        if limit is not None and self._asking == 1:
            self._left = (limit.when() or 0.0) - clock()
            with suppress(RuntimeError):  # the time was over just before
                limit.reschedule(None)
        try:
            yield task
        finally:
            self._step_tasks.answered(task)
            if attempt == self.state.attempt:
                self._asking -= 1
                if limit is not None and not self._asking:
                    with suppress(RuntimeError):
                        limit.reschedule(clock() + self._left)
            if self._said is not None:  # code runs again, be it of an earlier attempt
                self._enter()
                self._look_later(FIRST_LOOK)
                self._is_look_near = True

    def _look_at_tasks(self, delay: float | None = None) -> None:
        """Stand down if the step only waits for answers; else look again.

        A crew of one is known at once. Where an agent asks in several tasks, they come to wait in
        the same turn of the loop; the look is before the end of the turn, in which the journal
        commits their questions. Later looks find what nothing else tells: that a task has ended
        which worked beside the question. After an answer nothing is known for some turns: the end
        of a task that has failed is on its way to those that wait for it.
        """
        if delay is None and self._is_look_near and not self._step_tasks.is_one:
            return
        if self._look is not None:
            self._look.cancel()
            self._look, self._is_look_near = None, False
        if not self._asking or self._said is None:
            return
        if self._step_tasks.is_one or (delay is not None and self._step_tasks.only_waits):
            self._stand_down()
        elif delay is None:
            self._look = asyncio.get_running_loop().call_soon(self._look_at_tasks, FIRST_LOOK)
            self._is_look_near = True
        else:
            self._look_later(delay)

    def _look_later(self, delay: float) -> None:
        if self._look is not None:
            self._look.cancel()
        self._is_look_near = False
        following = min(2 * delay, LAST_LOOK)
        loop = asyncio.get_running_loop()
        self._look = loop.call_later(delay, self._look_at_tasks, following)

    def _context(self, attempt: int) -> StepContext:
        task, step = self._task, self.step
        return StepContext(
            task_id=task.task_id,
            task_description=task.description,
            params={**task.params, **step.params} if step.params else task.params,
            principal=task.principal,
            searcher=task.environment.search,
            model=task.environment.model,
            registry=task.environment.registry,
            app_state=task.environment.state,
            attempt=attempt,
            step_key=self._key,
            outputs=partial(_outputs, self._dependencies),  # type: ignore[arg-type]
            results=partial(_results, self._dependencies),  # type: ignore[arg-type]
            reporter=partial(self._report, attempt),
            asker=partial(self._ask, attempt),
            mailbox=self._message,
            step=_own(step) if step.params or type(step.input) in _SHARED else step,
            dependencies=self._dependencies,
            processes=task.environment.processes,
        )

    def _fail(self, failure: AttemptFailedError) -> Outcome:
        degraded = self._agent.on_failure == "degrade"
        if degraded:
            self._task.environment.measures.degraded[self._agent.name] += 1
        state = self.state
        self._journal.append(
            e.StepFailed(
                self.step.step_id,
                state.attempt,
                failure.message,
                state.failures,
                fitted(state.output),
                degraded,
                failure.traceback,
            )
        )
        return Outcome.DEGRADED if degraded else Outcome.FAILED

    async def _back_off(self, failure: AttemptFailedError) -> None:
        attempt, retry = self.state.attempt, self.state.failures + 1
        delay = self._policy.delay(retry, failure.retry_after)
        self._journal.append(
            e.StepRetrying(
                self.step.step_id,
                attempt,
                attempt + 1,
                delay,
                failure.message,
                retry,
                failure.reason,
                failure.traceback,
            )
        )
        self._task.environment.measures.retries[self._agent.name, failure.reason] += 1
        await asyncio.sleep(delay)


_SHARED: Final = (dict, list)  # inputs that an agent can change


def _own(step: Step) -> Step:
    """The step with copies of its input and params."""
    return step.model_copy(update={"input": copied(step.input), "params": copied(step.params)})


def _outputs(dependencies: Mapping[str, StepState]) -> dict[str, str]:
    return {
        step_id: state.output
        for step_id, state in dependencies.items()
        if state.status is StepStatus.COMPLETED
    }


def _results(dependencies: Mapping[str, StepState]) -> dict[str, Any]:
    return {
        step_id: state.output if state.result is None else state.result
        for step_id, state in dependencies.items()
        if state.status is StepStatus.COMPLETED
    }


def _check(result: Any, max_bytes: int) -> Any:
    """The result in the log's form.

    Raises:
        AttemptFailedError: It cannot be written as JSON, or is too large.
    """
    try:
        return to_json(result, "result", max_bytes)
    except ValueRefusedError as error:
        raise AttemptFailedError(
            f"the agent's result is refused: {error}", permanent=True
        ) from error
