"""The values that the client returns: frozen dataclasses, one for each kind of reply.

`frames.check_reply` has checked a reply before it is read here. Fields that this version does not
know, as a newer server may send them, are dropped. A ``status`` is a string and not an enum,
because a newer server may also have further statuses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from agentsrv.models.events import InputRequired, TaskCompleted, from_data

if TYPE_CHECKING:  # for annotations only: models.replies imports pydantic
    from agentsrv.models import replies
    from agentsrv.protocol import frame_types

Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True)
class TaskResult:
    """The output of a task that completed."""

    task_id: str
    final_output: str
    degraded: bool
    """Whether steps are missing that the plan could do without."""
    missing_steps: tuple[str, ...]
    """The ids of these steps."""
    duration: float
    """Seconds from the first start of the task to its end."""


@dataclass(frozen=True, slots=True)
class StepSnapshot:
    """One step of a task."""

    step_id: str
    agent: str
    description: str
    depends_on: tuple[str, ...]
    status: str
    """One of ``StepStatus``."""
    attempt: int
    """Attempts count from 1; 0 before the first."""
    output: str
    """The text of the current or last attempt."""
    error_message: str | None


@dataclass(frozen=True, slots=True)
class TaskSnapshot:
    """A task at one moment: its status, steps, open questions and texts."""

    task_id: str
    status: str
    """One of ``TaskStatus``."""
    user_input: str
    """The text that the task was created with."""
    final_output: str | None
    partial_output: str | None
    error_message: str | None
    degraded: bool
    created_at: str
    """RFC 3339, in UTC, as all times here and in events."""
    updated_at: str
    seq: int
    """The number of the last event."""
    steps: tuple[StepSnapshot, ...]
    inputs: tuple[InputRequired, ...]
    """The open questions."""


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """One task of a list."""

    task_id: str
    status: str
    """One of ``TaskStatus``."""
    user_input: str
    """The text that the task was created with."""
    created_at: str


@dataclass(frozen=True, slots=True)
class TaskPage:
    """A page of a list of tasks, the newest task first."""

    tasks: tuple[TaskSummary, ...]
    total: int
    """All tasks that match, not only those of this page."""
    next_cursor: str | None
    """The ``cursor`` that asks for the next page; ``None`` on the last page."""


@dataclass(frozen=True, slots=True)
class Cancellation:
    """The reply to a cancel."""

    task_id: str
    status: str
    """One of ``TaskStatus``, after the cancel: ``cancelling`` while steps are still running."""
    already: bool
    """Whether the task had ended, or was being cancelled, before this cancel."""


@dataclass(frozen=True, slots=True)
class AgentInfo:
    """An agent of the server."""

    name: str
    description: str
    params: Mapping[str, Any]
    """JSON Schema of its parameters."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """Name and version of the server."""

    name: str
    version: str


@dataclass(frozen=True, slots=True)
class Hello:
    """The server's greeting, the first frame of a connection."""

    protocol: str
    server: ServerInfo
    connection_id: str
    authenticated: bool
    """Whether the connection has a principal of its own, and is not ``anonymous``."""
    limits: Mapping[str, Any]
    """The limits of this server by name, as the protocol describes them."""
    commands: tuple[str, ...]


def to_result(task_id: str, event: TaskCompleted) -> TaskResult:
    """Return the result that a task's last event carries."""
    return TaskResult(
        task_id, event.final_output, event.degraded, tuple(event.missing_steps), event.duration
    )


def to_snapshot(reply: replies.Snapshot) -> TaskSnapshot:
    """Return the reply to ``status``."""
    steps = [
        _read(StepSnapshot, step, depends_on=tuple(step["depends_on"])) for step in reply["steps"]
    ]
    inputs = [from_data(InputRequired, asked) for asked in reply["inputs"]]
    return _read(TaskSnapshot, reply, steps=tuple(steps), inputs=tuple(inputs))


def to_page(reply: replies.TaskPage) -> TaskPage:
    """Return the reply to ``list``."""
    return _read(TaskPage, reply, tasks=tuple(_read(TaskSummary, row) for row in reply["tasks"]))


def to_cancellation(reply: replies.CancelReply) -> Cancellation:
    """Return the reply to ``cancel``."""
    return _read(Cancellation, reply)


def to_agents(reply: replies.AgentsReply) -> Sequence[AgentInfo]:
    """Return the reply to ``agents``."""
    return tuple(_read(AgentInfo, agent) for agent in reply["agents"])


def to_hello(frame: frame_types.Hello) -> Hello:
    """Return the server's greeting."""
    server = _read(ServerInfo, frame["server"])
    return _read(Hello, frame, server=server, commands=tuple(frame["commands"]))


def _read(kind: type[Kind], values: Mapping[str, Any], **converted: Any) -> Kind:
    """Make a ``kind`` of the fields that it has, with the ``converted`` values in their place."""
    given = {**values, **converted}
    names = [field.name for field in dataclasses.fields(cast("Any", kind))]
    return kind(**{name: given[name] for name in names})
