"""Recovery: continues a task from its log, after a crash, after a release, or for ``resume_from``.

Theory of operation
===================

A worker that claims a task reads the log to its end. If the task had started before, its last
worker crashed, released it, or lost it. `append_recovery` brings the log to a point from which the
runner continues like from any other:

1. ``task_recovered`` lists the completed steps; they do not run again.
2. ``step_lost`` for each attempt whose code ran at a crash (`interrupted_attempts`). The number of
   losses decides whether the step becomes a suspect or fails; see `crash_suspects`. The runner
   commits these events before any code of the task runs, so that a crash of that code cannot undo
   them.
3. If ``task_cancelling`` is in the log, the task ends as cancelled. Otherwise, if a step has too
   many losses or the worker has given the task a final failure, the task fails.
4. ``step_retrying`` (reason ``recovered``) for each step in an attempt. The retry does not count
   against the step's limit, because no error of the step caused it. The fold discards the text of
   the interrupted attempt; the next attempt writes from the start.
5. If a step had failed or was cancelled without being degraded, the crash came before the task's
   end was committed: the task fails with the message of that step.

Which attempts a crash interrupted comes from the lease:

=============================== ==================================================================
``lease.interrupted``           meaning
=============================== ==================================================================
a list of (step, attempt)       the store's attempt marks: exactly these ran
empty                           no crash: nothing was running, or the process had declared its stop
``None``                        a crash, in a store without marks: by the log every step that is
                                running ran, and of those with an open question the ones in
                                ``lease.working``
=============================== ==================================================================

An attempt of a step that the log does not contain counts as one of the planner if the log has no
plan either. Attempts that the log shows to be over are left out. Marks of such attempts survive a
power cut, not a crash of the process: the disk may have the last commit and an earlier state of the
marks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from agentsrv.engine.crash_suspects import MAX_LOSSES, SUSPECT_LOSSES, Interrupted
from agentsrv.engine.endings import CancelRequest, Ending, TaskFailure
from agentsrv.engine.journal import MAX_PIECE, Journal
from agentsrv.models import events as e
from agentsrv.models.states import StepStatus, TaskStatus
from agentsrv.models.task import StepState, TaskState
from agentsrv.store.base import Lease

_IN_ATTEMPT: Final = (StepStatus.RUNNING, StepStatus.INPUT_REQUIRED)


def interrupted_attempts(state: TaskState, lease: Lease) -> list[Interrupted]:
    """Return the attempts of a task whose code ran when its last worker's process crashed."""
    if lease.interrupted is None:
        ran = [
            (step_id, step.attempt)
            for step_id, step in state.steps.items()
            if step.status is StepStatus.RUNNING
            or (step.status is StepStatus.INPUT_REQUIRED and step_id in lease.working)
        ]
        if state.plan is None and state.status is not TaskStatus.QUEUED:
            ran = [("", 1)]  # the planner
    else:
        ran = list(lease.interrupted)
    attempts: dict[str | None, Interrupted] = {}
    for step_id, attempt in ran:
        step = state.steps.get(step_id)
        if step is None:
            if state.plan is None:
                attempts[None] = Interrupted(None, attempt, state.losses, progressed=False)
        elif attempt > step.attempt or (attempt == step.attempt and step.status in _IN_ATTEMPT):
            progressed = step.progressed and step.attempt == attempt
            attempts[step_id] = Interrupted(step_id, attempt, step.losses, progressed)
    return list(attempts.values())


def append_losses(
    journal: Journal, attempts: Sequence[Interrupted], *, other_cause: bool
) -> TaskFailure | None:
    """Append ``step_lost`` for each attempt that a crash interrupted.

    With ``other_cause``, an attempt that was not a suspect is the likelier cause of the crash, and
    the number of losses of a suspect does not rise.

    Returns:
        How the task fails, if a step has too many losses.
    """
    failure = None
    for attempt in attempts:
        counts = not (attempt.is_suspect and other_cause)
        losses = attempt.losses + counts
        suspected = losses >= SUSPECT_LOSSES
        journal.append(e.StepLost(attempt.step_id, attempt.attempt, losses, suspected))
        if losses >= MAX_LOSSES and failure is None:
            subject = "planner" if attempt.step_id is None else f"step {attempt.step_id}"
            failure = TaskFailure(
                f"the {subject} was running at {losses} crashes of the server without making "
                "progress, and nothing else can have caused the last of them; it probably ends the "
                'server\'s process: fix its agent, or register it with isolation="process"',
                attempt.step_id,
            )
    return failure


def append_recovery(
    journal: Journal,
    node: str,
    attempts: Sequence[Interrupted],
    traceparent: str | None,
    final_failure: TaskFailure | None,
    *,
    other_cause: bool,
) -> Ending | None:
    """Append the events of a recovery; see the head of this module.

    Args:
        journal: The journal of the task, at the end of the log.
        node: The node that continues the task.
        attempts: Attempts whose code ran at a crash.
        traceparent: The span of this run, if the server is traced.
        final_failure: How the task fails if it must not run again.
        other_cause: Whether attempts that were not suspects ran too, and may be the cause.

    Returns:
        How the task ends, or ``None`` if it continues.
    """
    steps = journal.state.steps
    completed = [step_id for step_id, step in steps.items() if step.status is StepStatus.COMPLETED]
    journal.append(e.TaskRecovered(node, completed, traceparent))
    failure = append_losses(journal, attempts, other_cause=other_cause) or final_failure
    in_attempt = [step for step in steps.values() if step.status in _IN_ATTEMPT]
    cancelling = journal.state.cancelling
    if cancelling is not None:
        return CancelRequest(cancelling.reason, cancelling.by, cancelling.grace)
    if failure is not None:
        return failure
    append_retries(journal, in_attempt)
    ended = [
        step
        for step in steps.values()
        if step.status in (StepStatus.FAILED, StepStatus.CANCELLED) and not step.degraded
    ]
    if not ended:
        return None
    first = min(ended, key=lambda step: step.status is not StepStatus.FAILED)
    message = first.error_message or "the task was being stopped"
    return TaskFailure(message, first.step.step_id, first.failures)


def append_retries(journal: Journal, steps: Sequence[StepState]) -> None:
    """Append that steps whose attempt was interrupted have another one."""
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


def append_taken_over_steps(journal: Journal, resumed: TaskState) -> None:
    """Append the completed steps of the task that is resumed.

    They are in the same append as the plan: after a crash the log contains all of them or none.
    """
    for step in resumed.steps.values():
        if step.status is StepStatus.COMPLETED:
            step_id, name = step.step.step_id, step.step.agent
            journal.append(e.StepStarted(step_id, 1, name, step.step.description))
            for start in range(0, len(step.output), MAX_PIECE):
                piece = step.output[start : start + MAX_PIECE]
                journal.append(e.PartialOutput(step_id, 1, start, piece))
            journal.characters_written += len(step.output)
            journal.append(
                e.StepCompleted(step_id, 1, "completed", step.result, cached=True, duration=0.0)
            )
