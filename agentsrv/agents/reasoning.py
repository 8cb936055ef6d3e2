"""Reasoning that a model writes before its text, as ``<think>…</think>``, apart from the text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

_THOUGHTS: Final = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "<seed:think>": "</seed:think>",
    "[think]": "[/think]",
    "\u25c1think\u25b7": "\u25c1/think\u25b7",
}
_BEGIN, _END = "<think>", _THOUGHTS["<think>"]  # of a thought whose beginning may be missing
_BEGIN_OR_END: Final = re.compile(f"{_BEGIN}|({_END})", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class Piece:
    """What a chunk added; one of the two may be empty.

    Attributes:
        text: Text of the answer.
        reasoning: Reasoning.
        ends_thought: All text of earlier pieces was reasoning: the end of a thought has come
            whose beginning was not sent.
    """

    text: str
    reasoning: str
    ends_thought: bool = False


class ReasoningFilter:
    """Separates reasoning that a text begins with, as ``<think>…</think>``, from the text.

    Tags may be split over pieces. A tag that is not closed leaves no text. Templates of some models
    begin the thought themselves, and the model sends only ``</think>``: where that is the first tag
    of an answer, everything before it is reasoning. Other tags inside a text belong to the text: it
    may speak of them.
    """

    def __init__(self) -> None:
        self._state: Literal["start", "thought", "text", "plain"] = "start"
        """``text`` may turn out to be a thought, ``plain`` may not."""
        self._held = ""
        self._closing = ""
        self._was_thought = False

    def feed(self, piece: str) -> Piece:
        """Take a piece of content; returns what is known of it."""
        if self._state == "plain":
            return Piece(piece, "")
        self._held += piece
        reasoning, ends_thought = "", False
        while self._held:
            if self._state == "thought":
                found = re.search(re.escape(self._closing), self._held, re.IGNORECASE | re.ASCII)
                if found is None:
                    return Piece("", reasoning + self._release(self._closing), ends_thought)
                reasoning += self._held[: found.start()]
                self._held = self._held[found.end() :]
                self._state, self._was_thought = "start", True
            elif self._state == "text":
                found = _BEGIN_OR_END.search(self._held)
                if found is None:
                    return Piece(self._release(_BEGIN, _END), reasoning, ends_thought)
                if found[1] is None:
                    self._state = "plain"
                    break
                reasoning, ends_thought = self._held[: found.start()], True
                self._held = self._held[found.end() :]
                self._state, self._was_thought = "start", True
            else:
                begun = self._held.lstrip()
                low = begun[:16].lower()
                opening = next((tag for tag in _THOUGHTS if low.startswith(tag)), None)
                if opening is not None:
                    self._state, self._closing = "thought", _THOUGHTS[opening]
                    self._held = begun[len(opening) :]
                elif not begun or any(tag.startswith(low) for tag in _THOUGHTS):
                    return Piece("", reasoning, ends_thought)
                elif self._was_thought:
                    self._state, self._held = "plain", begun
                    break
                else:
                    self._state = "text"
        return Piece(self.end().text, reasoning, ends_thought)

    def end(self) -> Piece:
        """The text has ended; returns what was held back."""
        held, self._held = self._held, ""
        if self._state == "thought":
            return Piece("", held)
        is_first = self._state == "start" and self._was_thought
        return Piece(held.lstrip() if is_first else held, "")

    def _release(self, *tags: str) -> str:
        """Take what is held, except for an end of it that may begin one of ``tags``."""
        keep = max(_overlap(self._held, tag) for tag in tags)
        cut = len(self._held) - keep
        released, self._held = self._held[:cut], self._held[cut:]
        return released


def _overlap(text: str, tag: str) -> int:
    """How many characters at the end of ``text`` may begin ``tag``."""
    most = min(len(text), len(tag) - 1)
    return next((size for size in range(most, 0, -1) if tag.startswith(text[-size:].lower())), 0)
