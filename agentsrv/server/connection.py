"""Connects one session with its socket: executes commands, sends answers and events."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Sequence
from typing import Any, Final, assert_never

from agentsrv.delivery.broker import EventBroker
from agentsrv.delivery.subscriptions import Hold, Subscriber
from agentsrv.engine.commands import CommandHandler, new_task_id
from agentsrv.engine.inputs import task_of
from agentsrv.errors import AgentsrvError, InternalError
from agentsrv.models import commands as c
from agentsrv.models.outcome import CommandOutcome
from agentsrv.protocol import frames
from agentsrv.protocol.session import Request, Session, help_reply
from agentsrv.protocol.typed_answer import read_answer
from agentsrv.server.auth.handshake import ConnectionAuth
from agentsrv.server.batching import BatchedConnection
from agentsrv.server.loop_scheduler import BYTES_PER_UNIT
from agentsrv.server.requests import next_request

MAX_UNDER_WAY: Final = 256  # commands of one connection that are executed at the same time
MAX_BYTES_UNDER_WAY: Final = 4 << 20  # of their frames, roughly: fewer large ones run together
LARGE_REPLY: Final = 16 << 10  # bytes from which an answer is charged in addition to its command

ANSWERED: Final = "ok"  # outcome of an executed command in the metrics; otherwise the error's code

_log = logging.getLogger("agentsrv.connection")


class Connection:
    """One client.

    Owns the commands in progress and the subscriptions. Tasks that the client started belong to
    the engine and continue after the connection has closed.

    Commands with an ``id`` are executed concurrently, up to ``MAX_UNDER_WAY``, and may be answered
    in any order. A command without an ``id`` is executed after all previous ones, and alone. While
    the client does not read its answers, no command is executed.
    """

    def __init__(
        self,
        socket: BatchedConnection,
        session: Session,
        admission: ConnectionAuth,
        command_handler: CommandHandler,
        broker: EventBroker,
    ) -> None:
        self._socket = socket
        self._session = session
        self._admission = admission
        self._command_handler = command_handler
        self._principal = admission.principal
        self._commands = socket.measures.commands
        self._subscriber = Subscriber(broker, self, admission.principal)
        self._under_way: set[asyncio.Task[None]] = set()
        socket.on_room = self._subscriber.resume

    async def run(self) -> None:
        """Serve the client until either side closes."""
        try:
            await self._receive()
            await self._settle(0)
        except asyncio.CancelledError:
            for command in self._under_way:
                command.cancel()
            await self._settle(0)
            raise
        finally:
            await self._cancel_bound(self._subscriber.close())

    async def _cancel_bound(self, tasks: Sequence[str]) -> None:
        """Cancel the tasks that were bound to the connection, unless the server is stopping."""
        if self._command_handler.draining:
            return
        for task_id in tasks:
            command = c.Cancel(task_id=task_id, reason="the client disconnected")
            try:
                await self._command_handler.cancel(self._principal, command)
            except AgentsrvError as error:
                told = "task %s could not be cancelled with its client: %s"
                _log.warning(told, task_id, error, extra={"about": self._socket.about})

    # The methods of the subscriber's sink.

    @property
    def has_room(self) -> bool:
        """See ``Sink.has_room``."""
        return self._socket.has_room

    def deliver(self, events: Sequence[bytes]) -> None:
        """See ``Sink.deliver``."""
        self._socket.post(events)

    def caught_up(self, task_id: str, seq: int) -> None:
        """See ``Sink.caught_up``."""
        self._socket.post([frames.caught_up(task_id, seq)])

    def refused(self, task_id: str, refusal: AgentsrvError) -> None:
        """See ``Sink.refused``."""
        self._socket.post([frames.error("subscribe", None, refusal, task_id)])

    async def _receive(self) -> None:
        while (request := await next_request(self._socket, self._session)) is not None:
            if request.command.id is None:
                await self._settle(0)
                await self._answer(request)
            elif request.command.declaration.has_large_reply:
                await self._answer(request)
            else:
                most = MAX_UNDER_WAY
                if request.size > MAX_BYTES_UNDER_WAY // MAX_UNDER_WAY:
                    most = max(1, MAX_BYTES_UNDER_WAY // request.size)
                if len(self._under_way) >= most:
                    await self._settle(most - 1)
                task = self._socket.loop.create_task(self._answer(request))
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)
            request = None  # it may be large, and the next one may arrive much later

    async def _settle(self, most: int) -> None:
        """Wait until at most ``most`` commands are in progress."""
        while len(self._under_way) > most:
            await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)

    async def _answer(self, request: Request) -> None:
        command, command_id, name = request.command, request.command.id, request.name
        try:
            if request.is_abbreviated or type(command) is c.Cancel:
                command = await self._completed(command, is_abbreviated=request.is_abbreviated)
            with self._hold(command) as hold:
                outcome = await self._carry_out(command, hold.task_id)
                hold.accept(outcome)
                result = outcome.reply
                self._session.latest_task = result.get("task_id", self._session.latest_task)
                reply = frames.reply(name, command_id, result)
                self._socket.post([reply])
                if len(reply) > LARGE_REPLY:
                    units = len(reply) / BYTES_PER_UNIT
                    self._socket.loop_scheduler.count(units)
                    self._socket.charge(units)
            self._commands[name, ANSWERED] += 1
        except AgentsrvError as refusal:
            self._commands[name, refusal.code] += 1
            self._socket.post([frames.error(name, command_id, refusal)])
        except Exception:  # noqa: BLE001 - answered with an incident's id
            incident = uuid.uuid4().hex[:12]
            told, extra = "incident %s while executing %s", {"about": self._socket.about}
            _log.exception(told, incident, name, extra=extra)
            self._commands[name, InternalError.code] += 1
            fault = InternalError(f"the server has a fault; see incident {incident} in its log")
            self._socket.post([frames.error(name, command_id, fault)])

    def _hold(self, command: c.AnyCommand) -> Hold:
        """Keep back the events of the command's task until its reply is sent.

        ``create`` gets its task's id here, because it also has to be held before it exists.
        """
        subscriber = self._subscriber
        match command:
            case c.Create():
                follows = command.execute and command.subscribe
                return Hold(subscriber, new_task_id(), after=0 if follows else None)
            case c.Execute(task_id=task_id):
                follows = command.subscribe and not subscriber.follows(task_id)
                return Hold(subscriber, task_id, after=0 if follows else None)
            case c.Subscribe(task_id=str(task_id)):
                return Hold(subscriber, task_id, after=command.after_seq)
            case c.Cancel(task_id=str(task_id)) | c.Send(task_id=task_id):
                return Hold(subscriber, task_id)
            case c.Respond():
                return Hold(subscriber, task_of(command.input_id))
            case _:
                return Hold(subscriber)

    async def _carry_out(self, command: c.AnyCommand, task_id: str) -> CommandOutcome:
        """Carry a command out; ``task_id`` is the task that ``_hold`` holds for it."""
        handler, principal = self._command_handler, self._principal
        reply: dict[str, Any] = {}
        match command:
            case c.Create():
                return await handler.create(principal, command, task_id)
            case c.Execute():
                return await handler.execute(principal, command)
            case c.Subscribe(all=False):
                return await handler.subscribe(principal, command)
            case c.Subscribe():
                self._subscriber.subscribe_all()
            case c.Unsubscribe(all=True):
                self._subscriber.unsubscribe_all()
            case c.Unsubscribe():
                self._subscriber.unsubscribe(command.task_id or "")
            case c.Status():
                reply = await handler.status(principal, command.task_id)
            case c.List():
                reply = await handler.list(principal, command)
            case c.Cancel():
                reply = await handler.cancel(principal, command)
            case c.Respond():
                reply = await handler.respond(principal, command)
            case c.Send():
                reply = await handler.send(principal, command)
            case c.Agents():
                reply = handler.agents()
            case c.Auth():
                reply = await self._admission.renew(command.token.get_secret_value())
            case c.Ping():
                pass
            case c.Help():
                reply = help_reply()
            case _:
                assert_never(command)
        return CommandOutcome(reply)

    async def _completed(self, command: c.AnyCommand, *, is_abbreviated: bool) -> c.AnyCommand:
        """Complete a command.

        A cancel by idempotency key gets its task. If ``is_abbreviated``, a prefix of a task's id is
        completed, and a typed answer is converted to JSON.
        """
        handler, principal = self._command_handler, self._principal
        if isinstance(command, c.Cancel) and command.idempotency_key is not None:
            task_id = await handler.find_key(principal, command.idempotency_key)
            return command.model_copy(update={"task_id": task_id})
        if not is_abbreviated:
            return command
        if isinstance(command, c.Respond):
            question = await handler.question(principal, command.input_id)
            given: dict[str, Any] = {"input_id": question.input_id}
            if command.action == "accept":
                given["value"] = read_answer(str(command.value), question)
            return command.model_copy(update=given)
        prefix = getattr(command, "task_id")  # noqa: B009 - only commands with a task
        return command.model_copy(update={"task_id": await handler.resolve(principal, prefix)})
