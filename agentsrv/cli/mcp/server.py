"""The tools: run, respond, status, cancel, list and agents."""

from __future__ import annotations

import asyncio
import json
import os
import re
import select
import threading
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any, Final

import orjson
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import (
    INVALID_REQUEST,
    PARSE_ERROR,
    CallToolResult,
    InputRequiredResult,
    ToolAnnotations,
    jsonrpc_message_adapter,
)
from pydantic import Field, ValidationError
from pydantic_core import from_json

from agentsrv.cli.mcp.calls import Call, Result, ending_with_call, result
from agentsrv.cli.prompt import find_question
from agentsrv.cli.signals import end_by, ending
from agentsrv.cli.streams import STDIN, STDOUT
from agentsrv.client import Client
from agentsrv.error_text import as_fields
from agentsrv.errors import AgentsrvError
from agentsrv.models.states import TaskStatus
from agentsrv.protocol.typed_answer import read_answer
from agentsrv.telemetry.nonblocking_output import write_all
from agentsrv.version import __version__

INSTRUCTIONS: Final = """\
Runs tasks on an agentsrv server: each is planned as steps, which agents carry out. `run` waits \
for the result and reports progress; cancelling the call cancels the task. A task that asks a \
question waits for its answer: put it to the user, do not invent it."""

CHUNK: Final = 65_536  # bytes
MAX_LINE: Final = 16 << 20  # bytes of a message; the commands of the server are shorter
HALF: Final = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair, which an escape in JSON can hold and UTF-8 cannot."""
HALF_MARK: Final = "\ufdd0"
"""Stands for a half until the call is refused: a code point that is never a character."""

TaskId = Annotated[str, Field(description="The task's id, or the beginning of it.")]


class _Server(MCPServer):
    """Refuses arguments that no command can carry; the call is answered."""

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Any = None
    ) -> CallToolResult | InputRequiredResult:
        if HALF_MARK in json.dumps(arguments, ensure_ascii=False):
            raise ToolError(
                "an argument has half of a surrogate pair; expected whole Unicode characters"
            )
        return await super().call_tool(name, arguments, context)


class Tools:
    """What a client may call, each a task or a question of one server."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def server(self) -> MCPServer:
        """A server that offers the tools."""
        server = _Server(
            "agentsrv", version=__version__, instructions=INSTRUCTIONS, log_level="WARNING"
        )
        for tool, hints in (
            (self.run, ToolAnnotations()),
            (self.respond, ToolAnnotations()),
            (self.status, ToolAnnotations(read_only_hint=True)),
            (self.cancel, ToolAnnotations(destructive_hint=True, idempotent_hint=True)),
            (self.list, ToolAnnotations(read_only_hint=True)),
            (self.agents, ToolAnnotations(read_only_hint=True)),
        ):
            server.add_tool(tool, annotations=hints, structured_output=False)
        return server

    async def run(
        self,
        text: Annotated[str, Field(description="What is to be done.")],
        context: Context,
        agent: Annotated[
            str | None, Field(description="The one agent that does it, instead of a plan.")
        ] = None,
        params: Annotated[
            dict[str, Any] | None, Field(description="For the agents; `agents` tells which.")
        ] = None,
    ) -> Result:
        """Run a task and wait for its result. Progress tells what its steps do."""
        call = Call(self._client, context)
        with _refusals():
            if context.request_state is not None:
                return await call.resume()
            key = uuid.uuid4().hex  # names the task to ``cancel`` before its id is known
            async with ending_with_call(partial(self._client.cancel, idempotency_key=key)):
                task = await self._client.start(
                    text, agent=agent, params=params, idempotency_key=key
                )
                return await call.follow(task)

    async def respond(
        self,
        question: Annotated[
            str, Field(description="The question's id, or the id of a task that asks one.")
        ],
        context: Context,
        answer: Annotated[Any, Field(description="What the user answered.")] = None,
        decline: Annotated[bool, Field(description="The user does not want to answer.")] = False,
    ) -> Result:
        """Answer a task's question, then wait for the task's result as `run` does."""
        call = Call(self._client, context)
        with _refusals():
            if context.request_state is not None:
                return await call.resume()
            task, asked = await find_question(self._client, question)
            snapshot = await task.status()
            value = read_answer(answer, asked) if isinstance(answer, str) else answer
            await task.respond(asked.input_id, None if decline else value, decline=decline)
            others = [other for other in snapshot.inputs if other.input_id != asked.input_id]
            async with ending_with_call(task.cancel):
                if others:
                    return call.ask(others[0], snapshot.seq)
                return await call.follow(task, snapshot.seq)

    async def status(self, task: TaskId) -> CallToolResult:
        """Tell all about a task: its steps, what it has written, what it asks."""
        with _refusals():
            return _json(asdict(await (await self._client.find(task)).status()))

    async def cancel(
        self,
        task: TaskId,
        reason: Annotated[str | None, Field(description="Told in the task's log.")] = None,
    ) -> CallToolResult:
        """Stop a task."""
        with _refusals():
            return _json(asdict(await (await self._client.find(task)).cancel(reason)))

    async def list(
        self,
        status: Annotated[TaskStatus | None, Field(description="Only tasks in it.")] = None,
        limit: Annotated[int, Field(ge=1, le=100, description="Tasks at most.")] = 20,
    ) -> CallToolResult:
        """List tasks, the newest first."""
        with _refusals():
            return _json(asdict(await self._client.list(status=status, limit=limit)))

    async def agents(self) -> CallToolResult:
        """Tell which agents there are, and the JSON Schema of their parameters."""
        with _refusals():
            return _json({"agents": [asdict(agent) for agent in await self._client.agents()]})


async def serve(client: Client) -> None:
    """Serve the tools on stdin and stdout until stdin ends or a signal comes; see `signals`.

    Calls that are under way then are cancelled, and so are their tasks.
    """
    answers = _Answers()
    end_stdin = _relay_stdin(answers.add)
    end_by(ending(), lambda _: end_stdin())
    async with _relayed_stdout(answers):
        await Tools(client).server().run_stdio_async()


class _Answers:
    """Lines for stdout in addition to the SDK's, of any thread.

    The pipe is left open until the process ends: the thread that reads stdin may outlive the block
    in which stdout is relayed.
    """

    def __init__(self) -> None:
        self.lines: deque[bytes] = deque()
        self.reader, self.writer = os.pipe()
        """Readable when there are lines."""

    def add(self, line: bytes) -> None:
        """Write a line as soon as the SDK is between two of its own."""
        self.lines.append(line)
        os.write(self.writer, b"\0")


def _relay_stdin(answer: Callable[[bytes], object]) -> Callable[[], object]:
    """Put a pipe in the place of stdin; return what ends it as the end of stdin would.

    The SDK reads in a thread that waits for a line, which no signal and no cancellation ends. It
    drops a line that it cannot read without an answer. So half of a surrogate pair is replaced
    here, and any other such line is answered here.
    """

    def relay() -> None:
        with os.fdopen(writer, "wb", buffering=0) as lines:

            def take(line: bytes) -> None:
                line = without_halves(line)
                if (refused := refusal(line)) is not None:
                    answer(refused)
                elif line.strip():
                    lines.write(line + b"\n")

            rest = bytearray()
            while end not in select.select([source, end], [], [])[0]:
                data = os.read(source, CHUNK)
                if not data:
                    break
                for part in re.findall(rb"[^\n]*\n|[^\n]+", data):
                    if len(rest) <= MAX_LINE:  # the rest of a line that is too long is dropped
                        rest += part
                    if part.endswith(b"\n"):
                        take(bytes(rest).rstrip(b"\r\n"))
                        rest.clear()
            take(bytes(rest))

    with ExitStack() as opened:
        (source,) = _closed_by(opened, os.dup(STDIN))
        reader, writer = _closed_by(opened, *os.pipe())
        end, ending = _closed_by(opened, *os.pipe())
        threading.Thread(target=relay, name="agentsrv-stdin", daemon=True).start()
        opened.pop_all()
    os.dup2(reader, STDIN)
    os.close(reader)
    return partial(os.write, ending, b"\0")


@asynccontextmanager
async def _relayed_stdout(answers: _Answers) -> AsyncIterator[None]:
    """Put a pipe in the place of stdout within the block; all that is written to it arrives.

    The SDK writes to a duplicate of the descriptor. If that is non-blocking, as in programs that
    Node.js starts, the SDK loses the rest of what is written while the reader is slow.
    """

    def relay() -> None:
        with suppress(OSError):  # the reader has gone
            is_between = True  # two lines of the SDK
            while True:
                ready = select.select([reader, answers.reader, end], [], [])[0]
                if reader in ready:
                    data = os.read(reader, CHUNK)
                    write_all(target, data)
                    is_between = data.endswith(b"\n")
                elif answers.reader in ready:
                    os.read(answers.reader, CHUNK)
                else:
                    break
                while is_between and answers.lines:
                    write_all(target, answers.lines.popleft())
        os.close(reader)

    thread = threading.Thread(target=relay, name="agentsrv-stdout", daemon=True)
    with ExitStack() as opened:
        (target,) = _closed_by(opened, os.dup(STDOUT))
        reader, writer = _closed_by(opened, *os.pipe())
        end, stop = _closed_by(opened, *os.pipe())
        thread.start()
        opened.pop_all()
    os.dup2(writer, STDOUT)
    os.close(writer)
    try:
        yield
    finally:
        os.dup2(target, STDOUT)
        os.write(stop, b"\0")
        await asyncio.to_thread(thread.join)
        for descriptor in (target, end, stop):
            os.close(descriptor)


def _closed_by(stack: ExitStack, *descriptors: int) -> tuple[int, ...]:
    """Let ``stack`` close descriptors; return them."""
    for descriptor in descriptors:
        stack.callback(os.close, descriptor)
    return descriptors


def without_halves(line: bytes) -> bytes:
    """A line of JSON in which each half of a surrogate pair is `HALF_MARK`; others as they are."""
    if b"\\ud" not in line.lower():
        return line
    try:
        text = json.dumps(json.loads(line), ensure_ascii=False)
    except (ValueError, RecursionError):
        return line  # the SDK answers what is not JSON
    return HALF.sub(HALF_MARK, text).encode() if HALF.search(text) else line


def refusal(line: bytes) -> bytes | None:
    """The answer to a line that is no message; ``None`` for one that the SDK reads, or is empty."""
    if not line.strip():
        return None
    if len(line) > MAX_LINE:
        return _error(PARSE_ERROR, None, f"the message is longer than {MAX_LINE} bytes")
    try:
        jsonrpc_message_adapter.validate_json(line, by_name=False)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[0]
        if found["type"] == "json_invalid":
            return _error(PARSE_ERROR, None, found["msg"])
        value = from_json(line)
        # Without a method it may be meant as a response: its id is one of ours, not the client's.
        known = value.get("id") if isinstance(value, dict) and "method" in value else None
        number = known if type(known) in (int, str) else None
        told = "found no message of JSON-RPC 2.0; expected a request, notification or response"
        return _error(INVALID_REQUEST, number, told)
    return None


def _error(code: int, number: str | int | None, told: str) -> bytes:
    error = {"code": code, "message": told}
    return orjson.dumps({"jsonrpc": "2.0", "id": number, "error": error}) + b"\n"


@contextmanager
def _refusals() -> Iterator[None]:
    """Tell the server's refusals to the model, which may do better."""
    try:
        yield
    except AgentsrvError as error:
        fields = as_fields(error)
        details = fields.get("details", [])[1:]  # the first one is the message
        reasons = [f"{detail['field']}: {detail['reason']}" for detail in details]
        raise ToolError("; ".join([fields["message"], *reasons])) from error


def _json(value: Any) -> CallToolResult:
    return result(orjson.dumps(value).decode(), value)
