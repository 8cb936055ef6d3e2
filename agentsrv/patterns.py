"""Regular expressions that are compiled on first use.

Compiling a large expression takes milliseconds, and most processes, such as ``agentsrv --help``,
never use it.
"""

from __future__ import annotations

import re
from typing import Any, cast


class _Lazy:
    """Provides the methods and attributes of the compiled pattern."""

    def __init__(self, pattern: str, flags: int) -> None:
        self._arguments = pattern, flags

    def __getattr__(self, name: str) -> Any:
        """Compile the pattern; the method is stored as an attribute, so later uses are direct."""
        value = getattr(re.compile(*self._arguments), name)
        setattr(self, name, value)
        return value


def lazy_pattern(pattern: str, flags: int = 0) -> re.Pattern[str]:
    """Return a lazy ``re.compile(pattern, flags)``; an invalid one raises on first use."""
    return cast("re.Pattern[str]", _Lazy(pattern, flags))
