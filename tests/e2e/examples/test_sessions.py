import os
import sys
from pathlib import Path

import pytest

from tests.e2e.examples.sessions import PROGRAMS, WEBSOCKETS, WSCAT, converse, read_document, served
from tests.support.programs import require


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_the_document_shows_the_conversation(program):
    """What is typed in it is what is captured, below the same introduction."""
    assert [exchange.typed for exchange in read_document(program)] == ["", *program.conversation]
    assert program.document.read_text().startswith(program.head)


@pytest.mark.interop
def test_wscat_is_answered_as_the_document_shows():
    """The same inputs give the same kinds of frames."""
    require("wscat")
    check(WSCAT)


@pytest.mark.interop
def test_the_command_line_of_websockets_is_answered_as_the_document_shows(monkeypatch):
    """The same, up to the end."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    check(WEBSOCKETS)


def check(program):
    """Hold a session against the document."""
    documented = read_document(program)
    with served() as url:
        said = list(converse(program, url, [exchange.typed for exchange in documented[1:]]))
    assert [exchange.kinds for exchange in said] == [exchange.kinds for exchange in documented]
