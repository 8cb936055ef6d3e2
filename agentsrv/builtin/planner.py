"""The built-in planner: plans a task without a plan, by rules or with a language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import Field, ValidationError

from agentsrv import (
    ExecutionPlan,
    ExplainedPlan,
    InvalidCommandError,
    ModelTruncatedError,
    Step,
    TaskContext,
)
from agentsrv.builtin import prompts
from agentsrv.knowledge.text import shorten, terms

if TYPE_CHECKING:
    from agentsrv import LanguageModel

PlanName = Literal["auto", "report", "research"]
MAX_PLANNED: Final = 8  # steps of a plan by a model
MAX_REQUESTS: Final = 2  # to a model: for a plan, and for a correction
SHORT_TASK: Final = 120  # characters of the task in the description of a step
MAX_REASON: Final = 300  # characters of the reason why a model's plan is invalid
REQUIRED_AGENTS: Final = {
    "analyzer": ("retriever",),
    "writer": ("retriever", "analyzer"),
    "validator": ("retriever", "writer"),
    "optimizer": ("retriever", "writer", "validator"),
}
"""For a built-in agent, the agents whose results it needs to be useful."""
_STEP_ID: Final = {"type": "string", "pattern": "^[a-z0-9_]{1,32}$"}
# Every string has a pattern of ASCII characters, so a grammar cannot produce invalid Unicode.
_TEXT: Final = {"type": "string", "pattern": "^[A-Za-z0-9 ,.:;()'?!/-]{1,200}$"}


async def plan(
    task_description: str,
    ctx: TaskContext,
    name: Annotated[PlanName, Field(alias="plan")] = "auto",
) -> ExplainedPlan:
    """Plan the task with the application's agents.

    Args:
        task_description: The task.
        ctx: The context of the planner.
        name: ``report`` retrieves, analyzes and writes; ``research`` also validates the report and
            corrects it; ``auto`` lets the language model plan, and is ``report`` without a model or
            if its plans are invalid.

    Raises:
        ModelError: The model failed; another attempt may succeed.
        PermanentError: The model rejected the request.
    """
    llm = ctx.llm
    if name != "auto" or not llm:
        steps = research(task_description) if name == "research" else report(task_description)
        return ExplainedPlan(steps=steps, planned_by="rules")
    made, problem = await _ask(llm, ctx)
    if made is not None:
        return ExplainedPlan(steps=made.steps, planned_by="model")
    ctx.log.warning("the task is planned by rules: %s", problem)
    return ExplainedPlan(steps=report(task_description), planned_by="rules", reason=problem)


async def _ask(llm: LanguageModel, ctx: TaskContext) -> tuple[ExecutionPlan | None, str]:
    """Return the model's plan, or ``None`` and the reason."""
    agents = [agent for agent in ctx.agents if _can_run(agent["name"], ctx)]
    schema = plan_schema([agent["name"] for agent in agents])
    messages = prompts.planning(ctx.task_description, agents, REQUIRED_AGENTS, MAX_PLANNED)
    problem = ""
    for _ in range(MAX_REQUESTS):
        answer = ""
        try:
            answer = await llm.complete(messages, schema)
            made = ExecutionPlan.model_validate_json(answer)
            ctx.check_plan(made)
            check_needs(made)
        except ValidationError as error:
            complaint = error.errors(include_url=False)[0]
            place = ".".join(map(str, complaint["loc"]))
            problem = f"{place}: {complaint['msg']}" if place else complaint["msg"]
        except InvalidCommandError as error:
            problem = error.message
        except ModelTruncatedError as error:
            return None, f"the model's plan was cut off: {shorten(error.message, MAX_REASON)}"
        else:
            return made, ""
        problem = shorten(problem, MAX_REASON)
        messages = [*messages, *prompts.correction(answer, problem)]
    return None, f"the model's plan was invalid {MAX_REQUESTS} times: {problem}"


def _can_run(agent: str, ctx: TaskContext) -> bool:
    """Whether the agent accepts the task's params."""
    try:
        ctx.check_plan(ExecutionPlan(steps=(Step(step_id="one", agent=agent),)))
    except InvalidCommandError:
        return False
    return True


def check_needs(plan: ExecutionPlan) -> None:
    """Check that each built-in agent of a plan depends on the agents that it needs.

    Raises:
        InvalidCommandError: A dependency is missing; the message has the step and the agent.
    """
    agents = {step.step_id: step.agent for step in plan.steps}
    for step in plan.steps:
        present = {agents[needed] for needed in step.depends_on}
        for agent in REQUIRED_AGENTS.get(step.agent, ()):
            if agent not in present:
                raise InvalidCommandError(
                    f"step {step.step_id!r} of {step.agent} has no step of {agent} in depends_on"
                )


def plan_schema(agents: Sequence[str]) -> dict[str, Any]:
    """Return the JSON Schema of an `ExecutionPlan` of these ``agents`` for an endpoint.

    A schema cannot require unique ids or the absence of cycles, so the plan is validated as well.
    """
    properties = {
        "step_id": _STEP_ID,
        "agent": {"type": "string", "enum": list(agents)},
        "description": _TEXT,
        "depends_on": {"type": "array", "items": _STEP_ID, "maxItems": MAX_PLANNED},
    }
    step = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {
            "steps": {"type": "array", "items": step, "minItems": 1, "maxItems": MAX_PLANNED}
        },
        "required": ["steps"],
        "additionalProperties": False,
    }


def report(task: str) -> tuple[Step, ...]:
    """Return the steps retrieve, analyze and write; the writer sees passages and analysis."""
    about = shorten(task, SHORT_TASK)
    named = ", ".join(list(dict.fromkeys(term.surface for term in terms(about)))[:6]) or about
    return (
        Step(
            step_id="step_001",
            agent="retriever",
            description=f"Search the knowledge base for {named}",
        ),
        Step(
            step_id="step_002",
            agent="analyzer",
            description=f"Find what the passages state about: {about}",
            depends_on=("step_001",),
        ),
        Step(
            step_id="step_003",
            agent="writer",
            description=f"Write a report with sources that answers: {about}",
            depends_on=("step_001", "step_002"),
        ),
    )


def research(task: str) -> tuple[Step, ...]:
    """Return the steps of `report`, then the validation and correction of the report."""
    return (
        *report(task),
        Step(
            step_id="step_004",
            agent="validator",
            description="Check each statement of the report against the passage that it cites",
            depends_on=("step_001", "step_003"),
        ),
        Step(
            step_id="step_005",
            agent="optimizer",
            description="Correct what the check has found, and search again for missing terms",
            depends_on=("step_001", "step_003", "step_004"),
        ),
    )
