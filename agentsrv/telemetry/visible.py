r"""Text of other people, made harmless for a terminal or a log.

Theory of operation. A terminal executes some characters instead of showing them: escape sequences
move the cursor, rename the window, fill the clipboard (OSC 52) and hide text behind links (OSC 8);
a carriage return or a backspace overwrites what was shown; bidirectional controls reorder a line;
zero-width characters hide in it. Parsing such sequences is fragile, because terminals disagree
about where they end, and a sequence may be split over two pieces of text. So nothing is parsed:
each dangerous character is replaced by its escape as Python writes it (``\x1b``, ``\u202e``),
which is plain ASCII. Without its first character a sequence is text like any other. The replacement
works character by character: pieces may be treated one by one, and a second pass changes nothing.

Replaced are: C0 and C1 controls and DEL, bidirectional controls, line and paragraph separators,
invisible format characters and fillers, tag characters, and halves of surrogate pairs, which cannot
be encoded. Zero-width joiners stay between two characters beyond Latin: Persian, the languages of
India and emoji need them there, and in an ASCII word they are a disguise. Combining marks stay.

`visible` returns one line, `visible_text` keeps line ends and tabs, `visible_json` writes the
characters as JSON escapes, so that the document means the same.
"""

from __future__ import annotations

import re
from typing import Final

_JOINED: Final = "\u0300-\u1fff\u2100-\ufeff\U00010000-\U000e0000"  # beyond Latin, no punctuation
_INVISIBLE: Final = (
    "\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ud800-\udfff\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_JOINERS: Final = f"(?<![{_JOINED}])[\u200c\u200d]|[\u200c\u200d](?![{_JOINED}])"
_IN_LINE: Final = re.compile(f"[\x00-\x1f{_INVISIBLE}]|{_JOINERS}")
_IN_TEXT: Final = re.compile(f"[\x00-\x08\x0b\x0c\x0e-\x1f{_INVISIBLE}]|\r(?!\n)|{_JOINERS}")


def visible(text: str) -> str:
    """Return ``text`` as one line without characters that a terminal acts upon or hides."""
    return text if _is_plain(text) else _IN_LINE.sub(_escape, text)


def visible_text(text: str) -> str:
    """Return ``text`` likewise, with its tabs and line ends, which are LF or CR LF."""
    return text if _is_plain(text) else _IN_TEXT.sub(_escape, text)


def visible_json(document: str) -> str:
    """Return a JSON document without line ends that means the same and is visible throughout."""
    return document if _is_plain(document) else _IN_LINE.sub(_escape_json, document)


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def _escape_json(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
