"""The I/O around one Session: frames in, commands carried out, answers and events out."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Sequence
from typing import Any, Final

from agentsrv.delivery.broker import EventBroker
from agentsrv.delivery.subscriptions import Answer, Subscriber
from agentsrv.engine.commands import CommandHandler
from agentsrv.errors import AgentsrvError, InternalError
from agentsrv.models import commands as c
from agentsrv.protocol import command_line, frames
from agentsrv.protocol.session import Request, Session, help_reply
from agentsrv.server.auth.handshake import ConnectionAuth
from agentsrv.server.batching import BatchedConnection
from agentsrv.server.loop_scheduler import BYTES_PER_UNIT
from agentsrv.server.requests import next_request

MAX_UNDER_WAY: Final = 256  # commands of one connection that are carried out at the same time
MAX_BYTES_UNDER_WAY: Final = 4 << 20  # of their frames, roughly: large ones are fewer
LARGE_REPLY: Final = 16 << 10  # bytes of an answer that is charged in addition to its command
TELLING: Final = (c.Status, c.List, c.Agents, c.Help)
"""Commands with answers that may be large: only one at a time is made."""

ANSWERED: Final = "ok"  # in place of an error's code, where commands are counted

_log = logging.getLogger("agentsrv.connection")


class Connection:
    """One client.

    Owns its commands under way and its subscriptions; the tasks that it started live elsewhere
    and go on without it.

    Commands with an ``id`` are carried out concurrently, up to ``MAX_UNDER_WAY``, and may be
    answered in another order; one without is carried out after all before it, and alone. While
    the client does not take its answers, nothing is carried out.
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
        """Cancel the tasks that were to end with the connection; not so when the server ends."""
        if self._command_handler.draining:
            return
        for task_id in tasks:
            command = c.Cancel(task_id=task_id, reason="the client disconnected")
            try:
                with self._subscriber.answering() as answer:
                    await self._command_handler.cancel(self._principal, command, answer)
            except AgentsrvError as error:
                told = "task %s was to end with its client: %s"
                _log.warning(told, task_id, error, extra={"about": self._socket.about})

    # The subscriber's sink.

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
            elif isinstance(request.command, TELLING):
                await self._answer(request)
            else:
                most = MAX_UNDER_WAY
                if request.size > MAX_BYTES_UNDER_WAY // MAX_UNDER_WAY:
                    most = max(1, MAX_BYTES_UNDER_WAY // request.size)
                await self._settle(most - 1)
                task = asyncio.create_task(self._answer(request))
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)
            request = None  # it may be large, and the next one may come late

    async def _settle(self, most: int) -> None:
        """Wait until at most ``most`` commands are under way."""
        while len(self._under_way) > most:
            await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)

    async def _answer(self, request: Request) -> None:
        command_id = request.command.id
        try:
            with self._subscriber.answering() as answer:
                result = await self._carry_out(request, answer)
                self._session.latest_task = result.get("task_id", self._session.latest_task)
                reply = frames.reply(request.name, command_id, result)
                self._socket.post([reply])
                if len(reply) > LARGE_REPLY:
                    units = len(reply) / BYTES_PER_UNIT
                    self._socket.loop_scheduler.count(units)
                    self._socket.charge(units)
            self._commands[request.name, ANSWERED] += 1
        except AgentsrvError as refusal:
            self._commands[request.name, refusal.code] += 1
            self._socket.post([frames.error(request.name, command_id, refusal)])
        except Exception:  # noqa: BLE001 - told with an incident id; the connection lives
            incident = uuid.uuid4().hex[:12]
            told, extra = "incident %s while carrying out %s", {"about": self._socket.about}
            _log.exception(told, incident, request.name, extra=extra)
            self._commands[request.name, InternalError.code] += 1
            fault = InternalError(f"the server has a fault; its log tells of incident {incident}")
            self._socket.post([frames.error(request.name, command_id, fault)])

    async def _carry_out(self, request: Request, answer: Answer) -> dict[str, Any]:
        command, command_handler, principal = (
            request.command,
            self._command_handler,
            self._principal,
        )
        if request.is_short:
            command = await self._completed(command)
        match command:
            case c.Create():
                return await command_handler.create(principal, command, answer)
            case c.Execute():
                return await command_handler.execute(principal, command, answer)
            case c.Status():
                return await command_handler.status(principal, command.task_id)
            case c.List():
                return await command_handler.list(principal, command)
            case c.Cancel():
                return await command_handler.cancel(principal, command, answer)
            case c.Subscribe(all=True):
                self._subscriber.subscribe_all()
                return {}
            case c.Subscribe():
                return await command_handler.subscribe(principal, command, answer)
            case c.Unsubscribe(all=True):
                self._subscriber.unsubscribe_all()
                return {}
            case c.Unsubscribe():
                self._subscriber.unsubscribe(command.task_id or "")
                return {}
            case c.Respond():
                return await command_handler.respond(principal, command, answer)
            case c.Send():
                return await command_handler.send(principal, command, answer)
            case c.Agents():
                return command_handler.agents()
            case c.Auth():
                return await self._admission.renew(command.token.get_secret_value())
            case c.Ping():
                return {}
            case c.Help():
                return help_reply()
            case _:
                raise AssertionError(f"no way to carry out {command!r}")

    async def _completed(self, command: c.Command) -> c.Command:
        """What a command line left out: the rest of a task's id, or what its answer means."""
        command_handler, principal = self._command_handler, self._principal
        if isinstance(command, c.Respond):
            question = await command_handler.question(principal, command.input_id)
            given: dict[str, Any] = {"input_id": question.input_id}
            if command.action == "accept":
                given["value"] = command_line.read_answer(str(command.value), question)
            return command.model_copy(update=given)
        prefix = getattr(command, "task_id")  # noqa: B009 - only commands with a task
        return command.model_copy(
            update={"task_id": await command_handler.resolve(principal, prefix)}
        )
