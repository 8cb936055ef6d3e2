"""Validators that stop at the first invalid element of a list or mapping.

A value of 64 KiB has tens of thousands of elements, and pydantic makes an error object for each
invalid one.
"""

from __future__ import annotations

from typing import Any, Final, cast

from pydantic_core import CoreSchema, SchemaValidator

_COLLECTIONS: Final = ("list", "tuple", "set", "frozenset", "dict", "deque")


def failing_fast(schema: CoreSchema) -> SchemaValidator:
    """Return a validator for ``schema`` whose collections stop at their first invalid element."""
    # Without _use_prebuilt=False, the validators that models have would replace these schemas.
    return SchemaValidator(cast("CoreSchema", _changed(schema)), _use_prebuilt=False)


def _changed(schema: Any) -> Any:
    if isinstance(schema, dict):
        copy = {name: _changed(value) for name, value in schema.items()}
        return copy | {"fail_fast": True} if schema.get("type") in _COLLECTIONS else copy
    return list(map(_changed, schema)) if isinstance(schema, list) else schema
