"""A task as far as it is known: its events folded into what a person wants to see."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from agentsrv.cli.render import describe, describe_step, shorten
from agentsrv.errors import AgentsrvError
from agentsrv.models import events as e
from agentsrv.models.events import Record
from agentsrv.models.states import StepStatus, TaskStatus
from agentsrv.telemetry.safe_text import visible


@dataclass(slots=True)
class StepView:
    """One step of the plan."""

    step_id: str
    agent: str
    depends_on: tuple[str, ...]
    attempts: int
    """That it has at most."""
    status: StepStatus = StepStatus.PENDING
    attempt: int = 0
    began: datetime | None = None
    """When its latest attempt did."""
    took: float | None = None
    """Seconds of its last attempt, when it ended."""
    troubles: list[str] = field(default_factory=list)
    """Why attempts failed, or why the step did not run."""
    doing: str = ""
    """What it says of its progress, or asks, or the last line that it wrote."""

    @property
    def is_active(self) -> bool:
        """Whether something of it goes on."""
        return self.status in (
            StepStatus.RUNNING,
            StepStatus.RETRYING,
            StepStatus.INPUT_REQUIRED,
        )


class TaskView:
    """One task and its steps, in the plan's order.

    What a newer server tells and this version does not know is left out.
    """

    def __init__(self) -> None:
        self.task_id = ""
        self.title = ""
        self.status = TaskStatus.PENDING
        self.began: datetime | None = None
        """When it was created."""
        self.told = ""
        """What happened to the task last."""
        self.steps: dict[str, StepView] = {}

    def take(self, record: Record) -> None:
        """Take note of the next event."""
        try:
            event = record.event
        except AgentsrvError:
            return
        at = datetime.fromisoformat(record.timestamp)
        step = self.steps.get(getattr(event, "step_id", ""))
        if step is not None:
            self._take_step(step, event, at)
        else:
            self._take_task(event, record, at)

    def _take_task(self, event: e.Event, record: Record, at: datetime) -> None:
        self.task_id = visible(record.task_id)
        match event:
            case e.TaskCreated():
                self.title = " ".join(event.task_description.split())
                self.began = at
            case e.TaskQueued():
                self.status = TaskStatus.QUEUED
            case e.TaskStarted() | e.TaskRecovered():
                self.status = TaskStatus.RUNNING
            case e.PlanCreated():
                self.steps = {
                    planned["step_id"]: StepView(
                        visible(planned["step_id"]),
                        visible(planned["agent"]),
                        tuple(map(visible, planned["depends_on"])),
                        planned["max_retries"] + 1,
                    )
                    for planned in event.steps
                }
                return
            case e.TaskCancelling():
                self.status = TaskStatus.CANCELLING
            case e.TaskCompleted():
                self.status = TaskStatus.COMPLETED
            case e.TaskFailed():
                self.status = TaskStatus.FAILED
            case e.TaskCancelled():
                self.status = TaskStatus.CANCELLED
            case _:
                pass
        self.told = describe(record).removeprefix("task ")

    def _take_step(self, step: StepView, event: e.Event, at: datetime) -> None:
        match event:
            case e.StepStarted():
                step.status, step.attempt = StepStatus.RUNNING, event.attempt
                step.began, step.doing = at, ""
            case e.StepProgress():
                step.doing = shorten(describe_step(event))
            case e.PartialOutput():
                step.doing = shorten(event.output.rstrip().rpartition("\n")[2]) or step.doing
            case e.StepRetrying():
                step.status, step.doing = StepStatus.RETRYING, ""
                step.troubles.append(f"attempt {event.attempt}: {shorten(event.error_message)}")
            case e.StepLost():
                step.troubles.append(describe_step(event))
            case e.InputRequired():
                step.status = StepStatus.INPUT_REQUIRED
                step.doing = shorten(f"asks: {event.prompt}")
            case e.InputReceived():
                step.status, step.doing = StepStatus.RUNNING, shorten(describe_step(event))
            case e.StepCompleted():
                self._end(step, StepStatus.COMPLETED, event.duration)
            case e.StepFailed():
                self._end(step, StepStatus.FAILED, _seconds(step.began, at))
                step.troubles.append(shorten(describe_step(event)))
            case e.StepCancelled():
                self._end(step, StepStatus.CANCELLED, _seconds(step.began, at))
            case e.StepSkipped():
                self._end(step, StepStatus.SKIPPED, None)
                step.troubles.append(shorten(describe_step(event)))
            case _:
                pass

    def _end(self, step: StepView, status: StepStatus, took: float | None) -> None:
        step.status, step.took, step.doing = status, took, ""


def _seconds(began: datetime | None, ended: datetime) -> float | None:
    return None if began is None else max(0.0, (ended - began).total_seconds())
