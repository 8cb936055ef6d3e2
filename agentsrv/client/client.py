"""The client of a server: starts tasks, finds them, and keeps the connection."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from websockets.exceptions import InvalidURI
from websockets.uri import parse_uri

from agentsrv.client import results
from agentsrv.client.command_sender import CommandSender
from agentsrv.client.connection import OnConnection, Options, ReconnectingConnection, Timing
from agentsrv.client.errors import ConnectionClosedError
from agentsrv.client.subscriptions import EventIterator, Outcome, TaskSubscriptions
from agentsrv.client.task_handle import TaskHandle
from agentsrv.client.tokens import Token
from agentsrv.error_text import redact_url
from agentsrv.errors import ConfigurationError

if TYPE_CHECKING:  # for annotations only: the client works without pydantic
    from agentsrv.models.plan import ExecutionPlan


class Client:
    """A connection to an agentsrv server that is replaced when it is lost.

    ::

        async with Client("ws://127.0.0.1:8765") as client:
            task = await client.start("How does async I/O affect throughput?")
            print((await task.result()).final_output)

    A lost connection, a restarted server and a server that drains cost the caller only time:
    commands that wait for their reply are sent again, each so that it is carried out once, and
    iterators of events continue after the last event. If the limits of ``Options.reconnect`` are
    reached, commands and iterators raise `ServerUnavailableError`.

    Every command raises the server's refusals as classes of ``agentsrv.errors``, with
    ``retryable``, ``retry_after`` and ``details``. If there will be no further connection, it
    raises `ServerUnavailableError`, `UnauthenticatedError`, `ConnectionClosedError` or
    `ProtocolError`. A command whose call is cancelled may have been carried out or not.

    Owns a task of asyncio, and a second one while there is a connection. Leaving the ``async with``
    ends both, and ends all commands and iterators with `ConnectionClosedError`; tasks on the server
    continue. A client is used in one event loop.

    Args:
        url: ``ws://HOST:PORT`` or ``wss://…``; ``http`` and ``https`` mean the same.
        options: Limits of the connection.
        token: An API key or a JSON Web Token; or a function that returns the current one, which is
            called before each connection and may be a coroutine function. If a token expires, the
            client connects again with the next one.

    Raises:
        ConfigurationError: The URL is not that of a WebSocket, or the token or the file of the CA
            cannot be used.
        ServerUnavailableError, NotAServerError, UnauthenticatedError: On entering: there is no
            connection.
        ClientUsageError: By every method: the client was not entered, or is used in another event
            loop or in a child of ``os.fork()``.
    """

    def __init__(
        self,
        url: str,
        options: Options | None = None,
        *,
        token: Token | None = None,
        _timing: Timing | None = None,
    ) -> None:
        scheme, _, rest = url.partition("://")
        if scheme in ("http", "https"):  # as browsers show the same address
            url = f"{scheme.replace('http', 'ws')}://{rest}"
        try:
            parse_uri(url)
        except (InvalidURI, ValueError):  # also for an invalid port or host name
            raise ConfigurationError(
                f"the URL is {redact_url(url)!r}; expected one like ws://127.0.0.1:8765"
            ) from None
        self._timing = _timing or Timing()
        options = options or Options()
        self._subscriptions = TaskSubscriptions(self._send_once, options.buffer)
        self._connection = ReconnectingConnection(
            url, options, self._subscriptions, token, self._timing
        )
        self._sender = CommandSender(self._connection)
        self._running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._running = self._connection.start()
        try:
            await self._connection.ready.wait()
        except BaseException:
            await self.aclose()
            raise
        if self._connection.failure is not None:
            await self.aclose()
            raise self._connection.failure
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection. Closing again has no effect.

        In a child of ``os.fork()`` it does nothing: the connection belongs to the parent.

        Raises:
            ClientUsageError: The client belongs to another event loop.
        """
        if self._running is not None and not self._connection.is_forked:
            self._connection.check_loop()
            self._running.cancel()
            await asyncio.wait({self._running})

    @property
    def hello(self) -> results.Hello:
        """The server's latest greeting: its version, limits and commands.

        Raises:
            ConnectionClosedError: There was no connection yet.
        """
        if self._connection.hello is None:
            raise ConnectionClosedError("the client is not connected; use it within async with")
        return results.to_hello(self._connection.hello)

    @property
    def on_connection(self) -> OnConnection | None:
        """Called with an `Outage` when the connection is lost and after each failed attempt.

        Called with ``None`` when the connection is back. It runs in the event loop and must not
        block; errors that it raises are logged.
        """
        return self._connection.on_connection

    @on_connection.setter
    def on_connection(self, function: OnConnection | None) -> None:
        self._connection.on_connection = function

    async def start(
        self,
        text: str,
        *,
        agent: str | None = None,
        plan: ExecutionPlan | Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        deadline: float | None = None,
        metadata: Mapping[str, str] | None = None,
        on_disconnect: Literal["continue", "cancel"] | None = None,
        resume_from: str | None = None,
        traceparent: str | None = None,
        subscribe: bool = True,
    ) -> TaskHandle:
        """Create a task and put it into the server's queue.

        It is created once, even if the connection is lost before the reply: without an
        ``idempotency_key`` the client makes one.

        Args:
            text: What the task is to do.
            agent: The one agent that does it, instead of a plan.
            plan: The plan. Without an agent or a plan the server's planner makes one.
            params: Parameters of the agents.
            idempotency_key: If a task was created with the same key and the same arguments within
                24 hours, the handle is that task's, and its ``replayed`` is true.
            deadline: Seconds from the execution on, after which the task fails.
            metadata: Kept in ``task_created``.
            on_disconnect: ``"cancel"`` cancels the task when this connection ends, even if the
                client reconnects.
            resume_from: The id of a failed or cancelled task, whose plan and completed steps are
                taken over.
            traceparent: The caller's span, as W3C Trace Context writes it; the task is traced as
                part of it.
            subscribe: Have the server send the events right after the reply, which saves a round
                trip. Set it to false for a task that is not followed here. Without effect
                together with an ``idempotency_key``.

        Raises:
            InvalidCommandError: An argument is invalid, or the server has no such agent.
            ConflictError: The key belongs to a task that was created with other arguments.
            OverloadedError: The queue, or the principal's part of it, is full.
        """
        fields = _create_fields(
            text, agent, plan, params, idempotency_key, deadline, metadata, on_disconnect,
            resume_from, traceparent,
        )  # fmt: skip
        fields["execute"] = True
        if subscribe and idempotency_key is None:
            return await self._start_and_follow(fields | {"subscribe": True})
        reply = await self._sender.request(fields | {"subscribe": False})
        replayed = idempotency_key is not None and reply["replayed"]
        is_new = subscribe and not replayed
        return self._handle(reply["task_id"], replayed=replayed, is_new=is_new)

    async def create(
        self,
        text: str,
        *,
        agent: str | None = None,
        plan: ExecutionPlan | Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        deadline: float | None = None,
        metadata: Mapping[str, str] | None = None,
        on_disconnect: Literal["continue", "cancel"] | None = None,
        resume_from: str | None = None,
        traceparent: str | None = None,
    ) -> TaskHandle:
        """Create a task and leave it pending, until ``TaskHandle.execute``.

        Arguments and errors are those of `start`.
        """
        fields = _create_fields(
            text, agent, plan, params, idempotency_key, deadline, metadata, on_disconnect,
            resume_from, traceparent,
        )  # fmt: skip
        reply = await self._sender.request(fields | {"execute": False, "subscribe": False})
        replayed = idempotency_key is not None and reply["replayed"]
        return self._handle(reply["task_id"], replayed=replayed)

    def task(self, task_id: str) -> TaskHandle:
        """Return a handle of a task that exists. Nothing is sent."""
        return self._handle(task_id)

    async def find(self, prefix: str) -> TaskHandle:
        """Return a handle of the one task whose id begins with ``prefix``.

        Raises:
            NotFoundError: There is no such task, or the prefix has fewer than four characters.
            InvalidCommandError: Several ids begin with it.
        """
        reply = await self._sender.request({"command": "status", "task_id": prefix})
        return self._handle(reply["task_id"])

    async def cancel(
        self, *, idempotency_key: str, reason: str | None = None, grace: float | None = None
    ) -> results.Cancellation:
        """Cancel the task that was created with ``idempotency_key``.

        For tasks whose id is not known; otherwise use ``TaskHandle.cancel``, which describes
        ``reason`` and ``grace``.

        Raises:
            NotFoundError: No task was created with this key.
        """
        fields = {
            "command": "cancel",
            "idempotency_key": idempotency_key,
            "reason": reason,
            "grace": grace,
        }
        return results.to_cancellation(await self._sender.request(fields))

    async def list(
        self, *, status: str | None = None, limit: int = 50, cursor: str | None = None
    ) -> results.TaskPage:
        """Return the principal's tasks, the newest first.

        Args:
            status: Only tasks with this status.
            limit: Tasks on the page, 1 to 500.
            cursor: ``next_cursor`` of the previous page.
        """
        fields = {"command": "list", "status": status, "limit": limit, "cursor": cursor}
        return results.to_page(await self._sender.request(fields))

    async def agents(self) -> Sequence[results.AgentInfo]:
        """Return the server's agents and their parameters."""
        return results.to_agents(await self._sender.request({"command": "agents"}))

    async def ping(self) -> float:
        """Send a command without effect; return the seconds until its reply."""
        started = self._timing.clock()
        await self._sender.request({"command": "ping"})
        return self._timing.clock() - started

    async def _start_and_follow(self, fields: Mapping[str, Any]) -> TaskHandle:
        unread: EventIterator | None = None
        is_cancelled = False

        def follow(reply: Mapping[str, Any]) -> None:
            nonlocal unread
            unread = self._subscriptions.open_new(reply["task_id"])
            if is_cancelled:  # before the reply: the events are not read
                self._subscriptions.close(unread)

        try:
            reply = await self._sender.request(fields, follow)
        except BaseException:
            is_cancelled = True
            if unread is not None:  # after the reply, in the same turn of the loop
                self._subscriptions.close(unread)
            raise
        return self._handle(reply["task_id"], is_new=True, unread=unread)

    def _handle(self, task_id: str, **facts: Any) -> TaskHandle:
        return TaskHandle(task_id, self._sender, self._subscriptions, **facts)

    def _send_once(self, fields: dict[str, Any], on_outcome: Callable[[Outcome], None]) -> None:
        self._connection.send(fields, on_outcome, resend=False)


def _create_fields(  # noqa: PLR0917 - the arguments of `Client.start`, in their order
    text: str,
    agent: str | None,
    plan: ExecutionPlan | Mapping[str, Any] | None,
    params: Mapping[str, Any] | None,
    idempotency_key: str | None,
    deadline: float | None,
    metadata: Mapping[str, str] | None,
    on_disconnect: str | None,
    resume_from: str | None,
    traceparent: str | None,
) -> dict[str, Any]:
    # An ExecutionPlan is recognised by its method, because its module imports pydantic.
    if plan is not None and hasattr(plan, "model_dump"):
        plan = plan.model_dump(mode="json", exclude_none=True)
    return {
        "command": "create",
        "task_description": text,
        "agent": agent,
        "plan": plan,
        "params": params,
        "idempotency_key": idempotency_key or uuid.uuid4().hex,
        "deadline": deadline,
        "metadata": metadata,
        "on_disconnect": on_disconnect,
        "resume_from": resume_from,
        "traceparent": traceparent,
    }
