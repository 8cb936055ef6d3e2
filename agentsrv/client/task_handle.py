"""A task on the server: follow it, answer its questions, cancel it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

from agentsrv.client import results
from agentsrv.client.answers import OnInput, answering
from agentsrv.client.command_sender import CommandSender
from agentsrv.client.errors import ReplyLostError, TaskCancelledError, TaskFailedError
from agentsrv.client.subscriptions import TERMINAL_STATUSES, EventIterator, TaskSubscriptions
from agentsrv.errors import ConflictError, InvalidStateError
from agentsrv.models import events as e
from agentsrv.models.canonical import canonical
from agentsrv.models.events import Record

OnEvent = Callable[[Record], Awaitable[None] | None]


class TaskHandle:
    """A task on the server, by its ``id``. `Client` makes the handles.

    A handle owns nothing on the server: the task continues when its handles are gone. Any number of
    handles may name one task.

    A handle of ``Client.start`` receives events from the first one on. They are kept, up to
    ``Options.buffer``, until `events` or `result` is called; a handle that is dropped before
    unsubscribes.

    Errors are those that `Client` describes. In addition, every method that sends a command raises
    `NotFoundError` if the server has no such task, or if it belongs to another principal.
    """

    def __init__(
        self,
        task_id: str,
        sender: CommandSender,
        subscriptions: TaskSubscriptions,
        *,
        replayed: bool = False,
        is_new: bool = False,
        unread: EventIterator | None = None,
    ) -> None:
        self.id = task_id
        self.replayed = replayed
        """Whether the task existed already when it was created, by its idempotency key."""
        self._sender = sender
        self._subscriptions = subscriptions
        self._is_new = is_new
        """Whether the task was started by this handle, and none of its events were read."""
        self._unread = unread
        """Receives the events from the first one on, until they are read."""

    def __repr__(self) -> str:
        return f"<TaskHandle {self.id}>"

    def __del__(self) -> None:  # in any thread
        if self._unread is not None:
            self._sender.call_in_loop(self._subscriptions.close, self._unread)

    async def execute(self) -> None:
        """Put a pending task into the server's queue.

        If the command had to be sent again over a lost connection and the task is not pending any
        more, the first one has been carried out, and this returns.

        Raises:
            InvalidStateError: The task is not pending.
        """
        fields = {"command": "execute", "task_id": self.id, "subscribe": False}
        try:
            await self._sender.request(fields)
        except InvalidStateError as refusal:
            if not isinstance(refusal.__cause__, ReplyLostError):
                raise

    async def events(self, after_seq: int = 0) -> AsyncGenerator[Record]:
        """Yield the task's events after number ``after_seq``, up to its terminal event.

        A `Record` has the event's number ``seq`` and its ``timestamp``, and ``event`` is the event
        as its class. Events that are in the log already come first. Each comes once, in order and
        without gaps, also over lost connections. Any number of iterators may follow a task. A slow
        one is sent at most ``Options.buffer`` events ahead.

        Closing the iterator (``contextlib.aclosing``) unsubscribes. Cancelling a step of it closes
        it, too; continue with a new iterator after the last number that you have.

        Raises:
            SeqAheadError: ``after_seq`` is greater than the number of the last event.
            OverloadedError: The principal follows as many tasks as the server allows.
            SequenceGapError: The server left out an event.
        """
        self._sender.check()
        iterator = self._open(after_seq)
        try:
            while (record := await iterator.next()) is not None:
                yield record
        finally:
            self._subscriptions.close(iterator)

    async def result(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 - a method of SyncTaskHandle, too
        *,
        on_event: OnEvent | None = None,
        on_input: OnInput | None = None,
    ) -> results.TaskResult:
        """Wait until the task has ended, and return its result.

        Cancelling the call, or its timeout, leaves the task running.

        Args:
            timeout: Seconds to wait; ``None`` for no limit. A pending task never ends.
            on_event: Called with each event from the first one on, and awaited if it is a coroutine
                function. An error that it raises ends the call.
            on_input: Called with each question that is open, and returns the answer or raises
                `InputDeclined`. If the server refuses the answer, it is called again with the
                refusal. It may be a coroutine function, which is cancelled when the question is
                settled otherwise.

        Raises:
            TaskFailedError: The task failed.
            TaskCancelledError: The task was cancelled.
            TimeoutError: The task has not ended after ``timeout`` seconds.
        """
        async with asyncio.timeout(timeout):
            return await self._result(on_event, on_input)

    async def status(self) -> results.TaskSnapshot:
        """Return the task's status, its steps with their texts, and its open questions."""
        fields = {"command": "status", "task_id": self.id}
        return results.to_snapshot(await self._sender.request(fields))

    async def cancel(
        self, reason: str | None = None, *, grace: float | None = None
    ) -> results.Cancellation:
        """Cancel the task. It has ended when `events` yields ``task_cancelled``.

        Args:
            reason: Kept in the task's events.
            grace: Seconds that running steps have to end; ``None`` for the server's setting.
        """
        fields = {"command": "cancel", "task_id": self.id, "reason": reason, "grace": grace}
        return results.to_cancellation(await self._sender.request(fields))

    async def send(self, message: Any) -> int:
        """Send the task's running agents a message: text or JSON. Return its number in the log.

        Raises:
            ReplyLostError: The connection was lost before the reply. The message is not sent again,
                because it might arrive twice.
            InvalidStateError: The task is not running.
            TooLargeError: The task has too many messages, or this one is too long.
        """
        fields = {"command": "send", "task_id": self.id, "message": message}
        reply = await self._sender.request(fields, resend=False)
        return int(reply["seq"])

    async def respond(self, input_id: str, value: Any = None, *, decline: bool = False) -> None:
        """Answer a question of an agent, or decline to.

        If the command had to be sent again over a lost connection and the question is settled by
        the same answer, the first one has been carried out, and this returns. The log has only the
        ciphertext of a secret answer; there, any answer counts as the same.

        Args:
            input_id: The id in ``input_required``, and in ``status().inputs``.
            value: The answer, as the question's schema describes it.
            decline: Whether to decline; then there is no ``value``.

        Raises:
            InvalidInputError: The answer is not valid; the question stays open.
            ConflictError: The question was settled before, by another answer.
            InvalidStateError: The step or the task has ended.
            NotFoundError: There is no such question.
        """
        action = "decline" if decline else "accept"
        fields = {"command": "respond", "input_id": input_id, "value": value, "action": action}
        try:
            await self._sender.request(fields)
        except ConflictError as refusal:
            if not isinstance(refusal.__cause__, ReplyLostError):
                raise
            settled = await self._find_answer(input_id)
            if settled is None or settled["action"] != action:
                raise
            found = settled["value"]
            if not e.is_sealed(found) and canonical(found) != canonical(value):
                raise

    def _open(self, after_seq: int) -> EventIterator:
        unread, self._unread, self._is_new = self._unread, None, False
        if unread is not None and after_seq == 0:
            return unread
        iterator = self._subscriptions.open(self.id, after_seq)
        if unread is not None:
            self._subscriptions.close(unread)
        return iterator

    async def _result(
        self, on_event: OnEvent | None, on_input: OnInput | None
    ) -> results.TaskResult:
        # The log of a new task is read from its beginning. For any other one the status is read
        # first: it replaces the events so far, and says which of the questions so far are open.
        after_seq, snapshot = 0, None if self._is_new else await self.status()
        if snapshot is not None and on_event is None:
            after_seq = snapshot.seq - (snapshot.status in TERMINAL_STATUSES)
        async with (
            answering(self.respond, on_input, snapshot, after_seq) as see,
            aclosing(self.events(after_seq)) as events,
        ):
            async for record in events:
                see(record)
                if on_event is not None:
                    awaitable = on_event(record)
                    if inspect.isawaitable(awaitable):
                        await awaitable
                match record.event if record.is_terminal else None:
                    case e.TaskCompleted() as completed:
                        return results.to_result(self.id, completed)
                    case e.TaskFailed() as failed:
                        raise TaskFailedError(self.id, failed)
                    case e.TaskCancelled() as cancelled:
                        raise TaskCancelledError(self.id, cancelled)
        raise AssertionError(f"the log of task {self.id} ended without a terminal event")

    async def _find_answer(self, input_id: str) -> Mapping[str, Any] | None:
        """Return the data of the question's ``input_received``, if there is one by now."""
        last_seq = (await self.status()).seq
        async with aclosing(self.events()) as events:
            async for record in events:
                is_answer = record.event_type == e.InputReceived.event_type
                if is_answer and record.data["input_id"] == input_id:
                    return record.data
                if record.seq >= last_seq:
                    break
        return None
