"""Routes cancel, respond and send to the runner here, to the node with the lease, or to the log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import assert_never

from agentsrv.agents.questions import is_secret
from agentsrv.engine import inputs
from agentsrv.engine.cluster.remote_commands import RemoteCommands
from agentsrv.engine.idle_tasks import IdleTaskWriter, Result, committing
from agentsrv.engine.steering import steer
from agentsrv.engine.worker import Worker
from agentsrv.models import events as e
from agentsrv.models.commands import Cancel, Respond, Send, Steering
from agentsrv.models.states import TaskStatus
from agentsrv.store.base import Head


class CommandRouter:
    """Has a steering command carried out where its task is; results tell of what is committed."""

    def __init__(
        self,
        idle_tasks: IdleTaskWriter,
        worker: Worker,
        remote_commands: RemoteCommands | None,
        now: Callable[[], float],
    ) -> None:
        self._idle_tasks = idle_tasks
        self._worker = worker
        self._remote_commands = remote_commands
        self._now = now

    async def route(
        self, by: str, task_id: str, command: Steering, what: str | None = None
    ) -> Result:
        """Carry a command of the principal ``by`` out, and again where others were first.

        Raises:
            NotFoundError: The principal has no such task; ``what`` is what it looked for.
            AgentsrvError: What the task's state has against the command.
        """

        async def decide(head: Head) -> Result:
            runner = self._worker.live(task_id)
            if runner is not None:
                self._idle_tasks.check_writable()
                try:
                    return steer(runner, by, command)
                finally:
                    await asyncio.sleep(0)  # steps that end in the next turn join this append
                    async with committing():  # an error, too, may depend on uncommitted events
                        await runner.journal.commit()
            if self._remote_commands is not None and self._remote_commands.is_remote(head):
                return await self._remote_commands.execute(head, by, await self._sealed(command))
            return await self._decide_idle(head, by, command)

        return await self._idle_tasks.decide(by, task_id, decide, what)

    async def _decide_idle(self, head: Head, by: str, command: Steering) -> Result:
        """Apply a command to a task that no worker runs."""
        match command:
            case Cancel():
                return await self._cancel_idle(head, by, command)
            case Respond():
                state = await self._idle_tasks.load(head)
                received = inputs.answer_event(state, command, by, self._now(), self._worker.vault)
                await self._idle_tasks.append(head, state, received)
                return {"task_id": head.task_id, "input_id": command.input_id}
            case Send():
                state = await self._idle_tasks.load(head)
                sent = inputs.message_event(state, command.message, by)
                result = await self._idle_tasks.append(head, state, sent)
                return {"task_id": head.task_id, "seq": result["seq"]}
            case _:
                assert_never(command)

    async def _sealed(self, command: Steering) -> Steering:
        """The command as other nodes may store it: with a secret answer encrypted."""
        if not isinstance(command, Respond) or command.action != "accept":
            return command
        state = await self._idle_tasks.latest(inputs.task_of(command.input_id))
        for step in state.steps.values():
            question = step.questions.get(command.input_id)
            if question is not None and is_secret(question.asked.schema):
                sealed = self._worker.vault.seal(command.input_id, command.value)
                return command.model_copy(update={"value": sealed})
        return command

    async def _cancel_idle(self, head: Head, by: str, command: Cancel) -> Result:
        if head.status.is_terminal or head.status is TaskStatus.CANCELLING:
            return {"task_id": head.task_id, "status": head.status.value, "already": True}
        event: e.Event
        if head.status in (TaskStatus.PENDING, TaskStatus.QUEUED):
            event = e.TaskCancelled(
                "cancelled", command.reason, by, stopped=True, partial_output=""
            )
        else:  # its worker is gone; the next one reads the intent and ends the task
            assert command.grace is not None
            event = e.TaskCancelling(command.reason, by, command.grace)
        state = await self._idle_tasks.load(head)
        result = await self._idle_tasks.append(head, state, event)
        return {"task_id": head.task_id, "status": result["status"], "already": False}
