"""Questions of agents on the terminal."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import orjson

from agentsrv.cli.exits import say
from agentsrv.client import Client, TaskHandle
from agentsrv.errors import InputDeclined, InvalidCommandError, InvalidInputError, NotFoundError
from agentsrv.models.events import InputRequired
from agentsrv.protocol.typed_answer import read_answer

try:
    import termios
except ImportError:  # Windows
    _HAS_KEYS = False
else:
    _HAS_KEYS = True

MAX_LINE: Final = 4096  # bytes that a terminal returns for one line


class Left(Exception):
    """The user leaves a question to others."""


class Prompt:
    """Asks on the terminal, one question after the other.

    Args:
        pause: Pauses other output to the terminal while a question is shown.
    """

    def __init__(self, pause: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self._pause = pause
        self._turn = asyncio.Lock()
        self._open: InputRequired | None = None
        self._has_warned = False

    def warn(self) -> bool:
        """Print the alternatives to Ctrl-C; return whether a question was open.

        Only once for each question: a second Ctrl-C cancels the task.
        """
        if self._open is None or self._has_warned:
            return False
        self._has_warned = True
        print(file=sys.stderr)
        say("answer, type leave to leave it open, or Ctrl-C again to cancel")
        print(_wording(self._open), end="", file=sys.stderr, flush=True)
        return True

    @staticmethod
    def is_possible() -> bool:
        """Whether stdin and stderr are a terminal."""
        return _HAS_KEYS and sys.stdin.isatty() and sys.stderr.isatty()

    async def ask(self, asked: InputRequired, refusal: InvalidInputError | None) -> Any:
        """Return the typed answer; an empty line means the default, if there is one.

        Input that was typed before the prompt appeared is discarded. Cancelling the call removes
        the prompt.

        Raises:
            InputDeclined: The user typed ``decline`` or Ctrl-D.
            Left: The user typed ``leave`` after `warn` offered it.
        """
        async with self._turn:
            self._has_warned = False
            line = await self._ask(asked, refusal)
            has_warned = self._has_warned
        text = line.strip()
        if has_warned and text.lower() == "leave":
            raise Left
        if not line or text.lower() == "decline":
            raise InputDeclined("declined at the terminal")
        if not text and asked.default is not None:
            return asked.default
        return read_answer(text, asked)

    async def _ask(self, asked: InputRequired, refusal: InvalidInputError | None) -> str:
        with self._pause():
            if refusal is not None:
                say(refusal.message)
            termios.tcflush(sys.stdin, termios.TCIFLUSH)
            print(_wording(asked), end="", file=sys.stderr, flush=True)
            self._open = asked
            try:
                return await _read_line()
            except asyncio.CancelledError:
                print(file=sys.stderr)
                raise
            finally:
                self._open = None


async def find_question(client: Client, name: str) -> tuple[TaskHandle, InputRequired]:
    """Return an open question and its task.

    Args:
        client: Connected to the server.
        name: The id of the question; or the id, or its beginning, of a task with one open question.

    Raises:
        NotFoundError: There is no such open question.
        InvalidCommandError: The task has several.
    """
    prefix, slash, _ = name.partition("/")
    task = await client.find(prefix)
    questions = (await task.status()).inputs
    if slash:
        questions = tuple(asked for asked in questions if asked.input_id == name)
    if not questions:
        raise NotFoundError(
            f"no question {name!r} is open" if slash else f"task {task.id} asks nothing"
        )
    if len(questions) > 1:
        ids = ", ".join(asked.input_id for asked in questions)
        raise InvalidCommandError(
            f"task {task.id} asks {len(questions)} questions; name one of {ids}"
        )
    return task, questions[0]


def _wording(asked: InputRequired) -> str:
    hints = []
    if asked.options is not None:
        hints.append(" | ".join(map(str, asked.options)))
    elif asked.schema.get("type") == "boolean":
        hints.append("yes | no")
    fields = asked.schema.get("properties")
    if asked.options is None and isinstance(fields, dict):
        hints.append(
            f"JSON: {{{', '.join(_field(name, fields, asked.schema) for name in fields)}}}"
        )
    hints.append("decline")
    if asked.default is not None:
        hints.append(f"Enter for {asked.default}")
    return f"{asked.step_id}: {asked.prompt} [{', '.join(hints)}] "


def _field(name: str, fields: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """Return a field of the requested object: its name, its type, and whether it is required."""
    field = fields[name] if isinstance(fields[name], dict) else {}
    kind = "|".join(map(str, field["enum"])) if "enum" in field else field.get("type", "any")
    is_needed = name in schema.get("required", ())
    default = f" = {orjson.dumps(field['default']).decode()}" if "default" in field else "?"
    return f'"{name}": {kind}{"" if is_needed else default}'


async def _read_line() -> str:
    """Return the next line from the terminal, empty at its end; no thread is left if cancelled."""
    loop, descriptor = asyncio.get_running_loop(), sys.stdin.fileno()
    readable = asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)
    return os.read(descriptor, MAX_LINE).decode(errors="replace")
