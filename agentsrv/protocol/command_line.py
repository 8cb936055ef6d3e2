"""Command lines for people: ``run Why is the sky blue?`` instead of JSON.

`parse` is a pure translation of a line into the fields of a command in JSON. The syntax of each
line is part of the command's declaration (``agentsrv.models.commands``). Abbreviated task ids are
resolved later, for lines and JSON alike.
"""

from __future__ import annotations

import re
from typing import Any, Final

from agentsrv.errors import InvalidCommandError, UnknownCommandError
from agentsrv.models.commands import COMMANDS
from agentsrv.models.declarations import Argument, ArgumentKind, CommandLine

MAX_VERB: Final = 64  # characters of the first word that are read
MAX_SHOWN: Final = 40  # characters of a wrong word that an error repeats
MAX_DIGITS: Final = 18  # of an integer; every such integer fits into 64 bits


def parse(line: str, latest: str | None) -> dict[str, Any]:
    """Translate a line into the fields of its command.

    Args:
        line: The text that was typed.
        latest: The id of the connection's latest task, to which a line without a task id refers.

    Raises:
        UnknownCommandError: The first word is not the verb of a command line.
        InvalidCommandError: An argument is missing, superfluous or of the wrong kind.
    """
    verb, *arguments = line.split(None, 1) or [""]
    found = _LINES.get(verb.lower())
    if found is None:
        raise UnknownCommandError(
            f"unknown command {verb[:MAX_SHOWN]!r}; expected one of {', '.join(_LINES)}, or a JSON "
            "object",
            example={"command": "help"},
        )
    command, syntax = found
    rest = arguments[0].strip() if arguments else ""
    fields = {"command": command, **syntax.fields}
    for at, argument in enumerate(syntax.arguments):
        if argument.keyword is not None and rest.lower() == argument.keyword:
            return fields | dict(argument.keyword_fields)
        if not rest:
            _check_complete(syntax, at)
        rest = _read(argument, rest, fields, latest, syntax)
    if rest:
        raise InvalidCommandError(
            f"found {rest[:MAX_SHOWN]!r} after the last argument; expected: {syntax.usage}"
        )
    return fields


def command_of(line: str) -> str:
    """The name of the command that a line means; its first word if there is no such line."""
    verb = line.split(None, 1)[0][:MAX_VERB].lower()
    found = _LINES.get(verb)
    return verb if found is None else found[0]


def usage() -> dict[str, str]:
    """The syntax and the purpose of every command line."""
    return {syntax.usage: syntax.purpose for _, syntax in _LINES.values()}


def _read(
    argument: Argument, rest: str, fields: dict[str, Any], latest: str | None, syntax: CommandLine
) -> str:
    """Read an argument from the beginning of ``rest`` into ``fields``; return what follows it.

    Raises:
        InvalidCommandError: The argument is of the wrong kind, or there is no latest task.
    """
    word, *others = rest.split(None, 1) or [""]
    following = others[0] if others else ""
    match argument.kind:
        case ArgumentKind.TEXT:
            if rest:
                fields[argument.field] = rest
            return ""
        case ArgumentKind.INTEGER:
            if word and not (word.isascii() and word.isdigit() and len(word) <= MAX_DIGITS):
                raise InvalidCommandError(
                    f"found {word[:MAX_SHOWN]!r} as {argument.name}; expected: {syntax.usage}"
                )
            if word:
                fields[argument.field] = int(word)
            return following
        case ArgumentKind.INPUT_ID:
            is_given = _INPUT_ID.fullmatch(word) is not None
            fields[argument.field] = word if is_given else _latest(syntax, latest)
            return following if is_given else rest
        case ArgumentKind.TASK_ID:
            # Displays shorten ids with an ellipsis, and people copy them.
            prefix = word.rstrip("…").rstrip(".")
            fields[argument.field] = prefix or _latest(syntax, latest)
            return following


def _check_complete(syntax: CommandLine, at: int) -> None:
    """Check a line that ends before its argument number ``at``.

    Raises:
        InvalidCommandError: An argument from there on is required.
    """
    for argument in syntax.arguments[at:]:
        if not argument.is_optional:
            raise InvalidCommandError(f"{argument.name} is missing; expected: {syntax.usage}")


def _latest(syntax: CommandLine, latest: str | None) -> str:
    if latest is None:
        raise InvalidCommandError(
            f"{syntax.verb} needs a task id: this connection has no task yet; start one with: "
            "run …, or see: list"
        )
    return latest


_LINES: Final = {
    line.verb: (name, line) for name, kind in COMMANDS.items() for line in kind.declaration.lines
}
"""The command and the syntax of each line, by its verb."""
_INPUT_ID: Final = re.compile(r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+/[A-Za-z0-9_.:-]+")
