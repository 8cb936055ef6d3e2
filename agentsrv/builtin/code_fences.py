"""The Markdown code fence that a model may put around its whole text."""

from __future__ import annotations

from typing import Literal


class FenceFilter:
    """Takes a Markdown text out of a code fence around all of it, piece by piece.

    Only a fence on the first line counts, without a language or with ``markdown``; fences inside
    the text keep their place.
    """

    def __init__(self) -> None:
        self._state: Literal["start", "inside", "plain"] = "start"
        self._held = ""
        self._mid_line = False
        self._nested = False

    def feed(self, piece: str) -> str:
        """Take a piece; returns what of the text is known."""
        self._held += piece
        if self._state == "start":
            begun = self._held.lstrip()
            if "```".startswith(begun[:3]) and "\n" not in begun:
                return ""  # empty, or the first line of a fence that is not complete
            first, _, rest = begun.partition("\n")
            if first[:3] == "```" and first[3:].strip().lower() in ("", "markdown", "md"):
                self._state, self._held = "inside", rest
            else:
                self._state = "plain"
        shown = ""
        while self._held and self._state == "inside":
            line, end, rest = self._held.partition("\n")
            if not self._mid_line:
                if not end and "```".startswith(line.lstrip()[:3]):
                    return shown  # it may become a fence
                if self._closes(line):
                    self._state, self._held = "plain", rest
                    break
            shown, self._held = shown + line + end, rest
            self._mid_line = not end
        if self._state == "plain":
            shown, self._held = shown + self._held, ""
        return shown

    def end(self) -> str:
        """The text has ended; returns what was held back."""
        held, self._held = self._held, ""
        return "" if self._state == "inside" and self._closes(held) else held

    def _closes(self, line: str) -> bool:
        """Whether the line ends the fence around the text; keeps track of fences inside."""
        mark = line.strip()
        if not mark.startswith("```"):
            return False
        if self._nested:
            self._nested = mark != "```"
            return False
        self._nested = mark != "```"
        return not self._nested
