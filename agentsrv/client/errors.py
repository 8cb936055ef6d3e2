"""The errors of the client, in addition to those that a server sends (``agentsrv.errors``).

All are `AgentsrvError`::

    AgentsrvError
    ├── TaskFailedError, TaskCancelledError   the task ended without its output
    ├── ServerUnavailableError                no server answers
    │   └── NotAServerError                   the peer does not speak agentsrv.v1
    ├── ConnectionClosedError                 the connection ended for good
    ├── ProtocolError                         the peer violated the protocol
    │   └── SequenceGapError                  an event is missing
    ├── ReplyLostError                        the connection was lost before the reply
    ├── ClientUsageError                      the client is used where it has no connection
    └── UnauthenticatedError, NotFoundError … the refusals of the server, one for each code
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentsrv.errors import AgentsrvError, by_code
from agentsrv.models import events as e


class ServerUnavailableError(AgentsrvError):
    """No server answers at the URL, and the limits of ``Reconnect`` are reached."""

    code = "no_server"
    retryable = True


class NotAServerError(ServerUnavailableError):
    """The peer at the URL does not speak ``agentsrv.v1``."""

    retryable = False


class ConnectionClosedError(AgentsrvError):
    """The connection ended for good: the client was closed, or the server closed it for good."""

    code = "closed"


class ClientUsageError(AgentsrvError):
    """The client is used where it has no connection.

    Outside ``async with``, in another event loop, in a child of ``os.fork()``, or entered twice.
    """

    code = "client_usage"


class ProtocolError(AgentsrvError):
    """The server sent a frame that the protocol does not allow, or one above ``max_frame``."""

    code = "protocol_violation"


class SequenceGapError(ProtocolError):
    """An event is missing between two that arrived: the log is not complete."""


class ReplyLostError(AgentsrvError):
    """The connection was lost before the reply; the command may have been carried out.

    Raised by ``TaskHandle.send``, whose command is not sent again. Any other command is sent again
    on the next connection; if the server then refuses it, this error is the ``__cause__`` of the
    refusal.
    """

    code = "interrupted"
    retryable = True


class TaskFailedError(AgentsrvError):
    """The task failed. ``event`` is its last event, with the failed step and the partial output."""

    code = "task_failed"

    def __init__(self, task_id: str, event: e.TaskFailed) -> None:
        where = f" in {event.failed_step}" if event.failed_step else ""
        super().__init__(f"task {task_id} failed{where}: {event.error_message}")
        self.task_id = task_id
        self.event = event


class TaskCancelledError(AgentsrvError):
    """The task was cancelled. ``event`` is its last event: by whom, why, and the partial output."""

    code = "task_cancelled"

    def __init__(self, task_id: str, event: e.TaskCancelled) -> None:
        why = f": {event.reason}" if event.reason else ""
        super().__init__(f"task {task_id} was cancelled by {event.by}{why}")
        self.task_id = task_id
        self.event = event


def from_frame(frame: Mapping[str, Any]) -> AgentsrvError:
    """Return the error of an ``error`` frame, as the class of its code.

    ``code`` and ``retryable`` are those of the frame: a newer server may send others.
    """
    code = str(frame["code"])
    error = by_code(code)(
        str(frame["message"]),
        retry_after=frame.get("retry_after"),
        details=frame.get("details"),
        example=frame.get("example"),
    )
    error.code, error.retryable = code, bool(frame["retryable"])
    return error
