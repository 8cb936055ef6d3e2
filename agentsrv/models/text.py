"""Text that comes in UTF-16 halves: surrogate pairs are joined, single halves replaced."""

from __future__ import annotations

from typing import Final

REPLACEMENT: Final = "\ufffd"


def joined(text: str) -> str:
    """``text`` with each surrogate pair as its character and each half of one as U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def split(text: str) -> tuple[str, str]:
    """``text`` as `joined` returns it, but for a first half at its end, which is returned apart.

    The next piece of the text may begin with the second half.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        if "\ud800" <= text[-1] <= "\udbff":
            return joined(text[:-1]), text[-1]
        return joined(text), ""
    return text, ""
