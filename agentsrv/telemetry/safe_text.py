r"""Makes untrusted text harmless for a terminal or a log.

Theory of operation
===================
A terminal executes some characters instead of showing them: escape sequences move the cursor,
rename the window, fill the clipboard (OSC 52) and hide text in links (OSC 8); a carriage return or
a backspace overwrites text; bidirectional controls reorder a line; characters without a shape are
invisible. Parsing escape sequences is fragile, because terminals disagree about where they end. So
nothing is parsed: each dangerous character is replaced by its Python escape (``\x1b``, ``\u202e``),
which is plain ASCII. Without its first character an escape sequence is ordinary text. A second pass
changes nothing.

`_INVISIBLE` lists the characters that are always replaced: C0 and C1 controls and DEL,
bidirectional controls, line and paragraph separators, everything that Unicode ignores by default,
letters and symbols with an empty shape (fillers, the empty Braille pattern), tag characters,
noncharacters, and halves of surrogate pairs, which cannot be encoded. Combining marks, spaces and
format characters with a shape are kept.

Four characters are kept only between neighbours that need them, in a script or an emoji:

    zero-width joiner and non-joiner    between two characters beyond Latin
    variation selectors 15 and 16       after one symbol that has both forms (``❤️``, ``©️``, ``1️⃣``)
    carriage return                     before a line feed, in a text

`visible` returns one line, `visible_text` keeps line ends and tabs, `visible_json` writes JSON
escapes, which keep the meaning of the document. `VisiblePieces` is `visible_text` for a text that
arrives in pieces; the result does not depend on where it is divided.
"""

from __future__ import annotations

import re
from typing import Final

from agentsrv.patterns import lazy_pattern

_INVISIBLE: Final = (
    "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"  # controls; not tab, LF and CR
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\u2800\u3164\ud800-\udfff\ufdd0-\ufdef\ufe00-\ufe0d\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff"
    "\U00013430-\U0001343f\U00013441\U00013442\U00016fe4\U0001bca0-\U0001bca3"
    "\U0001d159\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    + "".join(chr((plane << 16) + last) for plane in range(1, 17) for last in (0xFFFE, 0xFFFF))
)
_BEYOND_LATIN: Final = "\u0300-\u1fff\u2100-\ufeff\U00010000-\U000dffff"  # no punctuation
_TWO_FORMS: Final = (
    "\u00a9\u00ae\u203c\u2049\u2100-\u27ff\u2900-\u2bff"
    "\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
)
_LETTER: Final = f"(?![{_INVISIBLE}\ufe0e\ufe0f])[{_BEYOND_LATIN}]"
_UNNEEDED: Final = (
    f"(?<!{_LETTER})(?<![{_TWO_FORMS}][\ufe0e\ufe0f])[\u200c\u200d]"
    f"|[\u200c\u200d](?!{_LETTER})"
    f"|(?<![{_TWO_FORMS}#*0-9])[\ufe0e\ufe0f]|(?<=[#*0-9])[\ufe0e\ufe0f](?!\u20e3)"
)
_IN_TEXT: Final = lazy_pattern(f"[{_INVISIBLE}]|\r(?!\n)|{_UNNEEDED}")
_IN_LINE: Final = lazy_pattern(f"[\t\n\r{_INVISIBLE}]|{_UNNEEDED}")
_UNDECIDED: Final = lazy_pattern("[\r\u200c\u200d]|(?<=[#*0-9])[\ufe0e\ufe0f]")
"""A last character that can only be decided with the next one."""
_CONTEXT: Final = 2  # preceding characters that may decide about a character


def visible(text: str) -> str:
    """Return ``text`` as one line, with all control and invisible characters escaped."""
    return text if _is_plain(text) else _IN_LINE.sub(_escape, text)


def visible_text(text: str) -> str:
    """Return ``text`` with such characters escaped, except tabs and line ends (LF, CR LF)."""
    return text if _is_plain(text) else _IN_TEXT.sub(_escape, text)


def visible_json(document: str) -> str:
    """Return an equivalent JSON document on one line, with such characters as JSON escapes."""
    return document if _is_plain(document) else _IN_LINE.sub(_escape_json, document)


class VisiblePieces:
    """Applies `visible_text` to a text that arrives in pieces.

    At most one character is held back: one that depends on the next.
    """

    def __init__(self) -> None:
        self._last = ""  # the characters before the held one
        self._held = ""

    def feed(self, piece: str) -> str:
        """Add a piece; return the part of the result that is decided."""
        if not self._held and _is_plain(piece):
            self._last = (self._last + piece[-_CONTEXT:])[-_CONTEXT:]
            return piece
        text = self._last + self._held + piece
        end = len(text)
        if end > len(self._last) and _UNDECIDED.match(text, end - 1):
            end -= 1
        shown = self._shown(text, end)
        self._last, self._held = text[max(0, end - _CONTEXT) : end], text[end:]
        return shown

    def end(self) -> str:
        """End the text; return the rest of the result."""
        text = self._last + self._held
        shown = self._shown(text, len(text))
        self._last = self._held = ""
        return shown

    def _shown(self, text: str, end: int) -> str:
        """The result for the characters after ``_last``, up to ``end``."""
        place = len(self._last)
        parts: list[str] = []
        for found in _IN_TEXT.finditer(text, place):
            if found.start() >= end:
                break
            parts += text[place : found.start()], _escape(found)
            place = found.end()
        return "".join([*parts, text[place:end]])


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def _escape_json(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
