"""Continuing a task from its log: after a crash or a release, or in place of another task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from agentsrv.engine.crash_suspects import FAILS_AT, SUSPECT_AT, Interrupted
from agentsrv.engine.endings import CancelRequest, Ending, Failure
from agentsrv.engine.journal import MAX_PIECE, Journal
from agentsrv.models import events as e
from agentsrv.models.states import StepStatus, TaskStatus
from agentsrv.models.task import StepState, TaskState
from agentsrv.store.base import Lease

ACTIVE: Final = (StepStatus.RUNNING, StepStatus.INPUT_REQUIRED)  # an attempt has not ended


def interrupted(state: TaskState, lease: Lease) -> list[Interrupted]:
    """The attempts of a task whose code ran when its last worker's process crashed.

    An attempt of a step that the log does not have counts as the making of the plan: the plan is
    not in the log either. Attempts that the log shows to be over are left out. A crash of the
    process leaves none of them behind, but a power cut may: the disk can have the log's last
    commit and an earlier state of the marks.
    """
    if lease.interrupted is None:
        found = [
            (step_id, step.attempt)
            for step_id, step in state.steps.items()
            if step.status is StepStatus.RUNNING
            or (step.status is StepStatus.INPUT_REQUIRED and step_id in lease.working)
        ]
        if state.plan is None and state.status is not TaskStatus.QUEUED:
            found = [("", 1)]
    else:
        found = list(lease.interrupted)
    attempts: dict[str | None, Interrupted] = {}
    for step_id, attempt in found:
        step = state.steps.get(step_id)
        if step is None:
            if state.plan is None:
                attempts[None] = Interrupted(None, attempt, state.losses, progressed=False)
        elif attempt > step.attempt or (attempt == step.attempt and step.status in ACTIVE):
            progressed = step.progressed and step.attempt == attempt
            attempts[step_id] = Interrupted(step_id, attempt, step.losses, progressed)
    return list(attempts.values())


def count_losses(
    journal: Journal, attempts: Sequence[Interrupted], *, other_cause: bool
) -> Failure | None:
    """Log a loss for each attempt that a crash interrupted.

    A suspect's number of losses does not rise where ``other_cause``: another attempt, which was
    not suspected, is the likelier cause.

    Returns:
        How the task ends, where a step has lost too often.
    """
    failure = None
    for attempt in attempts:
        counts = not (attempt.is_suspect and other_cause)
        losses = attempt.losses + counts
        suspected = losses >= SUSPECT_AT
        journal.append(e.StepLost(attempt.step_id, attempt.attempt, losses, suspected))
        if losses >= FAILS_AT and failure is None:
            what = "planner" if attempt.step_id is None else f"step {attempt.step_id}"
            failure = Failure(
                f"the {what} was running at {losses} crashes of the server without making "
                "progress, and nothing else can have caused the last of them; it probably ends the "
                'server\'s process: fix its agent, or register it with isolation="process"',
                attempt.step_id,
            )
    return failure


def recover(
    journal: Journal,
    node: str,
    attempts: Sequence[Interrupted],
    traceparent: str | None,
    given_up: Failure | None,
    *,
    other_cause: bool,
) -> Ending | None:
    """Log what a crash or a release left open; return how the task ends, or ``None``.

    Args:
        journal: The task's, at the end of what was logged before.
        node: The node that continues the task.
        attempts: Those whose code ran at a crash.
        traceparent: The span of the run that begins, where there is one.
        given_up: How the task ends if it is not to be run again.
        other_cause: Whether attempts that were not suspected ran too, and may be the cause.
    """
    steps = journal.state.steps
    done = [step_id for step_id, step in steps.items() if step.status is StepStatus.COMPLETED]
    journal.append(e.TaskRecovered(node, done, traceparent))
    failure = count_losses(journal, attempts, other_cause=other_cause)
    active = [step for step in steps.values() if step.status in ACTIVE]
    cancelling = journal.state.cancelling
    if cancelling is not None:
        return CancelRequest(cancelling.reason, cancelling.by, cancelling.grace)
    failure = failure or given_up
    if failure is not None:
        return failure
    restart(journal, active)
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


def restart(journal: Journal, steps: Sequence[StepState]) -> None:
    """Log that steps which were interrupted will have another attempt."""
    for step in steps:
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


def adopt(journal: Journal, earlier: TaskState) -> None:
    """Take over what the task that is resumed has completed.

    All of it goes into the append that holds the plan: a crash finds all of it or none.
    """
    for step in earlier.steps.values():
        if step.status is StepStatus.COMPLETED:
            step_id, name = step.step.step_id, step.step.agent
            journal.append(e.StepStarted(step_id, 1, name, step.step.description))
            for start in range(0, len(step.output), MAX_PIECE):
                piece = step.output[start : start + MAX_PIECE]
                journal.append(e.PartialOutput(step_id, 1, start, piece))
            journal.written += len(step.output)
            journal.append(
                e.StepCompleted(step_id, 1, "completed", step.result, cached=True, duration=0.0)
            )
