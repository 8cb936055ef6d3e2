"""docs/reference/settings.md lists every setting with its default."""

from __future__ import annotations

import re
from typing import Any

from agentsrv.settings import Settings
from tests.e2e.docs.pages import DOCS

PAGE = (DOCS / "reference" / "settings.md").read_text(encoding="utf-8")


def shown(default: Any) -> str:
    """A default as the page writes it."""
    match default:
        case None | ():
            return ""
        case bool():
            return "on" if default else "off"
        case int() | float():
            return f"{default:.15g}"
        case tuple():
            return f"`{','.join(default)}`"
        case _:
            return f"`{default}`"


def test_every_setting_is_listed_with_its_default():
    """Each once, and no other."""
    page = re.sub(r"(?<=\d),(?=\d{3}\b)", "", PAGE)  # the thousands separators
    rows = re.findall(r"^\| `(\w+)` \| (.*?) ?\| .+ \|$", page, re.MULTILINE)
    assert len(rows) == len(Settings.model_fields)
    assert dict(rows) == {
        name: shown(field.default) for name, field in Settings.model_fields.items()
    }
