"""The server's frames that are neither replies nor events, as types.

They are dictionaries at run time, typed for type checkers and editors; the published schema is made
of them. Replies are in ``agentsrv.models.replies``, events in ``agentsrv.models.events``.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, NotRequired

from pydantic import Field
from typing_extensions import TypedDict


class Hello(TypedDict):
    """The first frame of a connection."""

    protocol: str
    server: dict[str, str]
    connection_id: str
    authenticated: bool
    limits: dict[str, Any]
    commands: list[str]


class Detail(TypedDict):
    """One invalid field of a command."""

    field: str
    reason: str


class Refused(TypedDict):
    """A command was refused, or a subscription has ended; the connection stays open."""

    command: str | None
    id: str | int | None
    task_id: NotRequired[
        Annotated[str, Field(description="The task whose subscription has ended.")]
    ]
    code: str
    message: str
    retryable: bool
    retry_after: NotRequired[Annotated[float, Field(description="Seconds.")]]
    details: NotRequired[list[Detail]]
    example: NotRequired[dict[str, Any]]


class CaughtUp(TypedDict):
    """A subscription has delivered every event that was logged when it began."""

    task_id: str
    seq: int


class GoAway(TypedDict):
    """The server is about to close the connection."""

    reason: str
    reconnect_in: Annotated[float, Field(description="Seconds.")]


FRAMES: Final[dict[str, type[Any]]] = {
    "hello": Hello,
    "error": Refused,
    "caught_up": CaughtUp,
    "goaway": GoAway,
}
