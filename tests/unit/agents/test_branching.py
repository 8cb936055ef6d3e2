"""Schemas that branch into themselves: what they are, and that no value of a client is expensive."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal, NamedTuple, Optional, Union

import pytest
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from typing_extensions import TypeAliasType

from agentsrv.agents import branching, questions
from agentsrv.agents.agent import SLOTS
from agentsrv.agents.branching import dispatched, is_too_much, width_of
from agentsrv.agents.params import Parameters
from agentsrv.agents.questions import Question, check_schema
from agentsrv.errors import InvalidInputError


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


class Unary(BaseModel):
    arg: Named


class Pair(NamedTuple):
    arg: Named
    other: int = 0


class Flat(BaseModel):
    arg: int


class Square(BaseModel):
    arg: int


Expr = Union[Not, Neg, int]  # noqa: UP007 - of names that are defined later
Ops = Union[Not, Neg, Both, int]  # noqa: UP007
Named = Union[Unary, Pair, int]  # noqa: UP007
Tagged = Annotated[TaggedA | TaggedB, Field(discriminator="kind")]
Json = TypeAliasType("Json", "list[Json] | dict[str, Json] | str | int | None")
for kind in (Not, Neg, Both, TaggedA, TaggedB, Chain, Tree, Unary):
    kind.model_rebuild()


@pytest.mark.parametrize(
    ("kind", "width"),
    [
        (Expr, 2),
        (Ops, 3),
        (list[Expr], 2),
        (dict[str, Not], 2),
        (Tagged, 1),
        (Tagged | Chain, 2),
        (Named, 2),  # an object may be a named tuple
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
        ({"$ref": "#"}, 0),
        ({"$ref": "#/nowhere"}, 1),
        ({"$ref": "other.json"}, 1),
        ({"anyOf": [{"$ref": "other.json"}, {"$ref": "http://["}]}, 2),
        ({"enum": [{"anyOf": [1]}]}, 0),
        ({"properties": {"anyOf": {"type": "string"}, "$ref": {"type": "string"}}}, 0),
        ({}, 0),
    ],
)  # fmt: skip
def test_the_width_of_schemas(schema, width):
    """Whatever combines subschemas counts."""
    assert width_of(schema, uses_discriminators=False) == width


N: dict[str, Any] = {"$ref": "#/$defs/N"}
FIELD: dict[str, Any] = {"properties": {"arg": N}}
LIST: dict[str, Any] = {"items": N}
COUNTED: dict[str, Any] = {"if": {"type": "string"}, "then": {"format": "counted"}}


def anchored(definition: str, reference: str) -> dict[str, Any]:
    """A node that two choices lead back to, by its name."""
    field = {"properties": {"arg": {reference: "#here"}}}
    return {definition: "here" if definition != "$id" else "#here", "anyOf": [field, field]}


def unions(count: int) -> dict[str, Any]:
    """Unions each of which has all others as choices."""
    names = [f"U{number}" for number in range(count)]
    return {
        name: {"anyOf": [FIELD, *({"$ref": f"#/$defs/{one}"} for one in names if one != name)]}
        for name in names
    }


BRANCHING: dict[str, tuple[dict[str, Any], int]] = {
    "own properties beside allOf": ({**FIELD, "allOf": [FIELD]}, 2),
    "own properties beside anyOf": ({**FIELD, "anyOf": [FIELD, {"type": "string"}]}, 2),
    "own properties beside a reference": ({**FIELD, "$ref": "#/$defs/M"}, 2),
    "own items beside allOf": ({**LIST, "allOf": [LIST]}, 2),
    "$anchor": (anchored("$anchor", "$ref"), 2),
    "$dynamicAnchor": (anchored("$dynamicAnchor", "$dynamicRef"), 2),
    "$dynamicAnchor by $ref": (anchored("$dynamicAnchor", "$ref"), 2),
    "$id": ({"$id": "http://x/n", "anyOf": [{"properties": {"arg": {"$ref": "n"}}}] * 2}, 2),
    "dependentSchemas": ({**FIELD, "dependentSchemas": {"arg": FIELD}}, 2),
    "patterns": ({"patternProperties": {"^a": N, "g$": N}}, 2),
    "a pattern and a property": ({**FIELD, "patternProperties": {"^a": N}}, 2),
    "other fields": ({**FIELD, "allOf": [{"additionalProperties": N}]}, 2),
    "contains": ({**LIST, "contains": N}, 2),
    "elements by their positions": ({"prefixItems": [N], "allOf": [LIST]}, 2),
    "not": ({**FIELD, "not": {"required": ["x"], **FIELD}}, 2),
    "unevaluatedProperties": ({"anyOf": [FIELD], "unevaluatedProperties": False}, 2),
    "unevaluatedProperties, nested": (
        {"allOf": [{"allOf": [FIELD]}], "unevaluatedProperties": False},
        3,
    ),
    "unevaluatedItems": ({"anyOf": [LIST], "unevaluatedItems": False}, 2),
    "unevaluatedProperties after if": (
        {"if": FIELD, "then": FIELD, "unevaluatedProperties": False},
        4,
    ),
    "inherited from a reference": ({"allOf": [{"$ref": "#/$defs/M"}, {"$ref": "#/$defs/M"}]}, 2),
}
STRAIGHT: dict[str, dict[str, Any]] = {
    "one field": FIELD,
    "fields and others": {**FIELD, "additionalProperties": N},
    "fields and what is left": {**FIELD, "unevaluatedProperties": N},
    "fields beside inherited fields": {"properties": {"parent": N}, "allOf": [FIELD]},
    "fields that depend on others": {
        **FIELD,
        "dependentSchemas": {"arg": {"properties": {"more": N}}},
    },
    "a list or an object": {"anyOf": [LIST, FIELD, {"type": "string"}]},
    "positions": {"prefixItems": [N, N], "items": N},
    "names of fields": {**FIELD, "propertyNames": N},
    "a condition that does not recur": {
        **FIELD,
        "if": {"properties": {"arg": {"type": "string"}}},
        "then": {"maxProperties": 9},
    },
}


def whole(node: dict[str, Any]) -> dict[str, Any]:
    """A schema whose node ``N`` is the given one; it counts validations of the inmost text."""
    node = {**node, "allOf": [COUNTED, *node.get("allOf", [])]}
    return {**N, "$defs": {"N": node, "M": FIELD}}


def work(schema: dict[str, Any], value: Any) -> int:
    """How often the validator looks at the inmost text."""
    jsonschema_rs = pytest.importorskip("jsonschema_rs")
    times = 0

    def count(_: str) -> bool:
        nonlocal times
        times += 1
        return True

    validator = jsonschema_rs.validator_for(
        schema, formats={"counted": count}, validate_formats=True
    )
    validator.is_valid(value)
    return times


@pytest.mark.parametrize("case", BRANCHING)
def test_whatever_is_validated_repeatedly_counts(case):
    """The width is no smaller than the growth of the work that a validator does."""
    node, width = BRANCHING[case]
    schema = whole(node)
    assert width_of(schema, uses_discriminators=False) == width
    for levels in range(1, 5):
        is_list = "Items" in str(node) or "items" in str(node)
        value = nested(levels) if is_list else chain(levels)
        assert 1 <= work(schema, value) <= width**levels


@pytest.mark.parametrize("case", STRAIGHT)
def test_ordinary_recursion_is_not_refused(case):
    """Each part is validated once, so that no depth is too much."""
    schema = whole(STRAIGHT[case])
    assert width_of(schema, uses_discriminators=False) == 1
    assert work(schema, chain(20)) <= 21  # names of fields are texts, too


@pytest.mark.parametrize(
    "nodes",
    [
        unions(60),
        {f"U{n}": {"allOf": [{"$ref": f"#/$defs/U{n + 1}"}] * 2} for n in range(500)},
        {f"U{n}": {"properties": {"arg": {"$ref": f"#/$defs/U{n + 1}"}}} for n in range(5000)},
    ],
    ids=["unions of each other", "references to the next", "levels"],
)
def test_the_width_is_found_in_one_pass(nodes, monkeypatch):
    """Each node is read once, however many paths lead to it."""
    read = 0
    original = branching._Graph._node

    def counted(self, schema):
        nonlocal read
        read += 1
        return original(self, schema)

    monkeypatch.setattr(branching._Graph, "_node", counted)
    last = {f"U{len(nodes)}": {"anyOf": [{"properties": {"arg": {"$ref": "#/$defs/U0"}}}] * 2}}
    schema = {"$ref": "#/$defs/U0", "$defs": {**nodes, **last}}
    assert width_of(schema, uses_discriminators=False) > 1
    assert read <= str(schema).count("{")


def test_the_width_of_a_questions_schema_is_found_once(monkeypatch):
    """Not for each answer."""
    pytest.importorskip("jsonschema_rs")
    found = []

    def counted(schema: Any, *, uses_discriminators: bool) -> int:
        found.append(schema)
        return width_of(schema, uses_discriminators=uses_discriminators)

    monkeypatch.setattr(questions, "width_of", counted)
    schema = {"title": "asked repeatedly", "type": "integer"}
    for answer in range(3):
        check_schema(schema, answer)
    check_schema({**schema, "title": "another"}, 1)
    assert len(found) == 2


def nested(levels: int) -> Any:
    """Lists within each other."""
    value: Any = "bad"
    for _ in range(levels):
        value = [value]
    return value


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
    question = Question.of("?", key=1, answer_type=Signed, options=None, default=None, timeout=None)
    for check in (question.check, partial(check_schema, question.schema)):
        if expected is None:
            check(value)
        else:
            with pytest.raises(InvalidInputError, match=expected) as refused:
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
    question = Question.of("?", key=1, answer_type=schema, options=None, default=None, timeout=None)
    with pytest.raises(InvalidInputError, match="recursive union"):
        question.check(chain(31))
    with pytest.raises(InvalidInputError, match="recursive union"):
        check_schema(question.schema, chain(31))
    question.check(chain(5, 1))
