"""docs/howto/terminal.md shows what a terminal of 80 columns shows; the reference has the codes."""

from __future__ import annotations

import re

import pytest
import typer
from typer.core import TyperGroup

from agentsrv.cli.commands import app
from agentsrv.cli.exits import Exit
from tests.e2e.docs.pages import DOCS
from tests.e2e.docs.terminal import PAGE, SCREEN, capture, served, settled

REFERENCE = (DOCS / "reference" / "command-line.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_page_shows_what_a_terminal_shows():
    """But for ids, times and names, which are others each time."""
    documented = SCREEN.findall(PAGE.read_text())
    with served() as url:
        screens = list(capture(url))
    assert list(map(settled, screens)) == list(map(settled, documented))


def test_the_page_has_every_exit_code():
    """And no other."""
    codes = re.findall(r"^\| (\d+) \|", REFERENCE, re.MULTILINE)
    assert list(map(int, codes)) == sorted(Exit)


def test_the_reference_lists_every_command():
    """Each command of the program, and no other."""
    section = REFERENCE.partition("\n## Commands\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`.*?`) \|", section, re.MULTILINE)
    listed = [name for cell in cells for name in re.findall(r"`(\w+)", cell)]
    command = typer.main.get_command(app)
    assert isinstance(command, TyperGroup)
    assert sorted(listed) == sorted(command.commands)
