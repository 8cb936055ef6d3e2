"""The hierarchy of errors; each class has the ``code`` and ``retryable`` that clients receive.

The classes have the names of the wire protocol's codes. The server raises them, replies carry the
code, and the client raises the same class again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

PROGRAMMING_ERRORS: Final = (NameError, AttributeError, TypeError)
"""Errors that another attempt would repeat if they were raised by a line of the application."""
_MAX_WAIT: Final = 86_400.0  # seconds


class AgentsrvError(Exception):
    """Base class. The message is a sentence for the client.

    Args:
        message: What was found and what was expected.
        retry_after: Seconds after which the same command may succeed, where that is known.
        details: Field paths and reasons of an invalid command.
        example: A valid command, if showing one helps.
    """

    code: str = "internal"
    retryable: bool = False

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None = None,
        details: list[dict[str, Any]] | None = None,
        example: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        self.details = details
        self.example = example

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy with all fields, whatever arguments a subclass's constructor takes."""
        return _restored, (type(self), self.args, self.__dict__)


def longest_wait(errors: Iterable[BaseException]) -> float | None:
    """Return the longest valid ``retry_after`` of the errors, in seconds; ``None`` if none has one.

    The attribute may have been set to any object: values other than numbers from 0 on are ignored,
    longer waits than a day are shortened to a day.
    """
    waits = [wait for error in errors if (wait := _wait(error)) is not None]
    return max(waits, default=None)


def _wait(error: BaseException) -> float | None:
    if not isinstance(error, AgentsrvError):
        return None
    wait: Any = None
    try:
        wait = error.retry_after
        seconds = float(wait)
    except OverflowError:
        return _MAX_WAIT if isinstance(wait, int) and wait > 0 else None
    except BaseException:  # noqa: BLE001 - None, text, or an attribute that raises
        return None
    return min(seconds, _MAX_WAIT) if seconds >= 0 else None


def missing_extra(subject: str, extra: str) -> str:
    """Return the message about an optional dependency that is not installed.

    Args:
        subject: The feature that needs it, such as ``agentsrv mcp``.
        extra: The extra of the distribution that installs it.
    """
    return f"{subject} needs an extra that is not installed: pip install 'agentsrv[{extra}]'"


class InvalidJsonError(AgentsrvError):
    """The frame is not one JSON object, or contains a number outside of the portable range."""

    code = "invalid_json"


class InvalidCommandError(AgentsrvError):
    """A field is missing, unknown, of the wrong type or outside of its limits."""

    code = "invalid_command"


class UnknownCommandError(AgentsrvError):
    """The server has no command with that name."""

    code = "unknown_command"


class UnauthenticatedError(AgentsrvError):
    """The server rejects the token or the origin of the connection, or requires a token."""

    code = "unauthenticated"


class NotFoundError(AgentsrvError):
    """There is no such task, or it belongs to another principal."""

    code = "not_found"


class InvalidStateError(AgentsrvError):
    """The task's state does not allow the command."""

    code = "invalid_state"


class ConflictError(AgentsrvError):
    """Another writer was first: a task with the same idempotency key, or another answer."""

    code = "conflict"


class InvalidInputError(AgentsrvError):
    """The answer does not match the question's schema; the question stays open."""

    code = "invalid_input"


class SeqAheadError(AgentsrvError):
    """``after_seq`` is greater than the sequence number of the task's last event."""

    code = "seq_ahead"


class TooLargeError(AgentsrvError):
    """A value is larger than the server stores."""

    code = "too_large"


class RateLimitedError(AgentsrvError):
    """The principal has exceeded its rate of commands; this command was not executed."""

    code = "rate_limited"
    retryable = True


class OverloadedError(AgentsrvError):
    """A limit is reached: waiting tasks, subscriptions or connections."""

    code = "overloaded"
    retryable = True


class ShuttingDownError(AgentsrvError):
    """The server is stopping and accepts no new work."""

    code = "shutting_down"
    retryable = True


class UnavailableError(AgentsrvError):
    """The store cannot commit now; the operation may or may not have been committed."""

    code = "unavailable"
    retryable = True


class DamagedError(UnavailableError):
    """The task's log cannot be read because that part of the store is damaged; others can."""


class InternalError(AgentsrvError):
    """A fault of the server; the message has the incident's id, the server's log the stack."""

    code = "internal"
    retryable = True


class FencedError(AgentsrvError):
    """The writer's lease or sequence number is outdated. It must not write again."""

    code = "conflict"
    retryable = True


class PermanentError(AgentsrvError):
    """Raised by an agent: the step fails at once, without another attempt."""


class InputDeclined(PermanentError):
    """Raised by ``ask``: the person declined to answer."""


class InputExpired(PermanentError):
    """Raised by ``ask``: no answer arrived in time, and the question has no default."""


class KnowledgeError(AgentsrvError):
    """The knowledge base cannot be read or searched."""


class ModelError(AgentsrvError):
    """The endpoint of the language model failed; another attempt may succeed.

    Args:
        message: What happened, including the endpoint's own message.
        status: The HTTP status, or the code in the endpoint's answer.
        retry_after: Seconds that the endpoint asks to wait.
    """

    def __init__(
        self, message: str, *, status: int | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.status = status


class ModelRefusedError(ModelError, PermanentError):
    """The endpoint or the model refused the request; another attempt would fail as well."""


class ModelTruncatedError(ModelRefusedError):
    """The answer was cut off at the token limit; another attempt would end the same way.

    Args:
        message: What happened.
        text: The text until then.
    """

    def __init__(self, message: str, *, text: str) -> None:
        super().__init__(message)
        self.text = text


class AgentProcessError(AgentsrvError):
    """The process of an agent ended before the agent returned, or could not be started."""


class ProgrammingError(NamedTuple):
    """One of ``PROGRAMMING_ERRORS`` that a function raised in its process.

    Attributes:
        kinds: The names of its class and of its base classes.
        file: The file of the line that raised it.
    """

    kinds: tuple[str, ...]
    file: str


class RemoteError(AgentsrvError):
    """An error of an agent's function in its process; the subclass has that error's name.

    Args:
        message: The error's description.
        retry_after: Seconds to wait before another attempt, from the error.
        programming: The programming errors in it; a group may contain several.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None = None,
        programming: Sequence[ProgrammingError] = (),
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.programming = programming


class ConfigurationError(AgentsrvError):
    """A setting, an option or an application module is invalid; the server does not start."""


class LifespanError(AgentsrvError):
    """The application's lifespan raised: the server does not start, or ends with an error."""


BY_CODE: dict[str, type[AgentsrvError]] = {
    error.code: error
    for error in (
        InvalidJsonError,
        InvalidCommandError,
        UnknownCommandError,
        UnauthenticatedError,
        NotFoundError,
        InvalidStateError,
        ConflictError,
        InvalidInputError,
        SeqAheadError,
        TooLargeError,
        RateLimitedError,
        OverloadedError,
        ShuttingDownError,
        UnavailableError,
        InternalError,
    )
}
"""The errors that a server sends, by their wire code."""


def _restored(
    kind: type[AgentsrvError], args: tuple[Any, ...], fields: dict[str, Any]
) -> AgentsrvError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(fields)
    return error


def by_code(code: str) -> type[AgentsrvError]:
    """Return the error class of a wire ``code``; ``AgentsrvError`` for an unknown code."""
    return BY_CODE.get(code, AgentsrvError)
