"""Agent and the contexts: what an author writes and what the author's code is handed."""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    Protocol,
    TypedDict,
    TypeVar,
    Unpack,
    overload,
)

from agentsrv.agents.isolation import Isolation, isolated
from agentsrv.agents.params import Parameters
from agentsrv.agents.questions import Ask, Mailbox, Messages, Question
from agentsrv.errors import ConfigurationError
from agentsrv.models.plan import ExecutionPlan
from agentsrv.models.retry import RETRIES, RETRY_BASE, RetryPolicy

if TYPE_CHECKING:
    from agentsrv.agents.knowledge import Passage
    from agentsrv.agents.llm import LanguageModel

OnFailure = Literal["fail", "degrade"]
AgentFunction = Callable[..., Any]
"""``async def``, an async generator, or a plain function for a thread or a process."""
Planner = Callable[..., Awaitable[ExecutionPlan]]
"""``async def`` that takes the task's text, a `TaskContext` and parameters of its own."""
Search = Callable[[str, int], Awaitable["list[Passage]"]]

T = TypeVar("T")

_log = logging.getLogger("agentsrv.agent")


class Progress(Protocol):
    """Where a step's progress goes."""

    async def __call__(self, done: float, total: float | None, message: str) -> None:
        """Put one ``step_progress`` into the log."""


@dataclass(eq=False)
class TaskContext:
    """What a planner is handed: the task, the knowledge base and the language model."""

    task_id: str
    task_description: str
    params: Mapping[str, Any]
    principal: str
    searcher: Search = field(repr=False)
    model: LanguageModel | None = field(default=None, repr=False, kw_only=True)

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose lines carry the task's id."""
        return logging.LoggerAdapter(_log, {"task_id": self.task_id})

    @cached_property
    def llm(self) -> LanguageModel | None:
        """The configured language model, or None where there is none.

        Its connections are shared by all steps; its ``usage`` counts this attempt only.
        """
        return None if self.model is None else self.model.counting()

    async def search(self, query: str, limit: int = 5) -> list[Passage]:
        """Return up to ``limit`` passages of the knowledge base, the best first.

        Without a knowledge base the list is empty. Cancelling the call leaves nothing behind.

        Raises:
            KnowledgeError: The knowledge base cannot be read.
        """
        return await self.searcher(query, limit)


@dataclass(eq=False)
class StepContext(TaskContext):
    """What an agent is handed beside its step."""

    attempt: int
    """Attempts count from 1."""
    step_key: str
    """Stable over retries and take-overs: the idempotency key for effects outside."""
    outputs: Mapping[str, str]
    """Texts of the completed dependencies, by step id."""
    results: Mapping[str, Any]
    """Structured results of the completed dependencies, by step id."""
    reporter: Progress = field(repr=False)
    asker: Ask = field(repr=False)
    mailbox: Mailbox = field(repr=False)
    result: Any = None
    _asked: int = field(default=0, init=False, repr=False)
    """Questions without a key of their own, so far."""

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose lines carry the task's id, the step's key and the attempt."""
        extra = {"task_id": self.task_id, "step": self.step_key, "attempt": self.attempt}
        return logging.LoggerAdapter(_log, extra)

    @cached_property
    def cancelled(self) -> threading.Event:
        """Set when a step in a thread should end: look at ``cancelled.is_set()`` now and then."""
        return threading.Event()

    def set_result(self, value: Any) -> None:
        """Give the step a structured result; it must be JSON."""
        self.result = value

    async def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        """Tell the task's subscribers how far the step is; waits while the log is behind."""
        await self.reporter(done, total, message)

    @overload
    async def ask(
        self,
        prompt: str,
        *,
        default: bool | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
        key: str | None = None,
    ) -> bool: ...

    @overload
    async def ask(
        self,
        prompt: str,
        schema: type[T],
        options: None = None,
        default: T | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
        key: str | None = None,
    ) -> T: ...

    @overload
    async def ask(
        self,
        prompt: str,
        schema: Any = ...,
        options: Sequence[Any] | None = None,
        default: Any = None,
        timeout: float | None = None,  # noqa: ASYNC109
        key: str | None = None,
    ) -> Any: ...

    async def ask(  # noqa: PLR0917 - the order is the published one
        self,
        prompt: str,
        schema: Any = bool,
        options: Sequence[Any] | None = None,
        default: Any = None,
        timeout: float | None = None,  # noqa: ASYNC109 - counts on while the server is down
        key: str | None = None,
    ) -> Any:
        """Ask the people behind the task, and return their answer.

        A question is asked once: a later attempt that comes to it, also after a crash, waits for
        the same answer, or is given at once the one that is in the log. The answer is committed
        before it is returned. Meanwhile the attempt's time limit stands still; the deadline of
        the task does not.

        Cancelling the call leaves the question open until it is answered or the step ends.

        Args:
            prompt: What people read, up to 32,768 characters.
            schema: What the answer must be: a type, as pydantic reads it, or a JSON Schema.
            options: The answer must be one of these; ``schema`` may then be left out.
            default: The answer where nobody gives one within ``timeout``; ``None`` for none.
            timeout: Seconds from the first asking.
            key: Names the question within its step. By default it is the question's number
                among those of the attempt, counted from 1, and the prompt must be the same in
                each attempt.

        Raises:
            InputDeclined: Whoever was asked declines; uncaught, it fails the step at once.
            InputExpired: The time is over and there is no default; likewise.
            PermanentError: The question cannot be asked so, or its number in an earlier attempt
                was that of another question.
        """
        if key is None:
            self._asked += 1
        question = Question.of(
            prompt,
            key=self._asked if key is None else key,
            schema=schema,
            options=options,
            default=default,
            timeout=timeout,
        )
        return question.read(await self.asker(question))

    def messages(self) -> AsyncIterator[Any]:
        """What the client sends to the task (text or JSON), from its first message on.

        Every step and every attempt is given all of them, so that none is lost by a retry or a
        crash. The iterator does not end by itself: leave it, or read it beside the work.
        """
        return Messages(self.mailbox)


class AgentOptions(TypedDict, total=False):
    """What an author may say about an agent."""

    name: str | None
    """By default the function's name."""
    description: str | None
    """By default the first line of the function's docstring."""
    retries: int
    """Attempts after the first; 3 by default."""
    retry_base: float
    """Seconds before the first retry, doubled before each further one; 0.1 by default."""
    timeout: float | None
    """Seconds that one attempt may take; by default without limit."""
    on_failure: OnFailure
    """``"fail"`` (the default) fails the task, ``"degrade"`` goes on without the step."""
    isolation: Isolation
    """``"task"`` (the default) for async functions; ``"thread"`` or ``"process"`` for plain ones.
    Only a process can really be killed."""
    cache: float | None
    """Seconds for which a result is used again: for the same principal, task, input, params and
    dependencies. By default never."""
    concurrency: int | None
    """Steps of this agent that run at the same time, over all tasks; by default without limit."""


@dataclass(frozen=True, slots=True)
class Agent:
    """A registered agent: the author's function and its options.

    Attributes:
        run: ``async def`` whose return value is the step's result, or an async generator whose
            ``str`` pieces are streamed.
        timeout: Seconds that one attempt may take; ``None`` for no limit.
        on_failure: Whether the task fails with the step, or goes on without it.
        cache: Seconds for which a result is used again; ``None`` for never.
        concurrency: Steps that run at the same time; ``None`` for no limit.
    """

    name: str
    description: str
    run: AgentFunction
    params: Parameters
    retry: RetryPolicy
    timeout: float | None
    on_failure: OnFailure
    cache: float | None
    concurrency: int | None

    @classmethod
    def of(cls, run: AgentFunction, **options: Unpack[AgentOptions]) -> Agent:
        """Take an author's function.

        Raises:
            ConfigurationError: The function does not fit its isolation, lacks the parameters
                ``step`` and ``ctx``, or an option is out of its limits.
        """
        name = options.get("name") or str(getattr(run, "__name__", repr(run)))
        params = Parameters.of(run, f"agent {name!r}", {"StepContext": StepContext})
        retry = RetryPolicy(options.get("retries", RETRIES), options.get("retry_base", RETRY_BASE))
        timeout, cache = options.get("timeout"), options.get("cache")
        concurrency = options.get("concurrency")
        on_failure = options.get("on_failure", "fail")
        if retry.retries < 0 or retry.base < 0 or (timeout is not None and timeout <= 0):
            raise ConfigurationError(
                f"agent {name!r} has retries={retry.retries}, retry_base={retry.base}, "
                f"timeout={timeout}; expected retries and retry_base of 0 or more and a "
                "timeout above 0 (seconds) or None"
            )
        if on_failure not in ("fail", "degrade"):
            raise ConfigurationError(
                f"agent {name!r} has on_failure={on_failure!r}; expected 'fail' or 'degrade'"
            )
        if (cache is not None and cache <= 0) or (concurrency is not None and concurrency < 1):
            raise ConfigurationError(
                f"agent {name!r} has cache={cache}, concurrency={concurrency}; expected cache "
                "above 0 (seconds) and concurrency of 1 or more, or None"
            )
        return cls(
            name=name,
            description=options.get("description")
            or (inspect.getdoc(run) or "").partition("\n")[0],
            run=_runnable(run, name, options.get("isolation", "task")),
            params=params,
            retry=retry,
            timeout=timeout,
            on_failure=on_failure,
            cache=cache,
            concurrency=concurrency,
        )


def _runnable(run: AgentFunction, name: str, isolation: Isolation) -> AgentFunction:
    """The function as the runner calls it: async, or an async generator."""
    is_async = inspect.iscoroutinefunction(run) or inspect.isasyncgenfunction(run)
    if isolation == "task" and is_async:
        return run
    if isolation == "task":
        raise ConfigurationError(
            f"agent {name!r} is {run!r}; expected an async function or async generator, "
            "or isolation='thread' or 'process'"
        )
    if isolation not in ("thread", "process"):
        raise ConfigurationError(
            f"agent {name!r} has isolation={isolation!r}; expected 'task', 'thread' or 'process'"
        )
    if is_async or inspect.isgeneratorfunction(run):
        raise ConfigurationError(
            f"agent {name!r} is {run!r}; isolation={isolation!r} takes a plain function"
        )
    return isolated(run, isolation)
