"""docs/howto/terminal.md: its screens are what a terminal of 80 columns shows, and its codes the codes."""

from __future__ import annotations

import re

import pytest

from agentsrv.cli.exits import Exit
from tests.docs.terminal import PAGE, SCREEN, capture, served, settled


@pytest.mark.slow
def test_the_page_shows_what_a_terminal_shows():
    """But for ids, times and names, which are others each time."""
    documented = SCREEN.findall(PAGE.read_text())
    with served() as url:
        screens = list(capture(url))
    assert list(map(settled, screens)) == list(map(settled, documented))


def test_the_page_has_every_exit_code():
    """And no other."""
    codes = re.findall(r"^\| (\d+) \|", PAGE.read_text(), re.MULTILINE)
    assert list(map(int, codes)) == sorted(Exit)
