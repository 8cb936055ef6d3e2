"""How a running task ends before its plan is completed, and the events that record it.

`TaskRunner.stop` takes one of these reasons. An `Ending` (a cancel or a failure) ends the task: its
terminal event is appended. A `Handover` does not: no event is appended, and another worker
continues the task from its log.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from agentsrv.engine.journal import Journal
from agentsrv.models import events as e
from agentsrv.models.states import StepStatus
from agentsrv.models.text import fitted

_UNFINISHED: Final = (StepStatus.RUNNING, StepStatus.RETRYING, StepStatus.INPUT_REQUIRED)


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """A cancel command: its reason, its principal, and the grace period of the steps (seconds)."""

    reason: str | None
    by: str
    grace: float


@dataclass(frozen=True, slots=True)
class TaskFailure:
    """Why a task fails, the step that caused it, and how often that step was retried."""

    message: str
    step_id: str | None = None
    retries: int = 0


Ending = CancelRequest | TaskFailure


class Handover(Enum):
    """Why a worker stops running a task that has not ended."""

    RELEASE = auto()
    """The worker gives the task back."""
    LOSS = auto()
    """Another worker has claimed the task, or the store cannot be used."""


def append_ending(journal: Journal, ending: Ending, *, stopped: bool) -> None:
    """Append the end of every step that has none, then the task's terminal event.

    Args:
        journal: The journal of the task.
        ending: How the task ends.
        stopped: Whether no code of the task runs any more.
    """
    state = journal.state
    for step in list(state.steps.values()):
        if step.status in _UNFINISHED:
            journal.append(e.StepCancelled(step.step.step_id, step.attempt, fitted(step.output)))
    if isinstance(ending, CancelRequest):
        reason, by = ending.reason, ending.by
        journal.append(e.TaskCancelled("cancelled", reason, by, stopped, state.written))
        return
    for step in state.steps.values():
        if step.status is StepStatus.PENDING:
            cause = f"step {ending.step_id} failed" if ending.step_id else "the task failed"
            journal.append(e.StepSkipped(step.step.step_id, cause))
    message, retries = ending.message, ending.retries
    journal.append(e.TaskFailed("failed", message, ending.step_id, retries, state.written))
