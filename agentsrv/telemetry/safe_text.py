r"""Text of other people, made harmless for a terminal or a log.

Theory of operation. A terminal executes some characters instead of showing them: escape sequences
move the cursor, rename the window, fill the clipboard (OSC 52) and hide text behind links (OSC 8);
a carriage return or a backspace overwrites what was shown; bidirectional controls reorder a line;
characters without a shape hide in it. Parsing escape sequences is fragile, because terminals
disagree about where they end. So nothing is parsed: each dangerous character is replaced by its
escape as Python writes it (``\x1b``, ``\u202e``), which is plain ASCII. Without its first character
a sequence is text like any other. A second pass changes nothing.

`_INVISIBLE` is the catalogue of the characters that are always replaced: C0 and C1 controls and
DEL, bidirectional controls, line and paragraph separators, everything that Unicode ignores by
default, letters and symbols that are blank (fillers, the empty Braille pattern), tag characters,
noncharacters, and halves of surrogate pairs, which cannot be encoded. Combining marks, spaces and
format characters with a shape of their own stay.

Four characters depend on their neighbours, and stay only where a script or an emoji needs them:

    zero-width joiner and non-joiner    between two characters beyond Latin
    variation selectors 15 and 16       after one symbol that has both forms (``❤️``, ``©️``, ``1️⃣``)
    carriage return                     before a line feed, in a text

`visible` returns one line, `visible_text` keeps line ends and tabs, `visible_json` writes the
characters as JSON escapes, so that the document means the same. `VisiblePieces` is `visible_text`
for a text that comes in pieces: wherever it is cut, the result is that of the whole.
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
_UNDECIDED: Final = lazy_pattern("[\r\u200c\u200d]|(?<=[#*0-9])[\ufe0e\ufe0f]")  # alone
_CONTEXT: Final = 2  # characters before one that may decide on it


def visible(text: str) -> str:
    """Return ``text`` as one line without characters that a terminal acts upon or hides."""
    return text if _is_plain(text) else _IN_LINE.sub(_escape, text)


def visible_text(text: str) -> str:
    """Return ``text`` likewise, with its tabs and line ends, which are LF or CR LF."""
    return text if _is_plain(text) else _IN_TEXT.sub(_escape, text)


def visible_json(document: str) -> str:
    """Return a JSON document without line ends that means the same and is visible throughout."""
    return document if _is_plain(document) else _IN_LINE.sub(_escape_json, document)


class VisiblePieces:
    """Makes a text that comes in pieces visible, as `visible_text` does with the whole.

    At most one character is held back: one whose meaning depends on the next.
    """

    def __init__(self) -> None:
        self._last = ""  # the characters before what is held
        self._held = ""

    def feed(self, piece: str) -> str:
        """Take a piece; return what is known of the text."""
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
        """The text has ended; return what was held back."""
        text = self._last + self._held
        shown = self._shown(text, len(text))
        self._last = self._held = ""
        return shown

    def _shown(self, text: str, end: int) -> str:
        """What follows the last characters, up to ``end``."""
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
