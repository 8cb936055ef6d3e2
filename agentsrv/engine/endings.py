"""How a task ends before its plan does: cancelled, failed, or without an event."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from agentsrv.engine.journal import Journal
from agentsrv.models import events as e
from agentsrv.models.states import StepStatus
from agentsrv.models.text import fitted

_UNDER_WAY: Final = (StepStatus.RUNNING, StepStatus.RETRYING, StepStatus.INPUT_REQUIRED)


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """Who wants the task cancelled, why, and how long steps may take to end (seconds)."""

    reason: str | None
    by: str
    grace: float


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the task fails, by which step, and how often that was tried again."""

    message: str
    step_id: str | None = None
    retries: int = 0


Ending = CancelRequest | Failure
"""An ending that the log tells."""


class Departure(Enum):
    """How a worker leaves a task that goes on elsewhere; the log does not tell."""

    RELEASE = auto()
    """The worker gives the task back."""
    LOSS = auto()
    """Another worker has the task, or the store cannot be used."""


RELEASE: Final = Departure.RELEASE
LOSS: Final = Departure.LOSS


def write_end(journal: Journal, ending: Ending, *, stopped: bool) -> None:
    """Write the end of each step that has none, then the task's.

    ``stopped`` says whether nothing of the task runs any more.
    """
    state = journal.state
    for step in list(state.steps.values()):
        if step.status in _UNDER_WAY:
            journal.append(e.StepCancelled(step.step.step_id, step.attempt, fitted(step.output)))
    if isinstance(ending, CancelRequest):
        reason, by = ending.reason, ending.by
        journal.append(e.TaskCancelled("cancelled", reason, by, stopped, state.written))
        return
    for step in state.steps.values():
        if step.status is StepStatus.PENDING:
            because = f"step {ending.step_id} failed" if ending.step_id else "the task failed"
            journal.append(e.StepSkipped(step.step.step_id, because))
    message, retries = ending.message, ending.retries
    journal.append(e.TaskFailed("failed", message, ending.step_id, retries, state.written))
