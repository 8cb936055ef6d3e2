"""What the server's frames hold: dictionaries at run time, typed for checkers and editors.

The published schema is made of these types, and so is what the client returns. Frames of events
are told by ``agentsrv.models.events``.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from agentsrv.models.states import StepStatus, TaskStatus

Status = Annotated[str, Field(json_schema_extra={"enum": list(TaskStatus)})]
Seq = Annotated[int, Field(ge=0, description="The number of the task's last event.")]


class Hello(TypedDict):
    """The first frame of a connection."""

    protocol: str
    server: dict[str, str]
    connection_id: str
    authenticated: bool
    limits: dict[str, Any]
    commands: list[str]


class Detail(TypedDict):
    """What is wrong with one field of a command."""

    field: str
    reason: str


class Refused(TypedDict):
    """A command was refused, or a subscription has ended; the connection lives."""

    command: str | None
    id: str | int | None
    task_id: NotRequired[
        Annotated[str, Field(description="The task whose subscription has ended.")]
    ]
    code: str
    message: str
    retryable: bool
    retry_after: NotRequired[Annotated[float, Field(description="Seconds.")]]
    details: NotRequired[list[Detail]]
    example: NotRequired[dict[str, Any]]


class CaughtUp(TypedDict):
    """A subscription has delivered all that was logged when it began."""

    task_id: str
    seq: int


class GoAway(TypedDict):
    """The server is about to close the connection."""

    reason: str
    reconnect_in: Annotated[float, Field(description="Seconds.")]


class TaskReply(TypedDict):
    """Where a task is."""

    task_id: str
    status: Status
    seq: Seq


class Created(TaskReply):
    """Where the task is, and whether it was there before."""

    replayed: Annotated[bool, Field(description="Whether the idempotency key had been used.")]


class CancelReply(TypedDict):
    """Where the task is now."""

    task_id: str
    status: Status
    already: Annotated[
        bool, Field(description="Whether it had ended, or was being cancelled, before.")
    ]


class Subscribed(TypedDict, total=False):
    """Where the task is; nothing where the subscription is to all tasks."""

    task_id: str
    status: Status
    seq: Seq


class RespondReply(TypedDict):
    """Which question was settled, and of which task."""

    task_id: str
    input_id: str


class SendReply(TypedDict):
    """The message's number in the task's log."""

    task_id: str
    seq: int


class StepSnapshot(TypedDict):
    """One step of a task."""

    step_id: str
    agent: str
    description: str
    depends_on: list[str]
    status: Annotated[str, Field(json_schema_extra={"enum": list(StepStatus)})]
    attempt: Annotated[int, Field(description="0 before the first.")]
    output: Annotated[str, Field(description="The text of the current or last attempt.")]
    error_message: str | None


class Snapshot(TypedDict):
    """All about a task."""

    task_id: str
    status: Status
    user_input: str
    final_output: str | None
    partial_output: str | None
    error_message: str | None
    degraded: bool
    created_at: str
    updated_at: str
    seq: Seq
    steps: list[StepSnapshot]
    inputs: Annotated[
        list[dict[str, Any]], Field(description="Open questions: the data of input_required.")
    ]


class TaskRow(TypedDict):
    """One line of a list."""

    task_id: str
    status: Status
    user_input: str
    created_at: str


class TaskPage(TypedDict):
    """Tasks, the newest first."""

    tasks: list[TaskRow]
    total: Annotated[int, Field(description="All that match, not only those of the page.")]
    next_cursor: Annotated[str | None, Field(description="Asks for the page behind this one.")]


class AgentInfo(TypedDict):
    """A registered agent."""

    name: str
    description: str
    params: Annotated[dict[str, Any], Field(description="JSON Schema of its parameters.")]


class AgentsReply(TypedDict):
    """The agents that there are."""

    agents: list[AgentInfo]


class HelpReply(TypedDict):
    """An example of each command, and the command lines."""

    commands: dict[str, dict[str, Any]]
    lines: dict[str, str]


class AuthReply(TypedDict):
    """Who asks."""

    principal: str


class Nothing(TypedDict):
    """Nothing of its own: the command was carried out."""


REPLIES: Final[dict[str, type[Any]]] = {
    "create": Created,
    "execute": TaskReply,
    "status": Snapshot,
    "list": TaskPage,
    "cancel": CancelReply,
    "subscribe": Subscribed,
    "unsubscribe": Nothing,
    "respond": RespondReply,
    "send": SendReply,
    "agents": AgentsReply,
    "auth": AuthReply,
    "ping": Nothing,
    "help": HelpReply,
}
"""What the reply to each command holds beside ``type``, ``command`` and ``id``."""
FRAMES: Final[dict[str, type[Any]]] = {
    "hello": Hello,
    "error": Refused,
    "caught_up": CaughtUp,
    "goaway": GoAway,
}
"""What the frames hold beside ``type`` that are neither replies nor events."""
