"""The tables of transitions of tasks and steps, built from the declarations of the events."""

from __future__ import annotations

from typing import Final, NoReturn

from agentsrv.errors import InvalidStateError
from agentsrv.models import events as e
from agentsrv.models.states import StepStatus, TaskStatus

TRANSITIONS: Final[dict[TaskStatus, dict[type[e.Event], TaskStatus]]] = {
    status: {
        kind: kind.declaration.task[status]
        for kind in e.EVENTS.values()
        if status in kind.declaration.task
    }
    for status in TaskStatus
}
"""For each status of a task, the events that it permits and the status that follows each."""

STEP_TRANSITIONS: Final[dict[StepStatus, dict[type[e.Event], StepStatus]]] = {
    status: {
        kind: kind.declaration.step[status]
        for kind in e.EVENTS.values()
        if status in kind.declaration.step
    }
    for status in StepStatus
}
"""The same for steps."""


def refuse(status: TaskStatus, event: e.Event) -> NoReturn:
    """Refuse an event for which the table has no transition.

    Raises:
        InvalidStateError: Always; the message lists the events that the status permits.
    """
    allowed = ", ".join(sorted(kind.event_type for kind in TRANSITIONS[status])) or "nothing"
    raise InvalidStateError(f"a task that is {status} takes {allowed}; found {event.event_type}")
