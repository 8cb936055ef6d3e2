"""What a client may have to tell beside the server's own errors (``agentsrv.errors``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentsrv.errors import AgentsrvError, by_code
from agentsrv.models import events as e


class ServerUnavailableError(AgentsrvError):
    """Nobody answers at the URL, within the limits of ``Reconnect``."""

    code = "no_server"
    retryable = True


class NotAServerError(ServerUnavailableError):
    """Something answers at the URL, but it does not speak ``agentsrv.v1``."""

    retryable = False


class AccessDeniedError(AgentsrvError):
    """The server knows who asks, or does not, and refuses the connection."""

    code = "unauthenticated"


class ConnectionClosedError(AgentsrvError):
    """The connection ended for good: the client was closed, or the server will not go on."""

    code = "closed"


class ClientUsageError(AgentsrvError):
    """The client is used where it has no connection.

    Outside ``async with``, in another event loop, in a child of ``os.fork()``, or entered twice.
    """

    code = "client_usage"


class ProtocolError(AgentsrvError):
    """The server sent what the protocol does not allow, or more than the client takes."""

    code = "protocol_violation"


class SequenceGapError(ProtocolError):
    """An event is missing between two that arrived: the log is not complete."""


class ReplyLostError(AgentsrvError):
    """The connection was lost before the answer; the command may have been carried out.

    Raised by ``send``, which is not asked again. Else seen as the cause of an error: the command
    was asked again, and then refused.
    """

    code = "interrupted"
    retryable = True


class TaskFailedError(AgentsrvError):
    """The task ended without its output; ``event`` tells how far it came."""

    code = "task_failed"

    def __init__(self, task_id: str, event: e.TaskFailed) -> None:
        where = f" in {event.failed_step}" if event.failed_step else ""
        super().__init__(f"task {task_id} failed{where}: {event.error_message}")
        self.task_id = task_id
        self.event = event


class TaskCancelledError(AgentsrvError):
    """The task was cancelled; ``event`` tells by whom and what was written until then."""

    code = "task_cancelled"

    def __init__(self, task_id: str, event: e.TaskCancelled) -> None:
        why = f": {event.reason}" if event.reason else ""
        super().__init__(f"task {task_id} was cancelled by {event.by}{why}")
        self.task_id = task_id
        self.event = event


def from_frame(frame: Mapping[str, Any]) -> AgentsrvError:
    """The error that an ``error`` frame tells, as the class of its code."""
    code = str(frame["code"])
    error = by_code(code)(
        str(frame["message"]),
        retry_after=frame.get("retry_after"),
        details=frame.get("details"),
        example=frame.get("example"),
    )
    error.code, error.retryable = code, bool(frame["retryable"])  # a newer server's may differ
    return error
