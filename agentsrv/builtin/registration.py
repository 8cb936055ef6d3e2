"""The built-in agents and their planner, as ``App()`` has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from agentsrv.agents.agent import Agent, AgentFunction, AgentOptions
from agentsrv.agents.registry import Registry
from agentsrv.builtin.analyzer import AnalyzerAgent
from agentsrv.builtin.optimizer import OptimizerAgent
from agentsrv.builtin.planner import BuiltinPlanner
from agentsrv.builtin.retriever import RetrieverAgent
from agentsrv.builtin.validator import ValidatorAgent
from agentsrv.builtin.writer import WriterAgent
from agentsrv.models.retry import LOCAL_BASE

RETRIEVED: Final = 300.0  # seconds for which what was retrieved is used again


def add_builtin(registry: Registry) -> BuiltinPlanner:
    """Register the built-in agents; make their planner that of ``registry``, and return it."""
    agents: Sequence[tuple[AgentFunction, AgentOptions]] = (
        (
            RetrieverAgent().run,
            {"name": "retriever", "on_failure": "degrade", "cache": RETRIEVED},
        ),
        (AnalyzerAgent().run, {"name": "analyzer"}),
        (WriterAgent().run, {"name": "writer"}),
        (ValidatorAgent().run, {"name": "validator", "on_failure": "degrade"}),
        (OptimizerAgent().run, {"name": "optimizer"}),
    )
    retries: AgentOptions = {"retry_base": LOCAL_BASE, "retry_jitter": False}
    for run, options in agents:
        registry.add(Agent.of(run, **(retries | options)))
    planner = BuiltinPlanner(registry)
    registry.planner = planner.plan
    return planner
