"""Client: ask a server for work, follow it, and not notice when the connection breaks."""

from __future__ import annotations

import asyncio
import inspect
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, cast

from websockets.exceptions import InvalidURI
from websockets.uri import parse_uri

from agentsrv.client.answers import OnInput, answering
from agentsrv.client.command_sender import CommandSender
from agentsrv.client.connection import OnConnection, Options, ReconnectingConnection
from agentsrv.client.errors import (
    ConnectionClosedError,
    ReplyLostError,
    TaskCancelledError,
    TaskFailedError,
)
from agentsrv.client.subscriptions import Answer, TaskSubscriptions
from agentsrv.client.tokens import Token
from agentsrv.error_text import redact_url
from agentsrv.errors import (
    ConfigurationError,
    ConflictError,
    InvalidCommandError,
    InvalidStateError,
)
from agentsrv.models import events as e
from agentsrv.models.canonical import canonical
from agentsrv.models.events import Record

if TYPE_CHECKING:  # what only annotations name: the client works without pydantic
    from agentsrv.models.plan import ExecutionPlan
    from agentsrv.models.replies import (
        AgentInfo,
        CancelReply,
        Created,
        RespondReply,
        SendReply,
        Snapshot,
        TaskPage,
        TaskReply,
    )
    from agentsrv.protocol.frame_types import Hello

OnEvent = Callable[[Record], Awaitable[None] | None]


class Client:
    """A connection to an agentsrv server that comes back by itself.

    ::

        async with Client("ws://127.0.0.1:8765") as client:
            result = await client.run("How does async I/O affect throughput?")
            print(result.final_output)

    A lost connection, a restarted server and a server that drains are bridged: commands that
    wait for their answer are asked again, each in a way that carries it out once, and iterators
    of events go on where they were. Who waits notices nothing but the time, until the limits of
    ``Options.reconnect`` are reached; then commands and iterators raise `ServerUnavailableError`.

    Every command raises the server's refusals as the classes of ``agentsrv.errors`` with their
    ``retryable``, ``retry_after`` and ``details``. If there is no connection and there will be
    none, they raise `ServerUnavailableError`, `AccessDeniedError`, `ConnectionClosedError` or
    `ProtocolError`. Cancelling a command
    withdraws the caller: what was asked may have been carried out or not.

    Owns a task, and one that writes while there is a connection; leaving the ``async with`` ends
    them and, by `ConnectionClosedError`, every command and iterator; tasks on the server go on. One
    event loop's.

    Args:
        url: Where the server is, ``ws://HOST:PORT`` or ``wss://…``; ``http`` and ``https`` mean the
            same.
        options: Limits, and the clock, chance and sleep.
        token: An API key or a JSON Web Token, for a server that asks for one; or a function that
            gives the one that counts now, asked before each connection. It may be a coroutine
            function. A connection whose token expires is then followed by another.

    Raises:
        ConfigurationError: The URL is not one of a WebSocket, or the token or the file of the CA
            cannot be used.
        ServerUnavailableError, NotAServerError, AccessDeniedError: On entering: there is no
            connection to be had.
        ClientUsageError: Of every method: the client was not entered, or is used in another event
            loop, or in a child of ``os.fork()``.
    """

    def __init__(
        self, url: str, options: Options | None = None, *, token: Token | None = None
    ) -> None:
        scheme, _, rest = url.partition("://")
        if scheme in ("http", "https"):  # as browsers show the same address
            url = f"{scheme.replace('http', 'ws')}://{rest}"
        try:
            parse_uri(url)
        except (InvalidURI, ValueError):  # also of a port or a name that cannot be one
            raise ConfigurationError(
                f"the URL is {redact_url(url)!r}; expected one like ws://127.0.0.1:8765"
            ) from None
        self._options = options or Options()
        self._subscriptions = TaskSubscriptions(self._send_for_feed, self._options.buffer)
        self._link = ReconnectingConnection(url, self._options, self._subscriptions, token)
        self._caller = CommandSender(self._link)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = self._link.start()
        try:
            await self._link.ready.wait()
        except BaseException:
            await self.aclose()
            raise
        if self._link.failure is not None:
            await self.aclose()
            raise self._link.failure
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection; to do it again changes nothing.

        In a child of ``os.fork()`` nothing is closed: the connection is the parent's.

        Raises:
            ClientUsageError: The client belongs to another event loop.
        """
        if self._task is not None and not self._link.is_forked:
            self._link.check_loop()
            self._task.cancel()
            await asyncio.wait({self._task})

    @property
    def hello(self) -> Hello:
        """The server's latest greeting: its version, limits and commands."""
        if self._link.hello is None:
            raise ConnectionClosedError("the client is not connected; use it within async with")
        return self._link.hello

    @property
    def on_connection(self) -> OnConnection | None:
        """Called with an `Outage` when the connection is lost and after each failed attempt.

        Called with ``None`` when the connection is back. It must not wait; what it raises is
        logged.
        """
        return self._link.on_connection

    @on_connection.setter
    def on_connection(self, function: OnConnection | None) -> None:
        self._link.on_connection = function

    # Commands.

    async def create(
        self,
        task_description: str,
        *,
        agent: str | None = None,
        plan: ExecutionPlan | Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        execute: bool = False,
        subscribe: bool = False,
        deadline: float | None = None,
        on_disconnect: Literal["continue", "cancel"] | None = None,
        resume_from: str | None = None,
        metadata: Mapping[str, str] | None = None,
        traceparent: str | None = None,
    ) -> Created:
        """Put a task into the server's log; with ``execute`` also into its queue.

        It is created once, even where the answer is cut off: the client makes a key without one.

        Args:
            task_description: What is to be done.
            agent: The one agent that does it, instead of a plan.
            plan: The plan, instead of the server's planner.
            params: Handed to the agents.
            idempotency_key: The same key and the same task within a day: the task is not new.
            execute: Begin at once.
            subscribe: With ``execute``: events come right behind the answer, up to a buffer's
                worth, and wait for `events`, which must follow. Saves a round trip. Without
                effect together with an ``idempotency_key``.
            deadline: Seconds from the execution on, after which the task fails.
            on_disconnect: ``"cancel"`` ends the task with this connection, come back or not.
            resume_from: A failed or cancelled task; its plan and completed steps are taken over.
            metadata: Kept with the task.
            traceparent: The caller's span, of which the task is traced as a part.
        """
        follow = execute and subscribe and idempotency_key is None
        # An ExecutionPlan is known by its method: its module needs pydantic.
        if plan is not None and hasattr(plan, "model_dump"):
            plan = plan.model_dump(mode="json", exclude_none=True)
        fields = {
            "command": "create",
            "task_description": task_description,
            "agent": agent,
            "plan": plan,
            "params": params,
            "idempotency_key": idempotency_key or uuid.uuid4().hex,
            "execute": execute,
            "subscribe": follow,
            "deadline": deadline,
            "on_disconnect": on_disconnect,
            "resume_from": resume_from,
            "metadata": metadata,
            "traceparent": traceparent,
        }
        reply = await self._caller.ask(fields, self._follow if follow else None)
        return cast("Created", reply)

    async def execute(self, task_id: str) -> TaskReply:
        """Run a pending task.

        Where it was asked again over a lost connection and the task is not pending any more,
        it counts as carried out the first time.

        Raises:
            InvalidStateError: The task is not pending.
        """
        fields = {"command": "execute", "task_id": task_id, "subscribe": False}
        try:
            return cast("TaskReply", await self._caller.ask(fields))
        except InvalidStateError as refusal:
            if not isinstance(refusal.__cause__, ReplyLostError):
                raise
        found = await self.status(task_id)
        return {"task_id": task_id, "status": found["status"], "seq": found["seq"]}

    async def status(self, task_id: str) -> Snapshot:
        """Tell all about a task."""
        return cast("Snapshot", await self._caller.ask({"command": "status", "task_id": task_id}))

    async def list(
        self, *, status: str | None = None, limit: int = 50, cursor: str | None = None
    ) -> TaskPage:
        """Tell which tasks there are, the newest first; at most ``limit`` (1 to 500) at once."""
        fields = {"command": "list", "status": status, "limit": limit, "cursor": cursor}
        return cast("TaskPage", await self._caller.ask(fields))

    async def cancel(
        self,
        task_id: str | None = None,
        *,
        idempotency_key: str | None = None,
        reason: str | None = None,
        grace: float | None = None,
    ) -> CancelReply:
        """Stop a task, named by its id or by the key that it was created with.

        The reply tells that the intent is in the log; `events` tells when it has ended.
        ``grace`` is how many seconds its steps have for that.
        """
        fields = {
            "command": "cancel",
            "task_id": task_id,
            "idempotency_key": idempotency_key,
            "reason": reason,
            "grace": grace,
        }
        return cast("CancelReply", await self._caller.ask(fields))

    async def respond(
        self, input_id: str, value: Any = None, *, decline: bool = False
    ) -> RespondReply:
        """Answer an agent's question, or decline to.

        Where it was asked again over a lost connection and the question is settled by the same
        answer, it counts as carried out the first time. The answer to a secret question cannot be
        compared, as only its ciphertext is in the log: there, any answer counts as this one.

        Raises:
            InvalidInputError: The value is no answer to it; the question stays open.
            Conflict: It was settled before, by another answer than this.
            InvalidStateError: Its step or its task has ended.
            NotFoundError: There is no such question.
        """
        action = "decline" if decline else "accept"
        fields = {"command": "respond", "input_id": input_id, "value": value, "action": action}
        try:
            return cast("RespondReply", await self._caller.ask(fields))
        except ConflictError as refusal:
            if not isinstance(refusal.__cause__, ReplyLostError):
                raise
            task_id = input_id.partition("/")[0]
            settled = await self._settled(task_id, input_id)
            if settled is None or settled["action"] != action:
                raise
            found = settled["value"]  # as the log has it
            if not e.is_sealed(found) and canonical(found) != canonical(value):
                raise
        return {"task_id": task_id, "input_id": input_id}

    async def send(self, task_id: str, message: Any) -> SendReply:
        """Give the agents of a running task a message: text or JSON.

        Raises:
            Interrupted: The connection was lost before the answer. It is not sent again, as it
                might then arrive twice.
            InvalidStateError: The task does not run.
            TooLargeError: It has too many messages, or too long ones.
        """
        fields = {"command": "send", "task_id": task_id, "message": message}
        return cast("SendReply", await self._caller.ask(fields, resend=False))

    async def agents(self) -> Sequence[AgentInfo]:
        """Tell which agents there are, and their parameters."""
        return cast(
            "Sequence[AgentInfo]", (await self._caller.ask({"command": "agents"}))["agents"]
        )

    async def ping(self) -> float:
        """Ask for nothing but an answer; return the seconds that it took."""
        started = self._options.clock()
        await self._caller.ask({"command": "ping"})
        return self._options.clock() - started

    async def resolve(self, prefix: str) -> str:
        """The id of the one task whose id begins with ``prefix``.

        Asked as people ask it, by a command line: the server knows which tasks there are.

        Raises:
            NotFoundError: There is no such task.
            InvalidCommandError: More than one id begins so, or no id can.
        """
        if len(prefix.split()) != 1:
            raise InvalidCommandError(f"the task is {prefix!r}; expected one id, or its beginning")
        answer = await self._caller.ask_by_line(f"status {prefix}")
        return str(answer["task_id"])

    # Events.

    async def events(self, task_id: str, after_seq: int = 0) -> AsyncGenerator[Record]:
        """The events of a task that follow number ``after_seq``, up to its terminal event.

        Each comes once, in order and without a hole, over however many connections; a hole
        would raise `SequenceGapError`. Any number of iterators may follow a task. A slow one is
        sent no more than ``Options.buffer`` events ahead, and holds nobody else up for longer than
        it takes the server to send again what it has missed.

        Closing the iterator (``aclosing``, or leaving the loop for good) unsubscribes.
        Cancelling it, as by a time-out around one step, closes it too; go on with a new one
        behind the last number that you have.

        Raises:
            NotFoundError: There is no such task.
            SeqAheadError: ``after_seq`` lies beyond the log.
            Overloaded: You follow as many tasks as the server allows.
        """
        self._link.check()
        cursor = self._subscriptions.open(task_id, after_seq)
        try:
            while (record := await cursor.next()) is not None:
                yield record
        finally:
            self._subscriptions.close(cursor)

    async def run(
        self,
        task_description: str,
        *,
        on_event: OnEvent | None = None,
        on_input: OnInput | None = None,
        agent: str | None = None,
        plan: ExecutionPlan | Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        deadline: float | None = None,
        resume_from: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> e.TaskCompleted:
        """Create a task, execute it, and return how it ended; ``final_output`` is its text.

        ``on_event`` is called with each event, and awaited if it is a coroutine function.
        ``on_input`` is called with each question and returns its answer; it may be a coroutine
        function, which then is cancelled when there is nothing to be answered any more.
        Cancelling the call leaves the task running on the server; `cancel` stops it.

        Raises:
            TaskFailed: The task failed.
            TaskCancelled: Somebody cancelled it.
        """
        created = await self.create(
            task_description,
            agent=agent,
            plan=plan,
            params=params,
            idempotency_key=idempotency_key,
            execute=True,
            subscribe=True,
            deadline=deadline,
            resume_from=resume_from,
            metadata=metadata,
        )
        task_id = created["task_id"]
        async with (
            answering(self.respond, on_input) as see,
            aclosing(self.events(task_id)) as events,
        ):
            async for record in events:
                see(record)
                if on_event is not None:
                    awaitable = on_event(record)
                    if inspect.isawaitable(awaitable):
                        await awaitable
                match record.event if record.is_terminal else None:
                    case e.TaskCompleted() as completed:
                        return completed
                    case e.TaskFailed() as failed:
                        raise TaskFailedError(task_id, failed)
                    case e.TaskCancelled() as cancelled:
                        raise TaskCancelledError(task_id, cancelled)
        raise AssertionError(f"the log of task {task_id} ended without a terminal event")

    # Asking.

    async def _settled(self, task_id: str, input_id: str) -> Mapping[str, Any] | None:
        """How a question was settled, if it was by now."""
        last = (await self.status(task_id))["seq"]
        async with aclosing(self.events(task_id)) as events:
            async for record in events:
                is_answer = record.event_type == e.InputReceived.event_type
                if is_answer and record.data["input_id"] == input_id:
                    return record.data
                if record.seq >= last:
                    break
        return None

    def _follow(self, reply: Mapping[str, Any], wanted: bool) -> None:  # noqa: FBT001 - OnReply
        self._subscriptions.begun(reply["task_id"], wanted=wanted)

    def _send_for_feed(self, fields: dict[str, Any], on_answer: Callable[[Answer], None]) -> None:
        self._link.post(fields, on_answer, resend=False)
