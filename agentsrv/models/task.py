"""A task's state: the fold of its log."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import orjson

from agentsrv.errors import ConflictError, InvalidStateError, NotFoundError
from agentsrv.models import events as e
from agentsrv.models.events import STEP_EVENTS
from agentsrv.models.plan import ExecutionPlan, Step
from agentsrv.models.snapshots import bounded
from agentsrv.models.states import (
    STEP_TRANSITIONS,
    TRANSITIONS,
    StepStatus,
    TaskStatus,
    refuse,
)
from agentsrv.models.text import fitted


@dataclass(slots=True)
class Answer:
    """How a question was settled; the value as JSON: objects take some twenty times as much."""

    action: str
    by: str
    value: bytes


@dataclass(slots=True)
class Question:
    """A question that a step has asked, and how it was settled, if it was."""

    asked: e.InputRequired
    answer: Answer | None = None


@dataclass(slots=True)
class StepState:
    """One step of the plan as the log tells it."""

    step: Step
    status: StepStatus = StepStatus.PENDING
    attempt: int = 0
    failures: int = 0
    """Attempts that failed by an error or a timeout; one lost in a crash does not count."""
    losses: int = 0
    """Crashes of the server while code of the step ran, since it last made progress."""
    progressed: bool = False
    """Whether the current attempt has made progress: text beyond that of all attempts before it,
    or an answer."""
    furthest: int = 0
    """The most characters that an earlier attempt wrote."""
    discarded: int = 0
    """Characters that all earlier attempts wrote."""
    result: Any = None
    error_message: str | None = None
    degraded: bool = False
    pieces: list[str] = field(default_factory=list)
    questions: dict[str, Question] = field(default_factory=dict)
    """By input id; each is asked once, however many attempts come to it."""

    def progress(self) -> None:
        """Take down that the attempt got further than those before it."""
        self.progressed = True
        self.losses = 0

    @property
    def open_questions(self) -> list[e.InputRequired]:
        """What is still to be answered; the step's end closes all."""
        if not STEP_TRANSITIONS[self.status]:
            return []
        return [question.asked for question in self.questions.values() if question.answer is None]

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
            InvalidStateError: The table has no such transition.
        """
        kind = type(event)
        following = STEP_TRANSITIONS[self.status].get(kind)
        if following is None:
            raise InvalidStateError(
                f"step {self.step.step_id} is {self.status}: {event.event_type}"
            )
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
    messages: list[bytes] = field(default_factory=list)
    """What the client has sent, in its order, as JSON: objects take some twenty times as much."""
    messages_size: int = 0
    """Bytes that they have as JSON."""
    losses: int = 0
    """Crashes of the server while the plan was made."""
    cancelling: e.TaskCancelling | None = None
    traceparent: str | None = None
    """Whose work the task is part of, as its client said."""
    run: str | None = None
    """The span of the last worker's run, as a ``traceparent``."""
    final_output: str | None = None
    error_message: str | None = None

    @classmethod
    def fold(cls, task_id: str, log: Iterable[bytes]) -> TaskState:
        """The state after a whole log, which must start at its first event."""
        state = cls(task_id)
        for body in log:
            record = e.decode(body)
            if record.seq != state.seq + 1:
                raise InvalidStateError(f"after event {state.seq} comes {record.seq}: a hole")
            state.apply(record.event, record.timestamp)
        return state

    @property
    def written(self) -> str:
        """What there is of the final output: the texts of the plan's sinks, in its order.

        The result of a sink that has one and no text is included as JSON. Output that is too long
        for an event is cut; see `text.fitted`.
        """
        sinks = self.plan.sinks if self.plan else []
        texts = (self._text(self.steps[step.step_id]) for step in sinks)
        return fitted("\n\n".join(text for text in texts if text))

    @property
    def inputs(self) -> list[e.InputRequired]:
        """The open questions of all steps."""
        if self.status.is_terminal:
            return []
        return [asked for step in self.steps.values() for asked in step.open_questions]

    def question(self, input_id: str, now: float) -> e.InputRequired:
        """The question of that id, if it can be answered at ``now`` (seconds since the epoch).

        Raises:
            NotFoundError: Nothing was asked under that id.
            Conflict: It was answered before, or its time is over.
            InvalidStateError: Its step has ended, or is being stopped.
        """
        for step in self.steps.values():
            question = step.questions.get(input_id)
            if question is None:
                continue
            asked, answer = question.asked, question.answer
            if answer is not None:
                raise ConflictError(
                    f"question {input_id} is settled: {answer.action} by {answer.by}"
                )
            if asked not in self.inputs or self.status is TaskStatus.CANCELLING:
                raise InvalidStateError(
                    f"question {input_id} is closed: its step is {step.status}, "
                    f"its task {self.status}"
                )
            if asked.expires_at is not None and e.parse_timestamp(asked.expires_at) <= now:
                raise ConflictError(
                    f"question {input_id} could be answered until {asked.expires_at}"
                )
            return asked
        raise NotFoundError(f"there is no question {input_id!r}; list shows your tasks")

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
        """What ``status`` answers, bounded as a frame is."""
        return bounded(self._whole_snapshot())

    def _whole_snapshot(self) -> dict[str, Any]:
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
            "inputs": [asdict(asked) for asked in self.inputs],
        }

    def apply(self, event: e.Event, timestamp: str) -> None:
        """Fold the next event.

        Raises:
            InvalidStateError: The tables have no such transition; nothing was changed.
        """
        kind = type(event)
        following = TRANSITIONS[self.status].get(kind) or refuse(self.status, event)
        if kind in STEP_EVENTS and (step_id := event.step_id) is not None:  # type: ignore[attr-defined]
            step = self.steps.get(step_id)
            if step is None:
                known = ", ".join(self.steps) or "none: there is no plan yet"
                raise InvalidStateError(f"found step {step_id!r}; the task's steps are {known}")
            step.apply(event)
        self.status = following
        if kind in _FOLDS:
            _FOLDS[kind](self, event, timestamp)
        self.updated_at = timestamp
        self.seq += 1

    @staticmethod
    def _text(step: StepState) -> str:
        if step.degraded:
            return ""  # what a failed attempt wrote is no part of the output
        if step.output or step.result is None:
            return step.output
        return orjson.dumps(step.result).decode()


def _step_started(step: StepState, event: e.StepStarted) -> None:
    step.attempt = event.attempt
    step.progressed = False
    if step.questions:
        _wait_for_answers(step)


def _step_wrote(step: StepState, event: e.PartialOutput) -> None:
    step.pieces.append(event.output)
    if not step.progressed and event.offset + len(event.output) > step.furthest:
        step.progress()


def _step_lost(step: StepState, event: e.StepLost) -> None:
    step.attempt = event.attempt
    step.losses = event.losses


def _step_retrying(step: StepState, event: e.StepRetrying) -> None:
    step.furthest = max(step.furthest, len(step.output))
    step.discarded += len(step.output)
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


def _step_asked(step: StepState, event: e.InputRequired) -> None:
    step.questions[event.input_id] = Question(event)


def _step_answered(step: StepState, event: e.InputReceived) -> None:
    question = step.questions.get(event.input_id)
    if question is not None and question.answer is None:
        question.answer = Answer(event.action, event.by, orjson.dumps(event.value))
        step.progress()
    _wait_for_answers(step)


def _wait_for_answers(step: StepState) -> None:
    """While a question is open its step waits, whatever else was answered."""
    if step.status is StepStatus.RUNNING and step.open_questions:
        step.status = StepStatus.INPUT_REQUIRED


def _created(state: TaskState, event: e.TaskCreated, timestamp: str) -> None:
    if state.created_at:
        raise InvalidStateError(f"task {state.task_id} is created already")
    state.user_input = event.task_description
    state.agent = event.agent
    state.params = event.params
    state.created_at = timestamp
    state.traceparent = event.traceparent


def _queued(state: TaskState, _: e.TaskQueued, timestamp: str) -> None:
    state.queued_at = timestamp


def _started(state: TaskState, event: e.TaskStarted, timestamp: str) -> None:
    state.started_at = timestamp
    state.run = event.traceparent


def _recovered(state: TaskState, event: e.TaskRecovered, _: str) -> None:
    state.run = event.traceparent


def _planned(state: TaskState, event: e.PlanCreated, _: str) -> None:
    state.losses = 0
    if state.plan is None:  # else the runner has put it here already
        state.plan = ExecutionPlan.model_validate({"steps": event.steps})
    state.steps = {step.step_id: StepState(step) for step in state.plan.steps}


def _lost(state: TaskState, event: e.StepLost, _: str) -> None:
    if event.step_id is None:
        state.losses = event.losses


def _look_at_questions(state: TaskState, _: e.Event, __: str) -> None:
    """The task waits for an answer as long as one of its steps does."""
    if state.status is TaskStatus.RUNNING and state.inputs:
        state.status = TaskStatus.INPUT_REQUIRED
    elif state.status is TaskStatus.INPUT_REQUIRED and not state.inputs:
        state.status = TaskStatus.RUNNING


def _step_ended(state: TaskState, event: e.Event, timestamp: str) -> None:
    if state.status is TaskStatus.INPUT_REQUIRED:
        _look_at_questions(state, event, timestamp)


def _messaged(state: TaskState, event: e.MessageReceived, _: str) -> None:
    message = orjson.dumps(event.message)
    state.messages.append(message)
    state.messages_size += len(message)


def _cancelling(state: TaskState, event: e.TaskCancelling, _: str) -> None:
    state.cancelling = event


def _completed(state: TaskState, event: e.TaskCompleted, _: str) -> None:
    state.final_output = event.final_output


def _failed(state: TaskState, event: e.TaskFailed, _: str) -> None:
    state.error_message = event.error_message


# Tables, because every event of every task passes here.
_STEP_FOLDS: Final[dict[type[e.Event], Callable[[StepState, Any], None]]] = {
    e.StepStarted: _step_started,
    e.PartialOutput: _step_wrote,
    e.StepLost: _step_lost,
    e.StepRetrying: _step_retrying,
    e.StepCompleted: _step_completed,
    e.StepFailed: _step_failed,
    e.StepSkipped: _step_skipped,
    e.InputRequired: _step_asked,
    e.InputReceived: _step_answered,
}
_FOLDS: Final[dict[type[e.Event], Callable[[TaskState, Any, str], None]]] = {
    e.TaskCreated: _created,
    e.TaskQueued: _queued,
    e.TaskStarted: _started,
    e.TaskRecovered: _recovered,
    e.PlanCreated: _planned,
    e.StepLost: _lost,
    e.InputReceived: _look_at_questions,
    e.MessageReceived: _messaged,
    e.StepCompleted: _step_ended,
    e.StepFailed: _step_ended,
    e.StepCancelled: _step_ended,
    e.TaskCancelling: _cancelling,
    e.TaskCompleted: _completed,
    e.TaskFailed: _failed,
}


def _since(timestamp: str | None, now: float) -> float:
    """Seconds from ``timestamp`` to ``now``; 0 where there is none, or the clock went back."""
    if timestamp is None:
        return 0.0
    return max(0.0, round(now - e.parse_timestamp(timestamp), 3))
