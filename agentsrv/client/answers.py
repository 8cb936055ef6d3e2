"""Answers: to the questions of a task that a client runs, from a function of the caller's."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

from agentsrv.client.errors import ServerUnavailableError
from agentsrv.errors import (
    AgentsrvError,
    ConflictError,
    InputDeclined,
    InvalidInputError,
    InvalidStateError,
    NotFoundError,
)
from agentsrv.models import events as e
from agentsrv.models.events import Record

if TYPE_CHECKING:
    from agentsrv.models.replies import RespondReply

RETRY_AFTER: Final = 1.0  # seconds, where the server does not say how many

OnInput = Callable[[e.InputRequired, InvalidInputError | None], Awaitable[Any] | Any]
"""Returns the answer to a question, or raises `InputDeclined`.

Called again with the server's refusal where the answer was none. Cancelled, if it is a coroutine
function, when there is nothing to be answered any more.
"""
See = Callable[[Record], None]


class _Respond(Protocol):
    """`Client.respond`."""

    async def __call__(self, input_id: str, value: Any, *, decline: bool) -> RespondReply: ...


@asynccontextmanager
async def answering(respond: _Respond, on_input: OnInput | None) -> AsyncIterator[See]:
    """Answer questions within the block, which shows every event of the task.

    Each question has a task of asyncio of its own, and none is left behind the block. What
    ``on_input`` raises ends the block.
    """
    if on_input is None:
        yield _ignore
        return
    try:
        async with asyncio.TaskGroup() as group:
            answers = _Answers(respond, on_input, group)
            try:
                yield answers.see
            finally:
                answers.give_up()
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


class _Answers:
    """The open questions of one task, each with whoever works on its answer."""

    def __init__(self, respond: _Respond, on_input: OnInput, group: asyncio.TaskGroup) -> None:
        self._respond = respond
        self._on_input = on_input
        self._group = group
        self._open: dict[str, tuple[e.InputRequired, asyncio.Task[None]]] = {}

    def see(self, record: Record) -> None:
        """Begin to answer, or stop, as an event says."""
        match record.event_type:
            case "input_required":
                asked = record.event
                assert isinstance(asked, e.InputRequired)
                task = self._group.create_task(self._answer(asked))
                self._open[asked.input_id] = asked, task
            case "input_received":
                self._close(record.data["input_id"])
            case "step_completed" | "step_failed" | "step_cancelled":
                step_id = record.data["step_id"]
                for input_id, (asked, _) in list(self._open.items()):
                    if asked.step_id == step_id:
                        self._close(input_id)

    def give_up(self) -> None:
        """Answer nothing more."""
        for input_id in list(self._open):
            self._close(input_id)

    def _close(self, input_id: str) -> None:
        if input_id in self._open:
            self._open.pop(input_id)[1].cancel()

    async def _answer(self, asked: e.InputRequired) -> None:
        refusal: InvalidInputError | None = None
        while True:
            value, decline = None, False
            try:
                given = self._on_input(asked, refusal)
                value = await given if inspect.isawaitable(given) else given
            except InputDeclined:
                decline = True
            try:
                await self._send(asked.input_id, value, decline=decline)
                return
            except InvalidInputError as error:
                refusal = error
            except (ConflictError, InvalidStateError, NotFoundError):
                return  # it was settled or closed meanwhile

    async def _send(self, input_id: str, value: Any, *, decline: bool) -> None:
        while True:
            try:
                await self._respond(input_id, value, decline=decline)
                return
            except AgentsrvError as error:
                if not error.retryable or isinstance(error, ServerUnavailableError):
                    raise
                wait = error.retry_after
            await asyncio.sleep(RETRY_AFTER if wait is None else wait)


def _ignore(_: Record) -> None:
    """Where nobody wants to answer."""
