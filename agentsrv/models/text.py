"""Texts: UTF-16 halves are joined or replaced, and what is too long for a frame is cut."""

from __future__ import annotations

from typing import Final

import orjson

REPLACEMENT: Final = "\ufffd"
MAX_OUTPUT: Final = 1_000_000  # bytes of a text in one event, as JSON: no frame exceeds 1 MiB
NOTE_BYTES: Final = 100  # of the note at the end of a text that was cut, as JSON
_MAX_BYTES: Final = 6  # of one character, as JSON


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


def fitted(text: str, limit: int = MAX_OUTPUT) -> str:
    """``text``, cut if it is longer than ``limit`` bytes as JSON, with a note of its length.

    The note needs ``NOTE_BYTES``. The events ``partial_output`` have all of an output.
    """
    if len(text) <= limit // _MAX_BYTES:
        return text
    kept = text[:limit]  # a character has at least one byte
    size, most = len(orjson.dumps(kept)), limit - NOTE_BYTES
    if len(kept) == len(text) and size <= limit:
        return text
    kept = kept[: max(0, len(kept) * most // size)]
    while kept and len(orjson.dumps(kept)) > most:
        kept = kept[: len(kept) * 9 // 10]
    return f"{kept}\n\n[cut: the whole text has {len(text)} characters]"
