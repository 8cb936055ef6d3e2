"""The reader of endpoints' answers: what it yields does not depend on how the bytes are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsrv.agents.code_fences import Unfenced, json_text
from agentsrv.agents.endpoint_answers import AnswerReader
from agentsrv.agents.thoughts import Thoughts
from agentsrv.errors import ModelError
from tests.hostile.endpoints import CASES

SHORT = 2000  # bytes of a body that is cut at any place


def read(parts):
    """The text, or the sentence of the error."""
    reader = AnswerReader()
    try:
        for part in parts:
            for _ in reader.feed(part):
                pass
            if reader.done:
                break
        for _ in reader.finish():
            pass
        reader.answer.check_text()
    except ModelError as error:
        return type(error), error.message
    return reader.answer.text


def body_of(name):
    """The body of a case that is a plain one."""
    case = CASES[name]
    head, _, body = (
        case.answer.partition(b"\r\n\r\n") if isinstance(case.answer, bytes) else 3 * (b"",)
    )
    return b"" if b"encoding" in head or b" 200 " not in head else body


BODIES = {name: body for name in CASES if 0 < len(body := body_of(name)) < SHORT}


@pytest.mark.parametrize("name", BODIES)
def test_where_the_bytes_are_cut_does_not_matter(name):
    """One by one or all at once."""
    body = BODIES[name]
    assert read([body[place : place + 1] for place in range(len(body))]) == read([body])


@given(st.data(), st.sampled_from(sorted(BODIES)))
def test_changed_bytes_raise_nothing_but_model_errors(data, name):
    """Bytes lost, doubled or replaced."""
    body = bytearray(BODIES[name])
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(0, len(body)))
        body[place : place + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    read([bytes(body)])


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["choices", "delta", "message", "content", "tool_calls", "function", "error", "usage",
             "finish_reason", "index", "refusal", "detail", "loc", "metadata", "raw", "code", "type"]
        ),
        inner,
        max_size=5,
    ),
    max_leaves=30,
))  # fmt: skip
def test_any_document_is_a_text_or_a_model_error(document):
    """Of whatever shape."""
    import json

    whole = json.dumps(document).encode()
    read([whole])
    read([b"data: " + whole + b"\n\n"])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("```markdown\n# A\n\nb\n```", "# A\n\nb\n"),
        ("```\n# A\n```\n", "# A\n"),
        ("\n```md\nA\n```python\nx = 1\n```\nB\n```\nC", "A\n```python\nx = 1\n```\nB\nC"),
        ("```md\nA", "A"),
        ("```python\nx\n```\nA", "```python\nx\n```\nA"),
        ("A\n```\nx\n```\n", "A\n```\nx\n```\n"),
        ("``` is a fence", "``` is a fence"),
        ("`a` b", "`a` b"),
        ("```markdown\na ``` b\n``\n```", "a ``` b\n``\n"),
        ("", ""),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_a_fence_around_a_text_is_taken_off(text, shown, size):
    """Fences inside it stay."""
    unfenced = Unfenced()
    parts = [unfenced.feed(text[at : at + size]) for at in range(0, len(text), size)]
    assert "".join(parts) + unfenced.end() == shown


@given(st.text("<>/thinkTHINK[] \na", max_size=60), st.integers(1, 7))
def test_thoughts_lose_nothing_but_their_tags(text, size):
    """However the text is cut."""
    cut, whole = Thoughts(), Thoughts()
    pieces = [*(cut.feed(text[at : at + size]) for at in range(0, len(text), size)), cut.end()]
    first, last = whole.feed(text), whole.end()
    assert "".join(p.text for p in pieces) == first.text + last.text
    assert "".join(p.reasoning for p in pieces) == first.reasoning + last.reasoning


@pytest.mark.parametrize("text", ["", "no JSON", "{", "[", "{" * 10_000, "```" * 10_000])
def test_a_text_without_json_stays(text):
    """It is validated by whoever asked."""
    assert json_text(text) == text.strip()
