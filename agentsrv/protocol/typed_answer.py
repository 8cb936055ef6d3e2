"""Answers to questions that people type as text, in a command line or at a prompt."""

from __future__ import annotations

from typing import Any, Final

from agentsrv.errors import InvalidJsonError
from agentsrv.models.events import InputRequired
from agentsrv.protocol import strict_json

_WORDS: Final = {"yes": True, "y": True, "no": False, "n": False}


def read_answer(text: str, question: InputRequired) -> Any:
    """Return the value of an answer that was typed as text.

    If the question offers the text as an option, or asks for a string, the text is the value.
    Otherwise ``yes`` and ``no`` (``y``, ``n``) are true and false, valid JSON is parsed, and
    everything else is text.
    """
    if text in (question.options or ()) or question.schema.get("type") == "string":
        return text
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return strict_json.parse(text)
    except InvalidJsonError:
        return text
