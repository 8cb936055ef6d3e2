"""Answers the questions of a task by calling a function of the program.

Each open question has a task of asyncio that calls the function, sends the answer, and calls the
function again if the server refuses the answer as invalid. The task is cancelled when an event says
that the question is settled: it was answered by another client, its time is over, or its step has
ended. Errors of the function propagate out of the block of `answering`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

from agentsrv.client.errors import ServerUnavailableError
from agentsrv.client.results import TaskSnapshot
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

RETRY_DELAY: Final = 1.0  # seconds, if the server does not say how many

OnInput = Callable[[e.InputRequired, InvalidInputError | None], Awaitable[Any] | Any]
"""Returns the answer to a question, or raises `InputDeclined`.

If the server refuses the answer, it is called again with the refusal. It may be a coroutine
function, which is cancelled when the question is settled otherwise.
"""

See = Callable[[Record], None]


class Respond(Protocol):
    """``TaskHandle.respond``."""

    async def __call__(self, input_id: str, value: Any, *, decline: bool) -> None:
        """Send an answer."""


@asynccontextmanager
async def answering(
    respond: Respond,
    on_input: OnInput | None,
    snapshot: TaskSnapshot | None = None,
    after_seq: int = 0,
) -> AsyncIterator[See]:
    """Answer questions within the block, which passes every event of the task to what is yielded.

    No task of asyncio is left after the block. An error of ``on_input`` ends the block.

    Args:
        respond: Sends an answer.
        on_input: Returns the answers; without it the block only runs.
        snapshot: The task as it was before the events were read. Of the questions up to its
            ``seq``, only those that it has are answered: the others are settled.
        after_seq: The number after which the events are read. If it is not 0, the events of the
            open questions may be missing, and they are answered at the beginning of the block.
    """
    if on_input is None:
        yield lambda _: None
        return
    try:
        async with asyncio.TaskGroup() as group:
            answers = _Answers(respond, on_input, group, snapshot)
            if after_seq:
                answers.begin_open()
            try:
                yield answers.see
            finally:
                answers.stop()
    except BaseExceptionGroup as errors:
        first = errors.exceptions[0]
        raise first from first.__cause__


class _Answers:
    """The open questions of one task, each with the task of asyncio that answers it."""

    def __init__(
        self,
        respond: Respond,
        on_input: OnInput,
        group: asyncio.TaskGroup,
        snapshot: TaskSnapshot | None,
    ) -> None:
        self._respond = respond
        self._on_input = on_input
        self._group = group
        self._past_seq = snapshot.seq if snapshot is not None else 0
        self._past = {asked.input_id: asked for asked in snapshot.inputs} if snapshot else {}
        self._open: dict[str, tuple[e.InputRequired, asyncio.Task[None]]] = {}

    def begin_open(self) -> None:
        """Begin to answer the questions of the snapshot."""
        for asked in self._past.values():
            self._begin(asked)
        self._past.clear()

    def see(self, record: Record) -> None:
        """Begin to answer a question, or stop, as the event says."""
        if record.seq <= self._past_seq and record.data.get("input_id") not in self._past:
            return
        match record.event_type:
            case "input_required":
                self._begin(e.from_data(e.InputRequired, record.data))
            case "input_received":
                self._close(record.data["input_id"])
            case "step_completed" | "step_failed" | "step_cancelled":
                step_id = record.data["step_id"]
                for input_id, (asked, _) in list(self._open.items()):
                    if asked.step_id == step_id:
                        self._close(input_id)

    def stop(self) -> None:
        """Answer nothing more."""
        for input_id in list(self._open):
            self._close(input_id)

    def _begin(self, asked: e.InputRequired) -> None:
        task = self._group.create_task(self._answer(asked))
        self._open[asked.input_id] = asked, task

    def _close(self, input_id: str) -> None:
        if input_id in self._open:
            self._open.pop(input_id)[1].cancel()

    async def _answer(self, asked: e.InputRequired) -> None:
        refusal: InvalidInputError | None = None
        while True:
            value, decline = None, False
            try:
                answer = self._on_input(asked, refusal)
                value = await answer if inspect.isawaitable(answer) else answer
            except InputDeclined:
                decline = True
            try:
                await self._send(asked.input_id, value, decline=decline)
                return
            except InvalidInputError as error:
                refusal = error
            except (ConflictError, InvalidStateError, NotFoundError):
                return  # the question was settled, or its step ended, in the meantime

    async def _send(self, input_id: str, value: Any, *, decline: bool) -> None:
        while True:
            try:
                await self._respond(input_id, value, decline=decline)
                return
            except AgentsrvError as error:
                if not error.retryable or isinstance(error, ServerUnavailableError):
                    raise
                delay = error.retry_after
            await asyncio.sleep(RETRY_DELAY if delay is None else delay)
