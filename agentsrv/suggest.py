"""The nearest name to one that is unknown: commands, fields, settings, options."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most like ``name``, or ``None`` if none is like it."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    found = get_close_matches(name.lower(), by_lower, 1)
    return by_lower[found[0]] if found else None


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return ``"did you mean X?"``, or an empty string if no known name is like it."""
    found = nearest(name, known)
    return "" if found is None else f"did you mean {prefix}{found}?"
