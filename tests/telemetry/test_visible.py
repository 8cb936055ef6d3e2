"""Every character that a terminal acts upon or hides is shown; every other one stays."""

from __future__ import annotations

import json
import sys
import unicodedata

import pytest

from agentsrv.telemetry.visible import visible, visible_json, visible_text

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
]
HARMLESS = [
    "plain text", "naïve café ✓ → …", "日本語 한국어", "שלום עולם", "مرحبا", "می\u200cرود",
    "क्\u200dष", "👩\u200d🚀 ❤️\u200d🔥 👍🏽", "a\u0301", "\U0001f600",
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


def test_every_control_and_format_character_of_unicode_is_known():
    """Only those that have a shape of their own stay."""
    shaped = {"\u0600", "\u0601", "\u0602", "\u0603", "\u0604", "\u0605", "\u06dd", "\u070f",
              "\u0890", "\u0891", "\u08e2", "\U000110bd", "\U000110cd"}  # fmt: skip
    kept = set()
    for number in range(sys.maxunicode + 1):
        character = chr(number)
        is_control = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        if is_control and visible(character) == character and not 0x13430 <= number <= 0x1345F:
            kept.add(character)  # Egyptian format controls join hieroglyphs only
    assert kept <= shaped
