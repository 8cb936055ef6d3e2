"""Schemas that branch into themselves: what they are, and that no value of a client is expensive."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal, Optional, Union

import pytest
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from typing_extensions import TypeAliasType

from agentsrv.agents.base import SLOTS
from agentsrv.agents.branching import dispatched, is_too_much, width_of
from agentsrv.agents.params import Parameters
from agentsrv.agents.questions import Question, check_schema
from agentsrv.errors import InvalidInput


class Not(BaseModel):
    arg: Expr


class Neg(BaseModel):
    arg: Expr


class Both(BaseModel):
    left: Expr
    right: Expr


class TaggedA(BaseModel):
    kind: Literal["a"]
    arg: Tagged


class TaggedB(BaseModel):
    kind: Literal["b"]
    arg: Tagged


class Chain(BaseModel):
    arg: Chain | int


class Tree(BaseModel):
    left: Optional[Tree] = None  # noqa: UP045 - one of its forms
    right: Tree | None = None


class Flat(BaseModel):
    arg: int


class Square(BaseModel):
    arg: int


Expr = Union[Not, Neg, int]  # noqa: UP007 - of names that are defined later
Ops = Union[Not, Neg, Both, int]  # noqa: UP007
Tagged = Annotated[TaggedA | TaggedB, Field(discriminator="kind")]
Json = TypeAliasType("Json", "list[Json] | dict[str, Json] | str | int | None")
for kind in (Not, Neg, Both, TaggedA, TaggedB, Chain, Tree):
    kind.model_rebuild()


@pytest.mark.parametrize(
    ("kind", "width"),
    [
        (Expr, 2),
        (Ops, 3),
        (list[Expr], 2),
        (dict[str, Not], 2),
        (Tagged, 1),
        (Chain, 1),
        (Tree, 1),
        (Json, 1),
        (Flat | Square, 0),
        (int, 0),
    ],
)
def test_the_width_of_types(kind, width):
    """How many choices lead back to the union for the same value."""
    schema = TypeAdapter(kind).json_schema()
    assert width_of(schema, uses_discriminators=True) == width


BACK: dict[str, Any] = {"type": "array", "items": {"$ref": "#"}}


@pytest.mark.parametrize(
    ("schema", "width"),
    [
        ({"anyOf": [BACK, BACK]}, 2),
        ({"oneOf": [BACK, {"items": {"$ref": "#"}}, {"type": "object"}]}, 2),
        ({"anyOf": [BACK, {"type": "object", "additionalProperties": {"$ref": "#"}}]}, 1),
        ({"anyOf": [BACK, {"type": "integer"}]}, 1),
        ({"if": BACK, "then": BACK, "else": BACK}, 3),
        ({"allOf": [{"anyOf": [BACK, BACK]}, {"anyOf": [BACK, BACK]}]}, 4),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}, BACK]}, "b": BACK}}, 2),
        ({"anyOf": [{"type": ["array", "null"], "items": {"$ref": "#"}}, BACK]}, 2),
        ({"$ref": "#"}, 1),
        ({"$ref": "#/nowhere"}, 0),
        ({"$ref": "other.json"}, 0),
        ({"enum": [{"anyOf": [1]}]}, 0),
        ({"properties": {"anyOf": {"type": "string"}, "$ref": {"type": "string"}}}, 0),
        ({}, 0),
    ],
)  # fmt: skip
def test_the_width_of_schemas(schema, width):
    """Whatever combines subschemas counts."""
    assert width_of(schema, uses_discriminators=False) == width


def chain(levels: int, inmost: Any = "bad") -> Any:
    """Objects within each other."""
    value = inmost
    for _ in range(levels):
        value = {"arg": value}
    return value


@pytest.mark.parametrize(
    ("value", "width", "refused"),
    [
        (chain(31), 1, False),
        (chain(10), 2, False),
        (chain(12), 2, True),
        (chain(31), 2, True),
        ([1] * 20_000, 2, False),
        ([chain(1)] * 5_000, 2, True),
        ("x" * 1_000_000, 9, False),
    ],
)
def test_the_work_of_a_value(value, width, refused):
    """Levels multiply it, parts add to it."""
    assert is_too_much(value, width) == refused


async def evaluate(step, ctx, expr: Expr, more: int = 0) -> str:
    """Take an expression."""
    return "never"


def test_params_that_cost_too_much_are_refused_without_being_validated():
    """The error names the param; what is shallow is validated as always."""
    parameters = Parameters.of(evaluate, "agent 'evaluate'", SLOTS)
    (found,) = parameters.complaints({"expr": chain(31)})
    assert found["loc"] == ("expr",)
    assert "recursive union" in found["msg"]
    assert "discriminator" in found["msg"]
    with pytest.raises(ValidationError, match="recursive union"):
        parameters.arguments({"expr": chain(31, 1)})
    assert parameters.complaints({"expr": chain(5, 1)}) == []
    assert parameters.complaints({"expr": chain(3)}) != []


class Plus(BaseModel):
    """A choice with a tag, whose other one has several."""

    kind: Literal["plus"] = "plus"
    arg: Signed


class Sign(BaseModel):
    """The other one."""

    kind: Literal["minus", "not"]
    arg: Signed | int


Signed = Annotated[Plus | Sign, Field(discriminator="kind")]
Plus.model_rebuild()


def tagged(levels: int, end: Any, kind: str = "not") -> Any:
    """A value of so many levels."""
    value = end
    for _ in range(levels):
        value = {"kind": kind, "arg": value}
    return value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (tagged(31, 1), None),
        (tagged(30, {"kind": "plus", "arg": {"kind": "not", "arg": 1}}), None),
        (tagged(31, "x"), "value"),
        (tagged(31, 1, "plus"), "value"),
        (tagged(30, {"kind": "else", "arg": 1}), "value"),
        (tagged(30, {"arg": {"kind": "not", "arg": 1}}), "value"),
    ],
)
def test_a_deep_answer_with_tags_is_checked_by_its_schema_as_by_its_type(value, expected):
    """The step may wait, or not have come to its question again."""
    pytest.importorskip("jsonschema_rs")
    question = Question.of("?", key=1, schema=Signed, options=None, default=None, timeout=None)
    for check in (question.check, partial(check_schema, question.schema)):
        if expected is None:
            check(value)
        else:
            with pytest.raises(InvalidInput, match=expected) as refused:
                check(value)
            assert "recursive union" not in str(refused.value)


TEXT_TAGS = {"properties": {"kind": {"const": "a"}}}
OTHER_TAGS = {"properties": {"kind": {"enum": ["b", "c"]}}}


@pytest.mark.parametrize(
    ("choices", "more", "is_rewritten"),
    [
        ([TEXT_TAGS, OTHER_TAGS], {}, True),
        ([TEXT_TAGS, TEXT_TAGS], {}, False),
        ([TEXT_TAGS, {}], {}, False),
        ([TEXT_TAGS, {"properties": {"kind": {"const": 1}}}], {}, False),
        ([TEXT_TAGS, OTHER_TAGS], {"allOf": []}, False),
        ([TEXT_TAGS, OTHER_TAGS], {"discriminator": {}}, False),
        ([TEXT_TAGS, OTHER_TAGS], {"discriminator": "kind"}, False),
    ],
)
def test_a_union_is_rewritten_where_its_tags_tell_the_choice(choices, more, is_rewritten):
    """Others are left as they are, and so is a field of the name."""
    names = [f"#/$defs/{place}" for place in range(len(choices))]
    union = {
        "oneOf": [{"$ref": name} for name in names],
        "discriminator": {"propertyName": "kind"},
        **more,
    }
    schema = {
        "$defs": {str(place): choice for place, choice in enumerate(choices)},
        "properties": {"discriminator": {"type": "string"}, "one": union},
    }
    found = dispatched(schema)
    assert found["properties"]["discriminator"] == {"type": "string"}
    assert ("oneOf" not in found["properties"]["one"]) == is_rewritten
    assert is_rewritten or found == schema


@pytest.mark.parametrize("schema", [Expr, TypeAdapter(Expr).json_schema()])
def test_answers_that_cost_too_much_are_refused(schema):
    """By the type, and by the JSON Schema."""
    pytest.importorskip("jsonschema_rs")
    question = Question.of("?", key=1, schema=schema, options=None, default=None, timeout=None)
    with pytest.raises(InvalidInput, match="recursive union"):
        question.check(chain(31))
    with pytest.raises(InvalidInput, match="recursive union"):
        check_schema(question.schema, chain(31))
    question.check(chain(5, 1))
