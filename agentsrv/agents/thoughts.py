"""Reasoning that a model writes before its text, as ``<think>…</think>``, apart from the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

_THOUGHTS: Final = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "[think]": "[/think]",
}


@dataclass(frozen=True, slots=True)
class Piece:
    """What a chunk added; one of the two may be empty."""

    text: str
    reasoning: str


class Thoughts:
    """Separates reasoning that a text begins with, as ``<think>…</think>``, from the text.

    Tags may be split over pieces. A tag that is not closed leaves no text. Tags further inside a
    text belong to the text: it may speak of them.
    """

    def __init__(self) -> None:
        self._state: Literal["start", "thought", "text"] = "start"
        self._held = ""
        self._closing = ""
        self._was_thought = False

    def feed(self, piece: str) -> Piece:
        """Take a piece of content; returns what is known of it."""
        if self._state == "text":
            return Piece(piece, "")
        self._held += piece
        reasoning = ""
        while self._held:
            if self._state == "thought":
                place = self._held.lower().find(self._closing)
                if place < 0:
                    keep = _overlap(self._held.lower(), self._closing)
                    cut = len(self._held) - keep
                    reasoning, self._held = reasoning + self._held[:cut], self._held[cut:]
                    break
                reasoning += self._held[:place]
                self._held = self._held[place + len(self._closing) :]
                self._state, self._was_thought = "start", True
                continue
            begun = self._held.lstrip()
            low = begun[:16].lower()
            opening = next((tag for tag in _THOUGHTS if low.startswith(tag)), None)
            if opening is not None:
                self._state, self._closing = "thought", _THOUGHTS[opening]
                self._held = begun[len(opening) :]
                continue
            if not begun or any(tag.startswith(low) for tag in _THOUGHTS):
                break
            self._state = "text"
            text, self._held = (begun if self._was_thought else self._held), ""
            return Piece(text, reasoning)
        return Piece("", reasoning)

    def end(self) -> Piece:
        """The text has ended; returns what was held back."""
        held, self._held = self._held, ""
        if self._state == "thought":
            return Piece("", held)
        return Piece(held.lstrip() if self._was_thought else held, "")


def _overlap(text: str, tag: str) -> int:
    """How many characters at the end of ``text`` may begin ``tag``."""
    most = min(len(text), len(tag) - 1)
    return next((size for size in range(most, 0, -1) if tag.startswith(text[-size:])), 0)
