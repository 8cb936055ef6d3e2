"""A task's state: the fold of its log.

Theory of operation. `TaskState` starts empty; `apply` takes one event at a time:

1. The tables of ``agentsrv.models.transitions`` give the following status of the task and, for an
   event of a step, of the step. Without a transition the event is refused and nothing changes.
2. The event's own `fold_step` and `fold_task` change the remaining fields. They are defined beside
   the event's fields in ``agentsrv.models.events``.
3. Where a question is open, the status is corrected to `input_required` (`wait_for_answers`),
   because the tables know neither how many questions are open nor whose they are.

This is the only fold in Python. The runner applies each event before it is encoded, recovery and
the store fold whole logs (`TaskState.fold`), and readers of another server's log (the live display,
AG-UI) use `follow`, which skips what a newer server added. The browser has the same fold in
``console/fold.js``; ``tests/integration/models/test_folds.py`` compares the two on random logs.

Values that only clients need (messages, answers) are kept as JSON: as objects they take some twenty
times as much memory for as long as the task runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import orjson

from agentsrv.errors import AgentsrvError, ConflictError, InvalidStateError, NotFoundError
from agentsrv.models import events as e
from agentsrv.models.events import STEP_EVENTS
from agentsrv.models.plan import ExecutionPlan, Step
from agentsrv.models.snapshots import bounded
from agentsrv.models.states import StepStatus, TaskStatus
from agentsrv.models.text import fitted
from agentsrv.models.transitions import STEP_TRANSITIONS, TRANSITIONS, refuse


@dataclass(slots=True)
class Answer:
    """How a question was closed; ``value`` is JSON."""

    action: str
    by: str
    value: bytes


@dataclass(slots=True)
class Question:
    """A question that a step has asked, and its answer; ``None`` while it is open."""

    asked: e.InputRequired
    answer: Answer | None = None


@dataclass(slots=True)
class StepState:
    """The state of one step of the plan."""

    step: Step
    status: StepStatus = StepStatus.PENDING
    attempt: int = 0
    failures: int = 0
    """Attempts that failed by an error or a timeout. Attempts lost in a crash do not count."""
    losses: int = 0
    """Crashes of the server while code of the step ran, since it last made progress."""
    progressed: bool = False
    """Whether the current attempt has made progress: more text than every earlier attempt, or an
    answer."""
    furthest: int = 0
    """Characters of the longest earlier attempt."""
    discarded: int = 0
    """Characters of all earlier attempts together."""
    result: Any = None
    error_message: str | None = None
    degraded: bool = False
    pieces: list[str] = field(default_factory=list)
    questions: dict[str, Question] = field(default_factory=dict)
    """By input id. A question is asked once, whatever the number of attempts that reach it."""

    def record_progress(self) -> None:
        """Record that the attempt exceeded all earlier ones."""
        self.progressed = True
        self.losses = 0

    def open_question(self, asked: e.InputRequired) -> None:
        """Record a question."""
        self.questions[asked.input_id] = Question(asked)

    def close_question(self, received: e.InputReceived) -> None:
        """Record the answer to a question; ignores a second one."""
        question = self.questions.get(received.input_id)
        if question is not None and question.answer is None:
            value = orjson.dumps(received.value)
            question.answer = Answer(received.action, received.by, value)
            self.record_progress()

    def wait_for_answers(self) -> None:
        """Change a running step to `input_required` if one of its questions is open."""
        if self.status is StepStatus.RUNNING and self.open_questions:
            self.status = StepStatus.INPUT_REQUIRED

    @property
    def open_questions(self) -> list[e.InputRequired]:
        """The open questions, in the order in which they were asked; the step's end closes all."""
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
        """The step's part of the reply to ``status``."""
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
            InvalidStateError: The table has no such transition; nothing was changed.
        """
        kind = type(event)
        following = STEP_TRANSITIONS[self.status].get(kind)
        if following is None:
            raise InvalidStateError(
                f"step {self.step.step_id} is {self.status}: {event.event_type}"
            )
        self.status = following
        if kind in _STEP_FOLDS:
            _STEP_FOLDS[kind](event, self)


@dataclass(slots=True)
class TaskState:
    """The state of a task after the events that were folded so far."""

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
    """The messages of the client in their order, each as JSON."""
    messages_size: int = 0
    """Bytes of all messages."""
    losses: int = 0
    """Crashes of the server while the plan was made."""
    cancelling: e.TaskCancelling | None = None
    """The cancellation that was decided, if one was."""
    traceparent: str | None = None
    """The client's span of which the task is part."""
    run: str | None = None
    """The span of the last worker's run, as a ``traceparent``."""
    final_output: str | None = None
    error_message: str | None = None

    @classmethod
    def fold(cls, task_id: str, log: Iterable[bytes]) -> TaskState:
        """Return the state after a whole log.

        Raises:
            InvalidStateError: The log has a gap, or contains an event that is not permitted.
        """
        state = cls(task_id)
        for body in log:
            record = e.decode(body)
            if record.seq != state.seq + 1:
                raise InvalidStateError(f"after event {state.seq} comes {record.seq}: a hole")
            state.apply(record.event, record.timestamp)
        return state

    @property
    def written(self) -> str:
        """The final output as far as it exists: the texts of the plan's sinks, in plan order.

        A sink that has a result and no text contributes its result as JSON. Output that is too
        long for an event is truncated; see `text.fitted`.
        """
        sinks = self.plan.sinks if self.plan else []
        texts = (self._text(self.steps[step.step_id]) for step in sinks)
        return fitted("\n\n".join(text for text in texts if text))

    @property
    def inputs(self) -> list[e.InputRequired]:
        """The open questions of all steps, in plan order."""
        if self.status.is_terminal:
            return []
        return [asked for step in self.steps.values() for asked in step.open_questions]

    def question(self, input_id: str, now: float) -> e.InputRequired:
        """Return the question with that id if it can be answered at ``now``.

        Args:
            input_id: The id of the question.
            now: Seconds since the epoch.

        Raises:
            NotFoundError: The task has no question with that id.
            ConflictError: The question was answered before, or has expired.
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
        """The failed steps without which the plan continued."""
        return [step_id for step_id, step in self.steps.items() if step.degraded]

    def elapsed(self, now: float) -> float:
        """Return the seconds from the task's start to ``now`` (seconds since the epoch)."""
        return _since(self.started_at, now)

    def waited(self, now: float) -> float:
        """Return the seconds since the task was queued."""
        return _since(self.queued_at, now)

    def snapshot(self) -> dict[str, Any]:
        """Return the reply to ``status``, truncated to the size of a frame."""
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
        if kind in _TASK_FOLDS:
            _TASK_FOLDS[kind](event, self, timestamp)
        self.updated_at = timestamp
        self.seq += 1

    def follow(self, record: e.Record) -> e.Event | None:
        """Fold a record of a log that another server wrote, which may be of a newer version.

        Returns the event. Returns ``None`` and changes nothing but ``seq`` if this version does
        not know the event's type, or cannot fold the event.
        """
        event = None
        try:
            known = record.event
            self.apply(known, record.timestamp)
            event = known
        except (AgentsrvError, ValueError):  # a plan that cannot be validated is a ValueError
            pass
        self.seq = record.seq
        return event

    def begin_plan(self, steps: Sequence[Mapping[str, Any]]) -> None:
        """Create the states of the plan's steps."""
        if self.plan is None:  # otherwise the runner has stored it already
            self.plan = ExecutionPlan.model_validate({"steps": steps})
        self.steps = {step.step_id: StepState(step) for step in self.plan.steps}

    def wait_for_answers(self) -> None:
        """Set the status to `input_required` or `running`, as a question is open or not."""
        if self.status is TaskStatus.RUNNING and self.inputs:
            self.status = TaskStatus.INPUT_REQUIRED
        elif self.status is TaskStatus.INPUT_REQUIRED and not self.inputs:
            self.status = TaskStatus.RUNNING

    @staticmethod
    def _text(step: StepState) -> str:
        if step.degraded:
            return ""  # text of a failed attempt is not part of the output
        if step.output or step.result is None:
            return step.output
        return orjson.dumps(step.result).decode()


# Tables, because every event of every task is folded here: events without a fold of their own cost
# no call.
_STEP_FOLDS: Final = {
    kind: kind.fold_step for kind in e.EVENTS.values() if kind.fold_step is not e.Event.fold_step
}
_TASK_FOLDS: Final = {
    kind: kind.fold_task for kind in e.EVENTS.values() if kind.fold_task is not e.Event.fold_task
}


def _since(timestamp: str | None, now: float) -> float:
    """Seconds from ``timestamp`` to ``now``; 0 without a timestamp or if the clock was set back."""
    if timestamp is None:
        return 0.0
    return max(0.0, round(now - e.parse_timestamp(timestamp), 3))
