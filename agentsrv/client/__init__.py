"""The client: run tasks on an agentsrv server and follow them over lost connections."""

from agentsrv.client.answers import OnInput
from agentsrv.client.backoff import Reconnect
from agentsrv.client.client import Client
from agentsrv.client.connection import Options, Outage
from agentsrv.client.errors import (
    ClientUsageError,
    Closed,
    Gap,
    Interrupted,
    NoServer,
    NotAllowed,
    NotAServer,
    ProtocolViolation,
    TaskCancelled,
    TaskFailed,
)
from agentsrv.client.step_outputs import Texts
from agentsrv.client.sync import SyncClient
from agentsrv.models.events import Record

__all__ = [
    "Client",
    "ClientUsageError",
    "Closed",
    "Gap",
    "Interrupted",
    "NoServer",
    "NotAServer",
    "NotAllowed",
    "OnInput",
    "Options",
    "Outage",
    "ProtocolViolation",
    "Reconnect",
    "Record",
    "SyncClient",
    "TaskCancelled",
    "TaskFailed",
    "Texts",
]
