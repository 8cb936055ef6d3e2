"""Values of authors in the log's form: JSON that every program reads the same.

An agent returns what it works with: models, dataclasses, dates, sets. `to_json` turns a value into
what the log keeps of it, as pydantic writes it in JSON mode (bytes as base64), and refuses what
JSON cannot hold: integers beyond 64 bits, NaN, infinity, secrets, cycles, what can be read only
once (generators, coroutines, open files). The sentence names the place: ``result.items[3].price``.

Plain JSON takes one call of orjson. Only what orjson refuses, and what it may have written as
``null`` in place of NaN, is looked at value by value in Python.

Everything that an agent is given is decoded from the log's form for it alone (`copied`, `Copied`):
what a step, an attempt or a planner changes in it is seen by nobody else, and is the same before
and after a restart.
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
_ONCE: Final = (Iterator, Awaitable, io.IOBase)


class ValueRefusedError(ValueError):
    """A value has no form as JSON, or is too large; the message names the place and the reason."""


def to_json(value: Any, name: str, max_bytes: int | None = None) -> Any:
    """``value`` as the log keeps it, decoded; it shares nothing with ``value``.

    Args:
        value: Anything that pydantic can write as JSON.
        name: What errors call it, such as ``result``.
        max_bytes: Limit of its JSON.

    Raises:
        ValueRefusedError: It has no form as JSON, or is longer than ``max_bytes``.
    """
    try:
        body = orjson.dumps(value, option=_PLAIN)
        if b"null" in body:  # of a None, or of a NaN
            json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        body = _walked(value, name, max_bytes)
    if max_bytes is not None and len(body) > max_bytes:
        raise _too_large(name, len(body), max_bytes)
    return orjson.loads(body)


def copied(value: Any) -> Any:
    """A copy of a JSON value."""
    if isinstance(value, (dict, list)):
        return orjson.loads(orjson.dumps(value))
    return value


class Copies:
    """Base of contexts: holds what the attributes of `copies` are set to, and then the copies."""

    __slots__ = ("_outputs", "_params", "_results")


class _Own:
    """A copy that was made."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


def copies(owner: type[Copies], *names: str) -> None:
    """Let attributes of ``owner`` be read as copies of what they are set to.

    They are set to a JSON value, or to a function that returns one. The copy is made when the
    attribute is first read, and stays. Setting one calls no Python function: every step does it.
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


def _too_large(name: str, size: int | str, most: int) -> ValueRefusedError:
    return ValueRefusedError(
        f"{name}: found {size} bytes of JSON; expected at most {most}: keep large data in a "
        "service of its own and return a reference"
    )


def _walked(value: Any, name: str, max_bytes: int | None) -> bytes:
    try:
        return orjson.dumps(_Walk(name, max_bytes).plain(value, name, ()))
    except RecursionError:
        raise ValueRefusedError(f"{name}: found too many nested values; expected fewer") from None


class _Walk:
    """Turns a value into plain JSON; ``path`` is the place, ``above`` the ids of what holds it."""

    def __init__(self, name: str, max_bytes: int | None) -> None:
        self._name = name
        self._most = max_bytes
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
                "logged: the log and its readers see every result"
            )
        if isinstance(value, _ONCE) or inspect.isgenerator(value) or hasattr(value, "__anext__"):
            if inspect.iscoroutine(value):
                value.close()  # or Python warns that it was never awaited
            advice = "await it" if isinstance(value, Awaitable) else "return what it gives"
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
        """A value of one of the library's types, as pydantic writes it."""
        try:
            plain = to_jsonable_python(value, bytes_mode="base64", serialize_unknown=False)
        except (PydanticSerializationError, UnicodeError, RecursionError) as error:
            if isinstance(value, numbers.Integral):  # of numpy, for example
                return int(value)
            if isinstance(value, numbers.Real):
                return float(value)
            raise ValueRefusedError(
                f"{path}: found {_kind(value)}; expected JSON, or what pydantic writes as JSON: "
                "models, dataclasses, dates, numbers, sets"
            ) from error
        return plain if plain is not value else repr(value)

    def _model(self, value: Any, path: str, above: tuple[int, ...]) -> Any:
        """A model or another object with a serializer of pydantic's own."""
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
        """Refuse in a model what pydantic would write as something else: masked, or used up."""
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
        most = 63 if value < 0 else 64
        raise ValueRefusedError(
            f"{path}: found {sign} integer of {value.bit_length()} bits; expected at most {most}: "
            "return it as text"
        )

    def _float(self, value: float, path: str) -> float:
        if math.isfinite(value):
            return float(value)
        raise ValueRefusedError(
            f"{path}: found {float(value)}; expected a finite number, or None for a missing one"
        )

    def _count(self, size: int) -> None:
        """Stop before a value is converted whose JSON is known to be too large."""
        self._size += size
        if self._most is not None and self._size > self._most:
            raise _too_large(self._name, f"more than {self._most}", self._most)


def _kind(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
