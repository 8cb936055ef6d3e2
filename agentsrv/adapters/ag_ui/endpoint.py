"""Connects one AG-UI session with its socket: a front end starts and follows tasks."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import assert_never

from agentsrv.adapters.ag_ui.events import AguiRun
from agentsrv.adapters.ag_ui.messages import (
    AguiSession,
    CancelRun,
    Frame,
    ResumeEntry,
    RunAgentInput,
    custom,
    in_words_of_front_end,
)
from agentsrv.delivery.broker import EventBroker
from agentsrv.delivery.subscriptions import Hold, Subscriber
from agentsrv.engine.commands import CommandHandler, new_task_id
from agentsrv.errors import AgentsrvError, ConflictError, InternalError, InvalidStateError
from agentsrv.models import commands as c
from agentsrv.models.outcome import CommandOutcome
from agentsrv.server.auth.handshake import ConnectionAuth, MakeConnectionAuth
from agentsrv.server.batching import BatchedConnection
from agentsrv.server.requests import Reader, next_request

_log = logging.getLogger("agentsrv.connection")


async def serve_ag_ui(
    socket: BatchedConnection,
    admit: MakeConnectionAuth,
    command_handler: CommandHandler,
    broker: EventBroker,
) -> None:
    """Serve one front end until its connection closes."""
    session = AguiSession()
    with admit(session) as admission:
        await AguiConnection(socket, session, admission, command_handler, broker).run()


class AguiConnection:
    """One front end. It follows one run at a time, because AG-UI's events do not name their run.

    Owns its subscription. Tasks that it started belong to the engine and continue after the
    connection has closed.
    """

    def __init__(
        self,
        socket: BatchedConnection,
        session: AguiSession,
        admission: ConnectionAuth,
        command_handler: CommandHandler,
        broker: EventBroker,
    ) -> None:
        self._socket = socket
        self._session = session
        self._admission = admission
        self._command_handler = command_handler
        self._principal = admission.principal
        self._subscriber = Subscriber(broker, self, admission.principal)
        self._run: AguiRun | None = None
        socket.on_room = self._subscriber.resume

    async def run(self) -> None:
        """Serve the front end until either side closes."""
        session: Reader[Frame] = self._session
        try:
            while (frame := await next_request(self._socket, session)) is not None:
                await self._answer(frame)
                frame = None  # it may be large, and the next one may arrive much later
        finally:
            self._subscriber.close()

    # The methods of the subscriber's sink.

    @property
    def has_room(self) -> bool:
        """See ``Sink.has_room``."""
        return self._socket.has_room

    def deliver(self, events: Sequence[bytes]) -> None:
        """See ``Sink.deliver``."""
        if self._run is not None:
            self._post(self._run, self._run.events(events))

    def caught_up(self, task_id: str, seq: int) -> None:  # noqa: ARG002 - the sink's
        """See ``Sink.caught_up``."""
        if self._run is not None:
            self._post(self._run, self._run.caught_up())

    def refused(self, task_id: str, refusal: AgentsrvError) -> None:  # noqa: ARG002 - the sink's
        """See ``Sink.refused``."""
        self._session.is_running = False
        self._socket.post([self._session.refused(refusal)])

    def _post(self, run: AguiRun, events: Sequence[bytes]) -> None:
        if events:
            self._socket.post(events)
        if run.is_over:
            self._session.is_running = False
            self._subscriber.unsubscribe(run.task_id)

    async def _answer(self, frame: Frame) -> None:
        try:
            match frame:
                case RunAgentInput():
                    await self._begin(frame)
                case CancelRun():
                    await self._cancel(frame)
                case c.Auth():
                    told = await self._admission.renew(frame.token.get_secret_value())
                    self._socket.post([custom("reply", {"command": "auth", **told})])
                case _:
                    assert_never(frame)
        except AgentsrvError as refusal:
            self._socket.post([self._session.refused(refusal)])
        except Exception:  # noqa: BLE001 - answered with an incident's id
            incident = uuid.uuid4().hex[:12]
            _log.exception("incident %s while answering a front end", incident)
            fault = InternalError(f"the server has a fault; see incident {incident} in its log")
            self._socket.post([self._session.refused(fault)])

    async def _begin(self, given: RunAgentInput) -> None:
        """Start a task, or answer the questions of one; then follow it from its first event.

        A run that is known already is followed as well, and not started again.
        """
        if self._session.is_running:
            raise InvalidStateError(
                "a run is under way; expected its end, cancel or another connection"
            )
        task_id = new_task_id() if given.resumed_task is None else given.resumed_task
        with Hold(self._subscriber, task_id, after=0) as hold:
            if given.resumed_task is None:
                outcome = await self._create(given.create(), task_id)
            else:
                for place, entry in enumerate(given.resume):
                    # The question may have been answered before: by this run, by another client,
                    # or by its time-out.
                    with suppress(ConflictError, InvalidStateError):
                        await self._respond(entry, place)
                follow = c.Subscribe(task_id=task_id)
                outcome = await self._command_handler.subscribe(self._principal, follow)
            hold.accept(outcome)
            self._run = AguiRun(given, str(outcome.reply["task_id"]))
            self._session.is_running = True
            self._post(self._run, self._run.start())

    async def _create(self, command: c.Create, task_id: str) -> CommandOutcome:
        try:
            return await self._command_handler.create(self._principal, command, task_id)
        except AgentsrvError as refusal:
            raise in_words_of_front_end(refusal) from None

    async def _respond(self, entry: ResumeEntry, place: int) -> None:
        command = entry.command(place)
        try:
            await self._command_handler.respond(self._principal, command)
        except (ConflictError, InvalidStateError):
            raise
        except AgentsrvError as refusal:
            raise in_words_of_front_end(refusal, place) from None

    async def _cancel(self, frame: CancelRun) -> None:
        if self._run is None:
            raise InvalidStateError("this connection has had no run; expected one to cancel")
        command = c.Cancel(task_id=self._run.task_id, reason=frame.reason)
        with Hold(self._subscriber, self._run.task_id):
            result = await self._command_handler.cancel(self._principal, command)
            self._socket.post([custom("reply", {"command": "cancel", **result})])
