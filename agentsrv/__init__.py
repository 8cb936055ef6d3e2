"""agentsrv: a WebSocket server for agents with a durable log.

The public names are imported on first use (PEP 562), so that a client or ``agentsrv --version``
does not import the server.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentsrv.agents.agent import StepContext, TaskContext
    from agentsrv.agents.collection import Agents
    from agentsrv.agents.llm import LanguageModel
    from agentsrv.app import App
    from agentsrv.errors import (
        AgentsrvError,
        ConfigurationError,
        InputDeclined,
        InputExpired,
        InvalidCommandError,
        InvalidStateError,
        KnowledgeError,
        LifespanError,
        ModelError,
        ModelRefusedError,
        ModelTruncatedError,
        PermanentError,
    )
    from agentsrv.models.plan import ExecutionPlan, ExplainedPlan, Step
    from agentsrv.version import __version__

_MODULES = {
    "Agents": "agentsrv.agents.collection",
    "AgentsrvError": "agentsrv.errors",
    "App": "agentsrv.app",
    "ConfigurationError": "agentsrv.errors",
    "ExecutionPlan": "agentsrv.models.plan",
    "ExplainedPlan": "agentsrv.models.plan",
    "InputDeclined": "agentsrv.errors",
    "InputExpired": "agentsrv.errors",
    "InvalidCommandError": "agentsrv.errors",
    "InvalidStateError": "agentsrv.errors",
    "KnowledgeError": "agentsrv.errors",
    "LanguageModel": "agentsrv.agents.llm",
    "LifespanError": "agentsrv.errors",
    "ModelError": "agentsrv.errors",
    "ModelRefusedError": "agentsrv.errors",
    "ModelTruncatedError": "agentsrv.errors",
    "PermanentError": "agentsrv.errors",
    "Step": "agentsrv.models.plan",
    "StepContext": "agentsrv.agents.agent",
    "TaskContext": "agentsrv.agents.agent",
    "__version__": "agentsrv.version",
}

__all__ = [
    "Agents",
    "AgentsrvError",
    "App",
    "ConfigurationError",
    "ExecutionPlan",
    "ExplainedPlan",
    "InputDeclined",
    "InputExpired",
    "InvalidCommandError",
    "InvalidStateError",
    "KnowledgeError",
    "LanguageModel",
    "LifespanError",
    "ModelError",
    "ModelRefusedError",
    "ModelTruncatedError",
    "PermanentError",
    "Step",
    "StepContext",
    "TaskContext",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import the module of a public name (PEP 562)."""
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(module), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
