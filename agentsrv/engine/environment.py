"""TaskEnvironment: dependencies and limits that all tasks of a worker share."""

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
    """Limits of the output of agents.

    Attributes:
        step: Characters of text that one attempt may write.
        task: Characters of text that all attempts of a task may write together.
        result: Bytes of a step's result as JSON.
    """

    step: int
    task: int
    result: int = MAX_RESULT


@dataclass(frozen=True, slots=True)
class TaskEnvironment:
    """Dependencies and limits that all tasks of a worker share."""

    node: str
    store: Store
    registry: Registry
    search: Search
    now: Callable[[], float]
    """Seconds since the epoch."""
    grace: float
    """Seconds that steps have to end after a failure of the task, and by default after a cancel."""
    limits: OutputLimits
    model: LanguageModel | None = None
    tracebacks: bool = True
    """Whether events contain the tracebacks of agents' errors."""
    vault: Vault = field(default_factory=Vault)
    """Encrypts the answers to secret questions."""
    measures: ServerMetrics = field(default_factory=ServerMetrics)
    tracing: Tracing | None = None
    processes: ProcessPool | None = None
    state: Any = None
    """The value of the application's lifespan: ``ctx.state``."""
    cache: ResultCache = field(default_factory=ResultCache)
    semaphores: dict[str, asyncio.Semaphore] = field(default_factory=dict)
    """By agent name, for agents with a ``concurrency``; created when first used."""
    suspects: CrashSuspects = field(default_factory=CrashSuspects)

    def semaphore_for(self, agent: Agent) -> asyncio.Semaphore:
        """The semaphore that limits concurrent attempts of ``agent`` to its ``concurrency``."""
        assert agent.concurrency is not None
        if agent.name not in self.semaphores:
            self.semaphores[agent.name] = asyncio.Semaphore(agent.concurrency)
        return self.semaphores[agent.name]
