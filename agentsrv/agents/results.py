"""Results of steps as the types that their agents declare."""

from __future__ import annotations

import inspect
from functools import lru_cache
from types import NoneType
from typing import Any

import orjson
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from agentsrv.agents.params import base_function, evaluate, origin_of, portable
from agentsrv.errors import ConfigurationError, PermanentError


def read_result(function: Any, value: Any, text: str, step_id: str) -> Any:
    """Return the result ``value`` of a step as the return annotation of its agent's function.

    The value is JSON from the log. It is read as pydantic reads JSON: a date from text, a model
    from an object. Without an annotation, and for generators, it is returned unchanged. A ``str``
    that a function returns is the step's ``text``, also if it has set another result.

    Raises:
        PermanentError: The annotation cannot be evaluated, is no type that pydantic reads, or does
            not fit the value. The message names the step and the function.
    """
    base = base_function(function)
    annotation = getattr(base, "__annotations__", {}).get("return", Any)
    if annotation is Any or inspect.isasyncgenfunction(base) or inspect.isgeneratorfunction(base):
        return value
    label = f"the result of {origin_of(function)}"
    try:
        kind = evaluate(base, annotation, label)
        if kind is str:
            return text
        if kind is NoneType and not value:  # the step has an empty text, and no result
            return None
        adapter = _adapter(kind)
    except ConfigurationError as error:
        raise PermanentError(error.message) from error
    except (PydanticUserError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise PermanentError(
            f"{label}: found the return annotation {annotation!r}; expected a type that pydantic "
            f"reads, or the agent's name in place of its function: {reason}"
        ) from error
    try:
        return adapter.validate_json(orjson.dumps(value))
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[0]
        place = ".".join([f"results.{step_id}", *map(str, found["loc"])])
        raise PermanentError(
            f"{label} does not fit its return annotation: {place}: {found['msg']}"
        ) from error


def _adapter(kind: Any) -> TypeAdapter[Any]:
    try:
        return _kept(kind)
    except TypeError:  # it has no hash
        return _make(kind)


def _make(kind: Any) -> TypeAdapter[Any]:
    """The adapter of a type; bytes are base64, as `to_json` writes them."""
    try:
        return TypeAdapter(portable(kind), config=ConfigDict(val_json_bytes="base64"))
    except PydanticUserError:  # models and typed dicts have a configuration of their own
        return TypeAdapter(portable(kind))


_kept = lru_cache(maxsize=128)(_make)
