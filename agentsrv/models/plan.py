"""ExecutionPlan: a validated directed acyclic graph of steps."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

MAX_STEPS: Final = 100
MAX_RETRIES: Final = 100
StepId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
AgentName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class Step(BaseModel):
    """One piece of work for one agent, after the steps that it depends on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step_id: StepId
    agent: AgentName
    description: Annotated[str, Field(max_length=4096)] = ""
    depends_on: tuple[StepId, ...] = ()
    input: JsonValue = None
    max_retries: Annotated[int, Field(ge=0, le=MAX_RETRIES, strict=True)] | None = None
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)] | None = None
    """Seconds an attempt may take; without it the agent's own."""


class ExecutionPlan(BaseModel):
    """The steps of a task: unique ids, known dependencies, no cycle, 1 to 100 of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: Annotated[tuple[Step, ...], Field(min_length=1, max_length=MAX_STEPS)]

    @model_validator(mode="after")
    def _is_acyclic(self) -> Self:
        seen: set[str] = set()
        for step in self.steps:
            if step.step_id in seen:
                raise ValueError(f"step_id {step.step_id!r} occurs twice; each must be unique")
            seen.add(step.step_id)
        for step in self.steps:
            for needed in step.depends_on:
                if needed not in seen:
                    raise ValueError(
                        f"step {step.step_id!r} depends on {needed!r}, which is not in the plan"
                    )
        done: set[str] = set()
        while ready := self.ready(done):
            done.update(step.step_id for step in ready)
        if left := [step.step_id for step in self.steps if step.step_id not in done]:
            raise ValueError(f"steps {', '.join(left)} depend on each other in a cycle")
        return self

    def ready(self, settled: Collection[str], begun: Collection[str] = ()) -> list[Step]:
        """The steps, in the plan's order, that may start.

        Args:
            settled: Steps that have ended in a way that lets others go on.
            begun: Steps that are under way.
        """
        return [
            step
            for step in self.steps
            if step.step_id not in settled
            and step.step_id not in begun
            and all(needed in settled for needed in step.depends_on)
        ]

    @property
    def sinks(self) -> list[Step]:
        """The steps on which no other depends; their outputs make the final output."""
        needed = {step_id for step in self.steps for step_id in step.depends_on}
        return [step for step in self.steps if step.step_id not in needed]

    def described(self, retries: dict[str, int]) -> list[dict[str, Any]]:
        """The steps as ``plan_created`` tells them; ``retries`` are the agents' defaults.

        ``input`` and ``timeout`` stand there only where they are set: they are what a
        recovering worker needs to run the very same plan.
        """
        return [
            {
                "step_id": step.step_id,
                "agent": step.agent,
                "description": step.description,
                "depends_on": list(step.depends_on),
                "max_retries": (
                    retries[step.agent] if step.max_retries is None else step.max_retries
                ),
            }
            | step.model_dump(include={"input", "timeout"}, exclude_none=True)
            for step in self.steps
        ]
