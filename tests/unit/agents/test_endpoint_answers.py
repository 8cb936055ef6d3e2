"""The reader of endpoints' answers: what it yields does not depend on how the bytes are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsrv.agents.code_fences import json_text
from agentsrv.agents.endpoint_answers import ModelAnswerReader
from agentsrv.agents.reasoning import ReasoningFilter
from agentsrv.errors import ModelError
from tests.integration.hostile.endpoints import CASES

SHORT = 2000  # bytes of a body that is cut at any place


def read(parts):
    """The text, or the sentence of the error."""
    reader = ModelAnswerReader()
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


def separated(text, size):
    """The text and the reasoning of a content that comes in pieces of that size."""
    thoughts, found, reasoning = ReasoningFilter(), "", ""
    pieces = [thoughts.feed(text[at : at + size]) for at in range(0, len(text), size)]
    for piece in (*pieces, thoughts.end()):
        if piece.ends_thought:
            found, reasoning = "", reasoning + found
        found, reasoning = found + piece.text, reasoning + piece.reasoning
    return found, reasoning


@given(st.text("<>/thinkTHINK[] \na", max_size=60), st.integers(1, 7))
def test_where_a_thought_is_cut_does_not_matter(text, size):
    """Nor where its tags are cut."""
    assert separated(text, size) == separated(text, 1000)


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("content", "text", "reasoning"),
    [
        ("<think>hm</think>\nHello", "Hello", "hm"),
        ("so I see</think>\nHello", "Hello", "so I see"),
        ("so I see</THINK><think>and</think> Hello", "Hello", "so I seeand"),
        ("</think>Hello", "Hello", ""),
        ("İ so</think>Hello", "Hello", "İ so"),
        ("<think>İ so</think>Hello", "Hello", "İ so"),
        ("<think> begins and </think> ends", "ends", " begins and "),
        ("A <think> begins, </think> ends it.", "A <think> begins, </think> ends it.", ""),
        ("<think>hm</think>A </think> ends it.", "A </think> ends it.", "hm"),
        ("a </thin", "a </thin", ""),
    ],
)
def test_a_thought_may_lack_its_beginning(content, text, reasoning, size):
    """Templates of some models begin it themselves."""
    assert separated(content, size) == (text, reasoning)


def test_a_long_stream_is_joined_once():
    """Each piece is kept as it came: the cost of a piece does not grow with the answer."""
    reader, sizes = ModelAnswerReader(), []
    event = b'data: {"choices": [{"delta": {"content": "a", "reasoning": "b"}}]}\n\n'
    for _ in range(50):
        list(reader.feed(event))
        sizes.append(len(reader.answer.text) + len(reader.answer.reasoning))
    list(reader.feed(b"data: [DONE]\n\n"))
    list(reader.finish())
    assert not any(sizes)
    assert (reader.answer.text, reader.answer.reasoning) == ("a" * 50, "b" * 50)


@pytest.mark.parametrize("text", ["", "no JSON", "{", "[", "{" * 10_000, "```" * 10_000])
def test_a_text_without_json_stays(text):
    """It is validated by whoever asked."""
    assert json_text(text) == text.strip()
