import gc
import sys
from datetime import date
from enum import Enum
from typing import Annotated, Any

import pytest
from hypothesis import given
from pydantic import BaseModel, Field

from agentsrv.agents.questions import Question, check_schema
from agentsrv.errors import InvalidInputError, PermanentError, UnavailableError
from agentsrv.models.events import InputReceived
from tests.unit.models.samples import JSON


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Visit(BaseModel):
    day: date
    colour: Colour = Colour.RED


class Pair(BaseModel):
    """Two errors, if nothing is given."""

    first: str
    second: str


class Tree(BaseModel):
    """Refers to itself."""

    name: str
    children: "list[Tree]" = []


def question(**asked: Any) -> Question:
    """A question with as few words as a test needs."""
    given: dict[str, Any] = {
        "key": 1,
        "answer_type": None,
        "options": None,
        "default": None,
        "timeout": None,
    }
    return Question.of("What?", **(given | asked))


def answer(value: Any, action: str = "accept") -> InputReceived:
    """An answer as it stands in the log."""
    return InputReceived("t/s/1", "s", action, value, "ann")


def test_a_question_tells_its_schema_options_and_default_as_json():
    """Whatever of Python's they were given as."""
    asked = question(answer_type=Visit, default=Visit(day=date(2026, 1, 2), colour=Colour.BLUE))
    assert asked.default == {"day": "2026-01-02", "colour": "blue"}
    assert asked.schema["properties"]["day"]["format"] == "date"
    asked = question(answer_type=Colour, options=[Colour.RED], default=Colour.RED)
    assert (asked.options, asked.default, asked.schema["enum"]) == (["red"], "red", ["red"])
    assert asked.read(answer("red")) is Colour.RED


def test_any_type_that_pydantic_reads_can_be_asked_for():
    """With limits, and also where it has no hash."""

    class Plural:
        __hash__ = None  # type: ignore[assignment]

    for schema in (Annotated[int, Field(ge=2)], Annotated[int, Field(ge=2), Plural()]):
        asked = question(answer_type=schema)
        assert asked.schema == {"type": "integer", "minimum": 2}
        asked.check(2)
        with pytest.raises(InvalidInputError, match="greater than or equal to 2"):
            asked.check(1)


@pytest.mark.parametrize(
    "large",
    [
        {"options": [f"{number:064}" for number in range(5000)]},
        {"answer_type": {"type": "string", "description": "x" * 300_000}},
        {"answer_type": str, "default": "x" * 300_000},
    ],
    ids=["options", "schema", "default"],
)
def test_a_question_that_no_event_can_hold_is_refused(large):
    """Whatever makes it large; the prompt has a limit of its own."""
    given = {"answer_type": None, "options": None, "default": None, "timeout": None, **large}
    with pytest.raises(PermanentError, match=r"the question has \d{6} bytes as JSON"):
        Question.of("Which?", key="a", **given)


def test_asking_leaves_no_reference_cycle_behind():
    """A task that asks is freed as it ends, as any other is."""
    question(answer_type=Visit)
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            question(answer_type=Visit).check({"day": "2026-01-02"})
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_an_answer_is_read_as_what_was_asked_for():
    """Nothing is converted when it is checked; what passed the schema is read."""
    asked = question(answer_type=Visit)
    asked.check({"day": "2026-01-02"})
    assert asked.read(answer({"day": "2026-01-02"})) == Visit(day=date(2026, 1, 2))
    number = question(answer_type=int)
    check_schema(number.schema, 3.0)
    assert number.read(answer(3.0)) == 3
    with pytest.raises(InvalidInputError):
        number.check("3")


def test_options_are_told_apart_as_json_does():
    """True is not 1, and the order of keys does not matter."""
    asked = question(options=[1, {"a": 1, "b": 2}])
    asked.check(1)
    asked.check({"b": 2, "a": 1})
    for wrong in (True, "1", {"a": 1}, None):
        with pytest.raises(InvalidInputError, match=r'expected one of \[1,\{"a":1,"b":2\}\]'):
            asked.check(wrong)


@given(JSON)
def test_any_json_fits_a_schema_that_allows_anything(value):
    """What a client may send can be checked, and comes back as it was."""
    asked = question(answer_type={})
    asked.check(value)
    assert asked.read(answer(value)) == value


def test_a_long_answer_is_not_told_back_whole():
    """The refusal is read by people."""
    with pytest.raises(InvalidInputError) as refusal:
        question(answer_type=bool).check("x" * 10_000)
    assert len(refusal.value.message) < 200


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (list[str], [1] * 20_000),
        (tuple[str, ...], [1] * 20_000),
        (set[int], [""] * 20_000),
        (dict[str, int], {f"k{number}": "" for number in range(8_000)}),
        (list[dict[str, list[str]]], [{"a": [1] * 5_000}] * 4),
        (list[str] | dict[str, int], [1] * 20_000),
        (Tree, {"name": "a", "children": [{"name": 1}] * 5_000}),
        ({"type": "array", "items": {"type": "string"}}, [1] * 20_000),
        ({"type": "object", "additionalProperties": {"type": "string"}}, {str(n): n for n in range(8_000)}),
    ],
)  # fmt: skip
def test_a_large_wrong_answer_stops_at_its_first_errors(schema, value):
    """Not each of its elements is an error."""
    if isinstance(schema, dict):
        pytest.importorskip("jsonschema_rs")
    with pytest.raises(InvalidInputError) as refusal:
        question(answer_type=schema).check(value)
    assert 1 <= len(refusal.value.details or ()) <= 2  # one, or one of each type of a union


def test_a_small_wrong_answer_is_told_all_its_errors():
    """Up to ten."""
    for schema in (Pair, {"type": "array", "items": {"type": "string"}}):
        with pytest.raises(InvalidInputError) as refusal:
            question(answer_type=schema).check([1, 2] if isinstance(schema, dict) else {})
        assert len(refusal.value.details or ()) == 2


def test_a_pattern_does_not_run_away():
    """The client's text is searched in linear time, whatever pattern the author wrote."""
    asked = question(answer_type={"type": "string", "pattern": "^(a+)+$"})
    with pytest.raises(InvalidInputError):
        asked.check("a" * 50_000 + "!")


def test_without_the_extra_types_are_checked_and_schemas_refused(monkeypatch):
    """The error says what to install; an answer is refused as one that may be given later."""
    monkeypatch.setitem(sys.modules, "jsonschema_rs", None)
    asked = question(answer_type=int)
    asked.check(3)
    with pytest.raises(InvalidInputError):
        asked.check("three")
    with pytest.raises(UnavailableError, match=r"pip install 'agentsrv\[schema\]'") as refusal:
        check_schema(asked.schema, 3)
    assert refusal.value.retryable
    with pytest.raises(PermanentError, match=r"pip install 'agentsrv\[schema\]'"):
        question(answer_type={"type": "integer"})
