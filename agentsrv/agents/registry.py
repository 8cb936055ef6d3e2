"""The agents and the planner of one application."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentsrv.agents.base import Agent, Planner
from agentsrv.errors import ConfigurationError, InvalidCommand
from agentsrv.models.plan import ExecutionPlan, Step


class Registry:
    """Agents by name, and the planner that is asked where a task brings no plan."""

    def __init__(self, planner: Planner | None = None) -> None:
        self._agents: dict[str, Agent] = {}
        self.planner = planner

    def add(self, agent: Agent) -> None:
        """Register ``agent``.

        Raises:
            ConfigurationError: The name is taken.
        """
        if agent.name in self._agents:
            raise ConfigurationError(f"an agent {agent.name!r} exists; names must be unique")
        self._agents[agent.name] = agent

    def __getitem__(self, name: str) -> Agent:
        return self._agents[name]

    def described(self) -> list[dict[str, Any]]:
        """What the command ``agents`` answers."""
        return [
            {
                "name": agent.name,
                "description": agent.description,
                "params": agent.params.model_json_schema(),
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

        A task whose plan is still to be made is refused a value that every agent with a
        parameter of that name would refuse.

        Raises:
            InvalidCommand: Its details name each field and the reason.
        """
        if plan is not None:
            agents = [self._agents[name] for name in {step.agent: None for step in plan.steps}]
            complaints = [found for agent in agents for found in agent.complaints(params)]
        else:
            complaints = [
                complaint for key in params for complaint in self._all_refuse(key, params)
            ]
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
        takers = [agent for agent in self._agents.values() if key in agent.param_names]
        complaints = [
            [found for found in agent.complaints({key: params[key]}) if found["loc"][:1] == (key,)]
            for agent in takers
        ]
        return complaints[0] if complaints and all(complaints) else []
