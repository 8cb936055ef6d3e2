"""Converts authors' values to the JSON of the log, and the JSON of the log to copies for authors.

Theory of operation
===================

An agent returns Python values: models, dataclasses, dates, sets. `to_json` converts a value to the
JSON that the log stores, as pydantic writes it in JSON mode (bytes as base64). It rejects values
that JSON cannot represent or that programs read differently: integers beyond 64 bits, NaN,
infinity, secrets, cycles, and values that can be read only once (generators, coroutines, open
files). The error names the place, for example ``result.items[3].price``.

There are two paths:

1. Plain JSON takes one call of orjson, which rejects every other type (`_PLAIN`). It writes NaN and
   infinity as ``null``; only if the output contains ``null``, ``json.dumps`` checks for them.
2. A value that fails on the first path is converted part by part by `_Walk`, in Python. It keeps
   the path and the ids of the enclosing values, for messages and to detect cycles, and counts the
   size as it goes, so that a value that is too large fails before all of it is converted.

An agent's inputs (params, results, outputs) are decoded from the log's JSON for each context
separately (`Copies`, `copied`). Changes by a step, an attempt or a planner are therefore not
visible to others, and an attempt reads the same values before and after a restart. The copies are
made on first access, because most steps read few of them.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import io
import json
import math
import numbers
from collections import deque
from collections.abc import Awaitable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from enum import Enum
from typing import Any, Final

import orjson
from pydantic import Secret, SecretBytes, SecretStr
from pydantic_core import PydanticSerializationError, to_jsonable_python

from agentsrv.models.text import joined

MAX_DEPTH: Final = 250  # nested lists and objects; orjson writes 254
MIN_INTEGER: Final = -(2**63)
MAX_INTEGER: Final = 2**64 - 1

_PLAIN: Final = (
    orjson.OPT_PASSTHROUGH_SUBCLASS
    | orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_PASSTHROUGH_DATETIME
)
_SECRETS: Final = (SecretStr, SecretBytes, Secret)
_ONCE: Final = (Iterator, Awaitable, io.IOBase)  # reading them uses them up


class ValueRefusedError(ValueError):
    """A value cannot be stored as JSON or is too large; the message names the place."""


def to_json(value: Any, name: str, max_bytes: int | None = None) -> Any:
    """Return ``value`` as the log stores it, decoded; it shares no objects with ``value``.

    Args:
        value: Any object that pydantic can write as JSON.
        name: The value's name in errors, such as ``result``.
        max_bytes: Maximum size of its JSON, in bytes.

    Raises:
        ValueRefusedError: It cannot be stored as JSON, or is larger than ``max_bytes``.
    """
    try:
        body = orjson.dumps(value, option=_PLAIN)
        if b"null" in body:  # from None, or from NaN
            json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        body = _walked(value, name, max_bytes)
    if max_bytes is not None and len(body) > max_bytes:
        raise _too_large(name, len(body), max_bytes)
    return orjson.loads(body)


def copied(value: Any) -> Any:
    """Return a copy of a JSON value."""
    if isinstance(value, (dict, list)):
        return orjson.loads(orjson.dumps(value))
    return value


class Copies:
    """Base of contexts: stores the sources of the attributes that `copies` names, or copies."""

    __slots__ = ("_outputs", "_params", "_results")


class _Own:
    """Marks a stored value as the context's own copy."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


def copies(owner: type[Copies], *names: str) -> None:
    """Make attributes of ``owner`` return copies of the values that they are set to.

    An attribute is set to a JSON value or to a function that returns one. The copy is made at the
    first access and kept. Setting one calls no Python function, because every step does it.
    """
    for name in names:
        slot: Any = getattr(Copies, f"_{name}")
        setattr(owner, name, property(functools.partial(_read, slot), slot.__set__))


def _read(slot: Any, context: Copies) -> Any:
    held = slot.__get__(context)
    if type(held) is not _Own:
        held = _Own(copied(held() if callable(held) else held))
        slot.__set__(context, held)
    return held.value


def _too_large(name: str, size: int | str, limit: int) -> ValueRefusedError:
    return ValueRefusedError(
        f"{name}: found {size} bytes of JSON; expected at most {limit}: store large data in a "
        "separate service and return a reference"
    )


def _walked(value: Any, name: str, max_bytes: int | None) -> bytes:
    try:
        return orjson.dumps(_Walk(name, max_bytes).plain(value, name, ()))
    except RecursionError:
        raise ValueRefusedError(f"{name}: found too many nested values; expected fewer") from None


class _Walk:
    """Converts a value to plain JSON; ``above`` has the ids of the values that enclose it."""

    def __init__(self, name: str, max_bytes: int | None) -> None:
        self._name = name
        self._limit = max_bytes
        self._size = 0

    def plain(self, value: Any, path: str, above: tuple[int, ...]) -> Any:
        if value is None or value is True or value is False:
            self._count(4)
            return value
        if isinstance(value, Enum):
            return self.plain(value.value, path, above)
        if isinstance(value, str):
            text = str.__str__(value)
            self._count(len(text))
            return text if text.isascii() else joined(text)
        if isinstance(value, int):
            self._count(1)
            return self._integer(value, path)
        if isinstance(value, float):
            self._count(1)
            return self._float(value, path)
        if len(above) > MAX_DEPTH:
            raise ValueRefusedError(
                f"{path[:200]}…: found more than {MAX_DEPTH} nested values; expected fewer"
            )
        if id(value) in above:
            raise ValueRefusedError(f"{path}: found a value that contains itself; expected a tree")
        return self._object(value, path, (*above, id(value)))

    def _object(self, value: Any, path: str, above: tuple[int, ...]) -> Any:
        if isinstance(value, Mapping):
            return self._mapping(value, path, above)
        if isinstance(value, (list, tuple, AbstractSet, deque)):
            self._count(2)
            return [self.plain(item, f"{path}[{place}]", above) for place, item in enumerate(value)]
        if isinstance(value, _SECRETS):
            raise ValueRefusedError(
                f"{path}: found a secret ({type(value).__name__}); expected a value that may be "
                "logged, because the log stores every result in plain text"
            )
        if isinstance(value, _ONCE) or inspect.isgenerator(value) or hasattr(value, "__anext__"):
            if inspect.iscoroutine(value):
                value.close()  # or Python warns that it was never awaited
            advice = "await it" if isinstance(value, Awaitable) else "return a list of its items"
            raise ValueRefusedError(
                f"{path}: found {_kind(value)}, which can be read only once; expected its content: "
                + advice
            )
        if hasattr(value, "__pydantic_serializer__") and not isinstance(value, type):
            return self._model(value, path, above)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return self._mapping(fields, path, above)
        return self.plain(self._leaf(value, path), path, above)

    def _leaf(self, value: Any, path: str) -> Any:
        """Convert a value of a library's type as pydantic writes it."""
        try:
            plain = to_jsonable_python(value, bytes_mode="base64", serialize_unknown=False)
        except (PydanticSerializationError, UnicodeError, RecursionError) as error:
            if isinstance(value, numbers.Integral):  # numpy's integers, for example
                return int(value)
            if isinstance(value, numbers.Real):
                return float(value)
            raise ValueRefusedError(
                f"{path}: found {_kind(value)}; expected JSON, or what pydantic writes as JSON: "
                "models, dataclasses, dates, numbers, sets"
            ) from error
        return plain if plain is not value else repr(value)

    def _model(self, value: Any, path: str, above: tuple[int, ...]) -> Any:
        """Convert a model, or another object with pydantic's serializer."""
        self._look_into(value, path, above, ())
        try:
            plain = to_jsonable_python(value, bytes_mode="base64")
        except UnicodeError:
            raise ValueRefusedError(
                f"{path}: found bytes that are not UTF-8; expected "
                "ConfigDict(ser_json_bytes='base64') in the model"
            ) from None
        except Exception as error:
            reason = str(error).removeprefix("Error serializing to JSON: ")
            raise ValueRefusedError(f"{path}: {type(value).__name__}: {reason}") from error
        return self.plain(plain, path, above)

    def _look_into(
        self, value: Any, path: str, above: tuple[int, ...], seen: tuple[int, ...]
    ) -> None:
        """Reject values in a model that pydantic would mask (secrets) or use up (iterators)."""
        if id(value) in seen or len(seen) > MAX_DEPTH:
            raise ValueRefusedError(
                f"{path[:200]}: found a value that contains itself; expected a tree"
            )
        inside = (*seen, id(value))
        fields = getattr(type(value), "__pydantic_fields__", None)
        if fields is not None:
            serializers = type(value).__pydantic_decorators__
            if serializers.model_serializers:
                return
            own = serializers.field_serializers.values()
            custom = {name for serializer in own for name in serializer.info.fields}
            for name, field in fields.items():
                if not field.exclude and name not in custom and not field.metadata:
                    self._look_into(getattr(value, name, None), f"{path}.{name}", above, inside)
        elif isinstance(value, Mapping):
            for key, item in value.items():
                self._look_into(item, f"{path}.{key}", above, inside)
        elif isinstance(value, (list, tuple, AbstractSet)):
            for place, item in enumerate(value):
                self._look_into(item, f"{path}[{place}]", above, inside)
        elif isinstance(value, (*_SECRETS, *_ONCE)):
            self._object(value, path, above)

    def _mapping(self, value: Mapping[Any, Any], path: str, above: tuple[int, ...]) -> Any:
        plain: dict[str, Any] = {}
        self._count(2)
        for key, item in value.items():
            name = key if type(key) is str else self._key(key, path)
            name = name if name.isascii() else joined(name)
            if name in plain:
                raise ValueRefusedError(
                    f"{path}: found two keys that are both written {name[:80]!r}; expected one"
                )
            self._count(len(name))
            plain[name] = self.plain(item, f"{path}.{name}", above)
        return plain

    def _key(self, key: Any, path: str) -> str:
        try:
            (name,) = to_jsonable_python({key: None}, bytes_mode="base64")
        except Exception as error:
            raise ValueRefusedError(
                f"{path}: found a key of {_kind(key)}; expected text, a number or a date"
            ) from error
        return str(name)

    def _integer(self, value: int, path: str) -> int:
        if MIN_INTEGER <= value <= MAX_INTEGER:
            return int(value)
        sign = "a negative" if value < 0 else "an"
        bits = 63 if value < 0 else 64
        raise ValueRefusedError(
            f"{path}: found {sign} integer of {value.bit_length()} bits; expected at most {bits}: "
            "return it as text"
        )

    def _float(self, value: float, path: str) -> float:
        if math.isfinite(value):
            return float(value)
        raise ValueRefusedError(
            f"{path}: found {float(value)}; expected a finite number, or None for a missing one"
        )

    def _count(self, size: int) -> None:
        """Raise as soon as the converted parts exceed the size limit."""
        self._size += size
        if self._limit is not None and self._size > self._limit:
            raise _too_large(self._name, f"more than {self._limit}", self._limit)


def _kind(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
