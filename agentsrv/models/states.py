"""The statuses of tasks and steps.

Theory of operation. A task and each of its steps are state machines whose transitions are events:

    pending ──► queued ──► running ◄──► input_required
       │          │          │  │              │
       │          │          │  └──► completed │
       │          │          ├──► failed ◄─────┤
       │          │          ├──► cancelling ◄─┤
       │          │          │        │        │
       └──────────┴──────────┴────► cancelled ◄┘

    pending ──► running ◄──► input_required        a step; each of running, input_required and
       │         ▲  │              │               retrying also ends as failed or cancelled
       ▼         │  ▼              │
    skipped   retrying ◄───────────┘
                    completed  (from running and input_required)

Each event class declares the transitions that it makes (``agentsrv.models.events``), and
``agentsrv.models.transitions`` collects them in one table per machine. The fold
(``agentsrv.models.task``) refuses an event for which the table has no transition, so an invalid
log is never written.

Invariants:

- A terminal status has no transition. It is reached by a terminal event only, and is the last.
- `input_required` means: a question of a step that has not ended is open. A task that is running
  has this status as long as one of its steps has such a question, also while that step retries.
- A task in `cancelling` can only end in `cancelled`: the intent is committed.
- A restart changes no status. The worker that takes over appends `task_recovered`, and
  `step_retrying` for the steps that were in progress.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class TaskStatus(StrEnum):
    """The status of a task, between its creation and its one terminal event."""

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
        """Whether the task has ended: no event follows."""
        return self in TERMINAL_STATUSES


class StepStatus(StrEnum):
    """The status of a step."""

    PENDING = "pending"
    RUNNING = "running"
    INPUT_REQUIRED = "input_required"
    RETRYING = "retrying"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"


TERMINAL_STATUSES: Final = frozenset(
    {TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED}
)
