"""The replies to commands: dictionaries at run time, typed for type checkers and editors.

The published schema is made of these types, and the client returns them.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from agentsrv.models.states import StepStatus, TaskStatus

Status = Annotated[str, Field(json_schema_extra={"enum": list(TaskStatus)})]
Seq = Annotated[int, Field(ge=0, description="The number of the task's last event.")]


class TaskReply(TypedDict):
    """The position of a task: its status and its last event."""

    task_id: str
    status: Status
    seq: Seq


class Created(TaskReply):
    """The task, and whether it existed before."""

    replayed: Annotated[
        bool, Field(description="Whether the idempotency key had been used before.")
    ]


class CancelReply(TypedDict):
    """The status of the task after the cancellation."""

    task_id: str
    status: Status
    already: Annotated[
        bool, Field(description="Whether it had ended, or was being cancelled, before.")
    ]


class Subscribed(TypedDict, total=False):
    """The task; empty for a subscription to all tasks."""

    task_id: str
    status: Status
    seq: Seq


class RespondReply(TypedDict):
    """The question that was answered, and its task."""

    task_id: str
    input_id: str


class SendReply(TypedDict):
    """The message's number in the task's log."""

    task_id: str
    seq: int


class StepSnapshot(TypedDict):
    """The state of one step."""

    step_id: str
    agent: str
    description: str
    depends_on: list[str]
    status: Annotated[str, Field(json_schema_extra={"enum": list(StepStatus)})]
    attempt: Annotated[int, Field(description="Number of the attempt; 0 before the first.")]
    output: Annotated[str, Field(description="The text of the current or last attempt.")]
    error_message: str | None


class Snapshot(TypedDict):
    """The whole state of a task."""

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
    """One row of a list."""

    task_id: str
    status: Status
    user_input: str
    created_at: str


class TaskPage(TypedDict):
    """A page of tasks, the newest first."""

    tasks: list[TaskRow]
    total: Annotated[int, Field(description="Number of all matching tasks.")]
    next_cursor: Annotated[str | None, Field(description="The `cursor` of the next page.")]


class AgentInfo(TypedDict):
    """A registered agent."""

    name: str
    description: str
    params: Annotated[dict[str, Any], Field(description="JSON Schema of its parameters.")]


class AgentsReply(TypedDict):
    """The registered agents."""

    agents: list[AgentInfo]


class HelpReply(TypedDict):
    """An example of each command, and the command lines."""

    commands: dict[str, dict[str, Any]]
    lines: dict[str, str]


class AuthReply(TypedDict):
    """The principal of the connection."""

    principal: str


class Nothing(TypedDict):
    """A reply without fields: the command was carried out."""
