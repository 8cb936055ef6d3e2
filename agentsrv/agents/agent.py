"""Agents and their contexts: the functions that authors write, and the ``ctx`` that they receive.

`Agent` is a registered function with its options. `StepContext` is the ``ctx`` of one attempt of a
step, `TaskContext` that of a planner. The rest of the module checks a function when it is
registered.
"""

from __future__ import annotations

import ast
import functools
import inspect
import logging
import os
import re
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Final,
    Literal,
    Protocol,
    TypedDict,
    TypeVar,
    Unpack,
    overload,
)

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agentsrv.agents.isolation.modes import Isolation, isolated
from agentsrv.agents.params import Parameters, Slot, base_function, origin_of
from agentsrv.agents.questions import Ask, Mailbox, Messages, Question
from agentsrv.agents.results import read_result
from agentsrv.agents.values import Copies, copies
from agentsrv.errors import ConfigurationError, PermanentError
from agentsrv.models.plan import ExecutionPlan, Step
from agentsrv.models.retry import RETRIES, RETRY_BASE, RetryPolicy
from agentsrv.models.states import StepStatus
from agentsrv.suggest import meant_or_known

if TYPE_CHECKING:
    from agentsrv.agents.isolation.process_function import ProcessPool
    from agentsrv.agents.llm import LanguageModel
    from agentsrv.agents.registry import Registry
    from agentsrv.knowledge.ranking import Passage
    from agentsrv.models.task import StepState

OnFailure = Literal["fail", "degrade"]
AgentFunction = Callable[..., Any]
"""``async def``, an async generator, or a plain function for a thread or a process."""
Planner = Callable[..., Awaitable[ExecutionPlan]]
"""``async def`` that takes the task's text, a `TaskContext` and parameters of its own."""
Search = Callable[[str, int], Awaitable["list[Passage]"]]

T = TypeVar("T")

MAX_LOG_LINE: Final = 10_000  # characters of a message in the log

_log = logging.getLogger("agentsrv.agent")


def _shorten(record: logging.LogRecord) -> bool:
    """Truncate a message that is too long for a line of the log; see `logging.Filter`."""
    try:
        message = record.getMessage()
    except Exception:  # noqa: BLE001 - the formatter reports it
        return True
    if len(message) > MAX_LOG_LINE:
        record.msg = f"{message[:MAX_LOG_LINE]}… (cut: {len(message)} characters)"
        record.args = ()
    return True


_log.addFilter(_shorten)


class Progress(Protocol):
    """Reports the progress of a step."""

    async def __call__(self, done: Any, total: Any, message: Any) -> None:
        """Append one ``step_progress`` event."""


@dataclass(eq=False)
class TaskContext(Copies):
    """The context of a planner: the task, the knowledge base and the language model."""

    task_id: str
    task_description: str
    params: Mapping[str, Any]
    """The task's params, for a step with those of the step: a copy for this context."""
    principal: str
    searcher: Search = field(repr=False)
    model: LanguageModel | None = field(default=None, repr=False, kw_only=True)
    registry: Registry | None = field(default=None, repr=False, kw_only=True)
    app_state: Any = field(default=None, repr=False, kw_only=True)

    @property
    def state(self) -> Any:
        """The value that the application's lifespan yields; ``None`` without a lifespan.

        It is one object for all tasks of the server's process, not a copy.
        """
        return self.app_state

    @property
    def agents(self) -> list[dict[str, Any]]:
        """The application's agents: ``name``, ``description`` and ``params``, a JSON Schema."""
        return [] if self.registry is None else self.registry.described()

    def check_plan(self, plan: ExecutionPlan) -> None:
        """Refuse a plan that the server would refuse for this task, as a model may write it.

        Raises:
            InvalidCommandError: An agent is unknown, a param is unknown, missing or invalid, or
                the plan is too large. The message says what was found and expected.
        """
        if self.registry is not None:
            self.registry.check_plan(plan)
            self.registry.check_params(self.params, plan)

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose lines have the task's id."""
        return logging.LoggerAdapter(_log, {"task_id": self.task_id})

    @cached_property
    def llm(self) -> LanguageModel | NoModel:
        """The configured language model.

        Its connections are shared by all steps; its ``usage`` counts this attempt only. Without a
        model ``bool(ctx.llm)`` is false, and every other use raises a `PermanentError`.
        """
        if self.model is None:
            return NoModel()
        return self.model.counting()

    async def search(self, query: str, limit: int = 5) -> list[Passage]:
        """Return up to ``limit`` passages of the knowledge base, the best first.

        Without a knowledge base the list is empty. The call can be cancelled at any time.

        Raises:
            KnowledgeError: The knowledge base cannot be read.
        """
        return await self.searcher(query, limit)


copies(TaskContext, "params")


class NoModel:
    """``ctx.llm`` of a server without a language model: false, and every use raises an error."""

    def __bool__(self) -> Literal[False]:
        return False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise PermanentError(
            f"found a use of ctx.llm.{name} without a language model; set llm_url and llm_model, "
            "or check `if ctx.llm:` first"
        )


@dataclass(eq=False)
class StepContext(TaskContext):
    """The context of one attempt of a step."""

    attempt: int
    """Number of the attempt, from 1."""
    step_key: str
    """Stable over retries and take-overs: use it as the idempotency key of external effects."""
    outputs: Mapping[str, str]
    """Texts of the completed dependencies, by step id."""
    results: Mapping[str, Any]
    """Structured results of the completed dependencies, by step id, copied for this context."""
    reporter: Progress = field(repr=False)
    asker: Ask = field(repr=False)
    mailbox: Mailbox = field(repr=False)
    step: Step = field(default=None, kw_only=True)  # type: ignore[assignment]
    """The step of the attempt."""
    dependencies: Mapping[str, StepState] = field(default_factory=dict, repr=False, kw_only=True)
    processes: ProcessPool | None = field(default=None, repr=False)
    result: Any = None
    _asked: int = field(default=0, init=False, repr=False)
    """Number of questions without an explicit key so far."""

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose lines have the task's id, the step's key and the attempt."""
        extra = {"task_id": self.task_id, "step": self.step_key, "attempt": self.attempt}
        return logging.LoggerAdapter(_log, extra)

    @cached_property
    def cancelled(self) -> threading.Event:
        """Set when a step in a thread should end; check ``cancelled.is_set()`` regularly."""
        return threading.Event()

    def set_result(self, value: Any) -> None:
        """Set the structured result of the step: JSON, or a value that pydantic writes as JSON."""
        self.result = value

    async def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        """Publish the progress of the step to the task's subscribers.

        A report never fails a step. Numbers of any library are accepted. NaN, infinity and values
        that are not numbers become ``null``, a negative ``done`` becomes 0, and a ``done`` beyond
        ``total`` becomes ``total``. The message is truncated to 2,000 characters. Waits while the
        store is slow to commit.
        """
        await self.reporter(done, total, message)

    @overload
    def result_of(self, agent: Callable[..., AsyncIterator[Any]]) -> Any: ...

    @overload
    def result_of(self, agent: Callable[..., Awaitable[T]]) -> T: ...

    @overload
    def result_of(self, agent: Callable[..., T]) -> T: ...

    @overload
    def result_of(self, agent: str) -> Any: ...

    def result_of(self, agent: Any) -> Any:
        """Return the result of the completed dependency that ran ``agent``.

        Args:
            agent: The agent's function, or its name. With the function the result is read as its
                return annotation says, such as a model, and of a function that returns ``str`` it
                is the text. With a name, or without an annotation, it is JSON. A step without a
                result has its text.

        Raises:
            PermanentError: No completed dependency of the step ran the agent, or several did, or
                the result does not fit the return annotation.
        """
        wanted = repr(agent) if isinstance(agent, str) else origin_of(agent)
        found = [
            step_id
            for step_id, state in self.dependencies.items()
            if state.status is StepStatus.COMPLETED and self._ran(step_id, agent)
        ]
        if len(found) > 1:
            raise PermanentError(
                f"steps {', '.join(map(repr, found))} ran agent {wanted}; expected one: "
                f"ctx.results[{found[0]!r}] has the result of a single step"
            )
        if not found:
            ran = [
                f"{step_id!r} ({state.step.agent}, {state.status})"
                for step_id, state in self.dependencies.items()
            ]
            raise PermanentError(
                f"no completed dependency of step {self.step.step_id!r} ran agent {wanted}; "
                + (f"it depends on {', '.join(ran)}" if ran else "it depends on no step")
            )
        value, text = self.results[found[0]], self.outputs[found[0]]
        return value if isinstance(agent, str) else read_result(agent, value, text, found[0])

    def _ran(self, step_id: str, agent: Any) -> bool:
        name = self.dependencies[step_id].step.agent
        if isinstance(agent, str):
            return name == agent
        registered = None if self.registry is None else self.registry.get(name)
        return registered is not None and bool(registered.function == agent)

    async def confirm(
        self,
        prompt: str,
        *,
        default: bool | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - counts on while the server is down
        key: str | None = None,
    ) -> bool:
        """Ask a question whose answer is yes or no: ``ask(prompt, bool, ...)``."""
        return await self.ask(prompt, bool, default=default, timeout=timeout, key=key)

    @overload
    async def ask(
        self,
        prompt: str,
        *,
        default: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
        key: str | None = None,
    ) -> str: ...

    @overload
    async def ask(
        self,
        prompt: str,
        type: type[T],
        *,
        options: Iterable[T] | None = None,
        default: T | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
        key: str | None = None,
    ) -> T: ...

    @overload
    async def ask(
        self,
        prompt: str,
        *,
        options: Iterable[T],
        default: T | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
        key: str | None = None,
    ) -> T: ...

    @overload
    async def ask(
        self,
        prompt: str,
        type: Any,
        *,
        options: Iterable[Any] | None = None,
        default: Any = None,
        timeout: float | None = None,  # noqa: ASYNC109
        key: str | None = None,
    ) -> Any: ...

    async def ask(
        self,
        prompt: str,
        type: Any = None,  # noqa: A002 - as an argument it reads best
        *,
        options: Iterable[Any] | None = None,
        default: Any = None,
        timeout: float | None = None,  # noqa: ASYNC109 - counts on while the server is down
        key: str | None = None,
    ) -> Any:
        """Ask the users who follow the task, and return their answer.

        A question is published once: a later attempt that reaches it, also after a crash, waits
        for the same answer, or returns at once with the answer in the log. The answer is committed
        before it is returned. The attempt's time limit pauses meanwhile; the task's deadline does
        not.

        Cancelling the call leaves the question open until it is answered or the step ends.

        Args:
            prompt: Text for the user, up to 32,768 characters.
            type: The type of the answer, as pydantic reads it, or a JSON Schema as a ``dict``; by
                default ``str``. The answer to a `SecretStr`, or to a schema with ``writeOnly``, is
                encrypted in the log; only this call returns it.
            options: The allowed answers. Without a ``type`` the option itself is returned, such as
                the member of an enum.
            default: The answer if none arrives within ``timeout``; ``None`` for no default.
            timeout: Seconds, counted from the first attempt that asked.
            key: Names the question within its step. By default it is the number of the question
                in the attempt, counted from 1, and the prompt must be the same in each attempt.

        Raises:
            InputDeclined: The user declined; if uncaught, it fails the step at once.
            InputExpired: The time is over and there is no default; also fails the step at once.
            PermanentError: The question is invalid, or its number belonged to a different question
                in an earlier attempt.
        """
        if key is None:
            self._asked += 1
        elif not isinstance(key, str):
            raise PermanentError(f"the question's key is {key!r}; expected text")
        question = Question.of(
            prompt,
            key=self._asked if key is None else key,
            answer_type=type,
            options=options,
            default=default,
            timeout=timeout,
        )
        return question.read(await self.asker(question))

    def messages(self) -> AsyncIterator[Any]:
        """Iterate over the messages of clients to the task (text or JSON), from the first one.

        Every step and every attempt receives all of them, so none is lost by a retry or a crash.
        The iterator does not end: break out of it, or read it in a task of its own.
        """
        return Messages(self.mailbox)


copies(StepContext, "outputs", "results")


class AgentOptions(TypedDict, total=False):
    """Options of an agent."""

    name: str | None
    """By default the function's name."""
    description: str | None
    """By default the first line of the function's docstring."""
    retries: int
    """Attempts after the first; 3 by default."""
    retry_base: float
    """Seconds before the first retry, doubled before each further one; 1.0 by default."""
    retry_jitter: bool
    """Whether each wait is shortened at random, by up to half; by default it is."""
    retry_on: Sequence[type[BaseException]]
    """Programming errors that are retried all the same, such as ``[TypeError]``."""
    timeout: float | None
    """Seconds that one attempt may take; by default without limit."""
    on_failure: OnFailure
    """``"fail"`` (the default) fails the task, ``"degrade"`` continues without the step."""
    isolation: Isolation
    """``"task"`` (the default) for async functions; ``"thread"`` or ``"process"`` for plain ones.
    A function in a process can be killed; a thread cannot."""
    cache: float | None
    """Seconds for which a result is reused for the same principal, task, input, params and
    dependencies. By default results are not reused."""
    concurrency: int | None
    """Steps of this agent that run at the same time, over all tasks; by default without limit."""


SLOTS: Final = (Slot("step", (Step,)), Slot("ctx", (StepContext, TaskContext)))
"""The parameters of an agent's function that the server injects."""
PLANNER_SLOTS: Final = (
    Slot("task_description", also=(str,)),
    Slot("ctx", (TaskContext,)),
)


@dataclass(frozen=True, slots=True)
class Agent:
    """A registered agent: the author's function and its options.

    Attributes:
        function: The author's function.
        run: Calls it as ``(step, ctx, **params)``: ``async def`` whose return value is the step's
            result, or an async generator whose ``str`` pieces are streamed.
        timeout: Seconds that one attempt may take; ``None`` for no limit.
        on_failure: Whether the task fails with the step, or continues without it.
        cache: Seconds for which a result is used again; ``None`` for never.
        concurrency: Steps that run at the same time; ``None`` for no limit.
        retry_on: Programming errors that are retried.
        origin: Module and name of the author's function, for errors.
    """

    name: str
    description: str
    function: AgentFunction
    run: AgentFunction
    params: Parameters
    retry: RetryPolicy
    timeout: float | None
    on_failure: OnFailure
    cache: float | None
    concurrency: int | None
    retry_on: tuple[type[BaseException], ...]
    origin: str
    home: str
    """Folder of the function's file, with the separator; empty if it has none."""

    @classmethod
    def of(cls, run: AgentFunction, **options: Unpack[AgentOptions]) -> Agent:
        """Take an author's function: a function, a bound method, a partial or a callable object.

        Raises:
            ConfigurationError: The function does not fit its isolation, a parameter cannot be
                filled, or an option is unknown or out of its limits. The message names the agent,
                and the parameter or option.
        """
        name = options.get("name")
        name = _name_of(run) if name is None else name
        label = f"agent {name!r}"
        checked = _checked(options, label)
        run = _callable(run, label)
        if not _NAME.fullmatch(name):
            raise ConfigurationError(
                f"{label} has a name that no plan can have; expected name='…' with 1 to 64 of "
                "letters, digits, '_', '.' and '-'"
            )
        params = Parameters.of(run, label, SLOTS)
        runnable = _runnable(run, params, name, checked.isolation)
        return cls(
            name=name,
            description=checked.description or _description(run),
            function=run,
            run=runnable,
            params=params,
            retry=RetryPolicy(checked.retries, checked.retry_base, jitter=checked.retry_jitter),
            timeout=options.get("timeout"),
            on_failure=checked.on_failure,
            cache=checked.cache,
            concurrency=checked.concurrency,
            retry_on=checked.retry_on,
            origin=origin_of(run),
            home=_home(run),
        )


Above = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""Seconds above 0."""


class _Options(BaseModel):
    """`AgentOptions` as they are checked."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    name: str | None = None
    description: str | None = None
    retries: Annotated[int, Field(ge=0, strict=True)] = RETRIES
    retry_base: Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)] = RETRY_BASE
    retry_jitter: Annotated[bool, Field(strict=True)] = True
    retry_on: tuple[type[BaseException], ...] = ()
    timeout: Annotated[Above, Field(strict=True)] | None = None
    on_failure: OnFailure = "fail"
    isolation: Isolation = "task"
    cache: Annotated[Above, Field(strict=True)] | None = None
    concurrency: Annotated[int, Field(ge=1, strict=True)] | None = None


def _checked(options: Mapping[str, Any], label: str) -> _Options:
    """The options with their defaults.

    Raises:
        ConfigurationError: One is unknown or out of its limits.
    """
    for name in options:
        if name not in _Options.model_fields:
            raise ConfigurationError(
                f"{label} has an unknown option {name!r}; "
                + meant_or_known(name, _Options.model_fields, "options")
            )
    try:
        return _Options.model_validate(options)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        name = str(found["loc"][0])
        expected = found["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        raise ConfigurationError(
            f"{label} has {name}={options.get(name)!r}; expected {expected}"
        ) from error


def _name_of(run: Any) -> str:
    """The name of an agent whose author gives none: the function's, or the object's class."""
    function = run
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__name__", None)
    return str(name if name is not None else type(function).__name__)


def _home(run: Any) -> str:
    code = getattr(base_function(run), "__code__", None)
    folder = "" if code is None else os.path.dirname(code.co_filename)  # noqa: PTH120 - of text
    return folder and folder + os.sep


def _callable(run: Any, label: str) -> AgentFunction:
    """Refuse what cannot be called as an agent.

    Raises:
        ConfigurationError: It says what to register instead.
    """
    if isinstance(run, staticmethod):
        run = run.__func__
    if isinstance(run, classmethod):
        raise ConfigurationError(
            f"{label} is a class method in the body of its class; register the bound method "
            "after the class: app.agent(Class.method)"
        )
    if isinstance(run, type):
        raise ConfigurationError(
            f"{label} is the class {run.__qualname__}; expected a function, or an object of the "
            "class that can be called: app.agent(Class())"
        )
    if not callable(run):
        raise ConfigurationError(
            f"{label} is {run!r}; expected a function, or in its place the agent's name as text"
        )
    if inspect.isfunction(run) and next(iter(inspect.signature(run).parameters), "") in _SELF:
        raise ConfigurationError(
            f"{label} is the method {run.__qualname__} of no object; register the bound method: "
            "app.agent(Class().method)"
        )
    return run  # type: ignore[no-any-return]


_SELF: Final = ("self", "cls")
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def _description(run: AgentFunction) -> str:
    """The first line of the docstring; under ``-OO`` it is read from the source, if it is there."""
    function = base_function(run)
    shown = run if inspect.isroutine(run) or not isinstance(run, functools.partial) else function
    text = shown.__doc__ or _source_doc(shown, function) or function.__doc__ or ""
    return inspect.cleandoc(text).strip().partition("\n")[0]


def _source_doc(*places: Any) -> str | None:
    """The docstring in the source of the first of ``places`` that has one."""
    if sys.flags.optimize < 2:  # noqa: PLR2004 - -OO, which drops docstrings
        return None
    for place in places:
        source = place if inspect.isroutine(place) or inspect.isclass(place) else type(place)
        with suppress(OSError, TypeError, SyntaxError, IndexError):
            (node, *_) = ast.parse(textwrap.dedent(inspect.getsource(source))).body
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and (
                doc := ast.get_docstring(node)
            ):
                return doc
    return None


def is_async(run: AgentFunction) -> bool:
    """Whether calling ``run`` gives an awaitable or an async iterator."""
    return any(
        inspect.iscoroutinefunction(form) or inspect.isasyncgenfunction(form)
        for form in (run, getattr(run, "__call__", None), base_function(run))  # noqa: B004 - its kind
    )


def _runnable(
    run: AgentFunction, params: Parameters, name: str, isolation: Isolation
) -> AgentFunction:
    """The function as an attempt calls it: with (step, ctx, **params); async or a generator."""
    is_async_function = is_async(run)
    if isolation == "task" and is_async_function:
        return params.adapted(run)
    if isolation == "task":
        raise ConfigurationError(
            f"agent {name!r} is {run!r}; expected an async function or async generator, "
            "or isolation='thread' or 'process'"
        )
    if is_async_function or inspect.isgeneratorfunction(base_function(run)):
        raise ConfigurationError(
            f"agent {name!r} is {run!r}; isolation={isolation!r} takes a plain function"
        )
    # A process finds the function by its name, and adapts it there.
    return isolated(run if isolation == "process" else params.adapted(run), isolation)
