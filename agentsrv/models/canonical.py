"""The canonical form of a JSON value: equal values have equal bytes."""

from __future__ import annotations

from typing import Any

import orjson


def canonical(value: Any) -> bytes:
    """Return ``value`` as JSON with sorted keys; tuples become lists, and dates text.

    Raises:
        TypeError: JSON cannot represent the value.
    """
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
