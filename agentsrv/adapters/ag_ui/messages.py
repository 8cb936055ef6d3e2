"""The frames of front ends that speak AG-UI, and the errors that answer them; no I/O.

A frame is a ``RunAgentInput`` of AG-UI 1.0, or one of two commands of our own, because AG-UI
does not have them: ``cancel`` and ``auth``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from agentsrv.error_text import as_fields
from agentsrv.errors import AgentsrvError, InvalidCommandError, UnauthenticatedError
from agentsrv.models.commands import Auth, Create, Respond, Text
from agentsrv.protocol.session import MAX_BAD_FRAMES, MAX_DETAILS, Refusal, trim
from agentsrv.protocol.strict_json import parse_object

NAMESPACE: Final = "agentsrv"
"""Where front ends find what is ours: in ``forwardedProps``, the state, and names of events."""
EXAMPLE: Final = {
    "threadId": "thread_1",
    "runId": "run_1",
    "messages": [{"id": "1", "role": "user", "content": "How does async I/O affect throughput?"}],
}

Fields = dict[str, JsonValue]
AguiId = Annotated[str, Field(min_length=1, max_length=256)]


class _Input(BaseModel):
    """Of AG-UI: fields that it may get later are no fault."""

    model_config = ConfigDict(frozen=True, extra="ignore")


def _no_null(empty: Callable[[], object]) -> BeforeValidator:
    """``null`` means the same as a field that is left out: front ends write all their fields."""
    return BeforeValidator(lambda value: empty() if value is None else value)


class ResumeEntry(_Input):
    """An answer to a question, which is an interrupt in AG-UI's words."""

    interrupt_id: AguiId = Field(alias="interruptId")
    status: Literal["resolved", "cancelled"]
    payload: JsonValue = None

    def command(self, place: int) -> Respond:
        """The same as a command; an abandoned question is declined.

        Raises:
            InvalidCommandError: There is no such question; ``place`` is where the entry is.
        """
        try:
            return self._command()
        except ValidationError as error:
            raise in_words_of_front_end(_invalid(error, ""), place) from None

    def _command(self) -> Respond:
        if self.status == "cancelled":
            return Respond(input_id=self.interrupt_id, action="decline")
        return Respond(input_id=self.interrupt_id, value=self.payload)


class _ForwardedProps(_Input):
    agentsrv: Annotated[Fields, _no_null(dict)] = Field(default_factory=dict)


class RunAgentInput(_Input):
    """A requested run: a new task, or the rest of one that asked a question."""

    thread_id: AguiId = Field(alias="threadId")
    run_id: AguiId = Field(alias="runId")
    messages: Annotated[list[dict[str, JsonValue]], FailFast()]
    state: JsonValue = None
    forwarded_props: JsonValue = Field(default=None, alias="forwardedProps")
    resume: Annotated[list[ResumeEntry], FailFast(), _no_null(list)] = Field(default_factory=list)

    @property
    def resumed_task(self) -> str | None:
        """The task whose questions it answers; ``None`` if it begins a task."""
        return self.resume[0].interrupt_id.partition("/")[0] if self.resume else None

    @model_validator(mode="after")
    def _resumes_one_task(self) -> RunAgentInput:
        tasks = {entry.interrupt_id.partition("/")[0] for entry in self.resume}
        if len(tasks) > 1:
            raise ValueError(f"resume answers questions of {len(tasks)} tasks; expected one task")
        return self

    def create(self) -> Create:
        """The task that it begins; the same ``threadId`` and ``runId`` are the same task.

        Raises:
            InvalidCommandError: It has no message of a user, or no task can be made of it.
        """
        key = orjson.dumps([self.thread_id, self.run_id])
        fields = {
            "task_description": _latest_text(self.messages),
            "execute": True,
            "idempotency_key": f"ag-ui/{hashlib.sha256(key).hexdigest()}",
            "metadata": {"ag-ui.threadId": self.thread_id, "ag-ui.runId": self.run_id},
        }
        where = f"forwardedProps.{NAMESPACE}"
        options = self._options()
        unknown = sorted(options.keys() - set(OPTIONS))
        if unknown:
            raise InvalidCommandError(f"{where}.{unknown[0][:64]}: expected {', '.join(OPTIONS)}")
        try:
            return Create.model_validate_json(orjson.dumps(options | fields))
        except ValidationError as error:
            raise in_words_of_front_end(_invalid(error, "")) from None

    def _options(self) -> dict[str, JsonValue]:
        if not isinstance(self.forwarded_props, dict):
            return {}
        try:
            return _ForwardedProps.model_validate(self.forwarded_props).agentsrv
        except ValidationError as error:
            raise _invalid(error, "forwardedProps") from None


class CancelRun(BaseModel):
    """Stop the task of this connection's latest run."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    command: Literal["cancel"]
    reason: Text | None = None


Frame = RunAgentInput | CancelRun | Auth
OPTIONS: Final = ("agent", "params", "plan", "deadline", "resume_from")
"""The fields of ``create`` that ``forwardedProps.agentsrv`` may have."""
_COMMANDS: Final[TypeAdapter[CancelRun | Auth]] = TypeAdapter(
    Annotated[CancelRun | Auth, Field(discriminator="command")]
)
_COMMAND_FIELDS: Final = CancelRun.model_fields.keys() | Auth.model_fields.keys()


class AguiSession:
    """Reads the frames of a connection; counts the invalid ones."""

    def __init__(self) -> None:
        self.is_authenticated = True
        """Whether its token is still valid; an AG-UI connection begins with one."""
        self.is_running = False
        """Whether a run is in progress, whose events an error must not interrupt."""
        self._bad_frames = 0

    def receive(self, text: str) -> Frame | Refusal:
        """Read one text frame."""
        try:
            frame = _read(text)
        except AgentsrvError as refusal:
            self._bad_frames += 1
            return Refusal(self.refused(refusal), self._bad_frames >= MAX_BAD_FRAMES)
        self._bad_frames = 0
        if not self.is_authenticated:
            expired = UnauthenticatedError("the token is no longer valid")
            return Refusal(self.refused(expired), is_last=False)
        return frame

    def unread(self, _: str, refusal: AgentsrvError) -> bytes:
        """Encode the error for a frame that is not parsed; see ``refused``."""
        return self.refused(refusal)

    def refused(self, refusal: AgentsrvError) -> bytes:
        """Encode an error: as ``RUN_ERROR``, or as ``CUSTOM`` while a run is in progress."""
        fields = as_fields(refusal)
        fields.pop("example", None)  # of a command
        if self.is_running:
            return custom("error", fields)
        code, message = fields.pop("code"), fields.pop("message")
        metadata = {NAMESPACE: fields}
        return orjson.dumps(
            {"type": "RUN_ERROR", "message": message, "code": code, "metadata": metadata}
        )


def in_words_of_front_end(refusal: AgentsrvError, place: int = 0) -> AgentsrvError:
    """The refusal of a command, with the fields that the front end wrote in place of the command's.

    Args:
        refusal: Of a command that was made of a `RunAgentInput`; it is changed.
        place: Of the entry of ``resume`` that the command was made of.
    """
    ours = {name: f"forwardedProps.{NAMESPACE}.{name}" for name in OPTIONS}
    names = ours | {
        "task_description": "messages",
        "metadata.ag-ui.threadId": "threadId",
        "metadata.ag-ui.runId": "runId",
        "input_id": f"resume.{place}.interruptId",
        "value": f"resume.{place}.payload",
    }
    refusal.example = None  # of a command
    for detail in refusal.details or []:
        field = detail["field"]
        name = next((name for name in names if f"{field}.".startswith(f"{name}.")), None)
        if name is not None:
            detail["field"] = names[name] + field.removeprefix(name)
            refusal.message = refusal.message.replace(f"{field}:", f"{detail['field']}:", 1)
    refusal.args = (refusal.message,)
    return refusal


def custom(name: str, value: Any) -> bytes:
    """Encode an event for which AG-UI has no type."""
    return orjson.dumps({"type": "CUSTOM", "name": f"{NAMESPACE}.{name}", "value": value})


def _read(text: str) -> Frame:
    fields = parse_object(text.strip())
    try:
        if "command" in fields:
            return _COMMANDS.validate_python(trim(fields, _COMMAND_FIELDS))
        return RunAgentInput.model_validate(fields)
    except ValidationError as error:
        raise _invalid(error, "") from None


def _latest_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """The text of the user's last message."""
    for message in reversed(messages):
        if message.get("role") == "user":
            content = message.get("content")
            parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
            texts = []
            for part in parts:
                text = part.get("text") if isinstance(part, dict) else None
                if not isinstance(text, str):
                    raise InvalidCommandError("messages: the user's last one has more than text")
                texts.append(text)
            return "".join(texts)
    raise InvalidCommandError("messages: found none of a user; expected what is to be done")


def _invalid(error: ValidationError, where: str) -> InvalidCommandError:
    details = []
    for complaint in error.errors(include_url=False)[:MAX_DETAILS]:
        parts = [where, *complaint["loc"]]
        if parts[1:2] in (["cancel"], ["auth"]):  # which of our commands it is, no field
            del parts[1]
        path = ".".join(str(part)[:64] for part in parts if part != "")
        details.append({"field": path, "reason": complaint["msg"].removeprefix("Value error, ")})
    first = details[0]
    example = EXAMPLE if not where else None
    message = f"{first['field']}: {first['reason']}" if first["field"] else first["reason"]
    return InvalidCommandError(message, details=details, example=example)
