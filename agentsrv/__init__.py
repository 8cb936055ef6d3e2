"""agentsrv: serve agents over one WebSocket, from a durable log."""

from agentsrv.agents.base import StepContext, TaskContext
from agentsrv.app import VERSION, App
from agentsrv.errors import AgentsrvError, InputDeclined, InputExpired, PermanentError
from agentsrv.models.plan import ExecutionPlan, Step

__version__ = VERSION

__all__ = [
    "AgentsrvError",
    "App",
    "ExecutionPlan",
    "InputDeclined",
    "InputExpired",
    "PermanentError",
    "Step",
    "StepContext",
    "TaskContext",
    "__version__",
]
