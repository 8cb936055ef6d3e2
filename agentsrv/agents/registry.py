"""The agents and planners of one application: registration, lookup, and checks of plans."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson
from pydantic_core import ErrorDetails

from agentsrv.agents.agent import (
    PLANNER_SLOTS,
    Agent,
    Planner,
    TaskContext,
    is_async,
)
from agentsrv.agents.isolation.process_function import ProcessFunction
from agentsrv.agents.params import Parameters, origin_of
from agentsrv.agents.values import to_json
from agentsrv.errors import ConfigurationError, InvalidCommandError
from agentsrv.models.plan import ExecutionPlan, Step
from agentsrv.suggest import meant_or_known

MAX_PLAN: Final = 500_000  # bytes of JSON
MAX_DESCRIBED: Final = 1_000_000  # bytes of JSON of all agents' descriptions and parameters
MAX_DETAILS: Final = 10  # complaints about one command
MAX_NAME: Final = 200  # characters of a field's name in a complaint
_STEP_SIZE: Final = 256  # bytes of a step's names, numbers and punctuation


class Registry:
    """Agents by name, and the planner that is asked if a task brings no plan."""

    def __init__(self) -> None:
        self.max_plan = MAX_PLAN
        """Bytes of JSON of a plan."""
        self._agents: dict[str, Agent] = {}
        self._planner: Planner | None = None
        self._ask: Planner | None = None  # the planner as it is called
        self._planner_params: Parameters | None = None

    def add(self, agent: Agent) -> None:
        """Register ``agent``.

        Raises:
            ConfigurationError: The name is taken.
        """
        self._check_free(agent)
        self._agents[agent.name] = agent

    def include(self, other: Registry, only: Sequence[str] | None = None) -> None:
        """Add the agents of ``other`` and its planner, or ``only`` the agents of these names.

        Raises:
            ConfigurationError: A name is taken or unknown, or there are two planners; nothing is
                added.
        """
        for name in only or ():
            if name not in other._agents:
                raise ConfigurationError(
                    f"include() names agent {name!r}; "
                    f"{meant_or_known(name, other._agents, 'agents')}"
                )
        chosen = [agent for name, agent in other._agents.items() if only is None or name in only]
        for agent in chosen:
            if self._agents.get(agent.name) is not agent:
                self._check_free(agent)
        if only is None and other._planner is not None and other._planner != self._planner:
            self.planner = other._planner
        self._agents |= {agent.name: agent for agent in chosen}

    def _check_free(self, agent: Agent) -> None:
        other = self._agents.get(agent.name)
        if other is not None:
            raise ConfigurationError(
                f"agent {agent.name!r} is registered twice: as {other.origin} and as "
                f"{agent.origin}; expected one of them, or another name='…'"
            )

    @property
    def planner(self) -> Planner | None:
        """The function that plans each task that is created without a plan.

        Raises:
            ConfigurationError: There is one already, it is set to something that is not async, or
                a parameter of it cannot be filled.
        """
        return self._planner

    @planner.setter
    def planner(self, planner: Planner) -> None:
        if not is_async(planner):
            raise ConfigurationError(f"the planner is {planner!r}; expected an async function")
        if self._planner is not None:
            raise ConfigurationError(
                f"there are two planners: {origin_of(self._planner)} and {origin_of(planner)}; "
                "expected one"
            )
        self._planner_params = Parameters.of(planner, "the planner", PLANNER_SLOTS)
        self._ask = self._planner_params.adapted(planner)
        self._planner = planner

    async def ask_planner(self, ctx: TaskContext) -> ExecutionPlan:
        """The planner's plan for the task of ``ctx``, with its inputs in the log's form.

        Raises:
            InvalidCommandError: There is no planner.
            TypeError: It returned something else than a plan.
            Exception: Whatever the planner raises.
        """
        if self._ask is None or self._planner_params is None:
            raise InvalidCommandError(
                "the application has no planner; create needs an agent or a plan"
            )
        own = self._planner_params
        arguments = own.arguments(ctx.params) if own.fields or own.takes_all else {}
        plan = await self._ask(ctx.task_description, ctx, **arguments)
        if not isinstance(plan, ExecutionPlan):
            raise TypeError(f"the planner returned {type(plan).__name__}; expected ExecutionPlan")
        for step in plan.steps:
            if step.params or type(step.input) in (dict, list):  # the planner may change them later
                return _own(plan)
        return plan

    def get(self, name: str) -> Agent | None:
        """The agent of that name, if there is one."""
        return self._agents.get(name)

    def __getitem__(self, name: str) -> Agent:
        return self._agents[name]

    def described(self) -> list[dict[str, Any]]:
        """What the command ``agents`` answers."""
        return [
            {
                "name": agent.name,
                "description": agent.description,
                "params": agent.params.schema,
            }
            for agent in self._agents.values()
        ]

    def check_size(self) -> None:
        """Refuse agents that one reply to ``agents`` cannot describe.

        Raises:
            ConfigurationError: Their descriptions and parameters are too large.
        """
        sizes = {
            agent["name"]: len(
                json.dumps(agent, ensure_ascii=False, default=str).encode(errors="replace")
            )
            for agent in self.described()
        }
        total = sum(sizes.values())
        if total > MAX_DESCRIBED:
            largest = max(sizes, key=sizes.__getitem__)
            raise ConfigurationError(
                f"the agents' descriptions and parameters have {total} bytes as JSON, those of "
                f"agent {largest!r} {sizes[largest]}; expected at most {MAX_DESCRIBED}"
            )

    @property
    def process_functions(self) -> list[ProcessFunction]:
        """The functions of agents that run in processes of their own."""
        runs = [agent.run for agent in self._agents.values()]
        return [run for run in runs if isinstance(run, ProcessFunction)]

    def retries(self, name: str) -> int:
        """An agent's default number of retries."""
        return self._agents[name].retry.retries

    def given_plan(self, agent: str | None, plan: ExecutionPlan | None) -> ExecutionPlan | None:
        """The plan that a task brings with it: its own, or one step for its agent.

        Raises:
            InvalidCommandError: Both are given, or an agent is unknown.
        """
        if agent is not None and plan is not None:
            raise InvalidCommandError("found both agent and plan; expected one of them, or neither")
        if agent is not None:
            plan = ExecutionPlan(steps=(Step(step_id="step_001", agent=agent),))
        if plan is not None:
            self.check_plan(plan)
        return plan

    def check_plan(self, plan: ExecutionPlan) -> None:
        """Refuse a plan with an unknown agent or param, or one that is too large for a frame.

        Raises:
            InvalidCommandError: It names what is meant, or the limit.
        """
        size = 0
        for number, step in enumerate(plan.steps):
            if step.agent not in self._agents:
                known = ", ".join(sorted(self._agents)) or "none"
                raise InvalidCommandError(
                    f"step {step.step_id!r} wants agent {step.agent!r}; "
                    f"{meant_or_known(step.agent, self._agents, 'agents')}",
                    details=[{"field": "agent", "reason": f"one of: {known}"}],
                )
            size += _STEP_SIZE + len(step.description.encode()) + 68 * len(step.depends_on)
            if step.input is not None:
                size += len(orjson.dumps(step.input))
            if step.params:
                size += len(orjson.dumps(step.params))
                taker = self._agents[step.agent].params
                _refuse_unknown(step.params, [taker], f"plan.steps.{number}.params")
        if size > self.max_plan:
            raise InvalidCommandError(
                f"the plan has about {size} bytes of JSON; expected at most {self.max_plan}",
                details=[{"field": "plan", "reason": f"more than {self.max_plan} bytes"}],
            )

    def check_names(self, params: Mapping[str, Any], plan: ExecutionPlan | None) -> None:
        """Refuse params of a task that no agent of the plan takes.

        Without a plan all agents and the planner count. An agent with ``**params`` takes all.
        `check_plan` does the same for the params of a step.

        Raises:
            InvalidCommandError: It names the param, and the one that is like it.
        """
        if plan is None:
            takers = [agent.params for agent in self._agents.values()]
            takers += [self._planner_params] if self._planner_params is not None else []
        else:
            takers = [self._agents[name].params for name in {step.agent for step in plan.steps}]
        _refuse_unknown(params, takers, "params")

    def check_params(self, params: Mapping[str, Any], plan: ExecutionPlan | None) -> None:
        """Refuse values that the plan's agents cannot take.

        The params of a step replace those of the task with the same names. A task whose plan is
        still to be made is refused what the planner cannot take, and a value that every agent
        with a parameter of that name would refuse.

        Raises:
            InvalidCommandError: Its details name each field and the reason.
        """
        complaints: list[tuple[str, ErrorDetails]] = []
        if plan is not None:
            for name in {step.agent: None for step in plan.steps if not step.params}:
                agent = self._agents[name]
                complaints += [("", found) for found in agent.params.complaints(params)]
            for number, step in enumerate(plan.steps):
                if step.params:
                    agent, both = self._agents[step.agent], {**params, **step.params}
                    for found in agent.params.complaints(both):
                        is_own = any(part in step.params for part in found["loc"][:1])
                        complaints.append((f"plan.steps.{number}." if is_own else "", found))
        else:
            planner = self._planner_params
            refused = planner.complaints(params) if planner is not None else []
            refused += [found for key in params for found in self._all_refuse(key, params)]
            complaints = [("", found) for found in refused]
        if complaints:
            details = [
                {
                    "field": prefix
                    + ".".join(["params", *(str(part)[:MAX_NAME] for part in complaint["loc"])]),
                    "reason": complaint["msg"],
                }
                for prefix, complaint in complaints[:MAX_DETAILS]
            ]
            first = details[0]
            raise InvalidCommandError(f"{first['field']}: {first['reason']}", details=details)

    def _all_refuse(self, key: str, params: Mapping[str, Any]) -> list[Any]:
        takers = [agent.params for agent in self._agents.values() if key in agent.params.names]
        complaints = [
            [found for found in taker.complaints({key: params[key]}) if found["loc"][:1] == (key,)]
            for taker in takers
        ]
        return complaints[0] if complaints and all(complaints) else []


def _refuse_unknown(params: Mapping[str, Any], takers: Sequence[Parameters], place: str) -> None:
    """Refuse params whose names none of ``takers`` has; ``place`` is the field that has them.

    Raises:
        InvalidCommandError: It names the param, and the one that is like it.
    """
    known = {name for taker in takers for name in taker.names}
    unknown = [name for name in params if name not in known]
    if not unknown or any(taker.takes_all for taker in takers):
        return
    details = [
        {
            "field": f"{place}.{name[:MAX_NAME]}",
            "reason": f"unknown; {meant_or_known(name, known, 'params')}",
        }
        for name in unknown[:MAX_DETAILS]
    ]
    first = details[0]
    raise InvalidCommandError(f"{first['field']}: {first['reason']}", details=details)


def _own(plan: ExecutionPlan) -> ExecutionPlan:
    """The plan with its inputs and params in the log's form."""
    steps = tuple(
        step.model_copy(
            update={
                "input": to_json(step.input, f"{step.step_id}.input"),
                "params": to_json(step.params, f"{step.step_id}.params"),
            }
        )
        for step in plan.steps
    )
    return plan.model_copy(update={"steps": steps})
