"""Every character that a terminal acts upon or hides is shown; every other one stays."""

from __future__ import annotations

import json
import re
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsrv.telemetry.safe_text import VisiblePieces, visible, visible_json, visible_text

DANGEROUS = [
    ("CSI", "\x1b[2J\x1b[31m"),
    ("OSC title", "\x1b]0;title\x07"),
    ("OSC 8 link", "\x1b]8;;http://evil.example\x1b\\ok\x1b]8;;\x1b\\"),
    ("OSC 52 clipboard", "\x1b]52;c;cm0gLXJm\x07"),
    ("DCS", "\x1bP+q544e\x1b\\"),
    ("APC, PM and SOS", "\x1b_a\x1b\\\x1b^b\x1b\\\x1bXc\x1b\\"),
    ("reset", "\x1bc"),
    ("C1 CSI", "\x9b2J"),
    ("C1 OSC and ST", "\x9d0;title\x9c"),
    ("C1 DCS, NEL", "\x90x\x9c\x85"),
    ("bell", "\x07"),
    ("backspaces", "good\x08\x08\x08\x08evil"),
    ("carriage return", "good\revil"),
    ("vertical tab and form feed", "a\x0b\x0cb"),
    ("shift out and in", "\x0ea\x0f"),
    ("NUL and DEL", "a\x00b\x7f"),
    ("bidi override", "\u202egnp.exe\u202c"),
    ("bidi isolate", "\u2066a\u2069"),
    ("bidi marks", "\u200ea\u200fb\u061c"),
    ("zero-width space, word joiner", "a\u200bb\u2060c"),
    ("joiners in ASCII", "ad\u200dmin ro\u200cot"),
    ("byte order mark", "\ufeffa"),
    ("soft hyphen", "ad\u00admin"),
    ("tag characters", "a\U000e0041\U000e0042"),
    ("fillers", "a\u3164\uffa0\u115fb"),
    ("separators", "a\u2028b\u2029c"),
    ("half a surrogate pair", "a\ud83d"),
    ("interlinear annotation", "\ufff9a\ufffab\ufffb"),
    ("blank Braille pattern", "a\u2800b"),
    ("variation selectors", "a\ufe0fb\ufe00"),
    ("variation selectors in a row", "\u2764\ufe0f\ufe0f\ufe01"),
    ("a selector after a digit", "1\ufe0f2"),
    ("joiners in a row", "\U0001f469\u200d\u200d\U0001f680"),
    ("a joiner beside a blank", "\u0915\u200d\u2800"),
    ("a joiner behind a stray selector", "a\ufe0f\u200d\u0915"),
    ("a flag of tags", "\U0001f3f4\U000e0067\U000e0062\U000e007f"),
    ("noncharacters", "\ufdd0\uffff\U0010ffff"),
    ("other blanks", "\U0001d159\U00013441\U00016fe4"),
]
HARMLESS = [
    "plain text", "naïve café ✓ → …", "日本語 한국어", "שלום עולם", "مرحبا", "می\u200cرود",
    "क्\u200dष", "👩\u200d🚀 ❤️\u200d🔥 👍🏽", "a\u0301", "\U0001f600",
    "1\ufe0f\u20e3 #\ufe0f\u20e3", "\u00a9\ufe0f \u260e\ufe0e", "\u2801\u28ff",
]  # fmt: skip


@pytest.mark.parametrize(("_", "text"), DANGEROUS)
def test_a_dangerous_character_is_written_as_an_escape(_, text):
    """As Python writes it; JSON means the same as before."""
    shown = visible(text)
    assert shown == visible(shown)
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp", "Cn")]
    assert shown != text
    assert visible_text(text) == shown
    assert json.loads(visible_json(json.dumps(text, ensure_ascii=False))) == text


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_text_stays_as_it_is(text):
    """Also where joiners and direction belong to the script."""
    assert visible(text) == visible_text(text) == text


def test_line_ends_and_tabs_stay_in_a_text_and_not_in_a_line():
    """A line cannot become two."""
    assert visible_text("a\tb\r\nc\n") == "a\tb\r\nc\n"
    assert visible("a\tb\r\nc\n") == "a\\tb\\r\\nc\\n"


BLANK = re.compile(
    "VARIATION SELECTOR|HANGUL .*FILLER|KHITAN .*FILLER|HIEROGLYPH (FULL|HALF) BLANK"
    "|PATTERN BLANK|INVISIBLE|ZERO WIDTH|WORD JOINER|GRAPHEME JOINER|INHERENT|NULL NOTEHEAD|^TAG "
)
SHAPED = "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def test_every_character_of_unicode_is_replaced_or_stays_by_its_category_and_name():
    """Those that act or have no shape are replaced, all others stay."""
    stays, is_replaced = [], []
    for number in range(sys.maxunicode + 1):
        character = chr(number)
        category, name = unicodedata.category(character), unicodedata.name(character, "")
        if category == "Cn" or character in SHAPED:  # unassigned in this Python's Unicode
            continue
        is_hidden = category in HIDDEN or BLANK.search(name) is not None
        if is_hidden and visible(character) == character:
            stays.append(f"{number:x} {name}")
        elif not is_hidden and visible(character) != character:
            is_replaced.append(f"{number:x} {name}")
    assert (stays, is_replaced) == ([], [])


PARTS = st.sampled_from([
    "a", "1", " ", "\r", "\n", "\t", "\x1b[m", "\u0915", "\u200d", "\u200c", "\ufe0f", "\ufe0e", "\u20e3",
    "\u2764", "\u2800", "\u202e", "\U0001f469", "\ud83d",
])  # fmt: skip


@given(st.lists(st.lists(PARTS, max_size=4).map("".join)))
def test_where_a_text_is_cut_does_not_matter(parts):
    """Nor does a second pass change anything."""
    pieces = VisiblePieces()
    shown = "".join([*map(pieces.feed, parts), pieces.end()])
    assert shown == visible_text("".join(parts)) == visible_text(shown)


@pytest.mark.parametrize(
    "text", ["a\r\nb", "\U0001f469\u200d\U0001f680", "1\ufe0f\u20e3", "\u2764\ufe0f"]
)
def test_a_sequence_stays_whole_in_pieces(text):
    """One character at a time, of which at most one is held back."""
    pieces, shown = VisiblePieces(), ""
    for place, character in enumerate(text):
        shown += pieces.feed(character)
        assert len(shown) >= place
    assert shown + pieces.end() == text
