"""Surroundings: what every task of a worker shares."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from agentsrv.agents.agent import Agent, Search
from agentsrv.agents.registry import Registry
from agentsrv.engine.cache import ResultCache
from agentsrv.engine.crash_suspects import CrashSuspects
from agentsrv.engine.vault import Vault
from agentsrv.store.base import Store
from agentsrv.telemetry.server_metrics import ServerMetrics

if TYPE_CHECKING:
    from agentsrv.agents.isolation.process_function import ProcessPool
    from agentsrv.agents.llm import LanguageModel
    from agentsrv.telemetry.tracing import Tracing

MAX_RESULT: Final = 250_000  # bytes of JSON


@dataclass(frozen=True, slots=True)
class OutputLimits:
    """Limits of what agents write.

    Attributes:
        step: Characters of text of one attempt.
        task: Characters of text of all attempts of a task.
        result: Bytes of JSON of a step's result.
    """

    step: int
    task: int
    result: int = MAX_RESULT


@dataclass(frozen=True, slots=True)
class TaskEnvironment:
    """What every task of a worker shares."""

    node: str
    store: Store
    registry: Registry
    search: Search
    now: Callable[[], float]
    """Seconds since the epoch."""
    grace: float
    """Seconds that stopped steps have to end."""
    limits: OutputLimits
    model: LanguageModel | None = None
    tracebacks: bool = True
    """Whether events carry the tracebacks of agents' errors."""
    vault: Vault = field(default_factory=Vault)
    """Encrypts the answers to secret questions."""
    measures: ServerMetrics = field(default_factory=ServerMetrics)
    tracing: Tracing | None = None
    processes: ProcessPool | None = None
    state: Any = None
    """The value of the application's lifespan: ``ctx.state``."""
    cache: ResultCache = field(default_factory=ResultCache)
    gates: dict[str, asyncio.Semaphore] = field(default_factory=dict)
    """By the name of an agent with a ``concurrency`` of its own; made when first needed."""
    suspects: CrashSuspects = field(default_factory=CrashSuspects)

    def semaphore_for(self, agent: Agent) -> asyncio.Semaphore:
        """What lets only so many steps of ``agent`` run at the same time."""
        assert agent.concurrency is not None
        if agent.name not in self.gates:
            self.gates[agent.name] = asyncio.Semaphore(agent.concurrency)
        return self.gates[agent.name]
