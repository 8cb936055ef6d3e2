"""The agents and the planner of one application."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentsrv.agents.base import Agent, Planner, TaskContext
from agentsrv.agents.params import Parameters
from agentsrv.errors import ConfigurationError, InvalidCommand
from agentsrv.models.plan import ExecutionPlan, Step


class Registry:
    """Agents by name, and the planner that is asked where a task brings no plan."""

    def __init__(self) -> None:
        self._agents: dict[str, Agent] = {}
        self._planner: Planner | None = None
        self._planner_params: Parameters | None = None

    def add(self, agent: Agent) -> None:
        """Register ``agent``.

        Raises:
            ConfigurationError: The name is taken.
        """
        if agent.name in self._agents:
            raise ConfigurationError(f"an agent {agent.name!r} exists; names must be unique")
        self._agents[agent.name] = agent

    @property
    def planner(self) -> Planner | None:
        """Whoever plans each task that brings no plan.

        Raises:
            ConfigurationError: What it is set to does not take ``(task_description, ctx, ...)``.
        """
        return self._planner

    @planner.setter
    def planner(self, planner: Planner) -> None:
        self._planner_params = Parameters.of(planner, "the planner", {"TaskContext": TaskContext})
        self._planner = planner

    async def ask_planner(self, ctx: TaskContext) -> ExecutionPlan:
        """The planner's plan for the task of ``ctx``; whatever the planner raises is passed on.

        Raises:
            InvalidCommand: There is no planner.
            TypeError: It returned something else than a plan.
        """
        if self._planner is None or self._planner_params is None:
            raise InvalidCommand("the application has no planner; create needs an agent or a plan")
        arguments = self._planner_params.arguments(ctx.params)
        plan = await self._planner(ctx.task_description, ctx, **arguments)
        if not isinstance(plan, ExecutionPlan):
            raise TypeError(f"the planner returned {type(plan).__name__}; expected ExecutionPlan")
        return plan

    def __getitem__(self, name: str) -> Agent:
        return self._agents[name]

    def described(self) -> list[dict[str, Any]]:
        """What the command ``agents`` answers."""
        return [
            {
                "name": agent.name,
                "description": agent.description,
                "params": agent.params.model.model_json_schema(),
            }
            for agent in self._agents.values()
        ]

    def retries(self, name: str) -> int:
        """An agent's default number of retries."""
        return self._agents[name].retry.retries

    def given_plan(self, agent: str | None, plan: ExecutionPlan | None) -> ExecutionPlan | None:
        """The plan that a task brings with it: its own, or one step for its agent.

        Raises:
            InvalidCommand: Both are given, or an agent is unknown.
        """
        if agent is not None and plan is not None:
            raise InvalidCommand("found both agent and plan; expected one of them, or neither")
        if agent is not None:
            plan = ExecutionPlan(steps=(Step(step_id="step_001", agent=agent),))
        if plan is not None:
            self.check_plan(plan)
        return plan

    def check_plan(self, plan: ExecutionPlan) -> None:
        """Refuse a plan with an agent that is not here.

        Raises:
            InvalidCommand: It names the agents that there are.
        """
        for step in plan.steps:
            if step.agent not in self._agents:
                known = ", ".join(sorted(self._agents)) or "none"
                raise InvalidCommand(
                    f"step {step.step_id!r} wants agent {step.agent!r}; there are: {known}",
                    details=[{"field": "agent", "reason": f"one of: {known}"}],
                )

    def check_params(self, params: Mapping[str, Any], plan: ExecutionPlan | None) -> None:
        """Refuse params that the plan's agents cannot take.

        A task whose plan is still to be made is refused what the planner cannot take, and a
        value that every agent with a parameter of that name would refuse.

        Raises:
            InvalidCommand: Its details name each field and the reason.
        """
        if plan is not None:
            agents = [self._agents[name] for name in {step.agent: None for step in plan.steps}]
            complaints = [found for agent in agents for found in agent.params.complaints(params)]
        else:
            planner = self._planner_params
            complaints = planner.complaints(params) if planner is not None else []
            complaints += [found for key in params for found in self._all_refuse(key, params)]
        if complaints:
            details = [
                {
                    "field": ".".join(["params", *(str(part) for part in complaint["loc"])]),
                    "reason": complaint["msg"],
                }
                for complaint in complaints
            ]
            first = details[0]
            raise InvalidCommand(f"{first['field']}: {first['reason']}", details=details)

    def _all_refuse(self, key: str, params: Mapping[str, Any]) -> list[Any]:
        takers = [agent.params for agent in self._agents.values() if key in agent.params.names]
        complaints = [
            [found for found in taker.complaints({key: params[key]}) if found["loc"][:1] == (key,)]
            for taker in takers
        ]
        return complaints[0] if complaints and all(complaints) else []
