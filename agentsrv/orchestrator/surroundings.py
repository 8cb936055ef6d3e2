"""Surroundings: what every task of a worker shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentsrv.agents.base import Search
from agentsrv.agents.registry import Registry
from agentsrv.orchestrator.steps import OutputLimits
from agentsrv.store.base import Store

if TYPE_CHECKING:
    from agentsrv.agents.llm import LanguageModel


@dataclass(frozen=True, slots=True)
class Surroundings:
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
