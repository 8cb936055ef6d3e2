"""Command lines for people who type: ``run Why is the sky blue?`` instead of JSON."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from agentsrv.errors import InvalidCommandError, InvalidJsonError, UnknownCommandError
from agentsrv.models.events import InputRequired
from agentsrv.protocol import strict_json

MAX_VERB: Final = 64  # characters of the first word that are looked at
MAX_WORDS: Final = 99  # of a line that are split off and counted
MAX_DIGITS: Final = 18  # of a sequence number; what fits 64 bits for certain


@dataclass(frozen=True, slots=True)
class Line:
    """A command line read: the fields of its command.

    ``is_short`` says that something is left to be completed: see ``Request``.
    """

    fields: dict[str, Any]
    is_short: bool = False


def parse(line: str, latest: str | None) -> Line:
    """Read one command line.

    Args:
        line: What was typed.
        latest: The connection's latest task, which is meant where none is named.

    Raises:
        UnknownCommandError: The first word is no command.
        InvalidCommandError: A word is missing or of the wrong kind.
    """
    verb, *behind = line.split(None, 1) or [""]
    rest = behind[0] if behind else ""
    syntax = _SYNTAX.get(verb.lower())
    if syntax is None:
        raise UnknownCommandError(
            f"{verb[:40]!r} is no command; expected one of {', '.join(_SYNTAX)}, or a JSON object",
            example={"command": "help"},
        )
    return syntax.read(rest.strip(), latest)


def command_of(line: str) -> str:
    """The name of the command that a line is for; its first word where there is none."""
    verb = line.split(None, 1)[0][:MAX_VERB].lower()
    return "create" if verb == "run" else verb


def usage() -> dict[str, str]:
    """Every command line and what it does."""
    return {syntax.usage: syntax.purpose for syntax in _SYNTAX.values()}


def read_answer(text: str, question: InputRequired) -> Any:
    """What a person means who types ``text`` as the answer to a question.

    An option is itself, and so is any text where a text is asked for. Else ``yes`` and ``no``
    are true and false, JSON is what it says, and the rest is text.
    """
    if text in (question.options or ()) or question.schema.get("type") == "string":
        return text
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return strict_json.parse(text)
    except InvalidJsonError:
        return text


def _create(*, execute: bool) -> Callable[[str, str | None], Line]:
    def read(rest: str, _: str | None) -> Line:
        if not rest:
            verb = "run" if execute else "create"
            raise InvalidCommandError(
                f"{verb} needs what is to be done, for example: {verb} Compare …"
            )
        return Line({"command": "create", "task_description": rest, "execute": execute})

    return read


def _on_task(command: str) -> Callable[[str, str | None], Line]:
    def read(rest: str, latest: str | None) -> Line:
        words = rest.split(None, MAX_WORDS)
        if len(words) > 1:
            raise InvalidCommandError(f"{command} takes one task id; found {len(words)} words")
        return _task(command, words[0] if words else None, latest)

    return read


def _subscribe(rest: str, latest: str | None) -> Line:
    if rest == "all":
        return Line({"command": "subscribe", "all": True})
    prefix, after, *_ = [*rest.split(None, 1), "", ""]
    if after and not (after.isascii() and after.isdigit() and len(after) <= MAX_DIGITS):
        raise InvalidCommandError("expected: subscribe [TASK_ID [AFTER_SEQ]], or: subscribe all")
    line = _task("subscribe", prefix or None, latest)
    line.fields["after_seq"] = int(after or 0)
    return line


def _unsubscribe(rest: str, latest: str | None) -> Line:
    if rest == "all":
        return Line({"command": "unsubscribe", "all": True})
    return _on_task("unsubscribe")(rest, latest)


def _cancel(rest: str, latest: str | None) -> Line:
    prefix, _, reason = rest.partition(" ")
    line = _task("cancel", prefix or None, latest)
    if reason.strip():
        line.fields["reason"] = reason.strip()
    return line


def _respond(rest: str, latest: str | None) -> Line:
    name, _, behind = rest.partition(" ")
    named = _INPUT_ID.fullmatch(name)
    answer = behind.strip() if named else rest
    if not answer:
        raise InvalidCommandError("respond needs an answer, for example: respond yes")
    line = Line({"command": "respond", "input_id": name}, is_short=True)
    if not named:
        line.fields["input_id"] = _task("respond", None, latest).fields["task_id"]
    if answer.lower() == "decline":
        line.fields["action"] = "decline"
    else:
        line.fields["value"] = answer
    return line


def _send(rest: str, latest: str | None) -> Line:
    prefix, _, message = rest.partition(" ")
    if not message.strip():
        raise InvalidCommandError("expected: send TASK_ID TEXT; … stands for the latest task")
    line = _task("send", prefix, latest)
    line.fields["message"] = message.strip()
    return line


def _list(rest: str, _: str | None) -> Line:
    fields = {"command": "list"}
    if rest:
        fields["status"] = rest
    return Line(fields)


def _auth(rest: str, _: str | None) -> Line:
    if not rest:
        raise InvalidCommandError("auth needs a token, for example: auth agentsrv_3f2a9c0d_…")
    return Line({"command": "auth", "token": rest})


def _plain(command: str) -> Callable[[str, str | None], Line]:
    def read(rest: str, _: str | None) -> Line:
        if rest:
            raise InvalidCommandError(f"{command} takes nothing behind it; found {rest[:40]!r}")
        return Line({"command": command})

    return read


def _task(command: str, prefix: str | None, latest: str | None) -> Line:
    # Ids are often shown cut, with an ellipsis, and copied so.
    prefix = prefix and prefix.rstrip("…").rstrip(".")
    if prefix:
        return Line({"command": command, "task_id": prefix}, is_short=True)
    if latest is None:
        raise InvalidCommandError(
            f"{command} needs a task id: this connection has no task yet; "
            "start one with: run …, or see: list"
        )
    return Line({"command": command, "task_id": latest})


@dataclass(frozen=True, slots=True)
class _Syntax:
    usage: str
    purpose: str
    read: Callable[[str, str | None], Line]


_SYNTAX: Final[dict[str, _Syntax]] = {
    "run": _Syntax("run TEXT", "create a task, execute it and watch it", _create(execute=True)),
    "create": _Syntax("create TEXT", "create a task without executing it", _create(execute=False)),
    "execute": _Syntax("execute [TASK_ID]", "execute a pending task", _on_task("execute")),
    "status": _Syntax("status [TASK_ID]", "tell all about a task", _on_task("status")),
    "cancel": _Syntax("cancel [TASK_ID [REASON]]", "stop a task", _cancel),
    "subscribe": _Syntax(
        "subscribe [TASK_ID [AFTER_SEQ]] | all", "watch a task, or all of them", _subscribe
    ),
    "unsubscribe": _Syntax("unsubscribe [TASK_ID] | all", "watch no more", _unsubscribe),
    "respond": _Syntax(
        "respond [INPUT_ID] ANSWER | decline", "answer a question, or decline to", _respond
    ),
    "send": _Syntax("send TASK_ID TEXT", "give the running agents a message", _send),
    "list": _Syntax("list [STATUS]", "tell which tasks there are", _list),
    "agents": _Syntax("agents", "tell which agents there are", _plain("agents")),
    "auth": _Syntax("auth TOKEN", "say who you are", _auth),
    "ping": _Syntax("ping", "see whether the server answers", _plain("ping")),
    "help": _Syntax("help", "show this", _plain("help")),
}
_INPUT_ID: Final = re.compile(r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+/[A-Za-z0-9_.:-]+")
_WORDS: Final = {"yes": True, "y": True, "no": False, "n": False}
