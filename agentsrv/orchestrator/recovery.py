"""Going on behind what was done before: after a crash, or in place of another task."""

from __future__ import annotations

from typing import Final

from agentsrv.models import events as e
from agentsrv.models.states import StepStatus
from agentsrv.models.task import TaskState
from agentsrv.orchestrator.endings import CancelRequest, Ending, Failure
from agentsrv.orchestrator.journal import Journal

MAX_LOSSES: Final = 5  # times a task may lose its worker to a crash: it may be what crashes it


def recover(journal: Journal, node: str, losses: int, traceparent: str | None) -> Ending | None:
    """Write what a crash left unsaid; return how the task ends, or ``None`` where it goes on.

    Args:
        journal: The task's, behind what was logged before.
        node: Who goes on.
        losses: How often the task has lost its worker.
        traceparent: The span of the run that begins, where there is one.
    """
    steps = journal.state.steps
    done = [step_id for step_id, step in steps.items() if step.status is StepStatus.COMPLETED]
    journal.append(e.TaskRecovered(node, done, traceparent))
    active = [
        step
        for step in steps.values()
        if step.status in (StepStatus.RUNNING, StepStatus.INPUT_REQUIRED)
    ]
    cancelling = journal.state.cancelling
    if cancelling is not None:
        return CancelRequest(cancelling.reason, cancelling.by, cancelling.grace)
    if losses > MAX_LOSSES:
        suspect = active[0].step.step_id if active else None
        return Failure(f"the task lost its worker {losses} times", suspect)
    for step in active:
        journal.append(
            e.StepRetrying(
                step.step.step_id,
                step.attempt,
                step.attempt + 1,
                0.0,
                f"the server stopped during attempt {step.attempt}",
                step.failures,
                "recovered",
            )
        )
    ended = [
        step
        for step in steps.values()
        if step.status in (StepStatus.FAILED, StepStatus.CANCELLED) and not step.degraded
    ]
    if not ended:
        return None
    # The crash fell between the step's failure and the task's.
    first = min(ended, key=lambda step: step.status is not StepStatus.FAILED)
    message = first.error_message or "the task was being stopped"
    return Failure(message, first.step.step_id, first.failures)


def adopt(journal: Journal, earlier: TaskState) -> None:
    """Take over what the task that is resumed has completed.

    All of it goes into the append that holds the plan: a crash finds all of it or none.
    """
    for step in earlier.steps.values():
        if step.status is StepStatus.COMPLETED:
            step_id, name = step.step.step_id, step.step.agent
            journal.append(e.StepStarted(step_id, 1, name, step.step.description))
            if step.output:
                journal.append(e.PartialOutput(step_id, 1, 0, step.output))
            journal.append(
                e.StepCompleted(step_id, 1, "completed", step.result, cached=True, duration=0.0)
            )
