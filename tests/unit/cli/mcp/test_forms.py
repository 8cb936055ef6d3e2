from typing import Any

import pytest
from mcp_types import ElicitResult

from agentsrv.cli.mcp.forms import Dismissed, answer, form
from agentsrv.errors import InputDeclined
from agentsrv.models.events import InputRequired

ADDRESS = {
    "type": "object",
    "properties": {
        "street": {"type": "string", "maxLength": 9, "pattern": "^[A-Z]"},
        "number": {"type": "integer", "minimum": 1},
        "since": {"type": "string", "format": "duration"},
    },
    "required": ["street"],
}


def asked(
    schema: dict[str, Any], options: list[Any] | None = None, default: Any = None
) -> InputRequired:
    """A question."""
    return InputRequired("t/a/1", "a", 1, "Well?", schema, options, default, None)


def only(field: dict[str, Any]) -> dict[str, Any]:
    """A form of one field."""
    return {"type": "object", "properties": {"answer": field}, "required": ["answer"]}


@pytest.mark.parametrize(
    ("question", "shown", "content", "value"),
    [
        (asked({"type": "boolean"}), only({"type": "boolean"}), {"answer": True}, True),
        (asked({"type": "boolean"}), only({"type": "boolean"}), {"answer": "yes"}, True),
        (
            asked({"type": "boolean"}, default=False),
            only({"type": "boolean", "default": False}),
            {"answer": False},
            False,
        ),
        (
            asked({"type": "integer", "exclusiveMinimum": 0, "maximum": 9}),
            only({"type": "integer", "maximum": 9}),
            {"answer": 3},
            3,
        ),
        (
            asked({}, options=["red", 2]),
            only({"type": "string", "enum": ["red", "2"]}),
            {"answer": "2"},
            2,
        ),
        (
            asked({}, options=["red", {"b": 1, "a": None}], default={"a": None, "b": 1}),
            only(
                {
                    "type": "string",
                    "enum": ["red", '{"a":null,"b":1}'],
                    "default": '{"a":null,"b":1}',
                }
            ),
            {"answer": '{"a":null,"b":1}'},
            {"b": 1, "a": None},
        ),
        (
            asked({}, options=[1, "1", True, "true"]),
            only({"type": "string", "enum": ["1", '"1"', "true", '"true"']}),
            {"answer": '"1"'},
            "1",
        ),
        (
            asked({"type": "object", "properties": {"a": True}}),
            only({"type": "string", "description": "Written as JSON."}),
            {"answer": '{"a": 1}'},
            {"a": 1},
        ),
        (
            asked({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["b"]}),
            only({"type": "string", "description": "Written as JSON."}),
            {"answer": '{"b": 1}'},
            {"b": 1},
        ),
        (
            asked({"type": "array", "items": {"type": "integer"}}),
            only({"type": "string", "description": "Written as JSON."}),
            {"answer": "[1, 2]"},
            [1, 2],
        ),
        (
            asked(ADDRESS),
            {
                "type": "object",
                "properties": {
                    "street": {"type": "string", "maxLength": 9},
                    "number": {"type": "integer", "minimum": 1},
                    "since": {"type": "string"},
                },
                "required": ["street"],
            },
            {"street": "Elm", "number": 4},
            {"street": "Elm", "number": 4},
        ),
    ],
    ids=[
        *("yes or no", "as text", "default", "number", "options", "options that are objects"),
        *("options that print alike", "a field of any kind", "a field that is not described"),
        *("not plain", "fields"),
    ],
)
def test_a_question_is_a_form_and_the_form_an_answer(question, shown, content, value):
    """With no more than a form may say of its fields."""
    params = form(question)
    assert params.message == "a asks: Well?"
    assert params.requested_schema == shown
    given = answer(question, ElicitResult(action="accept", content=content))
    assert (given, type(given)) == (value, type(value))


def test_who_does_not_answer_declines_or_leaves_it_open():
    """Only the first is an answer."""
    with pytest.raises(InputDeclined):
        answer(asked({}), ElicitResult(action="decline"))
    with pytest.raises(Dismissed):
        answer(asked({}), ElicitResult(action="cancel"))


def test_a_refusal_stands_before_the_question():
    """So that the user knows what to do otherwise."""
    assert form(asked({}), "expected a number").message == "expected a number\n\na asks: Well?"
