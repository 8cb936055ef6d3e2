"""Unknown names: the sentence that says what was meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

MAX_NAMED = 20  # names that a sentence lists


def nearest(name: str, known: Iterable[str], kind: str = "names") -> str:
    """``did you mean timeout?`` if a known name is like ``name``, else which ``kind`` there are."""
    names = sorted(known)
    if close := get_close_matches(name, names, n=1):
        return f"did you mean {close[0]}?"
    if not names:
        return f"there are no {kind}"
    more = ", …" if len(names) > MAX_NAMED else ""
    return f"the {kind} are {', '.join(names[:MAX_NAMED])}{more}"
