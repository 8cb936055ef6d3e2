"""Texts: halves of surrogate pairs are joined or replaced, and long texts are truncated."""

from __future__ import annotations

from typing import Final

import orjson

REPLACEMENT: Final = "\ufffd"
MAX_OUTPUT: Final = 1_000_000  # bytes of a text in one event, as JSON: no frame exceeds 1 MiB
NOTE_BYTES: Final = 100  # of the note at the end of a truncated text, as JSON
_MAX_BYTES: Final = 6  # of one character, as JSON


def joined(text: str) -> str:
    """Return ``text`` with surrogate pairs joined and single halves replaced by U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def split(text: str) -> tuple[str, str]:
    """Return ``text`` as `joined` does, and separately a first half of a pair at its end.

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
    """Return ``text``, truncated to ``limit`` bytes as JSON with a note of its length.

    The note needs ``NOTE_BYTES``. The complete output is in the events ``partial_output``.
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
