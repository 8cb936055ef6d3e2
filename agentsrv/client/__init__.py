"""The client: run tasks on an agentsrv server and follow them over lost connections."""

from agentsrv.client.answers import OnInput
from agentsrv.client.backoff import Reconnect
from agentsrv.client.client import Client
from agentsrv.client.connection import Options, Outage
from agentsrv.client.errors import (
    AccessDeniedError,
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
from agentsrv.client.step_outputs import StepOutputs
from agentsrv.client.sync import SyncClient
from agentsrv.models.events import Record

__all__ = [
    "AccessDeniedError",
    "Client",
    "ClientUsageError",
    "ConnectionClosedError",
    "NotAServerError",
    "OnInput",
    "Options",
    "Outage",
    "ProtocolError",
    "Reconnect",
    "Record",
    "ReplyLostError",
    "SequenceGapError",
    "ServerUnavailableError",
    "StepOutputs",
    "SyncClient",
    "TaskCancelledError",
    "TaskFailedError",
]
