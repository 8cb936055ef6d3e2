"""Validation of large values whose elements may all be wrong."""

from __future__ import annotations

from typing import Any, Final, cast

from pydantic_core import CoreSchema, SchemaValidator

_OF_MANY: Final = ("list", "tuple", "set", "frozenset", "dict", "deque")


def failing_fast(schema: CoreSchema) -> SchemaValidator:
    """A validator by ``schema`` whose lists and objects stop at their first invalid element.

    A value of 64 KiB has tens of thousands of elements, and each would be an error object.
    """
    # The validators that models already have would be used in place of these schemas.
    return SchemaValidator(cast("CoreSchema", _changed(schema)), _use_prebuilt=False)


def _changed(schema: Any) -> Any:
    if isinstance(schema, dict):
        copy = {name: _changed(value) for name, value in schema.items()}
        return copy | {"fail_fast": True} if schema.get("type") in _OF_MANY else copy
    return list(map(_changed, schema)) if isinstance(schema, list) else schema
