"""The commands of clients: their fields, and a declaration of everything else about each.

To add a command:

1. Write its class below, with a `declaration`: reply, example, command lines, rights.
2. Add the class to `AnyCommand`, and to `Steering` if the runner of a task carries it out.
3. Carry it out: mypy reports each `match` over these unions that lacks it, in ``_carry_out`` of
   ``server/connection.py``, and for `Steering` in ``engine/steering.py`` and
   ``engine/cluster/router.py``. If it concerns a task, add it to ``Connection._hold``, too.
4. Describe it in docs/reference/protocol.md. If programs need it, offer it in the client, and add
   its reply to ``client/frames.py``.

The session, schema, examples, `help`, command lines, ``/docs`` and TypeScript declarations derive
from the classes (`agentsrv schema --typescript` writes ``protocol.d.ts``).

Commands are frozen, refuse unknown fields, and have limits with units. Descriptions are arguments
of ``Field``, not docstrings below the fields: pydantic would read those from the source files,
which takes as long as everything else at the import of this module.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal, Self, get_args

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

from agentsrv.models import replies as r
from agentsrv.models.declarations import (
    Argument,
    ArgumentKind,
    CommandDeclaration,
    CommandLine,
)
from agentsrv.models.plan import AgentName, ExecutionPlan
from agentsrv.models.states import TaskStatus
from agentsrv.models.usage import MAX_LIST

MAX_DESCRIPTION: Final = 32_768  # characters
MAX_TOKEN: Final = 8192  # characters; a JSON Web Token with many claims has some thousands
TASK_ID_LENGTH: Final = 16  # characters of the ids that `create` returns; a shorter id is a prefix
MIN_PREFIX: Final = 4  # characters of a task's id that may stand for the whole

Text = Annotated[str, Field(max_length=1024)]
FullTaskId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
TaskId = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9_.-]{1,64}$",
        description=(
            f"The id from the reply to create, or its first {MIN_PREFIX} or more characters if no "
            "other task's id begins with them."
        ),
    ),
]
InputId = Annotated[
    str, Field(min_length=1, max_length=256, description="The id from input_required.")
]
CommandId = Annotated[str, Field(max_length=64)] | int

_TASK: Final = "3f2a9c0d1b7e4a65"
_AT: Final = "2026-03-01T12:00:00.000Z"
_QUESTION: Final = "How does async I/O affect throughput?"
_STATE: Final = {"task_id": _TASK, "status": "running", "seq": 12}
_TASK_ARGUMENT: Final = Argument("TASK_ID", "task_id", ArgumentKind.TASK_ID, is_optional=True)
_TASK_OR_ALL: Final = Argument(
    "TASK_ID",
    "task_id",
    ArgumentKind.TASK_ID,
    is_optional=True,
    keyword="all",
    keyword_fields={"all": True},
)


def _check_span(traceparent: str) -> str:
    """Refuse the version and the ids that W3C Trace Context excludes beyond its pattern."""
    version, trace, span, _ = traceparent.split("-")
    if version == "ff" or not trace.strip("0") or not span.strip("0"):
        raise ValueError("expected a version other than ff and ids that are not all zeros")
    return traceparent


TraceParent = Annotated[
    str,
    Field(pattern=r"^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"),
    AfterValidator(_check_span),
]


class Command(BaseModel):
    """A command in JSON; each subclass is one command."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    declaration: ClassVar[CommandDeclaration]

    id: CommandId | None = Field(
        default=None,
        description=(
            "The reply or error repeats it. Commands that have an id are carried out concurrently."
        ),
    )


class Create(Command):
    """Create a task; with ``execute`` also put it into the queue."""

    command: Literal["create"] = "create"
    declaration: ClassVar = CommandDeclaration(
        reply=r.Created,
        example={"task_description": _QUESTION, "execute": True},
        reply_example=_STATE | {"status": "queued", "seq": 2, "replayed": False},
        lines=(
            CommandLine(
                "run",
                "create a task, execute it and watch it",
                (Argument("TEXT", "task_description", ArgumentKind.TEXT),),
                {"execute": True},
            ),
            CommandLine(
                "create",
                "create a task without executing it",
                (Argument("TEXT", "task_description", ArgumentKind.TEXT),),
                {"execute": False},
            ),
        ),
    )
    task_description: Annotated[
        str, Field(min_length=1, max_length=MAX_DESCRIPTION, description="The work to do.")
    ]
    agent: AgentName | None = Field(
        default=None, description="This agent does the work, as a plan of one step."
    )
    plan: ExecutionPlan | None = Field(
        default=None, description="A plan of the client's own, instead of the server's planner."
    )
    params: dict[str, JsonValue] = Field(
        default_factory=dict, description="Values for the agents' parameters."
    )
    idempotency_key: Annotated[str, Field(min_length=1, max_length=128)] | None = Field(
        default=None,
        description="The same key and fields within 24 hours return the same task.",
    )
    execute: bool = Field(default=False, description="Also put the task into the queue.")
    subscribe: bool = Field(
        default=True,
        description="With ``execute``: subscribe this connection from the first event.",
    )
    deadline: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None, description="Seconds after it was queued at which the task fails."
    )
    on_disconnect: Literal["continue", "cancel"] = Field(
        default="continue",
        description="Whether the task is cancelled when the connection that executed it ends.",
    )
    resume_from: FullTaskId | None = Field(
        default=None,
        description=("A failed or cancelled task whose plan and completed steps are reused."),
    )
    metadata: Annotated[dict[Annotated[str, Field(max_length=128)], Text], FailFast()] = Field(
        default_factory=dict,
        max_length=64,
        description="Stored in ``task_created``, not interpreted.",
    )
    traceparent: TraceParent | None = Field(
        default=None,
        description=(
            "The client's span, in the format of W3C Trace Context; the task is traced as its part."
        ),
    )

    def spec(self) -> bytes:
        """Encode the fields that a worker needs, and by which a repeated command is recognised."""
        fields = {
            name: value
            for name, value in vars(self).items()
            if name not in _NOT_COMPARED and value != _DEFAULTS[name]
        }
        if self.plan is not None:
            fields["plan"] = self.plan.model_dump(mode="json", exclude_defaults=True)
        return orjson.dumps(fields | {"command": "create"}, option=orjson.OPT_SORT_KEYS)


# A client that repeats a command has another span, so `traceparent` is not compared.
_NOT_COMPARED: Final = frozenset({"id", "subscribe", "idempotency_key", "traceparent"})
_DEFAULTS: Final = {
    name: field.get_default(call_default_factory=True, validated_data={})
    for name, field in Create.model_fields.items()
}


class Execute(Command):
    """Run a pending task."""

    command: Literal["execute"] = "execute"
    declaration: ClassVar = CommandDeclaration(
        reply=r.TaskReply,
        example={"task_id": _TASK},
        reply_example=_STATE | {"status": "queued", "seq": 2},
        lines=(CommandLine("execute", "execute a pending task", (_TASK_ARGUMENT,)),),
    )
    task_id: TaskId
    subscribe: bool = Field(
        default=True, description="Subscribe this connection from the first event."
    )


class Status(Command):
    """Return the state of a task."""

    command: Literal["status"] = "status"
    declaration: ClassVar = CommandDeclaration(
        reply=r.Snapshot,
        example={"task_id": _TASK},
        reply_example=_STATE
        | {
            "user_input": _QUESTION,
            "final_output": None,
            "partial_output": "Async I/O raises",
            "error_message": None,
            "degraded": False,
            "created_at": _AT,
            "updated_at": _AT,
            "steps": [
                {
                    "step_id": "step_001",
                    "agent": "writer",
                    "description": "Write it",
                    "depends_on": [],
                    "status": "running",
                    "attempt": 1,
                    "output": "Async I/O raises",
                    "error_message": None,
                }
            ],
            "inputs": [],
        },
        lines=(CommandLine("status", "show the state of a task", (_TASK_ARGUMENT,)),),
        has_large_reply=True,
    )
    task_id: TaskId


class List(Command):
    """List the tasks of the principal, the newest first."""

    command: Literal["list"] = "list"
    declaration: ClassVar = CommandDeclaration(
        reply=r.TaskPage,
        example={"status": "running", "limit": 10},
        reply_example={
            "tasks": [
                {"task_id": _TASK, "status": "running", "user_input": _QUESTION, "created_at": _AT}
            ],
            "total": 1,
            "next_cursor": None,
        },
        lines=(
            CommandLine(
                "list",
                "list your tasks",
                (Argument("STATUS", "status", ArgumentKind.TEXT, is_optional=True),),
            ),
        ),
        has_large_reply=True,
    )
    status: Annotated[TaskStatus, Field(strict=False)] | None = Field(
        default=None, description="Only tasks with this status."
    )
    limit: Annotated[int, Field(ge=1, le=MAX_LIST)] = Field(
        default=50, description="Tasks on a page."
    )
    cursor: Annotated[str, Field(max_length=256)] | None = Field(
        default=None, description="``next_cursor`` of the previous page."
    )


class Cancel(Command):
    """Cancel a task in any status."""

    command: Literal["cancel"] = "cancel"
    declaration: ClassVar = CommandDeclaration(
        reply=r.CancelReply,
        example={"task_id": _TASK, "reason": "no longer needed"},
        reply_example={"task_id": _TASK, "status": "cancelling", "already": False},
        lines=(
            CommandLine(
                "cancel",
                "stop a task",
                (
                    _TASK_ARGUMENT,
                    Argument("REASON", "reason", ArgumentKind.TEXT, is_optional=True),
                ),
            ),
        ),
    )
    task_id: TaskId | None = None
    idempotency_key: Annotated[str, Field(min_length=1, max_length=128)] | None = Field(
        default=None, description="The key of the ``create``, instead of the task's id."
    )
    reason: Text | None = Field(default=None, description="Recorded in the task's events.")
    grace: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] | None = Field(
        default=None,
        description="Seconds that running steps have to end; by default the server's setting.",
    )

    @model_validator(mode="after")
    def _names_one_task(self) -> Self:
        if (self.task_id is None) == (self.idempotency_key is None):
            raise ValueError("expected either task_id or idempotency_key")
        return self


class Subscribe(Command):
    """Receive the events of a task that follow ``after_seq`` (0: all of them).

    With ``all`` instead of a task: the life-cycle events of all own tasks, from now on.
    """

    command: Literal["subscribe"] = "subscribe"
    declaration: ClassVar = CommandDeclaration(
        reply=r.Subscribed,
        example={"task_id": _TASK, "after_seq": 12},
        reply_example=_STATE,
        lines=(
            CommandLine(
                "subscribe",
                "watch a task, or all of them",
                (
                    _TASK_OR_ALL,
                    Argument("AFTER_SEQ", "after_seq", ArgumentKind.INTEGER, is_optional=True),
                ),
            ),
        ),
    )
    task_id: TaskId | None = None
    after_seq: Annotated[int, Field(ge=0)] = Field(
        default=0, description="The number of the last event that the client has received."
    )
    all: bool = Field(
        default=False, description="Instead of a task: the life-cycle events of all own tasks."
    )

    @model_validator(mode="after")
    def _names_one_thing(self) -> Self:
        _check_task_or_all(self.task_id, all_tasks=self.all)
        return self


class Unsubscribe(Command):
    """End the subscription to a task, or to all tasks."""

    command: Literal["unsubscribe"] = "unsubscribe"
    declaration: ClassVar = CommandDeclaration(
        reply=r.Nothing,
        example={"task_id": _TASK},
        lines=(CommandLine("unsubscribe", "stop watching", (_TASK_OR_ALL,)),),
    )
    task_id: TaskId | None = None
    all: bool = Field(
        default=False,
        description="End the subscription to all tasks; those to single tasks continue.",
    )

    @model_validator(mode="after")
    def _names_one_thing(self) -> Self:
        _check_task_or_all(self.task_id, all_tasks=self.all)
        return self


class Respond(Command):
    """Answer an agent's question, or decline to."""

    command: Literal["respond"] = "respond"
    declaration: ClassVar = CommandDeclaration(
        reply=r.RespondReply,
        example={"input_id": f"{_TASK}/step_001/1", "value": True},
        reply_example={"task_id": _TASK, "input_id": f"{_TASK}/step_002/1"},
        lines=(
            CommandLine(
                "respond",
                "answer a question, or decline to",
                (
                    Argument("INPUT_ID", "input_id", ArgumentKind.INPUT_ID, is_optional=True),
                    Argument(
                        "ANSWER",
                        "value",
                        ArgumentKind.TEXT,
                        keyword="decline",
                        keyword_fields={"action": "decline"},
                    ),
                ),
            ),
        ),
    )
    input_id: InputId
    value: JsonValue = Field(
        default=None, description="The answer, which the question's schema validates."
    )
    action: Literal["accept", "decline"] = Field(
        default="accept", description="``decline`` takes no value."
    )

    @model_validator(mode="after")
    def _declines_without_a_value(self) -> Self:
        if self.action == "decline" and self.value is not None:
            raise ValueError("found a value in addition to decline; expected one of them")
        return self


class Send(Command):
    """Send a message to the agents of a running task."""

    command: Literal["send"] = "send"
    declaration: ClassVar = CommandDeclaration(
        reply=r.SendReply,
        example={"task_id": _TASK, "message": "Keep it short."},
        reply_example={"task_id": _TASK, "seq": 13},
        lines=(
            CommandLine(
                "send",
                "give the running agents a message",
                (
                    Argument("TASK_ID", "task_id", ArgumentKind.TASK_ID),
                    Argument("TEXT", "message", ArgumentKind.TEXT),
                ),
            ),
        ),
    )
    task_id: TaskId
    message: JsonValue = Field(description="Usually text.")


class Agents(Command):
    """List the agents and their parameters."""

    command: Literal["agents"] = "agents"
    declaration: ClassVar = CommandDeclaration(
        reply=r.AgentsReply,
        reply_example={
            "agents": [
                {
                    "name": "greeter",
                    "description": "Greet somebody.",
                    "params": {"type": "object", "properties": {"name": {"type": "string"}}},
                }
            ]
        },
        lines=(CommandLine("agents", "list the agents"),),
        has_large_reply=True,
    )


class Auth(Command):
    """Authenticate with an API key or a JSON Web Token, which is never shown again."""

    command: Literal["auth"] = "auth"
    declaration: ClassVar = CommandDeclaration(
        reply=r.AuthReply,
        example={"token": "agentsrv_3f2a9c0d_…"},
        reply_example={"principal": "ada"},
        lines=(
            CommandLine("auth", "authenticate", (Argument("TOKEN", "token", ArgumentKind.TEXT),)),
        ),
        needs_authentication=False,
    )
    token: Annotated[SecretStr, Field(strict=False, min_length=1, max_length=MAX_TOKEN)]


class Ping(Command):
    """Check that the connection and the server work."""

    command: Literal["ping"] = "ping"
    declaration: ClassVar = CommandDeclaration(
        reply=r.Nothing,
        lines=(CommandLine("ping", "check that the server answers"),),
        needs_authentication=False,
    )


class Help(Command):
    """List the commands and the command lines."""

    command: Literal["help"] = "help"
    declaration: ClassVar = CommandDeclaration(
        reply=r.HelpReply,
        reply_example={
            "commands": {"ping": {"command": "ping"}},
            "lines": {"ping": "check that the server answers"},
        },
        lines=(CommandLine("help", "show the commands"),),
        needs_authentication=False,
        has_large_reply=True,
    )


AnyCommand = (
    Create
    | Execute
    | Status
    | List
    | Cancel
    | Subscribe
    | Unsubscribe
    | Respond
    | Send
    | Agents
    | Auth
    | Ping
    | Help
)
"""The commands of the protocol; the tables below are made of it."""
Steering = Cancel | Respond | Send
"""The commands that the runner of a task carries out; the others need the log or the connection.

A `Cancel` that reaches the runner has the task's id and its grace period.
"""

COMMANDS: Final[dict[str, type[Command]]] = {
    kind.model_fields["command"].default: kind for kind in get_args(AnyCommand)
}
ADAPTER: Final[TypeAdapter[AnyCommand]] = TypeAdapter(
    Annotated[AnyCommand, Field(discriminator="command")]
)
EXAMPLES: Final[dict[str, dict[str, Any]]] = {
    name: {"command": name, **kind.declaration.example} for name, kind in COMMANDS.items()
}


def _check_task_or_all(task_id: str | None, *, all_tasks: bool) -> None:
    if (task_id is None) is not all_tasks:
        raise ValueError("expected either task_id or all: true")
