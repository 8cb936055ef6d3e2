"""Regular expressions that are compiled when they are first used."""

from __future__ import annotations

import re

import pytest

from agentsrv.patterns import lazy_pattern


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The patterns that were compiled since."""
    patterns: list[str] = []
    real = re.compile

    def compile_(pattern: str, flags: int = 0) -> re.Pattern[str]:
        patterns.append(pattern)
        return real(pattern, flags)

    monkeypatch.setattr(re, "compile", compile_)
    return patterns


def test_it_is_compiled_once_and_not_before_it_is_used(compiled: list[str]) -> None:
    """Each method is that of the compiled pattern."""
    words = lazy_pattern(r"[a-z]+", re.IGNORECASE)
    assert compiled == []
    assert words.findall("One, two") == ["One", "two"]
    assert words.findall("three") == ["three"]
    assert compiled == ["[a-z]+"]
    assert words.sub("x", "One, two") == "x, x"
    assert words.fullmatch("One!") is None
    assert words.flags & re.IGNORECASE


def test_an_invalid_pattern_fails_where_it_is_used() -> None:
    """As ``re.compile`` says it."""
    broken = lazy_pattern("(")
    with pytest.raises(re.error, match="unterminated"):
        broken.search("x")
