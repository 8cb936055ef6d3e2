import shutil

import pytest

from tests.examples.wscat import CONVERSATION, converse, read_document, served


def test_the_document_shows_the_conversation():
    """What is typed in it is what is captured."""
    assert [exchange.typed for exchange in read_document()] == ["", *CONVERSATION]


@pytest.mark.interop
@pytest.mark.skipif(shutil.which("wscat") is None, reason="wscat is not on the PATH (npm i wscat)")
def test_wscat_is_answered_as_the_document_shows():
    """The same inputs give the same kinds of frames."""
    documented = read_document()
    with served() as url:
        said = list(converse(url, [exchange.typed for exchange in documented[1:]]))
    assert [exchange.kinds for exchange in said] == [exchange.kinds for exchange in documented]
