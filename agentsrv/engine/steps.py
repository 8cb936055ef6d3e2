"""StepRun: runs one step: its attempts, time limit, retries, degradation and cached result.

Theory of operation
===================

A step runs in *attempts*. Each attempt is one call of the agent. `StepRun.run` makes attempts until
one completes, a failure is final, or the runner cancels the asyncio task:

1. *Admission.* The attempt waits for the agent's ``concurrency`` semaphore, then for
   `CrashSuspects` (only after a crash of the server).
2. *Start.* ``step_started`` is appended. From here to `_record_attempt` the object `Attempt`
   exists.
3. *Cache.* If the agent has ``cache`` and the same call has completed before, its text and result
   are appended and the agent is not called.
4. *Mark.* The attempt is marked as running, so that a crash from now on counts as its loss: in
   ``store.marks``, or by committing ``step_started`` (``store.commits_starts``).
5. *Call.* The agent is awaited, or iterated if it yields, inside of `asyncio.timeout`.
6. *Record.* `_record_attempt` removes the mark, observes the metrics and ends the span.

What follows depends on how the call ended:

====================== ============= =====================================================
the call               outcome       next
====================== ============= =====================================================
returns                completed     ``step_completed``; the result may enter the cache
raises, or times out   error,        ``step_retrying``, a back-off and another attempt; or, if the
                       timeout       error is permanent or no retry is left, ``step_failed``:
                                     DEGRADED if the agent has ``on_failure="degrade"`` (the plan
                                     continues without the step), else FAILED (so does the task)
is cancelled by the    cancelled     ``run`` raises ``CancelledError`` and appends nothing
server
raises an error of     lost          ``run`` raises it; the runner handles it
the server itself
====================== ============= =====================================================

*Time limit.* It measures the agent's code, not the person who answers. While at least one question
of the attempt is open, the limit is suspended: `_waiting_for_answer` stores the seconds left and
sets them again when the last answer has arrived. Back-offs and admission are outside of the limit.

*Cancellation.* Only ``TaskRunner.stop`` cancels a step. ``TaskInfo.stopped`` is set before that, so
a ``CancelledError`` with ``stopped`` false comes from the agent's own code: it fails the attempt,
and the count of ``asyncio.Task.cancelling()`` is cleared. A cancelled `run` leaves no mark, no open
span and no place in the isolation of suspects. Its log has the text that was written. The
runner appends ``step_cancelled``, or nothing if the task is handed over: then recovery finds the
step running and starts another attempt.

*After the attempt.* An agent may leave asyncio tasks behind. A progress report or a question of an
attempt that is over is refused (`_over`). A wait that outlives its attempt ends without
an effect on the time limit of the next one.

*Idle or working.* A crash is a loss of each step whose code runs. A step that has asked is idle if
all its asyncio tasks wait for answers, which `StepTasks` finds out. `_check_if_idle` looks at once
if there is one task, otherwise at the end of the turn, when all tasks that ask in this turn have
asked, and from then on at growing intervals, because no callback announces that a task which worked
alongside the question has ended. A task that wakes up marks the attempt as running again before its
code continues.

Who appends which event of a step:

======================================= =========================================================
``step_started``, ``step_completed``,   this module
``step_progress``, ``partial_output``,
``step_retrying`` (error, timeout),
``step_failed``
``input_required``, ``input_received``  `InputBroker`
``step_cancelled``                      the runner, when the step's branch ends; `append_ending` for
                                        steps that still run after the grace period
``step_skipped``                        `append_ending`
``step_lost``, ``step_retrying``        `recovery`
(recovered)
======================================= =========================================================
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Coroutine, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from contextvars import Token
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic import ValidationError

from agentsrv.agents.agent import Agent, StepContext
from agentsrv.agents.params import complaint
from agentsrv.agents.questions import Question
from agentsrv.agents.values import ValueRefusedError, copied, to_json
from agentsrv.engine.agent_errors import (
    AttemptFailedError,
    clear_cancellation,
    diagnose,
    is_agent_error,
    log_agent_error,
)
from agentsrv.engine.cache import CachedResult, cache_key
from agentsrv.engine.crash_suspects import SUSPECT_LOSSES
from agentsrv.engine.environment import TaskEnvironment
from agentsrv.engine.inputs import InputBroker
from agentsrv.engine.journal import MAX_PIECE, Journal
from agentsrv.engine.step_tasks import StepTasks
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

FIRST_IDLE_CHECK: Final = 0.1  # seconds after a question; the interval doubles with each check
MAX_IDLE_CHECK_INTERVAL: Final = 5.0  # seconds

# Before Python 3.13 a TaskGroup that fails inside of a time limit makes it raise a CancelledError.
_EXPIRED: Final = (TimeoutError, asyncio.CancelledError)

_log = logging.getLogger("agentsrv.step")


class Outcome(Enum):
    """How a step ended."""

    COMPLETED = auto()
    DEGRADED = auto()
    FAILED = auto()


@dataclass(slots=True)
class TaskInfo:
    """Facts and services that all steps of a task share."""

    task_id: str
    description: str
    params: Mapping[str, Any]
    principal: str
    environment: TaskEnvironment
    inputs: InputBroker
    stopped: bool = False
    """Whether ``TaskRunner.stop`` has cancelled the steps; nothing else sets it."""


@dataclass(slots=True)
class Attempt:
    """One call of the agent, from ``step_started`` to the record of its end."""

    number: int
    started_at: float
    """By the event loop's clock."""
    log_token: Token[Mapping[str, object]]
    """Restores the log context from before the attempt."""
    span: AttemptSpan | None = None
    offset: int = 0
    """Characters written."""
    half_surrogate: str = ""
    """The first half of a surrogate pair at the end of the text, until the second half follows."""
    timeout: asyncio.Timeout | None = None
    open_questions: int = 0
    """Calls of ``ctx.ask`` that wait; while there is one, ``timeout`` is suspended."""
    time_left: float = 0.0
    """Seconds of ``timeout`` when it was suspended."""


class StepRun:
    """Runs one step in one of its task's branches; see the head of this module."""

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
        """The fold of the step's events, including those that are not committed yet."""
        self.log_context: Mapping[str, object] = {}
        """Log fields that name the attempt. The watchdog reads them from the stack."""
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
        self._loop = asyncio.get_running_loop()
        self._attempt: Attempt | None = None  # that is under way
        self._has_read_messages = False  # then the result depends on this task alone
        self._has_logged_surrogate = False  # a half that was replaced
        self._has_logged_report = False  # a progress report that was corrected
        store = task.environment.store
        self._counts_crashes = store.marks is not None or store.commits_starts
        self._mark = -1  # the slot in ``store.marks``, while code of the attempt runs
        self._is_isolated = False  # as a suspect
        self._admission: asyncio.Lock | None = None  # of a suspect that continues after an answer
        self._step_tasks = StepTasks()
        self._idle_check: asyncio.Handle | None = None
        self._is_idle_check_near = False  # in this turn of the loop, or soon after an answer

    @property
    def cancelled_event(self) -> e.StepCancelled:
        """The event that ends the step if it is cancelled now."""
        state = self.state
        return e.StepCancelled(self.step.step_id, state.attempt, fitted(state.output))

    @property
    def is_attempting(self) -> bool:
        """Whether an attempt is under way: code of the author runs, or waits for an answer."""
        return self._attempt is not None

    async def run(self, own: asyncio.Task[Any]) -> Outcome:
        """Make attempts until one completes or a failure is final.

        Args:
            own: The asyncio task that runs this call.

        Raises:
            asyncio.CancelledError: The runner stops the step.
        """
        while True:
            try:
                if self._agent.concurrency is None:
                    completed = await self._run_attempt(own)
                else:
                    async with self._task.environment.semaphore_for(self._agent):
                        completed = await self._run_attempt(own)
                seconds = self._record_attempt("completed")
                if not completed.cached:
                    completed.duration = round(seconds, 6)
                self._journal.append(completed)
            except AttemptFailedError as failure:
                failure.redact(self._task.inputs.secrets)
                self._record_attempt(failure.reason, failure)
                if own.cancelling() and not self._task.stopped:
                    await clear_cancellation(own)
                if self._task.stopped:
                    raise asyncio.CancelledError from failure
                if failure.permanent or not self._policy.allows(self.state.failures + 1):
                    return self._fail(failure)
                await self._back_off(failure)
            except asyncio.CancelledError:
                self._record_attempt("cancelled")
                raise
            except GeneratorExit:  # the event loop has ended, and with it the log context
                raise
            except BaseException as error:
                self._record_attempt("lost", error)
                raise
            else:
                if own.cancelling() and not self._task.stopped:
                    await clear_cancellation(own)
                return Outcome.COMPLETED

    async def _run_attempt(self, own: asyncio.Task[Any]) -> e.StepCompleted:
        """Wait for admission and call the agent once; return the event that completes the step.

        Raises:
            AttemptFailedError: The agent raised, exceeded its time limit, or returned a value that
                cannot be logged.
            asyncio.CancelledError: The server cancelled the attempt.
        """
        step, environment = self.step, self._task.environment
        if environment.suspects.is_restricted or self.state.losses >= SUSPECT_LOSSES:
            await self._wait_for_admission()
        number = self.state.attempt + 1
        self._step_tasks.begin(own)
        self._journal.append(
            e.StepStarted(step.step_id, number, self._agent.name, step.description)
        )
        self.log_context = {
            "principal": self._task.principal,
            "task_id": self._task.task_id,
            "step_id": step.step_id,
            "attempt": number,
        }
        attempt = self._attempt = Attempt(
            number, self._loop.time(), logs.about.set(self.log_context)
        )
        if environment.tracing is not None:
            attempt.span = environment.tracing.attempt(self._agent.name, self._key, number)
        context = self._context(attempt)
        key = None if self._agent.cache is None else self._cache_key(context)
        if key is not None:
            cached = environment.cache.get(key, self._loop.time())
            if cached is not None:
                return self._complete_from_cache(attempt, cached)
        if self._counts_crashes:
            self._mark_running()
            if environment.store.commits_starts:
                await self._journal.commit()
        try:
            if self._timeout is None:
                result = await self._call_agent(attempt, context)
            else:
                async with asyncio.timeout(self._timeout) as attempt.timeout:
                    result = await self._call_agent(attempt, context)
            if result is not None:
                result = _to_json(result, environment.limits.result)
        except AttemptFailedError:
            raise
        except BaseException as error:
            if not is_agent_error(error, stopped=self._task.stopped):
                raise
            raise self._diagnose(attempt, error) from error
        is_repeatable = not (self.state.questions or self._has_read_messages)
        if key is not None and self._agent.cache is not None and is_repeatable:
            expires_at = self._loop.time() + self._agent.cache
            environment.cache.put(key, CachedResult(self.state.output, result), expires_at)
        return e.StepCompleted(
            step.step_id, number, "completed", result, cached=False, duration=0.0
        )

    def _diagnose(self, attempt: Attempt, error: BaseException) -> AttemptFailedError:
        """Log an error of the agent's code, and return what it means for the attempt."""
        secrets = self._task.inputs.secrets
        failure = diagnose(error, self._agent, secrets)
        log_agent_error(_log, f"step {self._key}", error, failure.message, secrets)
        if not self._task.environment.tracebacks:
            failure.traceback = None
        timeout = attempt.timeout
        if timeout is not None and timeout.expired() and isinstance(error, _EXPIRED):
            message = f"no result within {self._timeout} s"
            return AttemptFailedError(message, reason="timeout", traceback=failure.traceback)
        return failure

    def _record_attempt(self, outcome: str, error: BaseException | None = None) -> float:
        """End the attempt, if one is under way, in metrics, tracing and logs; return its seconds.

        In any case the step neither counts as running nor is it isolated any more.
        """
        if self._counts_crashes or self._is_isolated:
            self._set_idle()
        attempt, self._attempt = self._attempt, None
        if attempt is None:
            return 0.0
        logs.about.reset(attempt.log_token)
        self._step_tasks.own = self._step_tasks.code = None
        if self._idle_check is not None:
            self._idle_check.cancel()
            self._idle_check, self._is_idle_check_near = None, False
        seconds = self._loop.time() - attempt.started_at
        self._task.environment.measures.attempts[self._agent.name, outcome].observe(seconds)
        if attempt.span is not None:
            attempt.span.end(outcome, error)
        return seconds

    async def _wait_for_admission(self) -> None:
        """Wait until code of the step may run, after a crash of the server."""
        losses = self.state.losses
        await self._task.environment.suspects.admit(self, losses)
        self._is_isolated = losses >= SUSPECT_LOSSES

    async def _wait_for_admission_again(self) -> None:
        """Isolate a suspect that continues after an answer.

        Several asyncio tasks of the step may continue at the same time; the first one waits for
        admission, the others for the first one.
        """
        self._admission = self._admission or asyncio.Lock()
        async with self._admission:
            if not self._is_isolated:
                await self._wait_for_admission()
                if self._attempt is None:  # it ended without the asyncio task that asked
                    self._set_idle()

    def _mark_running(self) -> None:
        """Record that code of the attempt runs: a crash from now on is a loss of the step."""
        marks = self._task.environment.store.marks
        if marks is None:
            self._journal.set_working(self.step.step_id)
        elif self._mark < 0:
            self._mark = marks.enter(self._task.task_id, self.step.step_id, self.state.attempt)

    def _unmark_running(self) -> None:
        marks = self._task.environment.store.marks
        if marks is None:
            self._journal.clear_working(self.step.step_id)
        elif self._mark >= 0:
            marks.leave(self._mark)
            self._mark = -1

    def _set_idle(self) -> None:
        """Record that no code of the step runs: a crash from now on is not a loss of it."""
        self._unmark_running()
        if self._is_isolated:
            self._task.environment.suspects.release(self)
            self._is_isolated = False

    def _cache_key(self, context: StepContext) -> bytes:
        """Hash everything that the agent can read from its step and its context."""
        step = self.step
        inputs = (context.task_description, step.description, step.input, dict(context.params))
        dependencies = (dict(context.outputs), dict(context.results))
        return cache_key(context.principal, self._agent.name, *inputs, *dependencies)

    def _complete_from_cache(self, attempt: Attempt, cached: CachedResult) -> e.StepCompleted:
        """Write the text of an earlier completion; return the event that completes the step."""
        self._write(attempt, cached.output)
        return e.StepCompleted(
            self.step.step_id, attempt.number, "completed", cached.result, cached=True, duration=0.0
        )

    async def _call_agent(self, attempt: Attempt, context: StepContext) -> Any:
        """Call the agent, write what it yields, and return its result."""
        try:
            arguments = self._agent.params.arguments(context.params) if self._has_params else {}
        except ValidationError as error:  # raised by an author's validator; all others have passed
            raise AttemptFailedError(complaint(error), permanent=True) from error
        running = self._step_tasks.code = self._agent.run(context.step, context, **arguments)
        if hasattr(running, "__aiter__"):
            async with aclosing(running) as pieces:
                async for piece in pieces:
                    self._write(attempt, piece)
                    if self._journal.is_full:
                        await self._journal.wait_for_capacity()
            value = None
        else:
            value = await running
        if isinstance(value, str):
            self._write(attempt, value)
            value = None
        if attempt.half_surrogate:
            self._write(attempt, "", is_last=True)
        return context.result if value is None else value

    def _write(self, attempt: Attempt, piece: object, *, is_last: bool = False) -> None:
        """Append a piece of text to the step's output.

        Raises:
            AttemptFailedError: The piece is not a text, or exceeds a limit. In the latter case the
                part within the limit is written.
        """
        if not isinstance(piece, str):
            kind = type(piece).__name__
            message = f"the agent yielded {kind}; expected str; ctx.set_result takes other values"
            raise AttemptFailedError(message, permanent=True)
        if type(piece) is not str:  # a subclass, whose methods may return anything
            piece = str.__str__(piece)
        if attempt.half_surrogate or not piece.isascii():
            piece = self._join_surrogates(attempt, piece, is_last=is_last)
        if not piece:
            return
        limits = self._task.environment.limits
        room = min(limits.step - attempt.offset, limits.task - self._journal.characters_written)
        kept = piece if len(piece) <= room else piece[: max(room, 0)]
        for start in range(0, len(kept), MAX_PIECE):
            part = kept if len(kept) <= MAX_PIECE else kept[start : start + MAX_PIECE]
            self._journal.write(self.step.step_id, attempt.number, attempt.offset, part)
            attempt.offset += len(part)
            if part is not kept:
                self._journal.seal()
        if self._is_isolated and self.state.progressed:
            self._task.environment.suspects.release(self)
            self._is_isolated = False
        if len(kept) < len(piece):
            message = (
                f"the output is too long: a step may write {limits.step} characters "
                f"(max_step_output) and a task {limits.task} (max_task_output); the rest is cut off"
            )
            raise AttemptFailedError(message, permanent=True)

    def _join_surrogates(self, attempt: Attempt, piece: str, *, is_last: bool) -> str:
        """Join surrogate pairs; a first half at the end of ``piece`` is kept for the next piece."""
        text = attempt.half_surrogate + piece
        whole, attempt.half_surrogate = (joined(text), "") if is_last else split(text)
        if whole.count(REPLACEMENT) > text.count(REPLACEMENT) and not self._has_logged_surrogate:
            self._has_logged_surrogate = True
            _log.warning(
                "step %s: the agent's text has half a surrogate pair; it is replaced by U+FFFD",
                self._key,
            )
        return whole

    def _over(self, attempt: Attempt, action: str) -> InvalidStateError:
        """Return the error that refuses an action of code that an earlier attempt left behind."""
        return InvalidStateError(
            f"found {action} of attempt {attempt.number} of step {self._key}, which is over; "
            "expected it before the end: wait for the tasks that the agent starts "
            "(asyncio.TaskGroup)"
        )

    def _in_server_loop(self, work: Coroutine[Any, Any, T]) -> Awaitable[T]:
        """Run ``work`` in the server's event loop, and await it in the running one.

        An agent may use its context in a thread, by ``asyncio.run(ctx.progress(…))``.
        """
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def _report(self, attempt: Attempt, done: Any, total: Any, message: Any) -> None:
        """Append ``step_progress``; see ``StepContext.progress``."""
        if asyncio.get_running_loop() is not self._loop:
            await self._in_server_loop(self._report(attempt, done, total, message))
            return
        if attempt is not self._attempt:
            raise self._over(attempt, "a progress report")
        event = e.StepProgress(self.step.step_id, attempt.number, done, total, message)
        if event.done is not done or event.total is not total or event.message is not message:
            self._log_corrected_report(event, done, total, message)
        self._journal.append(event)
        if self._journal.is_full:
            await self._journal.wait_for_capacity()

    def _log_corrected_report(
        self, event: e.StepProgress, done: Any, total: Any, message: Any
    ) -> None:
        """Log, once for each step, that the event differs from what the agent passed."""
        if self._has_logged_report:
            return
        self._has_logged_report = True
        _log.warning(
            "step %s: a progress report of (%s) is logged as (%r, %r, %.80r); expected numbers "
            "from 0 to the total, and a message of at most %d characters",
            self._key,
            ", ".join(type(value).__name__ for value in (done, total, message)),
            *(event.done, event.total, event.message, e.MAX_MESSAGE),
        )

    async def _ask(self, attempt: Attempt, question: Question) -> e.InputReceived:
        """Ask a question and wait for its answer; see ``StepContext.ask``."""
        if asyncio.get_running_loop() is not self._loop:
            return await self._in_server_loop(self._ask(attempt, question))
        if attempt is not self._attempt:
            raise self._over(attempt, "a question")
        check = partial(self._check_answer, question)
        with self._waiting_for_answer(attempt) as task:
            try:
                return await self._task.inputs.ask(
                    self.step.step_id, attempt.number, question, check
                )
            finally:
                if self.is_attempting and not self._task.stopped:
                    await self._continue_after_wait(task)

    async def _continue_after_wait(self, task: asyncio.Task[Any] | None) -> None:
        """Mark the step as running before code of ``task`` continues, answered or not."""
        if self.state.losses >= SUSPECT_LOSSES:  # the answer was known: it is not progress
            await self._wait_for_admission_again()
        self._step_tasks.end_wait(task)
        self._mark_running()
        if self._journal.is_report_due:  # without an answer, nothing else commits the report
            with suppress(AgentsrvError):  # the journal is lost, and the runner stops the task
                await self._journal.commit()

    async def _message(self, number: int) -> Any:
        """Wait for a message of the client; see ``StepContext.messages``."""
        if asyncio.get_running_loop() is not self._loop:
            return await self._in_server_loop(self._message(number))
        self._has_read_messages = True
        return await self._task.inputs.message(number)

    def _check_answer(self, question: Question, value: Any) -> None:
        """Validate an answer, which calls code of the author.

        If the store has marks, a crash in it is a loss of the step. Without them the log would
        need a commit before each answer.
        """
        if self._task.environment.store.marks is None or self._mark >= 0:
            question.check(value)
            return
        self._mark_running()
        try:
            question.check(value)
        finally:
            self._unmark_running()

    @contextmanager
    def _waiting_for_answer(self, attempt: Attempt) -> Iterator[asyncio.Task[Any] | None]:
        """Suspend the attempt's time limit while the running asyncio task waits for an answer."""
        task, timeout = self._step_tasks.begin_wait(), attempt.timeout
        attempt.open_questions += 1
        self._check_if_idle()
        if timeout is not None and attempt.open_questions == 1:
            attempt.time_left = (timeout.when() or 0.0) - self._loop.time()
            with suppress(RuntimeError):  # it has expired in this turn of the loop
                timeout.reschedule(None)
        try:
            yield task
        finally:
            self._step_tasks.end_wait(task)
            attempt.open_questions -= 1
            if timeout is not None and not attempt.open_questions:
                with suppress(RuntimeError):  # the attempt is over
                    timeout.reschedule(self._loop.time() + attempt.time_left)
            if self._attempt is not None:  # code runs, even if it belongs to an earlier attempt
                self._mark_running()
                self._check_if_idle_later(FIRST_IDLE_CHECK)
                self._is_idle_check_near = True

    def _check_if_idle(self, interval: float | None = None) -> None:
        """Set the step idle if all its asyncio tasks wait for answers; otherwise check again.

        Args:
            interval: Seconds until the next check. ``None``: the step has asked just now. Then the
                check is at the end of this turn, before the journal commits the question. For some
                turns after an answer no question brings the check forward: a task that failed ends
                first, and the tasks that wait for it are woken up later.
        """
        if interval is None and self._is_idle_check_near and not self._step_tasks.is_own_waiting:
            return
        if self._idle_check is not None:
            self._idle_check.cancel()
            self._idle_check, self._is_idle_check_near = None, False
        if self._attempt is None or not self._attempt.open_questions:
            return
        if self._step_tasks.is_own_waiting or (
            interval is not None and self._step_tasks.are_all_waiting
        ):
            self._set_idle()
        elif interval is None:
            self._idle_check = self._loop.call_soon(self._check_if_idle, FIRST_IDLE_CHECK)
            self._is_idle_check_near = True
        else:
            self._check_if_idle_later(interval)

    def _check_if_idle_later(self, delay: float) -> None:
        if self._idle_check is not None:
            self._idle_check.cancel()
        self._is_idle_check_near = False
        following = min(2 * delay, MAX_IDLE_CHECK_INTERVAL)
        self._idle_check = self._loop.call_later(delay, self._check_if_idle, following)

    def _context(self, attempt: Attempt) -> StepContext:
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
            attempt=attempt.number,
            step_key=self._key,
            outputs=partial(_outputs, self._dependencies),  # type: ignore[arg-type]
            results=partial(_results, self._dependencies),  # type: ignore[arg-type]
            reporter=partial(self._report, attempt),
            asker=partial(self._ask, attempt),
            mailbox=self._message,
            step=_own(step) if step.params or type(step.input) in _MUTABLE else step,
            dependencies=self._dependencies,
            processes=task.environment.processes,
        )

    def _fail(self, failure: AttemptFailedError) -> Outcome:
        """Append ``step_failed``; the step is degraded if its agent permits that."""
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
        """Append ``step_retrying`` and wait until the next attempt is due."""
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


_MUTABLE: Final = (dict, list)  # types of inputs that an agent can change


def _own(step: Step) -> Step:
    """Return the step with copies of its input and params."""
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


def _to_json(result: Any, max_bytes: int) -> Any:
    """Return the result as the log stores it.

    Raises:
        AttemptFailedError: It cannot be written as JSON, or is too large.
    """
    try:
        return to_json(result, "result", max_bytes)
    except ValueRefusedError as error:
        raise AttemptFailedError(
            f"the agent's result is refused: {error}", permanent=True
        ) from error
