"""ExecutionPlan: a validated directed acyclic graph of steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, FailFast, Field, JsonValue, model_validator

MAX_STEPS: Final = 100
MAX_RETRIES: Final = 100
StepId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
AgentName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class Step(BaseModel):
    """One unit of work of one agent, which runs after the steps that it depends on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step_id: StepId
    agent: AgentName
    description: Annotated[str, Field(max_length=4096)] = ""
    depends_on: Annotated[tuple[StepId, ...], FailFast()] = ()
    input: JsonValue = Field(default=None, description="The agent's input.")
    params: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="For the agent's parameters; they replace the task's of the same names.",
    )
    max_retries: Annotated[int, Field(ge=0, le=MAX_RETRIES, strict=True)] | None = Field(
        default=None, description="By default the agent's."
    )
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)] | None = Field(
        default=None, description="Seconds an attempt may take; by default the agent's."
    )


class ExecutionPlan(BaseModel):
    """The steps of a task: 1 to 100, with unique ids and acyclic dependencies."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: Annotated[tuple[Step, ...], Field(min_length=1, max_length=MAX_STEPS), FailFast()]

    @model_validator(mode="after")
    def _is_acyclic(self) -> Self:
        seen: set[str] = set()
        in_order = True
        for step in self.steps:
            if step.step_id in seen:
                raise ValueError(f"step_id {step.step_id!r} occurs twice; each must be unique")
            in_order = in_order and seen.issuperset(step.depends_on)
            seen.add(step.step_id)
        if in_order:  # each step depends only on earlier ones: there is no cycle
            return self
        for step in self.steps:
            for needed in step.depends_on:
                if needed not in seen:
                    raise ValueError(
                        f"step {step.step_id!r} depends on {needed!r}, which is not in the plan"
                    )
        frontier = ReadySteps(self)
        done: list[str] = []
        ready = frontier.start()
        while ready:
            step = ready.pop()
            done.append(step.step_id)
            ready += frontier.settle(step.step_id)
        if len(done) < len(self.steps):
            left = [step for step in self.steps if step.step_id not in done]
            raise ValueError(f"steps {', '.join(_cycle(left))} depend on each other in a cycle")
        return self

    @property
    def sinks(self) -> list[Step]:
        """The steps on which no other depends; their outputs make the final output."""
        needed = {step_id for step in self.steps for step_id in step.depends_on}
        return [step for step in self.steps if step.step_id not in needed]

    @property
    def origin(self) -> tuple[str | None, str | None]:
        """What made the plan, and why; ``None`` if the plan does not say."""
        return None, None

    def described(self, retries: Callable[[str], int]) -> list[dict[str, Any]]:
        """Return the steps as ``plan_created`` contains them.

        ``retries`` returns the default of an agent. ``input``, ``params`` and ``timeout`` are
        included if they are set: a worker that recovers the task needs them to run the same plan.
        """
        described = []
        for step in self.steps:
            fields = {
                "step_id": step.step_id,
                "agent": step.agent,
                "description": step.description,
                "depends_on": step.depends_on,
                "max_retries": (
                    retries(step.agent) if step.max_retries is None else step.max_retries
                ),
            }
            if step.input is not None:
                fields["input"] = step.input
            if step.params:
                fields["params"] = step.params
            if step.timeout is not None:
                fields["timeout"] = step.timeout
            described.append(fields)
        return described


class ExplainedPlan(ExecutionPlan):
    """A plan with its origin, which ``plan_created`` records.

    Attributes:
        planned_by: The planner, such as ``"model"`` or ``"rules"``.
        reason: Why that planner made it, if another one was expected.
    """

    planned_by: Annotated[str, Field(min_length=1, max_length=64)]
    reason: Annotated[str, Field(max_length=2000)] | None = None

    @property
    def origin(self) -> tuple[str | None, str | None]:
        """What made the plan, and why."""
        return self.planned_by, self.reason


def _cycle(steps: list[Step]) -> list[str]:
    """Of steps that never become ready, return those on which others depend."""
    while True:
        needed = {step_id for step in steps for step_id in step.depends_on}
        kept = [step for step in steps if step.step_id in needed]
        if len(kept) == len(steps):
            return [step.step_id for step in steps]
        steps = kept


class ReadySteps:
    """Tracks which steps of a plan become ready as others complete.

    The work over a whole plan is proportional to its dependencies (Kahn, 1962, "Topological
    sorting of large networks").
    """

    def __init__(self, plan: ExecutionPlan) -> None:
        self._steps = plan.steps
        self._missing: dict[str, int] = {}
        self._behind: dict[str, list[Step]] = {}
        for step in plan.steps:
            needs = step.depends_on if len(step.depends_on) < 2 else set(step.depends_on)  # noqa: PLR2004 - one cannot be twice
            self._missing[step.step_id] = len(needs)
            for needed in needs:
                self._behind.setdefault(needed, []).append(step)

    def start(self) -> list[Step]:
        """Return the steps without dependencies, in the plan's order."""
        return [step for step in self._steps if not self._missing[step.step_id]]

    def settle(self, step_id: str) -> list[Step]:
        """Return the steps that become ready with ``step_id``, in the plan's order."""
        ready = []
        for step in self._behind.pop(step_id, ()):
            self._missing[step.step_id] -= 1
            if not self._missing[step.step_id]:
                ready.append(step)
        return ready
