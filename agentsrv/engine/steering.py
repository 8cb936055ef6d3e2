"""Applies cancel, respond and send to the runner of a task, in one turn of the event loop."""

from __future__ import annotations

from typing import assert_never

from agentsrv.engine.endings import CancelRequest
from agentsrv.engine.idle_tasks import Result
from agentsrv.engine.runner import TaskRunner
from agentsrv.models.commands import Cancel, Respond, Send, Steering


def steer(runner: TaskRunner, by: str, command: Steering) -> Result:
    """Apply a command to a task that runs here.

    Send the result or the error to the client only after the runner's journal has committed: both
    depend on events that may not be committed yet.

    Raises:
        NotFoundError, ConflictError, InvalidStateError, InvalidInputError, TooLargeError: Nothing
            was changed.
    """
    task_id = runner.state.task_id
    match command:
        case Cancel():
            assert command.grace is not None
            request = CancelRequest(command.reason, by, command.grace)
            status, already = runner.cancel(request)
            return {"task_id": task_id, "status": status.value, "already": already}
        case Respond():
            runner.inputs.respond(command, by)
            return {"task_id": task_id, "input_id": command.input_id}
        case Send():
            return {"task_id": task_id, "seq": runner.inputs.send(command.message, by)}
        case _:
            assert_never(command)
