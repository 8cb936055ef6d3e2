"""Finds the JSON in the answer of a model, for example inside a Markdown code fence."""

from __future__ import annotations

import json
import re
from typing import Final

import orjson

MAX_FENCES: Final = 5  # fences of a text in which JSON is searched
_FENCE_OPEN: Final = re.compile(r"```[a-zA-Z]*[ \t]*\r?\n")


def json_text(text: str) -> str:
    """Return the JSON in a model's answer.

    It may be inside a code fence or between sentences. A text without JSON is returned unchanged.
    """
    text = text.strip()
    candidates = [text]
    for opening in _FENCE_OPEN.finditer(text):
        inner, fence, _ = text[opening.end() :].partition("```")
        candidates.append(inner if fence else text[opening.end() :])
        if len(candidates) > MAX_FENCES:
            break
    starts = [place for place in (text.find("{"), text.find("[")) if place >= 0]
    for candidate in candidates:
        try:
            orjson.loads(candidate)
        except ValueError:
            continue
        return candidate.strip()
    for start in starts:
        try:
            _, end = json.JSONDecoder().raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        return text[start:end]
    return text
