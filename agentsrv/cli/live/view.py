"""The live display's model of a task: its state, and what a person wants to see in addition.

`TaskView` folds each record into a `TaskState` and reads every status, attempt and question from
it. What the state does not keep is added here: when attempts began, how long they took, why they
failed, and one line about the current activity.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from agentsrv.cli.render import describe, describe_step, shorten
from agentsrv.models import events as e
from agentsrv.models.events import Record
from agentsrv.models.states import StepStatus, TaskStatus
from agentsrv.models.task import StepState, TaskState
from agentsrv.telemetry.safe_text import visible

_ACTIVE = (StepStatus.RUNNING, StepStatus.RETRYING, StepStatus.INPUT_REQUIRED)


@dataclass(slots=True)
class StepView:
    """One step of the plan."""

    state: StepState
    began: datetime | None = None
    """The start of the latest attempt."""
    took: float | None = None
    """Seconds that the last attempt took, once the step has ended."""
    troubles: list[str] = field(default_factory=list)
    """Why attempts failed, or why the step did not run."""
    activity: str = ""
    """The latest progress message, question or line of text."""

    @property
    def step_id(self) -> str:
        """The step's id, safe for a terminal."""
        return visible(self.state.step.step_id)

    @property
    def agent(self) -> str:
        """The agent's name, safe for a terminal."""
        return visible(self.state.step.agent)

    @property
    def depends_on(self) -> tuple[str, ...]:
        """The ids of the steps that this one waits for, safe for a terminal."""
        return tuple(map(visible, self.state.step.depends_on))

    @property
    def max_attempts(self) -> int:
        """How many attempts may fail before the step does."""
        return (self.state.step.max_retries or 0) + 1

    @property
    def status(self) -> StepStatus:
        """The step's status."""
        return self.state.status

    @property
    def attempt(self) -> int:
        """The number of the current or last attempt."""
        return self.state.attempt

    @property
    def is_active(self) -> bool:
        """Whether the step has begun and has not ended."""
        return self.state.status in _ACTIVE


class TaskView:
    """One task and its steps, in the plan's order.

    Events that this version does not know change nothing.
    """

    def __init__(self) -> None:
        self._state = TaskState("")
        self.task_id = ""
        self.last_event = ""
        """The last event of the task itself, in words."""
        self.steps: dict[str, StepView] = {}

    @property
    def status(self) -> TaskStatus:
        """The task's status."""
        return self._state.status

    @property
    def title(self) -> str:
        """The task's description, on one line."""
        return " ".join(self._state.user_input.split())

    @property
    def began(self) -> datetime | None:
        """The time at which the task was created."""
        created_at = self._state.created_at
        return datetime.fromisoformat(created_at) if created_at else None

    def take(self, record: Record) -> None:
        """Show the next event."""
        event = self._state.follow(record)
        self.task_id = visible(record.task_id)
        if event is None:
            return
        if isinstance(event, e.PlanCreated):
            self.steps = {name: StepView(state) for name, state in self._state.steps.items()}
            return
        step = self.steps.get(getattr(event, "step_id", ""))
        if step is None:
            self.last_event = describe(record).removeprefix("task ")
        else:
            _annotate(step, event, datetime.fromisoformat(record.timestamp))


def _annotate(step: StepView, event: e.Event, at: datetime) -> None:
    """Update what is shown of a step in addition to its state."""
    match event:
        case e.StepStarted():
            questions = step.state.open_questions  # of an earlier attempt
            step.began = at
            step.activity = _asking(questions[0]) if questions else ""
        case e.StepProgress():
            step.activity = shorten(describe_step(event))
        case e.PartialOutput():
            last_line = event.output.rstrip().rpartition("\n")[2]
            step.activity = shorten(last_line) or step.activity
        case e.StepRetrying():
            step.activity = ""
            step.troubles.append(f"attempt {event.attempt}: {shorten(event.error_message)}")
        case e.StepLost():
            step.troubles.append(describe_step(event))
        case e.InputRequired():
            step.activity = _asking(event)
        case e.InputReceived():
            step.activity = shorten(describe_step(event))
        case e.StepCompleted():
            step.took, step.activity = event.duration, ""
        case e.StepFailed():
            step.took, step.activity = _seconds(step.began, at), ""
            step.troubles.append(shorten(describe_step(event)))
        case e.StepCancelled():
            step.took, step.activity = _seconds(step.began, at), ""
        case e.StepSkipped():
            step.troubles.append(shorten(describe_step(event)))
        case _:
            pass


def _asking(question: e.InputRequired) -> str:
    return shorten(f"asks: {question.prompt}")


def _seconds(began: datetime | None, ended: datetime) -> float | None:
    return None if began is None else max(0.0, (ended - began).total_seconds())
