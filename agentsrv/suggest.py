"""Suggests the nearest known name for an unknown command, field, setting, option or agent."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

MAX_LENGTH: Final = 200  # characters of a name for which a similar one is searched
MAX_NAMED: Final = 20  # names that a message lists


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return ``"did you mean X?"``, or an empty string if no known name is similar."""
    if len(name) > MAX_LENGTH:
        return ""
    by_lower = {candidate.lower(): candidate for candidate in sorted(known)}
    found = get_close_matches(name.lower(), by_lower, 1)
    return f"did you mean {prefix}{by_lower[found[0]]}?" if found else ""


def meant_or_known(name: str, known: Iterable[str], kind: str) -> str:
    """Return ``"did you mean X?"``, or a list of the known names if none is similar."""
    names = sorted(known)
    if meant := did_you_mean(name, names):
        return meant
    if not names:
        return f"there are no {kind}"
    more = ", …" if len(names) > MAX_NAMED else ""
    return f"the {kind} are {', '.join(names[:MAX_NAMED])}{more}"
