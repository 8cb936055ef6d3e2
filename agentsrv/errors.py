"""One tree of errors; each has the ``code`` and ``retryable`` that a client sees.

The names are those of the wire protocol, so that an error reads the same in the server, on
the wire and in the client.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

PROGRAMMING_ERRORS: Final = (NameError, AttributeError, TypeError)
"""Errors that another attempt would repeat, if a line of the application raised them."""
_MAX_WAIT: Final = 86_400.0  # seconds


class AgentsrvError(Exception):
    """Anything that agentsrv refuses or fails at, with the sentence that a client is told.

    Args:
        message: What was found and what was expected.
        retry_after: Seconds after which the same command may succeed, where that is known.
        details: Field paths and reasons, for bad commands.
        example: A correct command, where showing one helps.
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
    """Return the longest ``retry_after`` of errors of authors, ``None`` if none has one.

    Whatever it is set to: what is not a number from 0 on is left out.
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
        subject: What needs it, such as ``agentsrv mcp``.
        extra: The extra of the distribution that brings it.
    """
    return f"{subject} needs an extra that is not installed: pip install 'agentsrv[{extra}]'"


class InvalidJsonError(AgentsrvError):
    """The frame is not one JSON object, or holds a number that no program reads alike."""

    code = "invalid_json"


class InvalidCommandError(AgentsrvError):
    """A field is missing, unknown, of the wrong type or out of its limits."""

    code = "invalid_command"


class UnknownCommandError(AgentsrvError):
    """The server has no command of that name."""

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
    """Something else was first: another task with the idempotency key, or another answer."""

    code = "conflict"


class InvalidInputError(AgentsrvError):
    """The answer to a question is not what was asked for; the question stays open."""

    code = "invalid_input"


class SeqAheadError(AgentsrvError):
    """``after_seq`` lies beyond the end of the task's log."""

    code = "seq_ahead"


class TooLargeError(AgentsrvError):
    """A value is larger than the server keeps."""

    code = "too_large"


class RateLimitedError(AgentsrvError):
    """The principal has sent more commands than it may; this one was not carried out."""

    code = "rate_limited"
    retryable = True


class OverloadedError(AgentsrvError):
    """There is no room: in the queue, or for one more subscription or connection."""

    code = "overloaded"
    retryable = True


class ShuttingDownError(AgentsrvError):
    """The server takes no new work: it is about to stop."""

    code = "shutting_down"
    retryable = True


class UnavailableError(AgentsrvError):
    """The store cannot commit now; what was asked may or may not have happened."""

    code = "unavailable"
    retryable = True


class DamagedError(UnavailableError):
    """The task's log cannot be read: its part of the store is damaged. Other tasks are not."""


class InternalError(AgentsrvError):
    """The server has a fault; the message carries the incident's id, the log its stack."""

    code = "internal"
    retryable = True


class FencedError(AgentsrvError):
    """The lease is stale or the log is not where the writer believed. Write nothing more."""

    code = "conflict"
    retryable = True


class PermanentError(AgentsrvError):
    """Raised by an agent: the step fails at once, without another attempt."""


class InputDeclined(PermanentError):
    """Raised by ``ask``: whoever was asked declines to answer."""


class InputExpired(PermanentError):
    """Raised by ``ask``: nobody answered in time, and the question has no default."""


class KnowledgeError(AgentsrvError):
    """The knowledge base cannot be read or searched."""


class ModelError(AgentsrvError):
    """The endpoint of the language model failed; another attempt may succeed.

    Args:
        message: What happened, with the endpoint's own words.
        status: The HTTP status, or the code that the endpoint put into its answer.
        retry_after: Seconds that the endpoint asks to wait.
    """

    def __init__(
        self, message: str, *, status: int | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.status = status


class ModelRefusedError(ModelError, PermanentError):
    """The endpoint or the model refused the request; the step fails without another attempt."""


class ModelTruncatedError(ModelRefusedError):
    """The answer was cut off at the token limit; another attempt would end the same way.

    Args:
        message: What happened.
        text: The text so far.
    """

    def __init__(self, message: str, *, text: str) -> None:
        super().__init__(message)
        self.text = text


class AgentProcessError(AgentsrvError):
    """The process of an agent ended before the agent returned, or could not be started."""


class ProgrammingError(NamedTuple):
    """One of ``PROGRAMMING_ERRORS`` that a function raised in its process.

    Attributes:
        kinds: The names of its class and of those that it inherits from.
        file: The file of the line that raised it.
    """

    kinds: tuple[str, ...]
    file: str


class RemoteError(AgentsrvError):
    """An agent's function raised an error in its process; the subclass has that error's name.

    Args:
        message: The error's description.
        retry_after: Seconds that it asks to wait.
        programming: The programming errors in it; several, if it is a group.
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
    """A setting, an option or an application module is wrong; the server does not start."""


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
    """Return the error class of a wire ``code``, ``AgentsrvError`` where it is unknown."""
    return BY_CODE.get(code, AgentsrvError)
