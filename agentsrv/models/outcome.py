"""What a command has done, as data: its reply, and what the connection has to do with it."""

from __future__ import annotations

from typing import Any, NamedTuple


class Follow(NamedTuple):
    """A subscription that a command begins."""

    task_id: str
    after: int
    """The events that follow this number are delivered."""
    head: int
    """The task's last event when the command was carried out."""
    ended: bool
    """Whether ``head`` is the task's end."""


class CommandOutcome(NamedTuple):
    """The result of a command; everything that it says is committed."""

    reply: dict[str, Any]
    """The fields of the reply."""
    follow: Follow | None = None
    bind: str | None = None
    """The task that is to be cancelled when the connection closes."""
