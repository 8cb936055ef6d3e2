"""Separates the reasoning of a model, ``<think>…</think>`` at its beginning, from the text.

A text arrives in pieces, and a tag may be split over two of them. The filter therefore holds back
the end of a piece if it may begin a tag. Its states:

    start      at the beginning of the text or after reasoning; a tag begins (more) reasoning
    thought    inside reasoning, until the closing tag
    text       in the text; an unexpected ``</think>`` turns all of it into reasoning
    plain      in the text; tags are no longer interpreted

The templates of some models write ``<think>`` themselves, so that the model sends only
``</think>``. If that is the first tag of an answer, everything before it is reasoning.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

_TAGS: Final = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "<seed:think>": "</seed:think>",
    "[think]": "[/think]",
    "\u25c1think\u25b7": "\u25c1/think\u25b7",
}
_BEGIN, _END = "<think>", _TAGS["<think>"]  # the tags of reasoning whose beginning may be missing
_BEGIN_OR_END: Final = re.compile(f"{_BEGIN}|({_END})", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class AnswerPiece:
    """The text and reasoning that a chunk adds; one of them may be empty.

    Attributes:
        text: Text of the answer.
        reasoning: Reasoning.
        ends_thought: Whether the text of all earlier pieces was reasoning, because its end has
            arrived without a beginning.
    """

    text: str
    reasoning: str
    ends_thought: bool = False


class ReasoningFilter:
    """Separates leading reasoning, as ``<think>…</think>``, from the text of an answer.

    Reasoning that is not closed leaves no text. Other tags inside the text are part of it.
    """

    def __init__(self) -> None:
        self._state: Literal["start", "thought", "text", "plain"] = "start"
        """See the module's docstring."""
        self._held = ""
        self._closing = ""
        self._was_thought = False

    def feed(self, piece: str) -> AnswerPiece:
        """Filter a piece of content; return the part whose kind is known."""
        if self._state == "plain":
            return AnswerPiece(piece, "")
        self._held += piece
        reasoning, ends_thought = "", False
        while self._held:
            if self._state == "thought":
                found = re.search(re.escape(self._closing), self._held, re.IGNORECASE | re.ASCII)
                if found is None:
                    return AnswerPiece("", reasoning + self._release(self._closing), ends_thought)
                reasoning += self._held[: found.start()]
                self._held = self._held[found.end() :]
                self._state, self._was_thought = "start", True
            elif self._state == "text":
                found = _BEGIN_OR_END.search(self._held)
                if found is None:
                    return AnswerPiece(self._release(_BEGIN, _END), reasoning, ends_thought)
                if found[1] is None:
                    self._state = "plain"
                    break
                reasoning, ends_thought = self._held[: found.start()], True
                self._held = self._held[found.end() :]
                self._state, self._was_thought = "start", True
            else:
                begun = self._held.lstrip()
                low = begun[:16].lower()
                opening = next((tag for tag in _TAGS if low.startswith(tag)), None)
                if opening is not None:
                    self._state, self._closing = "thought", _TAGS[opening]
                    self._held = begun[len(opening) :]
                elif not begun or any(tag.startswith(low) for tag in _TAGS):
                    return AnswerPiece("", reasoning, ends_thought)
                elif self._was_thought:
                    self._state, self._held = "plain", begun
                    break
                else:
                    self._state = "text"
        return AnswerPiece(self.end().text, reasoning, ends_thought)

    def end(self) -> AnswerPiece:
        """Return the content that was held back, after the end of the text."""
        held, self._held = self._held, ""
        if self._state == "thought":
            return AnswerPiece("", held)
        is_first = self._state == "start" and self._was_thought
        return AnswerPiece(held.lstrip() if is_first else held, "")

    def _release(self, *tags: str) -> str:
        """Return the held text, except for an end that may begin one of ``tags``."""
        keep = max(_overlap(self._held, tag) for tag in tags)
        cut = len(self._held) - keep
        released, self._held = self._held[:cut], self._held[cut:]
        return released


def _overlap(text: str, tag: str) -> int:
    """Return the number of characters at the end of ``text`` that may begin ``tag``."""
    longest = min(len(text), len(tag) - 1)
    return next((size for size in range(longest, 0, -1) if tag.startswith(text[-size:].lower())), 0)
