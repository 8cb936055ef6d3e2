"""The commands that send a server one request: status, list, cancel, respond and agents."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentsrv.cli.exits import say
from agentsrv.cli.prompt import find_question
from agentsrv.cli.render import parse_status, shorten, status_word
from agentsrv.cli.signals import run_until_signal
from agentsrv.cli.streams import as_json, typed
from agentsrv.client import Client, Options, TaskSummary
from agentsrv.errors import InvalidCommandError
from agentsrv.models.usage import MAX_LIST
from agentsrv.protocol.typed_answer import read_answer

_NARROW: Final = 70  # columns, below which a list has no times
_WIDTH: Final = 120  # columns of a list that is not shown on a terminal


@dataclass(frozen=True, slots=True)
class Server:
    """Where the server is, and how to connect."""

    url: str
    token: str | None
    ca: Path | None

    def ask(self, question: Callable[[Client], Awaitable[None]]) -> None:
        """Connect, wait for ``question`` and disconnect; a signal ends the wait."""

        async def connected() -> None:
            async with Client(self.url, Options(ca=self.ca), token=self.token) as client:
                await question(client)

        run_until_signal(connected())


def status(server: Server, task: str, *, json: bool) -> None:
    """Print all about a task."""

    async def ask(client: Client) -> None:
        found = await (await client.find(task)).status()
        if json:
            print(as_json(found))
            return
        print(f"task {found.task_id}: {status_word(found.status)}")
        print(f"  {shorten(found.user_input)}")
        print(f"  created {found.created_at}, updated {found.updated_at}")
        print(f"  {found.seq} events{', degraded' if found.degraded else ''}")
        for step in found.steps:
            attempt = f", attempt {step.attempt}" if step.attempt > 1 else ""
            print(f"  {step.step_id} {step.agent}: {status_word(step.status)}{attempt}")
            if step.error_message:
                print(f"    {shorten(step.error_message)}")
        for asked in found.inputs:
            print(f"  {asked.step_id} asks {asked.input_id}: {shorten(asked.prompt)}")
        if found.error_message:
            print(f"  {found.error_message}")
        output = found.final_output or found.partial_output
        if output:
            print(f"\n{output.rstrip()}")

    server.ask(ask)


def list_tasks(server: Server, status: str | None, limit: int, *, json: bool) -> None:
    """Print a line for each task, at most ``limit``, the newest first.

    Raises:
        InvalidCommandError: There is no such status.
    """
    wanted = None if status is None else parse_status(status)

    async def ask(client: Client) -> None:
        left, cursor = limit, None
        while True:
            page = await client.list(status=wanted, limit=min(left, MAX_LIST), cursor=cursor)
            for row in page.tasks:
                print(as_json(row) if json else _row(row, _columns()))
            left, cursor = left - len(page.tasks), page.next_cursor
            if left <= 0 or cursor is None or not page.tasks:
                break
        if page.total > limit:
            say(f"{limit} of {page.total} tasks; --limit shows more")

    server.ask(ask)


def cancel(server: Server, task: str, reason: str | None) -> None:
    """Stop a task, and print what became of it."""

    async def ask(client: Client) -> None:
        cancelled = await (await client.find(task)).cancel(reason)
        already = " already" if cancelled.already else ""
        print(f"task {cancelled.task_id} is {cancelled.status}{already}")

    server.ask(ask)


def respond(server: Server, question: str, answer: str | None, *, decline: bool) -> None:
    """Answer an agent's question, or decline to.

    Raises:
        InvalidCommandError: Both or none of the two are given.
    """
    if (answer is None) is not decline:
        raise InvalidCommandError("expected an answer, or --decline")

    async def ask(client: Client) -> None:
        task, asked = await find_question(client, question)
        value = None if answer is None else read_answer(typed(answer, "the answer"), asked)
        await task.respond(asked.input_id, value, decline=decline)
        print(f"question {asked.input_id} is {'declined' if decline else 'answered'}")

    server.ask(ask)


def agents(server: Server, *, json: bool) -> None:
    """Print the server's agents and their parameters."""

    async def ask(client: Client) -> None:
        found = await client.agents()
        if json:
            print(as_json(found))
            return
        for agent in found:
            print(f"{agent.name}: {agent.description}")
            required = agent.params.get("required", [])
            for name, schema in agent.params.get("properties", {}).items():
                field = schema if isinstance(schema, dict) else {}  # true is a schema, too
                kind = field.get("type", "any")
                need = "required" if name in required else f"default {field.get('default')!r}"
                print(f"  --param {name}=…  ({kind}, {need})")

    server.ask(ask)


def _row(row: TaskSummary, columns: int) -> str:
    """Return a line of a list; in a narrow terminal it has the text and not the time."""
    word = f"{status_word(row.status):9}"
    if columns < _NARROW:
        return shorten(f"{row.task_id[:8]}  {word}  {row.user_input}", columns)
    line = f"{row.task_id}  {word}  {row.created_at}  {row.user_input}"
    return shorten(line, columns)


def _columns() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else _WIDTH
