"""What the server's replies hold: dictionaries at run time, typed for checkers and editors."""

from __future__ import annotations

from typing import Any, TypedDict


class Hello(TypedDict):
    """The first frame of a connection."""

    protocol: str
    server: dict[str, str]
    connection_id: str
    authenticated: bool
    limits: dict[str, Any]
    commands: list[str]


class TaskReply(TypedDict):
    """Where a task is; ``seq`` is the number of its last event."""

    task_id: str
    status: str
    seq: int


class Created(TaskReply):
    """``replayed`` says that the idempotency key had been used: the task is not new."""

    replayed: bool


class CancelReply(TypedDict):
    """``already`` says that the task was terminal or being cancelled before."""

    task_id: str
    status: str
    already: bool


class RespondReply(TypedDict):
    """Which question was settled, and of which task."""

    task_id: str
    input_id: str


class SendReply(TypedDict):
    """``seq`` is the message's number in the task's log."""

    task_id: str
    seq: int


class StepSnapshot(TypedDict):
    """One step of a task."""

    step_id: str
    agent: str
    description: str
    depends_on: list[str]
    status: str
    attempt: int
    output: str
    error_message: str | None


class Snapshot(TypedDict):
    """All about a task."""

    task_id: str
    status: str
    user_input: str
    final_output: str | None
    partial_output: str | None
    error_message: str | None
    degraded: bool
    created_at: str
    updated_at: str
    seq: int
    steps: list[StepSnapshot]
    inputs: list[dict[str, Any]]


class TaskRow(TypedDict):
    """One line of a list."""

    task_id: str
    status: str
    user_input: str
    created_at: str


class TaskPage(TypedDict):
    """Tasks, the newest first; ``next_cursor`` asks for the page behind this one."""

    tasks: list[TaskRow]
    total: int
    next_cursor: str | None


class AgentInfo(TypedDict):
    """A registered agent; ``params`` is the JSON Schema of its parameters."""

    name: str
    description: str
    params: dict[str, Any]
