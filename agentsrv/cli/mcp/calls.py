"""Calls of tools that follow a task: its progress, its questions, its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, Final

import anyio
import orjson
from mcp import MCPError
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult, ElicitRequest, ElicitResult, InputRequiredResult, TextContent

from agentsrv.cli.mcp import forms
from agentsrv.cli.render import describe
from agentsrv.client import Client, Record, TaskHandle
from agentsrv.client.answers import answering
from agentsrv.errors import (
    AgentsrvError,
    ConflictError,
    InputDeclined,
    InvalidInputError,
    InvalidStateError,
    NotFoundError,
)
from agentsrv.models import events as e
from agentsrv.models.events import from_data

Result = CallToolResult | InputRequiredResult

ASKING_BY_RESULT: Final = "2026-07-28"
"""Since this revision a server asks by an interim result, and the client calls again."""
REASON: Final = "the tool call was cancelled"
CANCEL_TIMEOUT: Final = 5.0  # seconds for the reply to a cancel


@asynccontextmanager
async def ending_with_call(cancel: Callable[..., Awaitable[object]]) -> AsyncIterator[None]:
    """Cancel the task, by ``cancel(reason=…)``, if the block is cancelled."""
    try:
        yield
    except asyncio.CancelledError:
        with anyio.move_on_after(CANCEL_TIMEOUT, shield=True), suppress(AgentsrvError):
            await cancel(reason=REASON)
        raise


class Call:
    """One call, and the task that it follows.

    A client that can show forms to its user receives the task's questions, during the call or, in
    newer revisions of the protocol, between two rounds of it. For any other client a question ends
    the call, and is in the result.
    """

    def __init__(self, client: Client, context: Context) -> None:
        self._client = client
        self._context = context
        capabilities = context.client_capabilities
        able = capabilities.elicitation if capabilities is not None else None
        self._has_forms = able is not None and (able.form is not None or able.url is None)
        self._asks_by_result = (context.protocol_version or "") >= ASKING_BY_RESULT

    async def follow(self, task: TaskHandle, after_seq: int = 0) -> Result:
        """Report the events after number ``after_seq``; return the task's end or its question."""
        during = self._has_forms and not self._asks_by_result
        try:
            async with (
                answering(task.respond, self._elicit if during else None) as see,
                aclosing(task.events(after_seq)) as events,
            ):
                async for record in events:
                    see(record)
                    if record.event_type != e.PartialOutput.event_type:
                        await self._context.report_progress(record.seq, message=describe(record))
                    if record.is_terminal:
                        return ended(record)
                    if record.event_type == e.InputRequired.event_type and not during:
                        return self.ask(from_data(e.InputRequired, record.data), record.seq)
        except _Unanswered as left:
            return open_question(left.asked)
        raise AssertionError(f"the log of task {task.id} ended without a terminal event")

    async def resume(self) -> Result:
        """Send the answer with which the client calls again, and continue to follow the task."""
        assert self._context.request_state is not None
        state = orjson.loads(self._context.request_state)
        asked = from_data(e.InputRequired, state["asked"])
        task = self._client.task(state["task_id"])
        async with ending_with_call(task.cancel):
            responses = self._context.input_responses or {}
            result = responses.get(asked.input_id)
            if not isinstance(result, ElicitResult):
                return open_question(asked)
            try:
                await self._respond(task, asked, result)
            except forms.Dismissed:
                return open_question(asked)
            except InvalidInputError as refusal:
                return self.ask(asked, state["seq"], refusal.message)
            except (ConflictError, InvalidStateError, NotFoundError):
                pass  # the question was settled, or its step ended, in the meantime
            return await self.follow(task, state["seq"])

    async def _respond(
        self, task: TaskHandle, asked: e.InputRequired, result: ElicitResult
    ) -> None:
        try:
            value = forms.answer(asked, result)
        except InputDeclined:
            await task.respond(asked.input_id, decline=True)
        else:
            await task.respond(asked.input_id, value)

    def ask(self, asked: e.InputRequired, seq: int, refusal: str | None = None) -> Result:
        """End this round of the call with a question; the next round continues after event ``seq``.

        Args:
            asked: The question.
            seq: The number of the last event that was reported.
            refusal: Why the previous answer was refused.
        """
        if not (self._has_forms and self._asks_by_result):
            return open_question(asked)
        request = ElicitRequest(params=forms.form(asked, refusal))
        task_id = asked.input_id.partition("/")[0]
        state = {"task_id": task_id, "seq": seq, "asked": vars(asked)}
        return InputRequiredResult(
            input_requests={asked.input_id: request}, request_state=orjson.dumps(state).decode()
        )

    async def _elicit(self, asked: e.InputRequired, refusal: InvalidInputError | None) -> Any:
        params = forms.form(asked, refusal.message if refusal is not None else None)
        try:
            result = await self._context.session.elicit_form(
                params.message, params.requested_schema, self._context.request_id
            )
            return forms.answer(asked, result)
        except (MCPError, forms.Dismissed) as error:
            raise _Unanswered(asked) from error


class _Unanswered(Exception):
    """The user has not answered."""

    def __init__(self, asked: e.InputRequired) -> None:
        self.asked = asked


def open_question(asked: e.InputRequired) -> CallToolResult:
    """Return the result of a call that leaves a question open, with the question."""
    task_id = asked.input_id.partition("/")[0]
    options = "" if asked.options is None else f" One of: {', '.join(forms.labels(asked.options))}."
    text = (
        f"Task {task_id} waits for an answer. {asked.step_id} asks: {asked.prompt}{options}\n"
        f"Ask the user, then answer with the tool respond, question {asked.input_id}, "
        f"which also continues to follow the task. The answer's JSON Schema: "
        f"{orjson.dumps(asked.schema).decode()}"
    )
    facts = {"task_id": task_id, "status": "input_required", "input_id": asked.input_id}
    return result(text, facts)


def ended(record: Record) -> CallToolResult:
    """Return the result of a call whose task has ended: its output, or why there is none."""
    match record.event:
        case e.TaskCompleted() as completed:
            facts = {"degraded": completed.degraded, "missing_steps": list(completed.missing_steps)}
            return result(completed.final_output, _named(record, "completed") | facts)
        case e.TaskFailed() as failed:
            text, status, partial = describe(record), "failed", failed.partial_output
        case e.TaskCancelled() as cancelled:
            text, status, partial = describe(record), "cancelled", cancelled.partial_output
        case other:
            raise AssertionError(f"{other} ends no task")
    if partial:
        text = f"{text}\n\nWhat it had written:\n\n{partial}"
    return result(text, _named(record, status), is_error=True)


def result(text: str, facts: Any, *, is_error: bool = False) -> CallToolResult:
    """A result for people and models, and the same for programs."""
    content = TextContent(type="text", text=text)
    return CallToolResult(content=[content], structured_content=facts, is_error=is_error)


def _named(record: Record, status: str) -> dict[str, Any]:
    return {"task_id": record.task_id, "status": status}
