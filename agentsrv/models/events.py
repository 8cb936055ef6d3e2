"""The events of a task: their classes, and their encoding and decoding.

An event is encoded once, when it is numbered. The store keeps those bytes, and every subscriber
receives them.

Each class declares everything about its type of event in one place: the transitions of the state
machines, whether subscribers of all tasks receive it, an example, its fields, and how it changes
the state of the task (`fold_task`) and of its step (`fold_step`). ``agentsrv.models.transitions``
builds the tables of transitions from these declarations, ``agentsrv.models.task`` the fold.

The classes are plain dataclasses, neither frozen nor slotted: an event lives from its creation to
its encoding, and orjson reads an instance's ``__dict__`` nearly three times as fast as slots.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import lru_cache
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Final,
    Literal,
    NotRequired,  # pydantic needs them before Python 3.12
    TypeVar,
)

import orjson
from typing_extensions import TypedDict

from agentsrv.errors import AgentsrvError, InvalidStateError
from agentsrv.models.declarations import EventDeclaration
from agentsrv.models.states import StepStatus, TaskStatus
from agentsrv.models.text import joined

if TYPE_CHECKING:
    from agentsrv.models.task import StepState, TaskState

MAX_MESSAGE: Final = 2000  # characters of a progress message
SEALED: Final = "sealed"  # the only field of the object that replaces a secret answer
_NUMBERS: Final = (int, float)
_MAX_EXACT: Final = 2**53  # up to which a float represents every integer


class Event:
    """Something that happened to a task; each subclass is one type of event.

    To add an event:

    1. Write its class below: type, declaration (transitions, audience, example), fields, and
       `fold_task` or `fold_step` if it changes more than a status. The tables of transitions, the
       schema, the TypeScript declarations and the Python fold follow.
    2. Add a `case` to ``console/fold.js`` and ``console/history.js``.
    3. Add a sentence to ``describe`` in ``cli/render.py``; the default shows the event's data.
    4. The first word of its type decides whether it belongs to the life cycle (``task_``,
       ``input_``); an assertion at the end of this module checks that.
    5. Add a row to docs/reference/protocol.md, and run `agentsrv schema --typescript`.
    """

    event_type: ClassVar[str]
    declaration: ClassVar[EventDeclaration]

    def fold_task(self, task: TaskState, timestamp: str) -> None:
        """Change the state of the task, whose status has followed the table already."""

    def fold_step(self, step: StepState) -> None:
        """Change the state of the event's step, whose status has followed the table already."""


_Status = TypeVar("_Status", TaskStatus, StepStatus)


def _stays(*statuses: _Status) -> dict[_Status, _Status]:
    """Transitions of an event that does not change the status."""
    return {status: status for status in statuses}


def _to(following: _Status, *before: _Status) -> dict[_Status, _Status]:
    """Transitions of an event that leads from any of ``before`` to ``following``."""
    return dict.fromkeys(before, following)


_WORKING: Final = _stays(TaskStatus.RUNNING, TaskStatus.INPUT_REQUIRED, TaskStatus.CANCELLING)
"""Transitions of an event that may occur while a worker runs the task."""


class TracebackFrame(TypedDict):
    """One frame of an agent's error; ``file`` is relative to the application.

    ``own`` tells the application's lines from those of libraries. Of a group of errors, the last
    frame of each inner error has ``error``, its description.
    """

    file: str
    line: int
    function: str
    code: str
    own: bool
    error: NotRequired[str]


_TRACEBACK: Final[Sequence[TracebackFrame]] = [
    {
        "file": "my_agents.py",
        "line": 12,
        "function": "retriever",
        "code": "passages = await fetch(url)",
        "own": True,
    }
]


@dataclass
class TaskCreated(Event):
    """The task is in the log; it does not run yet.

    ``traceparent`` is the client's span: the task is traced as part of it.
    """

    event_type = "task_created"
    declaration = EventDeclaration(
        task=_stays(TaskStatus.PENDING),
        is_life_cycle=True,
        example={
            "task_description": "How does async I/O affect throughput?",
            "agent": None,
            "params": {},
            "metadata": {},
        },
    )
    task_description: str
    agent: str | None
    params: Mapping[str, Any]
    metadata: Mapping[str, str]
    traceparent: str | None = None

    def fold_task(self, task: TaskState, timestamp: str) -> None:
        """Take over the fields of the command."""
        if task.created_at:
            raise InvalidStateError(f"task {task.task_id} is created already")
        task.user_input = self.task_description
        task.agent = self.agent
        task.params = self.params
        task.created_at = timestamp
        task.traceparent = self.traceparent


@dataclass
class TaskQueued(Event):
    """The task waits for a free slot; ``position`` counts the principal's waiting tasks from 1."""

    event_type = "task_queued"
    declaration = EventDeclaration(
        task=_to(TaskStatus.QUEUED, TaskStatus.PENDING),
        is_life_cycle=True,
        example={"position": 1},
    )
    position: int

    def fold_task(self, task: TaskState, timestamp: str) -> None:
        """Record the time from which deadlines count."""
        task.queued_at = timestamp


@dataclass
class TaskStarted(Event):
    """A worker of ``node`` holds the task's lease and begins.

    ``traceparent`` is the span of its run, where the server is traced.
    """

    event_type = "task_started"
    declaration = EventDeclaration(
        task=_to(TaskStatus.RUNNING, TaskStatus.QUEUED),
        is_life_cycle=True,
        example={"node": "my-host-10790"},
    )
    node: str
    traceparent: str | None = None

    def fold_task(self, task: TaskState, timestamp: str) -> None:
        """Record the time from which the task's duration counts."""
        task.started_at = timestamp
        task.run = self.traceparent


@dataclass
class PlanCreated(Event):
    """The task's steps are fixed; ``planned_by`` and ``reason`` are those of `ExplainedPlan`."""

    event_type = "plan_created"
    declaration = EventDeclaration(
        task=_stays(TaskStatus.RUNNING, TaskStatus.CANCELLING),
        example={
            "steps": [
                {
                    "step_id": "step_001",
                    "agent": "retriever",
                    "description": "Find passages",
                    "depends_on": [],
                    "max_retries": 3,
                },
                {
                    "step_id": "step_002",
                    "agent": "writer",
                    "description": "Write it",
                    "depends_on": ["step_001"],
                    "max_retries": 3,
                },
            ]
        },
    )
    steps: Sequence[Mapping[str, Any]]
    planned_by: str | None = None
    reason: str | None = None

    def fold_task(self, task: TaskState, timestamp: str) -> None:  # noqa: ARG002 - the base's
        """Create the states of the steps."""
        task.losses = 0
        task.begin_plan(self.steps)


@dataclass
class StepStarted(Event):
    """An attempt of a step begins; attempts count from 1."""

    event_type = "step_started"
    declaration = EventDeclaration(
        task=_WORKING,
        step=_to(StepStatus.RUNNING, StepStatus.PENDING, StepStatus.RETRYING),
        example={
            "step_id": "step_001",
            "attempt": 1,
            "agent": "retriever",
            "description": "Find passages",
        },
    )
    step_id: str
    attempt: int
    agent: str
    description: str

    def fold_step(self, step: StepState) -> None:
        """Begin an attempt; it waits if a question of an earlier one is still open."""
        step.attempt = self.attempt
        step.progressed = False
        if step.questions:
            step.wait_for_answers()


@dataclass(init=False)
class StepProgress(Event):
    """The agent reports its progress.

    Values are corrected, not refused: ``done`` or ``total`` is ``None`` if it is not a finite
    number, ``total`` also if it is not positive; ``done`` is limited to 0 … ``total``, and the
    message to 2,000 characters.
    """

    event_type = "step_progress"
    declaration = EventDeclaration(
        task=_WORKING,
        step=_stays(StepStatus.RUNNING, StepStatus.INPUT_REQUIRED),
        example={
            "step_id": "step_001",
            "attempt": 1,
            "done": 1.0,
            "total": 2.0,
            "message": "1 of 2 folders",
        },
    )
    step_id: str
    attempt: int
    done: float | None
    total: float | None
    message: str

    def __init__(self, step_id: str, attempt: int, done: Any, total: Any, message: Any) -> None:
        if not (
            type(done) in _NUMBERS
            and (total is None or (type(total) in _NUMBERS and total > 0))
            and 0 <= done <= (_MAX_EXACT if total is None else total) <= _MAX_EXACT
            and type(message) is str
            and len(message) <= MAX_MESSAGE
            and message.isascii()
        ):
            done, total, message = _progress(done, total, message)
        self.step_id = step_id
        self.attempt = attempt
        self.done = done
        self.total = total
        self.message = message


@dataclass
class PartialOutput(Event):
    """A piece of text; ``offset`` is the number of characters of this attempt before it."""

    event_type = "partial_output"
    declaration = EventDeclaration(
        task=_WORKING,
        step=_stays(StepStatus.RUNNING, StepStatus.INPUT_REQUIRED),
        example={"step_id": "step_001", "attempt": 1, "offset": 0, "output": "Async I/O "},
    )
    step_id: str
    attempt: int
    offset: int
    output: str

    def fold_step(self, step: StepState) -> None:
        """Append the text; it is progress if it exceeds that of every earlier attempt."""
        step.pieces.append(self.output)
        if not step.progressed and self.offset + len(self.output) > step.furthest:
            step.record_progress()


@dataclass
class StepRetrying(Event):
    """An attempt failed; another follows in ``retry_in`` seconds."""

    event_type = "step_retrying"
    declaration = EventDeclaration(
        task=_WORKING,
        step=_to(StepStatus.RETRYING, StepStatus.RUNNING, StepStatus.INPUT_REQUIRED),
        example={
            "step_id": "step_001",
            "attempt": 1,
            "next_attempt": 2,
            "retry_in": 0.1,
            "error_message": "no route to host",
            "retry_count": 1,
            "reason": "error",
            "traceback": _TRACEBACK,
        },
    )
    step_id: str
    attempt: int
    next_attempt: int
    retry_in: float
    error_message: str
    retry_count: int
    reason: Literal["error", "timeout", "recovered"]
    traceback: Sequence[TracebackFrame] | None = None

    def fold_step(self, step: StepState) -> None:
        """Drop the attempt's text: the output is that of the last attempt alone."""
        step.furthest = max(step.furthest, len(step.output))
        step.discarded += len(step.output)
        step.pieces = []
        step.failures = self.retry_count
        step.error_message = self.error_message


@dataclass
class StepLost(Event):
    """The server's process crashed while code of the attempt ran.

    ``losses`` counts such crashes since the step last made progress. If ``suspected``, the step
    may be their cause; a node runs one suspected step at a time. ``step_id`` is ``None`` if the
    crash occurred while the plan was made.
    """

    event_type = "step_lost"
    declaration = EventDeclaration(
        task=_WORKING,
        # From pending and retrying: the crash fell between an attempt's start and its commit.
        step=_to(StepStatus.RUNNING, StepStatus.PENDING, StepStatus.RUNNING, StepStatus.RETRYING)
        | _stays(StepStatus.INPUT_REQUIRED),
        example={"step_id": "step_001", "attempt": 1, "losses": 2, "suspected": True},
    )
    step_id: str | None
    attempt: int
    losses: int
    suspected: bool

    def fold_task(self, task: TaskState, timestamp: str) -> None:  # noqa: ARG002 - the base's
        """Count the losses of planning."""
        if self.step_id is None:
            task.losses = self.losses

    def fold_step(self, step: StepState) -> None:
        """Count the losses of the step."""
        step.attempt = self.attempt
        step.losses = self.losses
        step.wait_for_answers()


@dataclass
class StepCompleted(Event):
    """The step's result is journaled; the step never runs again. ``duration`` in seconds."""

    event_type = "step_completed"
    declaration = EventDeclaration(
        task=_WORKING,
        step=_to(StepStatus.COMPLETED, StepStatus.RUNNING, StepStatus.INPUT_REQUIRED),
        example={
            "step_id": "step_001",
            "attempt": 2,
            "status": "completed",
            "result": {"passages": 12},
            "cached": False,
            "duration": 0.25,
        },
    )
    step_id: str
    attempt: int
    status: str
    result: Any
    cached: bool
    duration: float

    def fold_step(self, step: StepState) -> None:
        """Keep the result."""
        step.result = self.result
        step.error_message = None

    def fold_task(self, task: TaskState, timestamp: str) -> None:  # noqa: ARG002 - the base's
        """The step's end closes its questions."""
        if task.status is TaskStatus.INPUT_REQUIRED:
            task.wait_for_answers()


@dataclass
class StepFailed(Event):
    """The last attempt failed; ``degraded`` if the plan continues without the step."""

    event_type = "step_failed"
    declaration = EventDeclaration(
        task=_WORKING,
        step=_to(
            StepStatus.FAILED, StepStatus.RUNNING, StepStatus.INPUT_REQUIRED, StepStatus.RETRYING
        ),
        example={
            "step_id": "step_001",
            "attempt": 4,
            "error_message": "no route to host",
            "retry_count": 3,
            "partial_output": "Async",
            "degraded": True,
            "traceback": _TRACEBACK,
        },
    )
    step_id: str
    attempt: int
    error_message: str
    retry_count: int
    partial_output: str
    degraded: bool
    traceback: Sequence[TracebackFrame] | None = None

    def fold_step(self, step: StepState) -> None:
        """Keep the error."""
        step.error_message = self.error_message
        step.failures = self.retry_count
        step.degraded = self.degraded

    fold_task = StepCompleted.fold_task


@dataclass
class StepSkipped(Event):
    """The step will not run."""

    event_type = "step_skipped"
    declaration = EventDeclaration(
        task=_WORKING,
        step=_to(StepStatus.SKIPPED, StepStatus.PENDING),
        example={"step_id": "step_002", "reason": "the task has failed"},
    )
    step_id: str
    reason: str

    def fold_step(self, step: StepState) -> None:
        """Keep the reason."""
        step.error_message = self.reason


@dataclass
class StepCancelled(Event):
    """The step was in progress when the task was stopped; its text is kept."""

    event_type = "step_cancelled"
    declaration = EventDeclaration(
        task=_WORKING,
        step=_to(
            StepStatus.CANCELLED, StepStatus.RUNNING, StepStatus.INPUT_REQUIRED, StepStatus.RETRYING
        ),
        example={"step_id": "step_002", "attempt": 1, "partial_output": "Async I/O raises"},
    )
    step_id: str
    attempt: int
    partial_output: str

    fold_task = StepCompleted.fold_task


@dataclass
class InputRequired(Event):
    """An agent asks the client a question; ``schema`` is the JSON Schema of its answer."""

    event_type = "input_required"
    declaration = EventDeclaration(
        task=_to(TaskStatus.INPUT_REQUIRED, TaskStatus.RUNNING, TaskStatus.INPUT_REQUIRED)
        | _stays(TaskStatus.CANCELLING),
        step=_to(StepStatus.INPUT_REQUIRED, StepStatus.RUNNING, StepStatus.INPUT_REQUIRED),
        is_life_cycle=True,
        example={
            "input_id": "3f2a9c0d1b7e4a65/step_002/1",
            "step_id": "step_002",
            "attempt": 1,
            "prompt": "Publish it?",
            "schema": {"type": "boolean"},
            "options": None,
            "default": False,
            "expires_at": "2026-03-01T12:05:00.000Z",
        },
    )
    input_id: str
    step_id: str
    attempt: int
    prompt: str
    schema: Mapping[str, Any]
    options: Sequence[Any] | None
    default: Any
    expires_at: str | None

    def fold_step(self, step: StepState) -> None:
        """Open the question."""
        step.open_question(self)


@dataclass
class InputReceived(Event):
    """A question was answered (``accept``), declined (``decline``), or has expired (``expire``).

    With ``expire``, ``value`` is the question's default, or ``None`` if it has none.
    """

    event_type = "input_received"
    declaration = EventDeclaration(
        task=_to(TaskStatus.RUNNING, TaskStatus.INPUT_REQUIRED) | _stays(TaskStatus.CANCELLING),
        step=_to(StepStatus.RUNNING, StepStatus.INPUT_REQUIRED) | _stays(StepStatus.RETRYING),
        is_life_cycle=True,
        example={
            "input_id": "3f2a9c0d1b7e4a65/step_002/1",
            "step_id": "step_002",
            "action": "accept",
            "value": True,
            "by": "anonymous",
        },
    )
    input_id: str
    step_id: str
    action: str
    value: Any
    by: str

    def fold_step(self, step: StepState) -> None:
        """Close the question; the step continues to wait if another one is open."""
        step.close_question(self)
        step.wait_for_answers()

    def fold_task(self, task: TaskState, timestamp: str) -> None:  # noqa: ARG002 - the base's
        """The task continues to wait if another question is open."""
        task.wait_for_answers()


@dataclass
class MessageReceived(Event):
    """The client sent the running agents a message."""

    event_type = "message_received"
    declaration = EventDeclaration(
        task=_WORKING, example={"message": "Keep it short.", "by": "anonymous"}
    )
    message: Any
    by: str

    def fold_task(self, task: TaskState, timestamp: str) -> None:  # noqa: ARG002 - the base's
        """Keep the message for the steps that read messages."""
        message = orjson.dumps(self.message)
        task.messages.append(message)
        task.messages_size += len(message)


@dataclass
class TaskCancelling(Event):
    """A cancellation is decided; running steps have ``grace`` seconds to end."""

    event_type = "task_cancelling"
    declaration = EventDeclaration(
        task=_to(TaskStatus.CANCELLING, TaskStatus.RUNNING, TaskStatus.INPUT_REQUIRED),
        is_life_cycle=True,
        example={"reason": "no longer needed", "by": "anonymous", "grace": 5.0},
    )
    reason: str | None
    by: str
    grace: float

    def fold_task(self, task: TaskState, timestamp: str) -> None:  # noqa: ARG002 - the base's
        """Keep the intent: a worker that recovers the task completes it."""
        task.cancelling = self


@dataclass
class TaskRecovered(Event):
    """After a crash or a takeover ``node`` continues the task after ``completed_steps``.

    ``traceparent`` is the span of its run, where the server is traced.
    """

    event_type = "task_recovered"
    declaration = EventDeclaration(
        task=_WORKING,
        is_life_cycle=True,
        example={"node": "my-host-10812", "completed_steps": ["step_001"]},
    )
    node: str
    completed_steps: Sequence[str]
    traceparent: str | None = None

    def fold_task(self, task: TaskState, timestamp: str) -> None:  # noqa: ARG002 - the base's
        """Another run begins; questions stay open, so the status stays as it was."""
        task.run = self.traceparent


@dataclass
class TaskCompleted(Event):
    """The task ended with an output. ``duration`` in seconds since it first started."""

    event_type = "task_completed"
    declaration = EventDeclaration(
        task=_to(TaskStatus.COMPLETED, TaskStatus.RUNNING),
        is_life_cycle=True,
        example={
            "status": "completed",
            "final_output": "Async I/O raises …",
            "degraded": False,
            "missing_steps": [],
            "duration": 1.5,
        },
    )
    status: str
    final_output: str
    degraded: bool
    missing_steps: Sequence[str]
    duration: float

    def fold_task(self, task: TaskState, timestamp: str) -> None:  # noqa: ARG002 - the base's
        """Keep the output."""
        task.final_output = self.final_output


@dataclass
class TaskFailed(Event):
    """The task ended without its output; ``partial_output`` is the part that exists."""

    event_type = "task_failed"
    declaration = EventDeclaration(
        task=_to(TaskStatus.FAILED, TaskStatus.RUNNING, TaskStatus.INPUT_REQUIRED),
        is_life_cycle=True,
        example={
            "status": "failed",
            "error_message": "no route to host",
            "failed_step": "step_002",
            "retry_count": 3,
            "partial_output": "Async I/O raises",
        },
    )
    status: str
    error_message: str
    failed_step: str | None
    retry_count: int
    partial_output: str

    def fold_task(self, task: TaskState, timestamp: str) -> None:  # noqa: ARG002 - the base's
        """Keep the error."""
        task.error_message = self.error_message


@dataclass
class TaskCancelled(Event):
    """The task was cancelled; ``stopped`` is false if a step still runs, fenced off."""

    event_type = "task_cancelled"
    declaration = EventDeclaration(
        task=_to(
            TaskStatus.CANCELLED,
            TaskStatus.PENDING,
            TaskStatus.QUEUED,
            TaskStatus.RUNNING,
            TaskStatus.INPUT_REQUIRED,
            TaskStatus.CANCELLING,
        ),
        is_life_cycle=True,
        example={
            "status": "cancelled",
            "reason": "no longer needed",
            "by": "anonymous",
            "stopped": True,
            "partial_output": "",
        },
    )
    status: str
    reason: str | None
    by: str
    stopped: bool
    partial_output: str


EVENTS: Final[dict[str, type[Event]]] = {
    event.event_type: event for event in Event.__subclasses__()
}
_FIELDS: Final = {
    event: tuple(field.name for field in fields(event))  # type: ignore[arg-type]
    for event in EVENTS.values()
}
TERMINAL_EVENTS: Final = (TaskCompleted, TaskFailed, TaskCancelled)
STEP_EVENTS: Final = frozenset(event for event, names in _FIELDS.items() if "step_id" in names)
"""The events that concern one step."""


Kind = TypeVar("Kind", bound=Event)


@dataclass(frozen=True, slots=True)
class Record:
    """One event of a task's log, decoded as far as every version can: its data is still JSON."""

    event_type: str
    task_id: str
    seq: int
    timestamp: str
    data: Mapping[str, Any]

    @property
    def event(self) -> Event:
        """The event as its class; unknown data of a newer server is dropped.

        Raises:
            AgentsrvError: This version does not know the type.
        """
        kind = EVENTS.get(self.event_type)
        if kind is None:
            known = ", ".join(EVENTS)
            raise AgentsrvError(f"unknown event type {self.event_type!r}; known are {known}")
        return from_data(kind, self.data)

    @property
    def is_terminal(self) -> bool:
        """Whether the task's log ends here."""
        return self.event_type in _TERMINAL_TYPES


def from_data(kind: type[Kind], data: Mapping[str, Any]) -> Kind:
    """Return the event with that data; missing fields are ``None``, unknown ones are dropped."""
    return kind(**{name: data.get(name) for name in _FIELDS[kind]})


def _number(value: Any) -> float | None:
    """Convert a number of any library to a finite float or exact int; ``None`` if impossible."""
    if type(value) is int and -_MAX_EXACT <= value <= _MAX_EXACT:
        return value
    if value is None or isinstance(value, (str, bytes, bytearray)):
        return None
    try:
        number = float(value)
    except BaseException:  # noqa: BLE001 - the author's own __float__
        return None
    return number if math.isfinite(number) else None


def _progress(done: Any, total: Any, message: Any) -> tuple[float | None, float | None, str]:
    """Correct the fields of a `StepProgress`."""
    limit = _number(total)
    limit = None if limit is None or limit <= 0 else limit
    number = _number(done)
    if number is not None:
        number = max(number, 0)
        number = number if limit is None else min(number, limit)
    return number, limit, _message(message)


def _message(value: Any) -> str:
    if value is None:
        return ""
    try:
        text = str(value)
    except BaseException:  # noqa: BLE001 - the author's own __str__
        text = type(value).__name__
    return joined(text[:MAX_MESSAGE])


def encode(event: Event, task_id: str, seq: int, timestamp: str) -> bytes:
    """Return the frame of ``event``: the bytes that are stored, sent and replayed.

    Args:
        event: The event.
        task_id: The task's id, of letters, digits, ``_``, ``.`` and ``-``.
        seq: The event's number in the task's log.
        timestamp: The time of the event, in the format of `format_timestamp`.

    Raises:
        TypeError: The event holds a value that JSON cannot represent.
    """
    # Joined from pieces: faster than building one more dictionary, and the copy has its exact
    # size, whereas bytes directly from orjson keep 4 KB as long as they live.
    envelope = f'{_HEADS[type(event)]}{task_id}","seq":{seq},"timestamp":"{timestamp}","data":'
    return b"".join((envelope.encode(), orjson.dumps(event.__dict__), b"}"))


def decode(body: bytes | str) -> Record:
    """Decode one encoded event."""
    return to_record(orjson.loads(body))


def to_record(frame: Mapping[str, Any]) -> Record:
    """Return the record in a decoded event frame."""
    return Record(
        event_type=frame["event_type"],
        task_id=frame["task_id"],
        seq=frame["seq"],
        timestamp=frame["timestamp"],
        data=frame["data"],
    )


def is_life_cycle(body: bytes) -> bool:
    """Whether subscribers of all tasks receive an encoded event; does not decode it."""
    return body.startswith(_LIFE_CYCLE)


def is_terminal(body: bytes) -> bool:
    """Whether an encoded event is the last of its task; does not decode it."""
    return body.startswith(_TERMINAL)


def is_sealed(value: Any) -> bool:
    """Whether a value of the log is the ciphertext of a secret answer."""
    return isinstance(value, dict) and value.keys() == {SEALED} and isinstance(value[SEALED], str)


def format_timestamp(at: float) -> str:
    """Return seconds since the epoch as RFC 3339 in UTC with milliseconds."""
    return _format_millis(int(at * 1000))


def parse_timestamp(text: str) -> float:
    """Return what `format_timestamp` wrote as seconds since the epoch."""
    return datetime.fromisoformat(text).timestamp()


@lru_cache(maxsize=1)  # most events fall into the millisecond of the one before
def _format_millis(millis: int) -> str:
    second, rest = divmod(millis, 1000)
    return f"{_format_second(second)}.{rest:03d}Z"


@lru_cache(maxsize=1)
def _format_second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


_PREFIX: Final = '{"type":"event","event_type":"'
_HEADS: Final = {event: f'{_PREFIX}{name}","task_id":"' for name, event in EVENTS.items()}
# The types begin with few words ("task_", "input_"), so two prefixes are compared, not a dozen.
_LIFE_CYCLE_WORDS: Final = {
    name.partition("_")[0] for name, event in EVENTS.items() if event.declaration.is_life_cycle
}
assert all(
    event.declaration.is_life_cycle is (name.partition("_")[0] in _LIFE_CYCLE_WORDS)
    for name, event in EVENTS.items()
)
_LIFE_CYCLE: Final = tuple(f"{_PREFIX}{word}_".encode() for word in sorted(_LIFE_CYCLE_WORDS))
_TERMINAL_TYPES: Final = frozenset(event.event_type for event in TERMINAL_EVENTS)
_TERMINAL: Final = tuple(f'{_PREFIX}{event.event_type}"'.encode() for event in TERMINAL_EVENTS)
