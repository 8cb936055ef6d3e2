"""The states of tasks and steps, and the one table of transitions of each."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NoReturn

from agentsrv.errors import InvalidStateError
from agentsrv.models import events as e


class TaskStatus(StrEnum):
    """Where a task is between its creation and its one terminal event."""

    PENDING = "pending"
    QUEUED = "queued"
    RUNNING = "running"
    INPUT_REQUIRED = "input_required"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Whether nothing follows."""
        return not TRANSITIONS[self]


class StepStatus(StrEnum):
    """Where a step is."""

    PENDING = "pending"
    RUNNING = "running"
    INPUT_REQUIRED = "input_required"
    RETRYING = "retrying"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"


_STEP_ENDS: Final = (e.StepCompleted, e.StepFailed, e.StepSkipped, e.StepCancelled)
_STEP_WORK: Final = (
    e.StepStarted,
    e.StepProgress,
    e.PartialOutput,
    e.StepRetrying,
    e.StepLost,
)


def _stay(status: TaskStatus) -> dict[type[e.Event], TaskStatus]:
    return dict.fromkeys((*_STEP_WORK, *_STEP_ENDS, e.MessageReceived, e.TaskRecovered), status)


TRANSITIONS: Final[dict[TaskStatus, dict[type[e.Event], TaskStatus]]] = {
    TaskStatus.PENDING: {
        e.TaskCreated: TaskStatus.PENDING,
        e.TaskQueued: TaskStatus.QUEUED,
        e.TaskCancelled: TaskStatus.CANCELLED,
    },
    TaskStatus.QUEUED: {
        e.TaskStarted: TaskStatus.RUNNING,
        e.TaskCancelled: TaskStatus.CANCELLED,
    },
    TaskStatus.RUNNING: _stay(TaskStatus.RUNNING)
    | {
        e.PlanCreated: TaskStatus.RUNNING,
        e.InputRequired: TaskStatus.INPUT_REQUIRED,
        e.TaskCancelling: TaskStatus.CANCELLING,
        e.TaskCompleted: TaskStatus.COMPLETED,
        e.TaskFailed: TaskStatus.FAILED,
        e.TaskCancelled: TaskStatus.CANCELLED,
    },
    TaskStatus.INPUT_REQUIRED: _stay(TaskStatus.INPUT_REQUIRED)
    | {
        e.InputRequired: TaskStatus.INPUT_REQUIRED,
        e.InputReceived: TaskStatus.RUNNING,
        e.TaskCancelling: TaskStatus.CANCELLING,
        e.TaskFailed: TaskStatus.FAILED,
        e.TaskCancelled: TaskStatus.CANCELLED,
    },
    TaskStatus.CANCELLING: _stay(TaskStatus.CANCELLING)
    | {
        e.PlanCreated: TaskStatus.CANCELLING,
        e.InputRequired: TaskStatus.CANCELLING,
        e.InputReceived: TaskStatus.CANCELLING,
        e.TaskCancelled: TaskStatus.CANCELLED,
    },
    TaskStatus.COMPLETED: {},
    TaskStatus.FAILED: {},
    TaskStatus.CANCELLED: {},
}

STEP_TRANSITIONS: Final[dict[StepStatus, dict[type[e.Event], StepStatus]]] = {
    StepStatus.PENDING: {
        e.StepStarted: StepStatus.RUNNING,
        e.StepLost: StepStatus.RUNNING,  # the crash fell between its start and the commit
        e.StepSkipped: StepStatus.SKIPPED,
    },
    StepStatus.RUNNING: {
        e.StepProgress: StepStatus.RUNNING,
        e.PartialOutput: StepStatus.RUNNING,
        e.InputRequired: StepStatus.INPUT_REQUIRED,
        e.StepRetrying: StepStatus.RETRYING,
        e.StepLost: StepStatus.RUNNING,
        e.StepCompleted: StepStatus.COMPLETED,
        e.StepFailed: StepStatus.FAILED,
        e.StepCancelled: StepStatus.CANCELLED,
    },
    StepStatus.INPUT_REQUIRED: {
        e.StepProgress: StepStatus.INPUT_REQUIRED,
        e.PartialOutput: StepStatus.INPUT_REQUIRED,
        e.InputRequired: StepStatus.INPUT_REQUIRED,
        e.InputReceived: StepStatus.RUNNING,
        e.StepRetrying: StepStatus.RETRYING,
        e.StepLost: StepStatus.INPUT_REQUIRED,
        e.StepCompleted: StepStatus.COMPLETED,
        e.StepFailed: StepStatus.FAILED,
        e.StepCancelled: StepStatus.CANCELLED,
    },
    StepStatus.RETRYING: {
        e.StepStarted: StepStatus.RUNNING,
        e.StepLost: StepStatus.RUNNING,
        e.InputReceived: StepStatus.RETRYING,
        e.StepFailed: StepStatus.FAILED,
        e.StepCancelled: StepStatus.CANCELLED,
    },
    StepStatus.COMPLETED: {},
    StepStatus.FAILED: {},
    StepStatus.CANCELLED: {},
    StepStatus.SKIPPED: {},
}


def refuse(status: TaskStatus, event: e.Event) -> NoReturn:
    """Refuse an event for which the table has no transition.

    Raises:
        InvalidStateError: It says what the status takes.
    """
    allowed = ", ".join(sorted(kind.event_type for kind in TRANSITIONS[status])) or "nothing"
    raise InvalidStateError(f"a task that is {status} takes {allowed}; found {event.event_type}")
