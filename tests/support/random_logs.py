"""Random task logs that the tables of transitions permit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

from agentsrv.models import events as e
from agentsrv.models.states import StepStatus, TaskStatus
from agentsrv.models.task import StepState, TaskState
from agentsrv.models.transitions import STEP_TRANSITIONS, TRANSITIONS

TASK_ID: Final = "3f2a9c0d1b7e4a65"
BEGIN: Final = 1_770_000_000.0  # seconds since the epoch
WORDS: Final = ("Why?", "", "one\ntwo", "naïve ☕", "😀", "a" * 200, '"quoted"', "__proto__")
VALUES: Final[tuple[Any, ...]] = (
    None,
    True,
    0,
    -1.5,
    "text",
    [],
    {"a": [1, {"b": None}]},
    {"__proto__": 1},
)
WEIGHTS: Final[dict[type[e.Event], float]] = {
    e.PartialOutput: 4,
    e.StepStarted: 4,
    e.InputRequired: 2,
    e.InputReceived: 3,
    e.StepRetrying: 2,
    e.StepCompleted: 0.5,
    e.StepFailed: 0.3,
    e.StepSkipped: 0.2,
    e.StepCancelled: 0.2,
    e.TaskCancelling: 0.05,
    e.TaskCompleted: 0.03,
    e.TaskFailed: 0.02,
    e.TaskCancelled: 0.02,
}
"""How likely each event is, if it is permitted; 1 for the others."""
ACTIVE: Final = (StepStatus.RUNNING, StepStatus.INPUT_REQUIRED)


class RandomLog:
    """One log; ``state`` is the Python fold of it.

    The events are those of real tasks in any order that the tables permit: attempts are counted,
    questions have ids of their own, a plan is made once. A restart appends `task_recovered`, and
    for each step in progress perhaps `step_lost`, and `step_retrying`.
    """

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._asked = 0
        self.bodies: list[bytes] = []
        self.state = TaskState(TASK_ID)
        self.add(e.TaskCreated(self._word(), None, {"n": self._value()}, {}))
        for _ in range(self._random.choice((1, 5, 20, 60, 120))):
            if self.state.status.is_terminal:
                break
            self._step()
        ends = [kind for kind in e.TERMINAL_EVENTS if kind in TRANSITIONS[self.state.status]]
        if ends and self._is_heads():
            self.add(self._event(self._random.choice(ends), None))

    def add(self, event: e.Event) -> None:
        """Append an event, a little later than the last."""
        timestamp = e.format_timestamp(BEGIN + len(self.bodies) * 1.25)
        self.state.apply(event, timestamp)
        self.bodies.append(e.encode(event, TASK_ID, self.state.seq, timestamp))

    def _step(self) -> None:
        if self.state.plan is not None and self._random.random() < 0.04:
            self._restart()
            return
        choices: list[tuple[type[e.Event], StepState | None]] = []
        for kind in TRANSITIONS[self.state.status]:
            if kind is e.TaskCreated or (kind is e.PlanCreated and self.state.plan is not None):
                continue
            if (kind is e.StepLost and self.state.plan is None) or kind not in e.STEP_EVENTS:
                choices.append((kind, None))
            else:
                steps = [step for step in self.state.steps.values() if self._permits(step, kind)]
                if steps:
                    choices.append((kind, self._random.choice(steps)))
        weights = [WEIGHTS.get(kind, 1.0) for kind, _ in choices]
        (kind, step) = self._random.choices(choices, weights)[0]
        self.add(self._event(kind, step))

    @staticmethod
    def _permits(step: StepState, kind: type[e.Event]) -> bool:
        if kind is e.InputReceived and not step.open_questions:
            return False
        return kind in STEP_TRANSITIONS[step.status]

    def _restart(self) -> None:
        if e.TaskRecovered not in TRANSITIONS[self.state.status]:
            return
        self.add(e.TaskRecovered("node-2", []))
        for step in list(self.state.steps.values()):
            if step.status in ACTIVE:
                if self._random.random() < 0.5:
                    self.add(self._event(e.StepLost, step))
                step_id, attempt = step.step.step_id, step.attempt
                reason = "the server stopped"
                retrying = e.StepRetrying(
                    step_id, attempt, attempt + 1, 0.0, reason, step.failures, "recovered"
                )
                self.add(retrying)

    def _event(self, kind: type[e.Event], step: StepState | None) -> e.Event:
        make = _TASK_EVENTS.get(kind)
        if make is not None:
            return make(self)
        if step is None:
            return e.StepLost(None, 1, self.state.losses + 1, suspected=False)
        return _STEP_EVENTS[kind](self, step)

    def _word(self) -> str:
        return self._random.choice(WORDS)

    def _value(self) -> Any:
        return self._random.choice(VALUES)

    def _is_heads(self) -> bool:
        return self._random.random() < 0.5

    def _plan(self) -> Sequence[dict[str, Any]]:
        names = [f"s{number}" for number in range(self._random.randint(1, 4))]
        return [
            {
                "step_id": name,
                "agent": "writer",
                "description": self._word(),
                "depends_on": [other for other in names[:at] if self._is_heads()],
                "max_retries": 3,
            }
            for at, name in enumerate(names)
        ]

    def _question(self, step: StepState) -> e.InputRequired:
        self._asked += 1
        return e.InputRequired(
            f"{TASK_ID}/{step.step.step_id}/{self._asked}",
            step.step.step_id,
            step.attempt,
            self._word(),
            {"type": "boolean"},
            None,
            self._value(),
            None,
        )

    def _answer(self, step: StepState) -> e.InputReceived:
        asked = self._random.choice(step.open_questions)
        action = self._random.choice(("accept", "decline", "expire"))
        return e.InputReceived(asked.input_id, asked.step_id, action, self._value(), "ada")


_TASK_EVENTS: Final[dict[type[e.Event], Callable[[RandomLog], e.Event]]] = {
    e.TaskQueued: lambda log: e.TaskQueued(1),
    e.TaskStarted: lambda log: e.TaskStarted("node-1"),
    e.PlanCreated: lambda log: e.PlanCreated(log._plan()),
    e.MessageReceived: lambda log: e.MessageReceived(log._value(), "ada"),
    e.TaskRecovered: lambda log: e.TaskRecovered("node-2", []),
    e.TaskCancelling: lambda log: e.TaskCancelling(log._word(), "ada", 5.0),
    e.TaskCompleted: lambda log: e.TaskCompleted(
        TaskStatus.COMPLETED.value, log._word(), bool(log.state.missing_steps),
        log.state.missing_steps, 1.5,
    ),
    e.TaskFailed: lambda log: e.TaskFailed(TaskStatus.FAILED.value, log._word(), None, 0, ""),
    e.TaskCancelled: lambda log: e.TaskCancelled(
        TaskStatus.CANCELLED.value, None, "ada", stopped=True, partial_output=""
    ),
}  # fmt: skip
_STEP_EVENTS: Final[dict[type[e.Event], Callable[[RandomLog, StepState], e.Event]]] = {
    e.StepStarted: lambda log, step: e.StepStarted(
        step.step.step_id, step.attempt + 1, step.step.agent, step.step.description
    ),
    e.StepProgress: lambda log, step: e.StepProgress(
        step.step.step_id, step.attempt, 1, 2, log._word()
    ),
    e.PartialOutput: lambda log, step: e.PartialOutput(
        step.step.step_id, step.attempt, len(step.output), log._word()
    ),
    e.StepRetrying: lambda log, step: e.StepRetrying(
        step.step.step_id, step.attempt, step.attempt + 1, 0.1, log._word(), step.failures + 1,
        "error",
    ),
    e.StepLost: lambda log, step: e.StepLost(
        step.step.step_id, step.attempt + (step.status not in ACTIVE), step.losses + 1,
        suspected=log._is_heads(),
    ),
    e.StepCompleted: lambda log, step: e.StepCompleted(
        step.step.step_id, step.attempt, "completed", log._value(), cached=False, duration=0.5
    ),
    e.StepFailed: lambda log, step: e.StepFailed(
        step.step.step_id, step.attempt, log._word(), step.failures, step.output,
        degraded=log._is_heads(),
    ),
    e.StepSkipped: lambda log, step: e.StepSkipped(step.step.step_id, log._word()),
    e.StepCancelled: lambda log, step: e.StepCancelled(
        step.step.step_id, step.attempt, step.output
    ),
    e.InputRequired: RandomLog._question,
    e.InputReceived: RandomLog._answer,
}  # fmt: skip
