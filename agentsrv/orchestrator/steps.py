"""StepRun: one step through its attempts, with time-outs, back-off and degradation."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from contextvars import Token
from dataclasses import dataclass
from enum import Enum, auto
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Literal

import orjson

from agentsrv.agents.base import Agent, StepContext
from agentsrv.agents.questions import Question
from agentsrv.error_text import describe
from agentsrv.errors import AgentsrvError, PermanentError
from agentsrv.models import events as e
from agentsrv.models.plan import Step
from agentsrv.models.retry import RetryPolicy
from agentsrv.models.states import StepStatus
from agentsrv.models.task import StepState
from agentsrv.orchestrator.cache import Found, key_of
from agentsrv.orchestrator.dialogue import Dialogue
from agentsrv.orchestrator.guard import is_authors, take_back
from agentsrv.orchestrator.journal import Journal
from agentsrv.orchestrator.surroundings import Surroundings
from agentsrv.telemetry import logs

if TYPE_CHECKING:
    from agentsrv.telemetry.tracing import AttemptSpan

MAX_ERROR = 2000  # characters of an error message in the log

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
    around: Surroundings
    dialogue: Dialogue
    stopped: bool = False
    """Whether ``TaskRunner.stop`` has cancelled the steps; nothing else sets it."""


class AttemptFailed(Exception):
    """An attempt of a step failed; the message is what the log tells."""

    def __init__(
        self,
        message: str,
        *,
        permanent: bool = False,
        reason: Literal["error", "timeout"] = "error",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message[:MAX_ERROR]
        self.permanent = permanent
        self.reason = reason
        self.retry_after = retry_after


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
            else RetryPolicy(step.max_retries, agent.retry.base)
        )
        self._timeout = agent.timeout if step.timeout is None else step.timeout
        self._offset = 0
        self._limit: asyncio.Timeout | None = None  # of the attempt that runs
        self._left = 0.0  # seconds of it when the first open question was asked
        self._asking = 0  # questions that are waited for
        self._started = 0.0  # the attempt, of the monotonic clock
        self._said: Token[Mapping[str, object]] | None = None  # to the log; while an attempt runs
        self._span: AttemptSpan | None = None  # of the attempt, where the server is traced

    @property
    def cancelled_event(self) -> e.StepCancelled:
        """What the log says when the step is stopped now."""
        state = self.state
        return e.StepCancelled(self.step.step_id, state.attempt, state.output)

    @property
    def is_attempting(self) -> bool:
        """Whether an attempt is under way: code of the author runs, or waits for an answer."""
        return self._said is not None

    async def run(self) -> Outcome:
        """Make attempts until one succeeds or none is left.

        Raises:
            asyncio.CancelledError: The runner stops the step; what it had written is kept.
        """
        own = asyncio.current_task()
        assert own is not None
        while True:
            try:
                if self._agent.concurrency is None:
                    await self._attempt(self.state.attempt + 1)
                else:
                    async with self._task.around.gate(self._agent):
                        await self._attempt(self.state.attempt + 1)
            except AttemptFailed as failure:
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

    async def _attempt(self, attempt: int) -> None:
        """Call the agent once; whatever it raises becomes ``AttemptFailed`` or a cancellation."""
        step, limit = self.step, None
        self._offset = 0
        self._journal.append(
            e.StepStarted(step.step_id, attempt, self._agent.name, step.description)
        )
        self._started = monotonic()
        self._said = logs.about.set(
            {
                "principal": self._task.principal,
                "task_id": self._task.task_id,
                "step_id": step.step_id,
                "attempt": attempt,
            }
        )
        if self._task.around.tracing is not None:
            self._span = self._task.around.tracing.attempt(self._agent.name, self._key, attempt)
        loop = asyncio.get_running_loop()
        started = loop.time()
        context = self._context(attempt)
        key = None if self._agent.cache is None else self._cache_key(context)
        if key is not None and self._repeat(key, attempt):
            return
        try:
            if self._timeout is None:
                result = await self._call(context)
            else:
                async with asyncio.timeout(self._timeout) as limit:
                    self._limit = limit
                    result = await self._call(context)
        except AttemptFailed:
            raise
        except BaseException as error:
            if not is_authors(error, stopped=self._task.stopped):
                raise
            _log.info("step %s failed", self._key, exc_info=True)
            if limit is not None and limit.expired() and isinstance(error, _EXPIRED):
                message = f"no result within {self._timeout} s"
                raise AttemptFailed(message, reason="timeout") from error
            raise AttemptFailed(
                describe(error),
                permanent=isinstance(error, PermanentError),
                retry_after=error.retry_after if isinstance(error, AgentsrvError) else None,
            ) from error
        _check(result)
        duration = round(loop.time() - started, 6)
        self._journal.append(
            e.StepCompleted(
                step.step_id, attempt, "completed", result, cached=False, duration=duration
            )
        )
        if key is not None and self._agent.cache is not None and not self.state.questions:
            found = Found(self.state.output, result)
            self._task.around.cache.put(key, found, self._task.around.now() + self._agent.cache)

    def _settle(self, outcome: str, error: BaseException | None = None) -> None:
        """Take down how the attempt ended that runs, if one does."""
        if self._said is None:
            return
        logs.about.reset(self._said)
        self._said = None
        seconds = monotonic() - self._started
        self._task.around.measures.attempts[self._agent.name, outcome].observe(seconds)
        if self._span is not None:
            self._span.end(outcome, error)

    def _cache_key(self, context: StepContext) -> bytes:
        """Of all that the agent can see, but for who it is that asks."""
        step = self.step
        seen = (context.task_description, step.description, step.input, dict(context.params))
        made = (dict(context.outputs), dict(context.results))
        return key_of(context.principal, self._agent.name, *seen, *made)

    def _repeat(self, key: bytes, attempt: int) -> bool:
        """Complete the step with what its agent found for the same before, if it did."""
        found = self._task.around.cache.get(key, self._task.around.now())
        if found is None:
            return False
        self._write(attempt, found.output)
        step_id, result = self.step.step_id, found.result
        self._journal.append(
            e.StepCompleted(step_id, attempt, "completed", result, cached=True, duration=0.0)
        )
        return True

    async def _call(self, context: StepContext) -> Any:
        arguments = self._agent.params.arguments(self._task.params)
        running = self._agent.run(self.step, context, **arguments)
        if hasattr(running, "__aiter__"):
            async with aclosing(running) as pieces:
                async for piece in pieces:
                    self._write(context.attempt, piece)
                    if self._journal.is_full:
                        await self._journal.relieve()
            return context.result
        value = await running
        if isinstance(value, str):
            self._write(context.attempt, value)
            return context.result
        return context.result if value is None else value

    def _write(self, attempt: int, piece: object) -> None:
        if not isinstance(piece, str):
            kind = type(piece).__name__
            raise AttemptFailed(f"the agent yielded {kind}; expected str", permanent=True)
        if not piece:
            return
        if not piece.isascii():
            try:
                piece.encode()
            except UnicodeEncodeError as error:
                message = f"the agent's text is not Unicode: {error}"
                raise AttemptFailed(message, permanent=True) from error
        limits = self._task.around.limits
        room = min(limits.step - self._offset, limits.task - self._journal.written)
        kept = piece if len(piece) <= room else piece[: max(room, 0)]
        if kept:
            self._journal.write(self.step.step_id, attempt, self._offset, kept)
            self._offset += len(kept)
        if len(kept) < len(piece):
            message = (
                f"the output is too long: a step may write {limits.step} characters "
                f"and a task {limits.task}; the rest is cut off"
            )
            raise AttemptFailed(message, permanent=True)

    async def _report(self, done: float, total: float | None, message: str) -> None:
        attempt = self.state.attempt
        self._journal.append(
            e.StepProgress(self.step.step_id, attempt, done, total, message[:MAX_ERROR])
        )
        if self._journal.is_full:
            await self._journal.relieve()

    async def _ask(self, question: Question) -> e.InputReceived:
        with self._standing_still():
            return await self._task.dialogue.ask(self.step.step_id, self.state.attempt, question)

    @contextmanager
    def _standing_still(self) -> Iterator[None]:
        """Stop the attempt's time, for as long as any of its questions is waited for."""
        clock, limit = asyncio.get_running_loop().time, self._limit
        self._asking += 1
        if limit is not None and self._asking == 1:
            self._left = (limit.when() or 0.0) - clock()
            with suppress(RuntimeError):  # the time was over just before
                limit.reschedule(None)
        try:
            yield
        finally:
            self._asking -= 1
            if limit is not None and not self._asking:
                with suppress(RuntimeError):
                    limit.reschedule(clock() + self._left)

    def _context(self, attempt: int) -> StepContext:
        task = self._task
        outputs: dict[str, str] = {}
        results: dict[str, Any] = {}
        for step_id, state in self._dependencies.items():
            if state.status is StepStatus.COMPLETED:
                output = outputs[step_id] = state.output
                results[step_id] = output if state.result is None else state.result
        return StepContext(
            task_id=task.task_id,
            task_description=task.description,
            params=task.params,
            principal=task.principal,
            searcher=task.around.search,
            model=task.around.model,
            attempt=attempt,
            step_key=self._key,
            outputs=outputs,
            results=results,
            reporter=self._report,
            asker=self._ask,
            mailbox=task.dialogue.message,
        )

    def _fail(self, failure: AttemptFailed) -> Outcome:
        degraded = self._agent.on_failure == "degrade"
        if degraded:
            self._task.around.measures.degraded[self._agent.name] += 1
        state = self.state
        self._journal.append(
            e.StepFailed(
                self.step.step_id,
                state.attempt,
                failure.message,
                state.failures,
                state.output,
                degraded,
            )
        )
        return Outcome.DEGRADED if degraded else Outcome.FAILED

    async def _back_off(self, failure: AttemptFailed) -> None:
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
            )
        )
        self._task.around.measures.retries[self._agent.name, failure.reason] += 1
        await asyncio.sleep(delay)


def _check(result: Any) -> None:
    """Refuse a result that the log cannot hold: JSON as every program reads it."""
    if result is None:
        return
    try:
        json.dumps(result, allow_nan=False)  # orjson would write NaN as null
        orjson.dumps(result)
    except (TypeError, ValueError, RecursionError) as error:
        message = f"the agent's result is not JSON: {error}"
        raise AttemptFailed(message, permanent=True) from error
