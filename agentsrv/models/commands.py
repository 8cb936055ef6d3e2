"""What a client may ask: frozen, unknown fields refused, limits with units.

Descriptions are arguments of ``Field``, not docstrings below the fields: pydantic would read those
from the source files, which takes as long as all else at the import of this module.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self, Union

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    JsonValue,
    SecretStr,
    TypeAdapter,
    model_validator,
)

from agentsrv.models.plan import AgentName, ExecutionPlan
from agentsrv.models.states import TaskStatus
from agentsrv.models.usage import MAX_LIST

MAX_DESCRIPTION: Final = 32_768  # characters
MAX_TOKEN: Final = 8192  # characters; a JSON Web Token with many claims has some thousands

Text = Annotated[str, Field(max_length=1024)]
TaskId = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="The id that create answered.")
]
InputId = Annotated[
    str, Field(min_length=1, max_length=256, description="The id that input_required told.")
]
CommandId = Annotated[str, Field(max_length=64)] | int


def _is_span(traceparent: str) -> str:
    """Refuse what the pattern cannot: the version and the ids that W3C Trace Context excludes."""
    version, trace, span, _ = traceparent.split("-")
    if version == "ff" or not trace.strip("0") or not span.strip("0"):
        raise ValueError("expected a version other than ff and ids that are not all zeros")
    return traceparent


TraceParent = Annotated[
    str,
    Field(pattern=r"^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"),
    AfterValidator(_is_span),
]


class Command(BaseModel):
    """A client's frame."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: CommandId | None = Field(
        default=None,
        description=(
            "Comes back in the answer; commands that have one are carried out concurrently."
        ),
    )


class Create(Command):
    """Put a task into the log; with ``execute`` also into the queue."""

    command: Literal["create"] = "create"
    task_description: Annotated[
        str, Field(min_length=1, max_length=MAX_DESCRIPTION, description="What is to be done.")
    ]
    agent: AgentName | None = Field(
        default=None, description="This agent does it, as a plan of one step."
    )
    plan: ExecutionPlan | None = Field(
        default=None, description="A plan of the client's own, instead of the server's planner."
    )
    params: dict[str, JsonValue] = Field(
        default_factory=dict, description="Values for the agents' parameters."
    )
    idempotency_key: Annotated[str, Field(min_length=1, max_length=128)] | None = Field(
        default=None,
        description="The same key and the same fields within 24 hours: the task is not new.",
    )
    execute: bool = Field(default=False, description="Also put the task into the queue.")
    subscribe: bool = Field(
        default=True,
        description="With ``execute``: subscribe this connection from the first event on.",
    )
    deadline: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None, description="Seconds from the execution on, after which the task fails."
    )
    on_disconnect: Literal["continue", "cancel"] = Field(
        default="continue",
        description="What becomes of the task when the connection that executed it is gone.",
    )
    resume_from: TaskId | None = Field(
        default=None,
        description=(
            "A task that failed or was cancelled; its plan and completed steps are taken over."
        ),
    )
    metadata: Annotated[dict[Annotated[str, Field(max_length=128)], Text], FailFast()] = Field(
        default_factory=dict,
        max_length=64,
        description="Kept in ``task_created``, not interpreted.",
    )
    traceparent: TraceParent | None = Field(
        default=None,
        description=(
            "The client's span, as W3C Trace Context writes it: the task is traced as part of it."
        ),
    )

    def spec(self) -> bytes:
        """What makes it the same command again, and all that a worker needs of it."""
        fields = {
            name: value
            for name, value in vars(self).items()
            if name not in _APART and value != _DEFAULTS[name]
        }
        if self.plan is not None:
            fields["plan"] = self.plan.model_dump(mode="json", exclude_defaults=True)
        return orjson.dumps(fields | {"command": "create"}, option=orjson.OPT_SORT_KEYS)


# A span is no part of what is asked for: a client that tries again has another one.
_APART: Final = frozenset({"id", "subscribe", "idempotency_key", "traceparent"})
_DEFAULTS: Final = {
    name: field.get_default(call_default_factory=True, validated_data={})
    for name, field in Create.model_fields.items()
}


class Execute(Command):
    """Run a pending task."""

    command: Literal["execute"] = "execute"
    task_id: TaskId
    subscribe: bool = Field(
        default=True, description="Subscribe this connection from the first event on."
    )


class Status(Command):
    """Tell all about a task."""

    command: Literal["status"] = "status"
    task_id: TaskId


class List(Command):
    """Tell which tasks there are, the newest first."""

    command: Literal["list"] = "list"
    status: Annotated[TaskStatus, Field(strict=False)] | None = Field(
        default=None, description="Only tasks of this status."
    )
    limit: Annotated[int, Field(ge=1, le=MAX_LIST)] = Field(
        default=50, description="Tasks on a page."
    )
    cursor: Annotated[str, Field(max_length=256)] | None = Field(
        default=None, description="``next_cursor`` of the page before."
    )


class Cancel(Command):
    """Stop a task, wherever it is."""

    command: Literal["cancel"] = "cancel"
    task_id: TaskId | None = None
    idempotency_key: Annotated[str, Field(min_length=1, max_length=128)] | None = Field(
        default=None, description="The key of the ``create``, instead of the task's id."
    )
    reason: Text | None = Field(default=None, description="Told in the task's events.")
    grace: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] | None = Field(
        default=None,
        description="Seconds that running steps have to end; without it, the server's.",
    )

    @model_validator(mode="after")
    def _names_one_task(self) -> Self:
        if (self.task_id is None) == (self.idempotency_key is None):
            raise ValueError("expected either task_id or idempotency_key")
        return self


class Subscribe(Command):
    """Receive the events of a task that follow ``after_seq`` (0: all of them).

    With ``all`` instead of a task: from now on, the life-cycle events of all own tasks.
    """

    command: Literal["subscribe"] = "subscribe"
    task_id: TaskId | None = None
    after_seq: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Number of the last event that the client has."
    )
    all: bool = Field(
        default=False, description="Instead of a task: the life-cycle events of all own tasks."
    )

    @model_validator(mode="after")
    def _names_one_thing(self) -> Self:
        _check_task_or_all(self.task_id, all_tasks=self.all)
        return self


class Unsubscribe(Command):
    """Receive no more events of a task, or of all tasks."""

    command: Literal["unsubscribe"] = "unsubscribe"
    task_id: TaskId | None = None
    all: bool = Field(
        default=False, description="End the subscription to all tasks, not those to single ones."
    )

    @model_validator(mode="after")
    def _names_one_thing(self) -> Self:
        _check_task_or_all(self.task_id, all_tasks=self.all)
        return self


class Respond(Command):
    """Answer an agent's question, or decline to."""

    command: Literal["respond"] = "respond"
    input_id: InputId
    value: JsonValue = Field(
        default=None, description="What was asked for; the question's schema says what that may be."
    )
    action: Literal["accept", "decline"] = Field(
        default="accept", description="``decline`` takes no value."
    )

    @model_validator(mode="after")
    def _declines_without_a_value(self) -> Self:
        if self.action == "decline" and self.value is not None:
            raise ValueError("found a value beside decline; expected one or the other")
        return self


class Send(Command):
    """Give a message to the agents of a running task."""

    command: Literal["send"] = "send"
    task_id: TaskId
    message: JsonValue = Field(description="Text, mostly.")


class Agents(Command):
    """Tell which agents there are, and their parameters."""

    command: Literal["agents"] = "agents"


class Auth(Command):
    """Say who asks, by an API key or a JSON Web Token; it is never shown again."""

    command: Literal["auth"] = "auth"
    token: Annotated[SecretStr, Field(strict=False, min_length=1, max_length=MAX_TOKEN)]


class Ping(Command):
    """Answer, to show that the connection and the server live."""

    command: Literal["ping"] = "ping"


class Help(Command):
    """Tell what can be asked."""

    command: Literal["help"] = "help"


AnyCommand = Annotated[
    Union[  # noqa: UP007 - a discriminated union wants its members listed
        Create,
        Execute,
        Status,
        List,
        Cancel,
        Subscribe,
        Unsubscribe,
        Respond,
        Send,
        Agents,
        Auth,
        Ping,
        Help,
    ],
    Field(discriminator="command"),
]
ADAPTER: Final[TypeAdapter[Any]] = TypeAdapter(AnyCommand)
COMMANDS: Final[dict[str, type[Command]]] = {
    kind.model_fields["command"].default: kind for kind in Command.__subclasses__()
}
EXAMPLES: Final[dict[str, dict[str, Any]]] = {
    "create": {
        "command": "create",
        "task_description": "How does async I/O affect throughput?",
        "execute": True,
    },
    "execute": {"command": "execute", "task_id": "3f2a9c0d1b7e4a65"},
    "status": {"command": "status", "task_id": "3f2a9c0d1b7e4a65"},
    "list": {"command": "list", "status": "running", "limit": 10},
    "cancel": {"command": "cancel", "task_id": "3f2a9c0d1b7e4a65", "reason": "no longer needed"},
    "subscribe": {"command": "subscribe", "task_id": "3f2a9c0d1b7e4a65", "after_seq": 12},
    "unsubscribe": {"command": "unsubscribe", "task_id": "3f2a9c0d1b7e4a65"},
    "respond": {"command": "respond", "input_id": "3f2a9c0d1b7e4a65/step_001/1", "value": True},
    "send": {"command": "send", "task_id": "3f2a9c0d1b7e4a65", "message": "Keep it short."},
    "agents": {"command": "agents"},
    "auth": {"command": "auth", "token": "agentsrv_3f2a9c0d_…"},
    "ping": {"command": "ping"},
    "help": {"command": "help"},
}


def _check_task_or_all(task_id: str | None, *, all_tasks: bool) -> None:
    if (task_id is None) is not all_tasks:
        raise ValueError("expected either task_id or all: true")
