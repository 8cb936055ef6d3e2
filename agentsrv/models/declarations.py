"""What a command or an event declares about itself; everything else derives from it.

The classes of ``agentsrv.models.commands`` and ``agentsrv.models.events`` each have one
`declaration`. The session, the schema with its examples, the TypeScript declarations, `help`, the
command lines and the tables of transitions are built from these.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from agentsrv.models.states import StepStatus, TaskStatus


class ArgumentKind(Enum):
    """How an argument of a command line is read."""

    TASK_ID = auto()
    """A word: a task's id or a prefix, perhaps with an ellipsis. By default the latest task."""
    INPUT_ID = auto()
    """A word with the form of a question's id. By default the latest task, for its question."""
    INTEGER = auto()
    """A word of decimal digits."""
    TEXT = auto()
    """The rest of the line."""


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of a command line.

    Attributes:
        name: Its name in the usage, such as ``TASK_ID``.
        field: The field of the command that it fills.
        kind: How it is read.
        is_optional: Whether it may be left out.
        keyword: A word that may replace this argument and all after it.
        keyword_fields: The fields of the command that the keyword fills.
    """

    name: str
    field: str
    kind: ArgumentKind
    is_optional: bool = False
    keyword: str | None = None
    keyword_fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CommandLine:
    """The syntax of a line that a person may type instead of a command in JSON.

    Attributes:
        verb: The first word of the line.
        purpose: What the line does, as `help` shows it.
        arguments: What follows the verb.
        fields: Fields of the command that every such line fills.
    """

    verb: str
    purpose: str
    arguments: tuple[Argument, ...] = ()
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def usage(self) -> str:
        """The syntax in the usual notation, such as ``cancel [TASK_ID [REASON]]``."""
        usage = ""
        for argument in reversed(self.arguments):
            if argument.is_optional and usage[:1] in ("", "["):
                usage = f"[{argument.name} {usage}".rstrip() + "]"
            elif argument.is_optional:
                usage = f"[{argument.name}] {usage}"
            else:
                usage = f"{argument.name} {usage}".rstrip()
        keywords = (argument.keyword for argument in self.arguments if argument.keyword)
        return " | ".join([f"{self.verb} {usage}".rstrip(), *keywords])


@dataclass(frozen=True, slots=True)
class CommandDeclaration:
    """Everything about a command but its fields.

    Attributes:
        reply: The `TypedDict` of the reply, without ``type``, ``command`` and ``id``.
        example: The fields of a correct command, without ``command``.
        reply_example: The fields of a reply.
        lines: The command lines that mean this command.
        needs_authentication: Whether the connection must be authenticated.
        has_large_reply: Whether the reply may be large. A connection carries out one such command
            at a time.
    """

    reply: type[Any]
    example: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reply_example: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    lines: tuple[CommandLine, ...] = ()
    needs_authentication: bool = True
    has_large_reply: bool = False


@dataclass(frozen=True, slots=True)
class EventDeclaration:
    """The place of an event in the state machines, its audience, and an example.

    Attributes:
        task: For each status of a task that permits the event, the status that follows.
        step: The same for the status of the event's step; empty for events of the task alone.
        example: The data of such an event.
        is_life_cycle: Whether subscribers of all tasks receive the event, too. The others are sent
            to subscribers of the task only.
    """

    task: Mapping[TaskStatus, TaskStatus]
    example: Mapping[str, Any]
    step: Mapping[StepStatus, StepStatus] = dataclasses.field(default_factory=dict)
    is_life_cycle: bool = False
