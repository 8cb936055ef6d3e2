"""Bounds the work of validating a value by a schema that branches into itself.

Theory of operation
===================

A union without a discriminator is validated by trying its choices. Where several of them lead back
to the union, as in ``Expr = Not | Neg | int`` whose models have a field of type ``Expr``, each
level of a value is tried once for each choice of the level above: a value of *n* levels costs
``width ** n`` validations, and as many errors, if ``width`` choices of one node can apply to it. A
few hundred bytes are then enough to occupy the event loop, and the memory, for ever. Neither
pydantic nor a validator of JSON Schemas can be interrupted, so the work is bounded before:

- `width_of` finds the width of a JSON Schema. It counts, at each node, the subschemas that apply to
  the same value, accept the same kind of container, and lead to a reference that leads to itself.
  ``list[JSON] | dict[str, JSON]`` has width 1: one choice takes a list, and another one an object.
- `dispatched` rewrites a schema for a validator that does not know discriminators: it applies only
  the choice that the tag names, by ``if`` and ``then``, so such a union has width 1.
- `is_too_much` sums ``width ** depth`` over all parts of a value, and looks at each part once. It
  stops as soon as the sum is larger than ``MAX_WORK``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

MAX_WORK: Final = 3000.0  # validations of an object or a list; with an error, one takes 15 µs
LEAF: Final = 0.05  # of such a validation: any other part of a value
HINT: Final = (
    "the type is a recursive union, for which each level multiplies the work; expected fewer "
    "levels, or a type with a discriminator"
)

BY_TAG: Final = "x-agentsrv-by-tag"  # marks a union that `dispatched` has rewritten
KEPT: Final = {"$schema", "$defs", "title", "description", "default", "examples"}
"""What else may be in a union that `dispatched` rewrites; others might contradict the result."""
_LISTS: Final = ("anyOf", "oneOf", "allOf")
_SINGLE: Final = ("if", "then", "else", "not")
_CONTAINERS: Final = ("object", "array")


def width_of(schema: Mapping[str, Any], *, uses_discriminators: bool) -> int:
    """How many branches each level of a value is tried by; at most 1 is harmless.

    Args:
        schema: A JSON Schema.
        uses_discriminators: Whether the validator tries only the choice that a discriminator names.
    """
    return _Graph(schema, uses_discriminators=uses_discriminators).width


def dispatched(schema: Mapping[str, Any]) -> Any:
    """The schema with each union that has a discriminator as an ``if`` and ``then`` for each tag.

    A union is left as it is if its tags are not the texts that its choices take, or if two choices
    take the same one.
    """

    def rewritten(node: Any) -> Any:
        if isinstance(node, (list, tuple)):
            return [rewritten(one) for one in node]
        if not isinstance(node, Mapping):
            return node
        inner = {name: rewritten(value) for name, value in node.items()}
        return _by_tag(schema, inner) or inner

    return rewritten(schema)


def _by_tag(schema: Mapping[str, Any], node: Mapping[str, Any]) -> dict[str, Any] | None:
    """A union with a discriminator, rewritten as `dispatched` says; ``None`` for another node."""
    discriminator, choices = node.get("discriminator"), node.get("oneOf")
    tag = discriminator.get("propertyName") if isinstance(discriminator, Mapping) else None
    if not isinstance(tag, str) or not isinstance(choices, list) or not _is_alone(node):
        return None
    tags: list[str] = []
    cases = []
    for choice in choices:
        target = target_of(schema, choice.get("$ref")) if isinstance(choice, Mapping) else None
        values = _tags(target, tag)
        if not values:
            return None
        tags += values
        cases.append({"if": _has(tag, values), "then": choice})
    if len(set(tags)) < len(tags):
        return None
    kept = {name: value for name, value in node.items() if name in KEPT}
    return kept | {BY_TAG: True, **_has(tag, tags), "allOf": cases}


def _is_alone(union: Mapping[str, Any]) -> bool:
    return union.keys() <= KEPT | {"discriminator", "oneOf"}


def _has(tag: str, values: Sequence[str]) -> dict[str, Any]:
    """The schema of an object whose tag is one of the values."""
    return {"type": "object", "properties": {tag: {"enum": values}}, "required": [tag]}


def _tags(choice: Any, tag: str) -> list[str]:
    """The texts that a choice takes as its tag; none if it takes anything else."""
    fields = choice.get("properties") if isinstance(choice, Mapping) else None
    field = fields.get(tag) if isinstance(fields, Mapping) else None
    if not isinstance(field, Mapping):
        return []
    values = [field["const"]] if "const" in field else field.get("enum")
    is_of_texts = isinstance(values, list) and all(isinstance(one, str) for one in values)
    return values if is_of_texts else []  # type: ignore[return-value] # looked at just now


def target_of(schema: Mapping[str, Any], ref: Any) -> Any:
    """What a reference within the schema names; others are not followed."""
    target: Any = schema
    if not isinstance(ref, str) or not ref.startswith("#"):
        return None
    for part in filter(None, ref[1:].split("/")):
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(target, Mapping):
            target = target.get(name)
        elif isinstance(target, list) and name.isdecimal() and int(name) < len(target):
            target = target[int(name)]
        else:
            return None
    return target


def is_too_much(value: Any, width: int) -> bool:
    """Whether validating ``value`` by a schema of this width costs more than ``MAX_WORK``."""
    if width <= 1:
        return False
    work, weight, level = 0.0, 1.0, [value]
    while level and work <= MAX_WORK:
        inner = [one for one in level if isinstance(one, (Mapping, list, tuple))]
        work += weight * (len(inner) + LEAF * (len(level) - len(inner)))
        weight *= width
        level = [part for one in inner for part in _parts(one)]
    return work > MAX_WORK


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, (list, tuple)):
        yield from value


class _Graph:
    """A JSON Schema and where its references lead."""

    def __init__(self, schema: Mapping[str, Any], *, uses_discriminators: bool) -> None:
        self._schema = schema
        self._uses_discriminators = uses_discriminators
        nodes = list(_nodes(schema))
        self._following = {ref: self._below(self._target(ref)) for ref in self._below(schema)}
        """The references that are met below each reference."""
        cyclic = {ref for ref in self._following if ref in self._reach(ref)}
        self._recursive = {ref for ref in self._following if cyclic & {ref, *self._reach(ref)}}
        self.width = max(map(self._width_at, nodes), default=0) if cyclic else 0

    def _width_at(self, node: Mapping[str, Any]) -> int:
        leaves = self._leaves(node, frozenset())
        recursive = [leaf for leaf in leaves if self._is_recursive(leaf)]
        kinds = [leaf.get("type", _CONTAINERS) for leaf in recursive]
        return max(sum(_accepts(kind, one) for kind in kinds) for one in _CONTAINERS)

    def _leaves(self, node: Any, seen: frozenset[str]) -> Sequence[Mapping[str, Any]]:
        """The schemas that are tried for a value of ``node``."""
        if not isinstance(node, Mapping):
            return ()
        if BY_TAG in node or (self._uses_discriminators and "discriminator" in node):
            return ()
        lists = [node[name] for name in _LISTS if isinstance(node.get(name), (list, tuple))]
        parts = [part for one in lists for part in one]
        parts += [node[name] for name in _SINGLE if name in node]
        found = [leaf for part in parts for leaf in self._leaves(part, seen)]
        for ref in _references(node):
            if ref not in seen:
                found += self._leaves(self._target(ref), seen | {ref})
                parts.append(ref)
        return found if parts else (node,)

    def _is_recursive(self, node: Mapping[str, Any]) -> bool:
        return not self._recursive.isdisjoint(self._below(node))

    def _below(self, node: Any) -> set[str]:
        """The references within ``node``."""
        return {ref for part in _nodes(node) for ref in _references(part)}

    def _reach(self, ref: str) -> set[str]:
        """The references that are met on any way from ``ref``."""
        found: set[str] = set()
        waiting = [ref]
        while waiting:
            news = self._following.get(waiting.pop(), set()) - found
            found |= news
            waiting += news
        return found

    def _target(self, ref: str) -> Any:
        return target_of(self._schema, ref)


def _accepts(kind: Any, container: str) -> bool:
    return container == kind or (isinstance(kind, (list, tuple)) and container in kind)


def _nodes(schema: Any) -> Iterator[Mapping[str, Any]]:
    """All objects of a schema."""
    waiting = [schema]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Mapping):
            yield one
        waiting.extend(_parts(one))


def _references(node: Mapping[str, Any]) -> list[str]:
    names = ("$ref", "$dynamicRef", "$recursiveRef")
    return [node[name] for name in names if isinstance(node.get(name), str)]
