"""A task's state: the fold of its log."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Final

import orjson

from agentsrv.errors import InvalidState
from agentsrv.models import events as e
from agentsrv.models.events import STEP_EVENTS
from agentsrv.models.plan import ExecutionPlan, Step
from agentsrv.models.states import (
    STEP_TRANSITIONS,
    TRANSITIONS,
    StepStatus,
    TaskStatus,
    refuse,
)


@dataclass(slots=True)
class StepState:
    """One step of the plan as the log tells it."""

    step: Step
    status: StepStatus = StepStatus.PENDING
    attempt: int = 0
    failures: int = 0
    """Attempts that failed by an error or a timeout; one lost in a crash does not count."""
    result: Any = None
    error_message: str | None = None
    degraded: bool = False
    pieces: list[str] = field(default_factory=list)

    @property
    def output(self) -> str:
        """The text of the current or last attempt."""
        if len(self.pieces) > 1:
            self.pieces = ["".join(self.pieces)]
        return self.pieces[0] if self.pieces else ""

    @property
    def is_settled(self) -> bool:
        """Whether steps that depend on this one may start."""
        return self.status is StepStatus.COMPLETED or self.degraded

    def snapshot(self) -> dict[str, Any]:
        """What ``status`` answers for the step."""
        return {
            "step_id": self.step.step_id,
            "agent": self.step.agent,
            "description": self.step.description,
            "depends_on": list(self.step.depends_on),
            "status": self.status.value,
            "attempt": self.attempt,
            "output": self.output,
            "error_message": self.error_message,
        }

    def apply(self, event: e.Event) -> None:
        """Fold one event of this step.

        Raises:
            InvalidState: The table has no such transition.
        """
        kind = type(event)
        following = STEP_TRANSITIONS[self.status].get(kind)
        if following is None:
            raise InvalidState(f"step {self.step.step_id} is {self.status}: {event.event_type}")
        self.status = following
        if kind in _STEP_FOLDS:
            _STEP_FOLDS[kind](self, event)


@dataclass(slots=True)
class TaskState:
    """What a task's log says so far: a fold that starts empty and takes one event at a time."""

    task_id: str
    status: TaskStatus = TaskStatus.PENDING
    seq: int = 0
    """The number of the last event folded."""
    user_input: str = ""
    agent: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    created_at: str = ""
    updated_at: str = ""
    queued_at: str | None = None
    started_at: str | None = None
    plan: ExecutionPlan | None = None
    steps: dict[str, StepState] = field(default_factory=dict)
    inputs: dict[str, e.InputRequired] = field(default_factory=dict)
    cancelling: e.TaskCancelling | None = None
    final_output: str | None = None
    error_message: str | None = None

    @classmethod
    def fold(cls, task_id: str, log: Iterable[bytes]) -> TaskState:
        """The state after a whole log, which must start at its first event."""
        state = cls(task_id)
        for body in log:
            record = e.decode(body)
            if record.seq != state.seq + 1:
                raise InvalidState(f"after event {state.seq} comes {record.seq}: a hole")
            state.apply(record.event, record.timestamp)
        return state

    @property
    def written(self) -> str:
        """What there is of the final output: the texts of the plan's sinks, in its order.

        A sink that has a structured result and no text stands there as JSON.
        """
        sinks = self.plan.sinks if self.plan else []
        texts = (self._text(self.steps[step.step_id]) for step in sinks)
        return "\n\n".join(text for text in texts if text)

    @property
    def missing_steps(self) -> list[str]:
        """The steps without which the plan went on."""
        return [step_id for step_id, step in self.steps.items() if step.degraded]

    def elapsed(self, now: float) -> float:
        """Seconds from the task's first start to ``now`` (seconds since the epoch)."""
        return _since(self.started_at, now)

    def waited(self, now: float) -> float:
        """Seconds from the task's execution, when it was queued, to ``now``."""
        return _since(self.queued_at, now)

    def snapshot(self) -> dict[str, Any]:
        """What ``status`` answers."""
        return {
            "task_id": self.task_id,
            "status": self.status.value,
            "user_input": self.user_input,
            "final_output": self.final_output,
            "partial_output": None if self.final_output is not None else self.written,
            "error_message": self.error_message,
            "degraded": bool(self.missing_steps),
            "created_at": self.created_at,
            "updated_at": self.updated_at,
            "seq": self.seq,
            "steps": [step.snapshot() for step in self.steps.values()],
            "inputs": [asdict(question) for question in self.inputs.values()],
        }

    def apply(self, event: e.Event, timestamp: str) -> None:
        """Fold the next event.

        Raises:
            InvalidState: The tables have no such transition; nothing was changed.
        """
        kind = type(event)
        following = TRANSITIONS[self.status].get(kind) or refuse(self.status, event)
        if kind in STEP_EVENTS:
            self._step(event.step_id).apply(event)  # type: ignore[attr-defined]
        self.status = following
        if kind in _FOLDS:
            _FOLDS[kind](self, event, timestamp)
        self.updated_at = timestamp
        self.seq += 1

    def _step(self, step_id: str) -> StepState:
        step = self.steps.get(step_id)
        if step is None:
            known = ", ".join(self.steps) or "none: there is no plan yet"
            raise InvalidState(f"found step {step_id!r}; the task's steps are {known}")
        return step

    @staticmethod
    def _text(step: StepState) -> str:
        if step.degraded:
            return ""  # what a failed attempt wrote is no part of the output
        if step.output or step.result is None:
            return step.output
        return orjson.dumps(step.result).decode()


def _step_started(step: StepState, event: e.StepStarted) -> None:
    step.attempt = event.attempt


def _step_wrote(step: StepState, event: e.PartialOutput) -> None:
    step.pieces.append(event.output)


def _step_retrying(step: StepState, event: e.StepRetrying) -> None:
    step.pieces = []
    step.failures = event.retry_count
    step.error_message = event.error_message


def _step_completed(step: StepState, event: e.StepCompleted) -> None:
    step.result = event.result
    step.error_message = None


def _step_failed(step: StepState, event: e.StepFailed) -> None:
    step.error_message = event.error_message
    step.failures = event.retry_count
    step.degraded = event.degraded


def _step_skipped(step: StepState, event: e.StepSkipped) -> None:
    step.error_message = event.reason


def _created(state: TaskState, event: e.TaskCreated, timestamp: str) -> None:
    if state.created_at:
        raise InvalidState(f"task {state.task_id} is created already")
    state.user_input = event.task_description
    state.agent = event.agent
    state.params = event.params
    state.created_at = timestamp


def _queued(state: TaskState, _: e.TaskQueued, timestamp: str) -> None:
    state.queued_at = timestamp


def _started(state: TaskState, _: e.TaskStarted, timestamp: str) -> None:
    state.started_at = timestamp


def _planned(state: TaskState, event: e.PlanCreated, _: str) -> None:
    if state.plan is None:  # else whoever made the plan has put it here already
        state.plan = ExecutionPlan.model_validate({"steps": event.steps})
    state.steps = {step.step_id: StepState(step) for step in state.plan.steps}


def _asked(state: TaskState, event: e.InputRequired, _: str) -> None:
    state.inputs[event.input_id] = event


def _answered(state: TaskState, event: e.InputReceived, _: str) -> None:
    state.inputs.pop(event.input_id, None)
    _wait_for_inputs(state)


def _attempt_ended(
    state: TaskState, event: e.StepRetrying | e.StepCompleted | e.StepFailed, _: str
) -> None:
    """Nobody waits for the answers that the attempt had asked for."""
    if state.inputs:
        for question in [q for q in state.inputs.values() if q.step_id == event.step_id]:
            del state.inputs[question.input_id]
        _wait_for_inputs(state)


def _wait_for_inputs(state: TaskState) -> None:
    """While a question is open, its step and the task wait, whatever else was answered."""
    for question in state.inputs.values():
        state.steps[question.step_id].status = StepStatus.INPUT_REQUIRED
    if state.status in (TaskStatus.RUNNING, TaskStatus.INPUT_REQUIRED):
        state.status = TaskStatus.INPUT_REQUIRED if state.inputs else TaskStatus.RUNNING


def _cancelling(state: TaskState, event: e.TaskCancelling, _: str) -> None:
    state.cancelling = event


def _completed(state: TaskState, event: e.TaskCompleted, _: str) -> None:
    state.final_output = event.final_output


def _failed(state: TaskState, event: e.TaskFailed, _: str) -> None:
    state.error_message = event.error_message
    state.inputs.clear()


def _cancelled(state: TaskState, _: e.TaskCancelled, __: str) -> None:
    state.inputs.clear()


# Tables, because every event of every task passes here.
_STEP_FOLDS: Final[dict[type[e.Event], Callable[[StepState, Any], None]]] = {
    e.StepStarted: _step_started,
    e.PartialOutput: _step_wrote,
    e.StepRetrying: _step_retrying,
    e.StepCompleted: _step_completed,
    e.StepFailed: _step_failed,
    e.StepSkipped: _step_skipped,
}
_FOLDS: Final[dict[type[e.Event], Callable[[TaskState, Any, str], None]]] = {
    e.TaskCreated: _created,
    e.TaskQueued: _queued,
    e.TaskStarted: _started,
    e.PlanCreated: _planned,
    e.InputRequired: _asked,
    e.InputReceived: _answered,
    e.StepRetrying: _attempt_ended,
    e.StepCompleted: _attempt_ended,
    e.StepFailed: _attempt_ended,
    e.TaskCancelling: _cancelling,
    e.TaskCompleted: _completed,
    e.TaskFailed: _failed,
    e.TaskCancelled: _cancelled,
}


def _since(timestamp: str | None, now: float) -> float:
    """Seconds from ``timestamp`` to ``now``; 0 where there is none, or the clock went back."""
    if timestamp is None:
        return 0.0
    return max(0.0, round(now - datetime.fromisoformat(timestamp).timestamp(), 3))
