"""What happened to a task: the events, their one encoding, and its reverse.

An event is encoded once, when it is numbered; the store keeps those bytes and every subscriber
is sent them. The classes are plain dataclasses, neither frozen nor slotted: an event lives from
its making to its encoding, and orjson reads an instance's ``__dict__`` nearly three times as
fast as slots.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import lru_cache
from typing import (
    Any,
    ClassVar,
    Final,
    Literal,
    NotRequired,  # pydantic needs them before Python 3.12
    TypeVar,
)

import orjson
from typing_extensions import TypedDict

from agentsrv.errors import AgentsrvError
from agentsrv.models.text import joined

MAX_MESSAGE: Final = 2000  # characters of a progress message
SEALED: Final = "sealed"  # the only field of the object that replaces a secret answer
_NUMBERS: Final = (int, float)
_MOST: Final = 2**53  # beyond it a float is no exact count


class Event:
    """Something that happened to a task; the subclass says what."""

    event_type: ClassVar[str]


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


@dataclass
class TaskCreated(Event):
    """A task is in the log; nothing runs yet. ``traceparent`` is whose work it is part of."""

    event_type = "task_created"
    task_description: str
    agent: str | None
    params: Mapping[str, Any]
    metadata: Mapping[str, str]
    traceparent: str | None = None


@dataclass
class TaskQueued(Event):
    """The task waits for a free slot; ``position`` counts the principal's waiting tasks from 1."""

    event_type = "task_queued"
    position: int


@dataclass
class TaskStarted(Event):
    """A worker of ``node`` holds the task's lease and begins.

    ``traceparent`` is the span of its run, where the server is traced.
    """

    event_type = "task_started"
    node: str
    traceparent: str | None = None


@dataclass
class PlanCreated(Event):
    """The task's steps are fixed; ``planned_by`` and ``reason`` are those of `ExplainedPlan`."""

    event_type = "plan_created"
    steps: Sequence[Mapping[str, Any]]
    planned_by: str | None = None
    reason: str | None = None


@dataclass
class StepStarted(Event):
    """An attempt of a step begins; attempts count from 1."""

    event_type = "step_started"
    step_id: str
    attempt: int
    agent: str
    description: str


@dataclass(init=False)
class StepProgress(Event):
    """The agent reports how far it is.

    Whatever is given becomes valid: what is no finite number is ``None``, ``done`` is from 0 to
    ``total``, ``total`` above 0, the message text of at most 2,000 characters.
    """

    event_type = "step_progress"
    step_id: str
    attempt: int
    done: float | None
    total: float | None
    message: str

    def __init__(self, step_id: str, attempt: int, done: Any, total: Any, message: Any) -> None:
        if not (
            type(done) in _NUMBERS
            and (total is None or (type(total) in _NUMBERS and total > 0))
            and 0 <= done <= (_MOST if total is None else total) <= _MOST
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
    """A piece of text; ``offset`` counts the characters of this attempt before it."""

    event_type = "partial_output"
    step_id: str
    attempt: int
    offset: int
    output: str


@dataclass
class StepRetrying(Event):
    """An attempt failed and another will follow in ``retry_in`` seconds."""

    event_type = "step_retrying"
    step_id: str
    attempt: int
    next_attempt: int
    retry_in: float
    error_message: str
    retry_count: int
    reason: Literal["error", "timeout", "recovered"]
    traceback: Sequence[TracebackFrame] | None = None


@dataclass
class StepLost(Event):
    """The server's process crashed while code of the attempt ran.

    ``losses`` counts such crashes since the step last made progress; ``suspected`` says that it
    is now held for a possible cause, and run apart from others of which that is said, too.
    ``step_id`` is ``None`` where the plan was made.
    """

    event_type = "step_lost"
    step_id: str | None
    attempt: int
    losses: int
    suspected: bool


@dataclass
class StepCompleted(Event):
    """The step's result is journaled; the step never runs again. ``duration`` in seconds."""

    event_type = "step_completed"
    step_id: str
    attempt: int
    status: str
    result: Any
    cached: bool
    duration: float


@dataclass
class StepFailed(Event):
    """The last attempt failed; ``degraded`` where the plan goes on without the step."""

    event_type = "step_failed"
    step_id: str
    attempt: int
    error_message: str
    retry_count: int
    partial_output: str
    degraded: bool
    traceback: Sequence[TracebackFrame] | None = None


@dataclass
class StepSkipped(Event):
    """The step will not run."""

    event_type = "step_skipped"
    step_id: str
    reason: str


@dataclass
class StepCancelled(Event):
    """The step was under way when the task was cancelled; what it had written is kept."""

    event_type = "step_cancelled"
    step_id: str
    attempt: int
    partial_output: str


@dataclass
class InputRequired(Event):
    """An agent asks the client a question; ``schema`` is the JSON Schema of its answer."""

    event_type = "input_required"
    input_id: str
    step_id: str
    attempt: int
    prompt: str
    schema: Mapping[str, Any]
    options: Sequence[Any] | None
    default: Any
    expires_at: str | None


@dataclass
class InputReceived(Event):
    """A question was answered (``accept``), declined (``decline``), or its time is over.

    With ``expire``, ``value`` is the question's default, ``None`` where it has none.
    """

    event_type = "input_received"
    input_id: str
    step_id: str
    action: str
    value: Any
    by: str


@dataclass
class MessageReceived(Event):
    """The client sent the running agents a message."""

    event_type = "message_received"
    message: Any
    by: str


@dataclass
class TaskCancelling(Event):
    """A cancel is decided; running steps have ``grace`` seconds to end."""

    event_type = "task_cancelling"
    reason: str | None
    by: str
    grace: float


@dataclass
class TaskRecovered(Event):
    """After a crash or a takeover ``node`` goes on behind ``completed_steps``.

    ``traceparent`` is the span of its run, where the server is traced.
    """

    event_type = "task_recovered"
    node: str
    completed_steps: Sequence[str]
    traceparent: str | None = None


@dataclass
class TaskCompleted(Event):
    """The task ended with an output. ``duration`` in seconds since it first started."""

    event_type = "task_completed"
    status: str
    final_output: str
    degraded: bool
    missing_steps: Sequence[str]
    duration: float


@dataclass
class TaskFailed(Event):
    """The task ended without its output; ``partial_output`` is what there is of it."""

    event_type = "task_failed"
    status: str
    error_message: str
    failed_step: str | None
    retry_count: int
    partial_output: str


@dataclass
class TaskCancelled(Event):
    """The task was cancelled; ``stopped`` is false where a step still runs, fenced off."""

    event_type = "task_cancelled"
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
"""The events that tell of one step."""


Kind = TypeVar("Kind", bound=Event)


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a task's log, as a client or the fold reads it."""

    event_type: str
    task_id: str
    seq: int
    timestamp: str
    data: Mapping[str, Any]

    @property
    def event(self) -> Event:
        """The event as its class; unknown data of a newer server is dropped.

        Raises:
            AgentsrvError: This version knows no event of that type.
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
    """Return an event of its data; unknown data of a newer server is dropped."""
    return kind(**{name: data.get(name) for name in _FIELDS[kind]})


def _number(value: Any) -> float | None:
    """A number of any library as a float or an int that every program reads; else ``None``."""
    if type(value) is int and -_MOST <= value <= _MOST:
        return value
    if value is None or isinstance(value, (str, bytes, bytearray)):
        return None
    try:
        number = float(value)
    except BaseException:  # noqa: BLE001 - the author's own __float__
        return None
    return number if math.isfinite(number) else None


def _progress(done: Any, total: Any, message: Any) -> tuple[float | None, float | None, str]:
    most = _number(total)
    most = None if most is None or most <= 0 else most
    number = _number(done)
    if number is not None:
        number = max(number, 0)
        number = number if most is None else min(number, most)
    return number, most, _message(message)


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
        event: What happened.
        task_id: To whom; of letters, digits, ``_``, ``.`` and ``-``, as ids are.
        seq: Its number in the task's log.
        timestamp: When, as `format_timestamp` writes it.

    Raises:
        TypeError: The event holds a value that is not JSON.
    """
    # Put together from pieces: quicker than one dictionary more, and the copy is as long as it
    # must be, where bytes straight from orjson keep 4 KB for as long as they live.
    envelope = f'{_HEADS[type(event)]}{task_id}","seq":{seq},"timestamp":"{timestamp}","data":'
    return b"".join((envelope.encode(), orjson.dumps(event.__dict__), b"}"))


def decode(body: bytes | str) -> Record:
    """Read one encoded event."""
    return to_record(orjson.loads(body))


def to_record(frame: Mapping[str, Any]) -> Record:
    """Take the record out of a decoded event frame."""
    return Record(
        event_type=frame["event_type"],
        task_id=frame["task_id"],
        seq=frame["seq"],
        timestamp=frame["timestamp"],
        data=frame["data"],
    )


def is_life_cycle(body: bytes) -> bool:
    """Whether an encoded event tells of the task's status, not only of a step; without decoding it.

    A task waits for an answer as long as one of its steps does.
    """
    return body.startswith(_LIFE_CYCLE)


def is_terminal(body: bytes) -> bool:
    """Whether an encoded event is its task's last; without decoding it."""
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
_LIFE_CYCLE: Final = tuple(f"{_PREFIX}{kind}".encode() for kind in ("task_", "input_"))
_TERMINAL_TYPES: Final = frozenset(event.event_type for event in TERMINAL_EVENTS)
_TERMINAL: Final = tuple(f'{_PREFIX}{event.event_type}"'.encode() for event in TERMINAL_EVENTS)
