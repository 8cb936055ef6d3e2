"""Regular expressions that are compiled when they are first used.

Compiling a large expression takes milliseconds, and most processes, such as ``agentsrv --help``,
never use it.
"""

from __future__ import annotations

import re
from typing import Any, cast


class _Lazy:
    """Has the methods and attributes of the compiled pattern."""

    def __init__(self, pattern: str, flags: int) -> None:
        self._given = pattern, flags

    def __getattr__(self, name: str) -> Any:
        """Compile the pattern; the method becomes an attribute here, so later uses are direct."""
        value = getattr(re.compile(*self._given), name)
        setattr(self, name, value)
        return value


def lazy_pattern(pattern: str, flags: int = 0) -> re.Pattern[str]:
    """A pattern like ``re.compile(pattern, flags)``; an invalid one raises at its first use."""
    return cast("re.Pattern[str]", _Lazy(pattern, flags))
