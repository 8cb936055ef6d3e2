"""The reply to ``status``, truncated so that its frame has at most 1 MiB.

The texts of a task may have many megabytes: each of 100 steps has an output. If the whole snapshot
is too large, its parts get space in this order, and what does not fit is truncated or omitted:

1. ids, statuses, times and dependencies: always complete. The limits of a plan bound them.
2. open questions: each is complete or omitted; half of the remaining space.
3. the user's input, descriptions and error messages: half of the remaining space.
4. the final or partial output: all of the remaining space.
5. the outputs of the steps: the rest, but at least the note with the length of each.

The texts of one group share its space: short ones are complete, and longer ones get equal parts.
The log has all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import orjson

from agentsrv.models.text import NOTE_BYTES, fitted

MAX_SNAPSHOT: Final = 1_040_000  # bytes as JSON; the envelope of the reply has less than 8 KiB
_PUNCTUATION: Final = 8  # bytes of JSON around a text or a question, at most


class _Text(NamedTuple):
    """A text, and the dictionary and key to which it belongs."""

    holder: dict[str, Any]
    name: str
    text: str


def bounded(snapshot: dict[str, Any]) -> dict[str, Any]:
    """Return ``snapshot`` with at most ``MAX_SNAPSHOT`` bytes as JSON; it may be changed."""
    if _size(snapshot) <= MAX_SNAPSHOT:
        return snapshot
    steps = snapshot["steps"]
    short = _taken([snapshot], "user_input", "error_message")
    short += _taken(steps, "description", "error_message")
    output = _taken([snapshot], "final_output", "partial_output")
    outputs = _taken(steps, "output")
    questions, snapshot["inputs"] = snapshot["inputs"], []
    left = MAX_SNAPSHOT - _size(snapshot) - (NOTE_BYTES + _PUNCTUATION) * len(outputs)
    snapshot["inputs"] = _fitting(questions, left // 2)
    left -= _size(snapshot["inputs"])
    left -= _put_back(short, left // 2)
    left -= _put_back(output, left)
    _put_back(outputs, left + (NOTE_BYTES + _PUNCTUATION) * len(outputs))
    return snapshot


def _size(value: Any) -> int:
    return len(orjson.dumps(value))


def _taken(holders: Sequence[dict[str, Any]], *names: str) -> list[_Text]:
    """Remove texts from their dictionaries."""
    found = [
        _Text(holder, name, holder[name]) for holder in holders for name in names if holder[name]
    ]
    for holder, name, _ in found:
        holder[name] = ""
    return found


def _put_back(texts: Sequence[_Text], room: int) -> int:
    """Put texts back, truncated to fit; return their size in bytes."""
    left = room
    ordered = sorted(texts, key=lambda each: len(each.text))
    for place, (holder, name, text) in enumerate(ordered):
        share = left // (len(ordered) - place) - _PUNCTUATION
        holder[name] = fitted(text, share)
        left -= _size(holder[name]) + _PUNCTUATION
    return room - left


def _fitting(questions: Sequence[Any], room: int) -> list[Any]:
    """Return the questions that fit together, in their order."""
    kept = []
    for question in questions:
        size = _size(question) + _PUNCTUATION
        if size <= room:
            kept.append(question)
            room -= size
    return kept
