"""The client of an agentsrv server: start tasks, follow their events, and get their results.

`Client` is for asyncio, `SyncClient` for programs without it; both make handles of tasks. The
modules, from the bottom to the top:

- `tokens`, `trust`, `backoff`: credentials, certificates and waits of a connection
- `errors`, `connection_errors`: exceptions, and those that connection failures raise
- `frames`, `results`: validated frames, and the values that methods return
- `subscriptions`: which events are requested, and the buffers of their iterators; no I/O
- `connection`: one connection that is replaced when it is lost, and its pending commands
- `command_sender`, `answers`, `task_handle`, `client`: commands as methods
- `loop_thread`, `sync`: the same methods from other threads

Nothing here imports pydantic before the first frame is read, and nothing needs Unix.
"""

from agentsrv.client.answers import OnInput
from agentsrv.client.backoff import Reconnect
from agentsrv.client.client import Client
from agentsrv.client.connection import Options, Outage
from agentsrv.client.errors import (
    ClientUsageError,
    ConnectionClosedError,
    NotAServerError,
    ProtocolError,
    ReplyLostError,
    SequenceGapError,
    ServerUnavailableError,
    TaskCancelledError,
    TaskFailedError,
)
from agentsrv.client.results import (
    AgentInfo,
    Cancellation,
    Hello,
    ServerInfo,
    StepSnapshot,
    TaskPage,
    TaskResult,
    TaskSnapshot,
    TaskSummary,
)
from agentsrv.client.step_outputs import StepOutputs
from agentsrv.client.sync import SyncClient, SyncTaskHandle
from agentsrv.client.task_handle import TaskHandle
from agentsrv.models.events import Record

__all__ = [
    "AgentInfo",
    "Cancellation",
    "Client",
    "ClientUsageError",
    "ConnectionClosedError",
    "Hello",
    "NotAServerError",
    "OnInput",
    "Options",
    "Outage",
    "ProtocolError",
    "Reconnect",
    "Record",
    "ReplyLostError",
    "SequenceGapError",
    "ServerInfo",
    "ServerUnavailableError",
    "StepOutputs",
    "StepSnapshot",
    "SyncClient",
    "SyncTaskHandle",
    "TaskCancelledError",
    "TaskFailedError",
    "TaskHandle",
    "TaskPage",
    "TaskResult",
    "TaskSnapshot",
    "TaskSummary",
]
