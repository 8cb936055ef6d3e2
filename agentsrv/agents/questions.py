"""Questions of agents to people: ``ctx.ask``, the question's schema, and the check of an answer.

Theory of operation
===================

`Question.of` turns the arguments of ``ctx.ask`` into a `Question`: the prompt, a JSON Schema that
is published to clients, options and a default as JSON. It rejects a question that could not be
answered: a schema without JSON Schema, options or a default that do not match the schema, or a size
beyond ``MAX_QUESTION``. The author gives the schema in one of two forms:

- A Python type becomes a pydantic ``TypeAdapter``. Answers are validated by it in strict mode, then
  read again in lax mode as the author's type (`Question.read`).
- A JSON Schema as a mapping is checked by jsonschema_rs; the author gets JSON back.

An answer is checked twice: when it arrives (`Question.check`, the client gets the reasons), and
when the agent reads it from the log (`Question.read`). After a restart the code of the agent may
have changed, so the second check can fail although the first did not.

Clients choose the answers, so each check is bounded: `branching` limits the work of recursive
types, `failing_fast` and ``MAX_SMALL`` limit the number of errors, and regular expressions in
schemas run in linear time. Adapters and validators are cached, because building one takes
milliseconds and leaves reference cycles.

A question is secret if its schema has ``writeOnly``, at any depth. Errors about its answers do not
repeat any part of the answer.
"""

from __future__ import annotations

import re
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from types import NoneType
from typing import Any, Final, Self

import orjson
from pydantic import Secret, TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import SchemaValidator
from pydantic_core.core_schema import JsonOrPythonSchema

from agentsrv.agents.branching import HINT, dispatched, is_too_much, width_of
from agentsrv.agents.fail_fast import failing_fast
from agentsrv.agents.params import portable
from agentsrv.agents.values import ValueRefusedError, copied, to_json
from agentsrv.errors import (
    InputDeclined,
    InputExpired,
    InvalidInputError,
    PermanentError,
    UnavailableError,
    missing_extra,
)
from agentsrv.models.canonical import canonical
from agentsrv.models.events import InputReceived
from agentsrv.models.text import joined

MAX_PROMPT: Final = 32_768  # characters, as of a task's description
MAX_TIMEOUT: Final = 100 * 365 * 86_400  # seconds: the log stores the end as a date
MAX_QUESTION: Final = 256 << 10  # bytes of JSON of prompt, schema, options and default together
MAX_SHOWN: Final = 80  # characters of an invalid answer that its error repeats
MAX_DETAILS: Final = 10  # reasons in the error about one answer
MAX_SMALL: Final = 2048  # bytes of an answer of which all errors are collected, not only the first

Schema = Mapping[str, Any]


class CheckError(Exception):
    """An author's validator failed while it checked an answer; ``error`` is its exception."""

    def __init__(self, error: BaseException, *, is_secret: bool) -> None:
        super().__init__("a validator of the question failed")
        self.error = error
        self.is_secret = is_secret


@dataclass(frozen=True, slots=True)
class Question:
    """A question that has passed the checks of `Question.of`."""

    key: str
    is_numbered: bool
    """Whether ``key`` is only the question's number in its attempt."""
    prompt: str
    schema: Schema
    options: Sequence[Any] | None
    default: Any
    timeout: float | None
    """Seconds until it expires, counted from the first time it was asked."""
    kind: TypeAdapter[Any] | None
    """Validates and reads the answer; ``None`` if the author gave a JSON Schema."""
    members: Sequence[tuple[Any, Any]]
    """Pairs of an option as JSON and as the author gave it, if no schema was given."""
    is_secret: bool
    """Whether only the agent may read the answer."""

    @classmethod
    def of(
        cls,
        prompt: str,
        *,
        key: str | int,
        answer_type: Any,
        options: Iterable[Any] | None,
        default: Any,
        timeout: float | None,
    ) -> Self:
        """Check the arguments of ``ctx.ask``; ``key`` is an ``int`` if the author gave none.

        Without an ``answer_type`` the answer is text, or any of ``options``.

        Raises:
            PermanentError: An argument is invalid.
        """
        if not isinstance(prompt, str):
            raise PermanentError(f"the question's prompt is {prompt!r}; expected text")
        prompt = str.__str__(prompt)  # a subclass may override methods
        prompt = prompt if prompt.isascii() else joined(prompt)
        key = str.__str__(key) if isinstance(key, str) else key
        if isinstance(key, str) and not _KEY.fullmatch(key):
            raise PermanentError(
                f"the question's key is {key!r}; expected 1 to 64 of letters, digits, "
                "'_', '.', '-' and ':', not digits alone"
            )
        if not 0 < len(prompt) <= MAX_PROMPT:
            raise PermanentError(
                f"the question's prompt has {len(prompt)} characters; expected 1 to {MAX_PROMPT}"
            )
        if timeout is not None and not (_is_number(timeout) and 0 < timeout <= MAX_TIMEOUT):
            raise PermanentError(
                f"the question's timeout is {timeout!r}; expected seconds above 0, and at most "
                f"{MAX_TIMEOUT}; None waits without limit"
            )
        members = None if options is None else _members(options)
        if answer_type is None:
            answer_type = str if members is None else Any
        values = None if members is None else [json for json, _ in members]
        kind, described = _described(answer_type, values)
        question = cls(
            key=str(key),
            is_numbered=isinstance(key, int),
            prompt=prompt,
            schema=described,
            options=values,
            default=_json(default, "default"),
            timeout=timeout,
            kind=kind,
            members=tuple(members or ()) if answer_type is Any else (),
            is_secret=is_secret(described),
        )
        question.check_size()
        if question.is_secret and default is not None:
            raise PermanentError(
                "the question asks for a secret; expected no default, which is public"
            )
        try:
            if kind is None:
                check_schema(question.schema, None)
        except InvalidInputError:
            pass  # None may be no valid answer; the schema itself is valid
        except UnavailableError:
            raise PermanentError(missing_extra("a schema in JSON", "schema")) from None
        for name, value in [
            *(("default", question.default) for _ in range(default is not None)),
            *(("options", option) for option in question.options or ()),
        ]:
            try:
                question.check(value)
            except InvalidInputError as error:
                raise PermanentError(f"the question's {name}: {error.message}") from error
        return question

    def check_size(self) -> None:
        """Check that the question is small enough for the log's events and for ``status``.

        Raises:
            PermanentError: It is larger than ``MAX_QUESTION``.
        """
        size = len(orjson.dumps([self.prompt, self.schema, self.options, self.default]))
        if size > MAX_QUESTION:
            raise PermanentError(
                f"the question has {size} bytes as JSON, with its schema, options and default; "
                f"expected at most {MAX_QUESTION}"
            )

    def check(self, value: Any) -> None:
        """Validate an answer against the question's type, schema and options.

        Raises:
            InvalidInputError: The answer is invalid; the message has the value and the reasons.
            CheckError: A validator of the author raised an exception that pydantic does not treat
                as a validation error.
        """
        if self.is_secret:
            self._check_secret(value)
            return
        if self.kind is None:
            check_schema(self.schema, value)
            return
        if self.options is not None and canonical(value) not in map(canonical, self.options):
            expected = orjson.dumps(self.options).decode()
            raise _invalid(value, [("value", f"expected one of {expected}")])
        complaints = self._complaints(self.kind, value)
        if complaints:
            raise _invalid(value, complaints)

    def _check_secret(self, value: Any) -> None:
        """Validate like ``check``, with an error that repeats no part of the value."""
        try:
            if self.kind is None:
                check_schema(self.schema, value)
                return
            is_valid = not self._complaints(self.kind, value)
        except InvalidInputError:
            is_valid = False
        if not is_valid:
            reason = "the answer does not fit the question's schema; it is not repeated here"
            raise InvalidInputError(
                reason, details=[{"field": "value", "reason": "does not fit the schema"}]
            ) from None

    def _complaints(self, kind: TypeAdapter[Any], value: Any) -> list[tuple[str, str]]:
        """Return the places and reasons of an invalid answer; empty for a valid one."""
        if is_too_much(value, _width(kind)):
            return [("value", HINT)]
        try:
            _checker(kind).validate_json(orjson.dumps(value), strict=True)
        except ValidationError as error:
            try:
                found = error.errors(include_url=False, include_input=False)[:MAX_DETAILS]
                return [(_path(complaint["loc"]), complaint["msg"]) for complaint in found]
            except BaseException as failure:
                raise CheckError(failure, is_secret=self.is_secret) from failure
        except BaseException as failure:
            raise CheckError(failure, is_secret=self.is_secret) from failure
        return []

    def read(self, answer: InputReceived) -> Any:
        """Return the answer as the question's type, or as JSON if the schema is a JSON Schema.

        For a question with options only, it is the author's object, such as a member of an enum.

        Raises:
            InputDeclined: The person declined.
            InputExpired: No answer arrived in time, and there is no default.
            PermanentError: The answer does not match, because the schema has changed since.
        """
        if answer.action == "decline":
            raise InputDeclined(f"{answer.by} declined to answer: {self.prompt[:MAX_SHOWN]}")
        if answer.action == "expire" and answer.value is None:
            raise InputExpired(f"no answer in time: {self.prompt[:MAX_SHOWN]}")
        for json, member in self.members:
            if canonical(json) == canonical(answer.value):
                return copied(json) if isinstance(member, (dict, list)) else member
        if self.kind is None:
            return answer.value
        try:
            return self.kind.validate_json(orjson.dumps(answer.value))
        except ValidationError as error:
            if self.is_secret:
                message = "the secret answer in the log does not fit this question's schema"
                raise PermanentError(message) from None
            raise PermanentError(
                f"the answer in the log, {_shown(answer.value)}, does not fit the question: {error}"
            ) from error


Ask = Callable[[Question], Awaitable[InputReceived]]
"""Publishes a question and waits for its answer; returns a separate copy of the answer."""
Mailbox = Callable[[int], Awaitable[Any]]
"""Waits for the task's message with that number, from 0; returns a separate copy of it."""


class Messages(AsyncIterator[Any]):
    """The messages that clients send to a task, from the first on; the iteration never ends."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._read = 0

    async def __anext__(self) -> Any:
        message = await self._mailbox(self._read)
        self._read += 1
        return message


def is_secret(schema: Any) -> bool:
    """Whether a JSON Schema asks for a secret: it has ``writeOnly``, at any depth."""
    if isinstance(schema, Mapping):
        return schema.get("writeOnly") is True or any(map(is_secret, schema.values()))
    return isinstance(schema, (list, tuple)) and any(map(is_secret, schema))


def _members(options: Any) -> list[tuple[Any, Any]]:
    """Return pairs of each option as JSON and as given.

    Raises:
        PermanentError: The list is empty, or an option cannot be stored as JSON.
    """
    if isinstance(options, (str, bytes, Mapping)) or not isinstance(options, Iterable):
        raise PermanentError(f"the question's options are {options!r}; expected a list of them")
    listed = list(options)
    if not listed:
        raise PermanentError("the question's options are empty; expected at least one")
    return list(zip(_json(listed, "options"), listed, strict=True))


def _json(value: Any, name: str) -> Any:
    if value is None:
        return None
    try:
        return to_json(value, name)
    except ValueRefusedError as error:
        raise PermanentError(f"the question's {error}") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_schema(schema: Schema, value: Any) -> None:
    """Validate ``value`` against a JSON Schema.

    Raises:
        InvalidInputError: The value is invalid; the message has the value and the reasons.
        PermanentError: ``schema`` is not a valid JSON Schema.
        UnavailableError: The extra that checks JSON Schemas is not installed.
    """
    try:
        import jsonschema_rs  # noqa: PLC0415 - an extra
    except ImportError:
        raise UnavailableError(
            "the answer cannot be checked before the step reaches its question again; try again "
            "later. Otherwise, " + missing_extra("checking the answer", "schema")
        ) from None
    try:
        validator, width = _schema_checker(orjson.dumps(schema))
    except ValueError as error:
        reason = str(error).partition("\n")[0]
        raise PermanentError(f"the question's schema is not a JSON Schema: {reason}") from None
    if is_too_much(value, width):
        raise _invalid(value, [("value", HINT)])
    try:
        validator.validate(value)  # stops at the first of perhaps tens of thousands of errors
    except jsonschema_rs.ValidationError as first:
        errors = [first]
        if len(orjson.dumps(value)) <= MAX_SMALL:
            errors = list(islice(validator.iter_errors(value), MAX_DETAILS))
        complaints = [(_path(error.instance_path), error.message) for error in errors]
        raise _invalid(value, complaints) from None


def _described(
    schema: Any, options: Sequence[Any] | None
) -> tuple[TypeAdapter[Any] | None, Schema]:
    """Return the adapter that reads an answer, and the JSON Schema for clients.

    Raises:
        PermanentError: The type has no JSON Schema.
    """
    narrowed = {} if options is None else {"enum": options}
    if isinstance(schema, Mapping):
        if schema.get("enum") == []:
            raise PermanentError("the question's enum is empty; expected at least one value")
        return None, {**schema, **narrowed}
    try:
        kind, described = _of_type(schema)
        return kind, {**described, **narrowed}
    except Exception as error:
        message = f"the question's type is {schema!r}; expected a type or a JSON Schema: {error}"
        raise PermanentError(message) from error


def _of_type(schema: Any) -> tuple[TypeAdapter[Any], Schema]:
    try:
        return _kept(schema)
    except TypeError:  # not hashable
        return _read_type(schema)


def _read_type(schema: Any) -> tuple[TypeAdapter[Any], Schema]:
    kind: TypeAdapter[Any] = TypeAdapter(portable(schema))
    if (never := _no_json(kind.core_schema)) is not None:
        raise TypeError(f"no JSON value becomes {never!r}, so it cannot be the answer")
    return kind, kind.json_schema(schema_generator=_Marking)


def _no_json(schema: Any) -> Any:
    """Return a value that ``schema`` requires and that no JSON value becomes, or ``None``.

    These are members of an enum and bytes in a `Literal`, and tuples as values of an enum.
    """
    if isinstance(schema, (list, tuple)):
        return next((it for part in schema if (it := _no_json(part)) is not None), None)
    if not isinstance(schema, dict):
        return None
    wanted: list[Any] = []
    if schema.get("type") == "literal":
        wanted = schema["expected"]
    elif schema.get("type") == "enum" and "missing" not in schema:
        wanted = [member.value for member in schema["members"]]
    for value in wanted:
        if not isinstance(value, (str, int, float, NoneType)):
            return value
    parts = [part for name, part in schema.items() if name not in _NO_SCHEMAS]
    return _no_json(parts)


_NO_SCHEMAS: Final = frozenset({"expected", "members", "default", "metadata", "serialization"})


class _Marking(GenerateJsonSchema):
    """Marks pydantic's generic secrets, such as ``Secret[int]``, as it marks `SecretStr`."""

    def json_or_python_schema(self, schema: JsonOrPythonSchema) -> dict[str, Any]:
        described = super().json_or_python_schema(schema)
        written = schema.get("serialization", {}).get("function")
        return described | {"writeOnly": True} if written is _WRITES_SECRET else described


_WRITES_SECRET: Final = TypeAdapter(Secret[int]).core_schema["serialization"]["function"]


@lru_cache(maxsize=128)
def _checker(kind: TypeAdapter[Any]) -> SchemaValidator:
    return failing_fast(kind.core_schema)


@lru_cache(maxsize=128)
def _width(kind: TypeAdapter[Any]) -> int:
    return width_of(kind.json_schema(), uses_discriminators=True)


@lru_cache(maxsize=32)
def _schema_checker(schema: bytes) -> tuple[Any, int]:
    """Return the validator of a JSON Schema, and the schema's width.

    Raises:
        ValueError: It is not a JSON Schema.
    """
    import jsonschema_rs  # noqa: PLC0415 - an extra

    by_tag = dispatched(orjson.loads(schema))
    validator = jsonschema_rs.validator_for(
        by_tag,
        validate_formats=True,
        pattern_options=jsonschema_rs.RegexOptions(),  # linear in the length of the answer
        retriever=_retrieve_nothing,
    )
    return validator, width_of(by_tag, uses_discriminators=False)


# Building a JSON Schema leaves reference cycles, so it is not repeated for each question.
_kept: Final = lru_cache(maxsize=128)(_read_type)


def _retrieve_nothing(uri: str) -> Any:
    raise ValueError(f"found a reference to {uri}; expected a schema without external references")


def _invalid(value: Any, complaints: Sequence[tuple[str, str]]) -> InvalidInputError:
    details = [{"field": path, "reason": reason} for path, reason in complaints]
    path, reason = complaints[0]
    return InvalidInputError(f"found {_shown(value)}; {path}: {reason}", details=details)


def _path(location: Sequence[Any]) -> str:
    return ".".join(["value", *map(str, location)])


def _shown(value: Any) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"


_KEY: Final = re.compile(r"(?!\d+\Z)[A-Za-z0-9_.:-]{1,64}")
