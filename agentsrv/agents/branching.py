"""Bounds the work of validating a value by a schema that branches into itself.

Theory of operation
===================

A union without a discriminator is validated by trying its choices. Where several of them lead back
to the union, as in ``Expr = Not | Neg | int`` whose models have a field of type ``Expr``, each
level of a value is tried once for each choice of the level above: a value of *n* levels costs
``width ** n`` validations, and as many errors, if ``width`` choices of one node can apply to it. A
few hundred bytes are then enough to occupy the event loop, and the memory, for ever. Neither
pydantic nor a validator of JSON Schemas can be interrupted, so the work is bounded before:

- `width_of` finds the width of a JSON Schema: how often one part of a value is validated for each
  validation of the value itself, counting only parts that lead to a reference that leads to itself.
  ``list[JSON] | dict[str, JSON]`` has width 1: one choice takes a list, and another one an object.
- `dispatched` rewrites a schema for a validator that does not know discriminators: it applies only
  the choice that the tag names, by ``if`` and ``then``, so such a union has width 1.
- `is_too_much` sums ``width ** depth`` over all parts of a value, and looks at each part once. It
  stops as soon as the sum is larger than ``MAX_WORK``.

The width
---------
A keyword of a schema applies other schemas either to the same value (``anyOf``, ``if``, ``$ref``)
or to its parts (``properties``, ``items``). So the schemas are the nodes of a graph with two kinds
of edges. The width of a node, for objects and for lists, is the sum of

- the schemas that its own keywords apply to one part, as far as they are *recursive*: a cycle can
  be reached from them. ``properties`` and ``additionalProperties`` never apply to the same part, so
  they count once, but each pattern of ``patternProperties`` counts in addition. Fields of different
  names are different parts. (Not for pydantic, where a field may have names that its JSON Schema
  does not have); and
- the widths of the nodes that it applies to the same value. With ``unevaluatedProperties`` or
  ``unevaluatedItems``, the validator tries these, and what they apply, once more to learn which
  parts they have evaluated.

The width of the schema is the largest of any node. Both questions (is a node recursive, what is its
width) are answered for each strongly connected component of the graph once, after the components
that it leads to, so the time is linear in the size of the schema. Nodes that apply each other to
the same value are a component of more than one node. There, a validator may follow any path that
does not return; the number of such paths is estimated by the product of the nodes' branches.

Where the graph is not known exactly, the estimate is too large rather than too small: a reference
that cannot be resolved is recursive, and one with several possible targets has the widest of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urldefrag, urljoin

MAX_WORK: Final = 3000.0  # validations of an object or a list; with an error, one takes 15 µs
LEAF: Final = 0.05  # of such a validation: any other part of a value
HINT: Final = (
    "the type is a recursive union, for which each level multiplies the work; expected fewer "
    "levels, or a type with a discriminator"
)

BY_TAG: Final = "x-agentsrv-by-tag"  # marks a union that `dispatched` has rewritten
KEPT: Final = {"$schema", "$defs", "title", "description", "default", "examples"}
"""What else may be in a union that `dispatched` rewrites; others might contradict the result."""
MAX_WIDTH: Final = 1_000_000
"""Larger widths are not distinguished, which keeps the numbers small."""
MAX_NAMES: Final = 500
"""If a value may have more recursive fields, their names are not distinguished."""
_UNRESOLVED: Final[Mapping[str, Any]] = {}
"""The node that stands for the targets of references that cannot be resolved."""

# Keywords that apply schemas to the same value.
_UNIONS: Final = ("anyOf", "oneOf")
_OTHERS: Final = ("allOf", "if", "then", "else", "not", "dependentSchemas", "dependencies")
_REFERENCES: Final = ("$ref", "$dynamicRef", "$recursiveRef")
# Keywords that apply schemas to parts; of those in one line, one applies to each part.
# `propertyNames` is not among them: names have no parts.
_OTHER_FIELDS: Final = ("additionalProperties", "unevaluatedProperties")
_POSITIONS: Final = ("prefixItems", "items", "additionalItems", "unevaluatedItems")
_UNEVALUATED: Final = ("unevaluatedProperties", "unevaluatedItems")

Schema = Mapping[str, Any]
Choices = Sequence[Schema]
"""Schemas of which one is applied."""


def width_of(schema: Schema, *, uses_discriminators: bool) -> int:
    """How many branches each level of a value is tried by; at most 1 is harmless.

    Args:
        schema: A JSON Schema.
        uses_discriminators: Whether the validator is pydantic's, which tries only the choice that a
            discriminator names.
    """
    return _Graph(schema, uses_discriminators=uses_discriminators).width()


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
        target = _target(schema, choice.get("$ref")) if isinstance(choice, Mapping) else None
        values = _tags(target, tag)
        if not values:
            return None
        tags += values
        cases.append({"if": _has(tag, values), "then": choice})
    if len(set(tags)) < len(tags):
        return None
    kept = {name: value for name, value in node.items() if name in KEPT}
    return kept | {BY_TAG: True, **_has(tag, tags), "allOf": cases}


def _target(schema: Schema, ref: Any) -> Any:
    """The schema that a pointer from the root names; ``None`` for other references."""
    found = _pointed(schema, ref[1:]) if isinstance(ref, str) and ref.startswith("#/") else []
    return found[0] if found else None


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


class _Node(NamedTuple):
    """What a schema applies, as numbers of nodes; of each inner list, one is applied."""

    same: list[list[int]]
    """To the same value."""
    named: dict[str, int]
    """To the field of an object that has this name."""
    others: list[int]
    """To a field of another name; one is applied."""
    fields: list[list[int]]
    """To one field of an object, whatever its name, in addition."""
    elements: list[list[int]]
    """To one element of a list."""
    tries_again: bool
    """Whether it has a keyword for what the others have not evaluated."""


class _Width(NamedTuple):
    """How many recursive schemas are applied to one part."""

    fields: int = 0
    """To a field of an object."""
    elements: int = 0
    """To an element of a list."""
    named: Mapping[str, int] = MappingProxyType({})
    """To a field of this name, in addition to ``fields``."""

    @classmethod
    def sum(cls, widths: Iterable[_Width]) -> _Width:
        fields, elements, named = 0, 0, defaultdict[str, int](int)
        for width in widths:
            fields += width.fields
            elements += width.elements
            for name, number in width.named.items():
                named[name] += number
        return cls(fields, elements, named).bounded()

    @classmethod
    def max(cls, widths: Sequence[_Width]) -> _Width:
        fields = max((width.fields for width in widths), default=0)
        elements = max((width.elements for width in widths), default=0)
        named: dict[str, int] = {}
        for width in widths:
            for name, number in width.named.items():
                named[name] = max(named.get(name, 0), width.fields + number - fields)
        return cls(fields, elements, named)

    def times(self, factor: int) -> _Width:
        named = {name: number * factor for name, number in self.named.items()}
        return _Width(self.fields * factor, self.elements * factor, named).bounded()

    def largest(self) -> int:
        return max(self.fields + max(self.named.values(), default=0), self.elements)

    def bounded(self) -> _Width:
        if self.largest() > MAX_WIDTH or len(self.named) > MAX_NAMES:
            fields = self.fields + max(self.named.values(), default=0)
            return _Width(min(MAX_WIDTH, fields), min(MAX_WIDTH, self.elements))
        return self


class _Graph:
    """A JSON Schema, and which schemas the schemas in it apply."""

    def __init__(self, schema: Schema, *, uses_discriminators: bool) -> None:
        self._uses_discriminators = uses_discriminators
        self._resolver = _Resolver(schema)
        self._numbers: dict[int, int] = {}
        self._waiting: list[Schema] = []
        self._nodes: list[_Node] = []
        self._number(schema)
        for found in self._waiting:  # which grows meanwhile
            self._nodes.append(self._node(found))

    def width(self) -> int:
        """The largest width of any node."""
        recursive = self._recursive()
        widths = self._widths(recursive)
        return max(width.largest() for width in widths) if any(recursive) else 0

    def _number(self, schema: Schema) -> int:
        if id(schema) not in self._numbers:
            self._numbers[id(schema)] = len(self._waiting)
            self._waiting.append(schema)
        return self._numbers[id(schema)]

    def _node(self, schema: Schema) -> _Node:
        if schema is _UNRESOLVED:
            own = [[self._number(schema)]]
            return _Node(same=[], named={}, others=[], fields=own, elements=own, tries_again=False)

        def applied(groups: Iterable[Choices]) -> list[list[int]]:
            return [[self._number(one) for one in group] for group in groups if group]

        positions = _schemas(schema, _POSITIONS)
        named, others = _by_name(schema, "properties"), _schemas(schema, _OTHER_FIELDS)
        fields = [*_each(_schemas(schema, ("patternProperties",)))]
        if self._uses_discriminators:
            named, others = {}, [*named.values(), *others]
            fields.append(_schemas(schema, ("prefixItems",)))  # a named tuple may be an object
        return _Node(
            same=applied(self._same(schema)),
            named={name: self._number(one) for name, one in named.items()},
            others=[self._number(one) for one in others],
            fields=applied(fields),
            elements=applied([positions, _schemas(schema, ("contains",))]),
            tries_again=any(name in schema for name in _UNEVALUATED),
        )

    def _same(self, schema: Schema) -> Iterator[Choices]:
        choices = _schemas(schema, _UNIONS)
        if self._uses_discriminators and "discriminator" in schema:
            yield choices
        else:
            yield from _each(choices)
        others = _schemas(schema, _OTHERS)
        if BY_TAG in schema:  # of the conditions in `allOf`, one holds
            yield others
        else:
            yield from _each(others)
        for name in _REFERENCES:
            if isinstance(schema.get(name), str):
                yield self._resolver.targets(schema, name)

    def _recursive(self) -> list[bool]:
        """Whether a cycle can be reached from each node."""
        edges = [
            [
                *node.named.values(),
                *node.others,
                *chain.from_iterable(node.same + node.fields + node.elements),
            ]
            for node in self._nodes
        ]
        found = [False] * len(edges)
        for component in _components(edges):
            following = [number for one in component for number in edges[one]]
            is_cycle = not set(component).isdisjoint(following)
            if is_cycle or any(found[number] for number in following):
                for one in component:
                    found[one] = True
        return found

    def _widths(self, recursive: Sequence[bool]) -> list[_Width]:
        """The width of each node."""
        nodes = self._nodes
        widths = [_Width()] * len(nodes)
        again = [_Width()] * len(nodes)  # of trying once more what a node applies

        def count(groups: Sequence[Sequence[int]]) -> int:
            return sum(any(recursive[number] for number in group) for group in groups)

        def own(node: _Node) -> _Width:
            fields = count([*node.fields, node.others])
            named = {}
            if not count([node.others]):
                named = {name: 1 for name, number in node.named.items() if recursive[number]}
            return _Width(fields, count(node.elements), named)

        for component in _components([list(chain(*node.same)) for node in nodes]):
            members = [nodes[number] for number in component]
            groups = [group for node in members for group in node.same]
            inside = set(component)
            paths = 1
            for node in members:
                branches = sum(not inside.isdisjoint(group) for group in node.same)
                paths = min(MAX_WIDTH, paths * max(1, branches))
            width = _Width.sum(
                [own(node) for node in members]
                + [_Width.max([widths[number] for number in group]) for group in groups]
            ).times(paths)
            is_cycle = any(not inside.isdisjoint(group) for group in groups)
            retried = _Width.sum(
                [
                    _Width.max([_Width.sum((widths[number], again[number])) for number in group])
                    for group in groups
                ]
                + [width] * (len(members) if is_cycle else 0)
            ).times(paths)
            width = _Width.sum([width] + [retried] * sum(node.tries_again for node in members))
            for number in component:
                widths[number], again[number] = width, retried
        return widths


class _Resolver:
    """Finds the schemas that references name."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._bases: dict[int, str] = {}
        self._resources: defaultdict[str, list[Schema]] = defaultdict(list, {"": [schema]})
        self._anchors: defaultdict[tuple[str, str], list[Schema]] = defaultdict(list)
        self._dynamic: defaultdict[str, list[Schema]] = defaultdict(list)
        """The targets that depend on the way to the reference, by the anchor's name."""
        waiting: list[tuple[Any, str]] = [(schema, "")]
        while waiting:
            found, base = waiting.pop()
            if isinstance(found, Mapping):
                if id(found) in self._bases:
                    continue
                base = self._bases[id(found)] = self._read(found, base)
            waiting.extend((part, base) for part in _parts(found))

    def _read(self, schema: Schema, base: str) -> str:
        """Take the names that a schema gives itself; return the base of references in it."""
        for name in ("$id", "id"):
            if isinstance(schema.get(name), str):
                named, anchor = _joined(base, schema[name])
                if anchor:
                    self._anchors[named, anchor].append(schema)
                else:
                    base = named
                    self._resources[base].append(schema)
        for name in ("$anchor", "$dynamicAnchor"):
            if isinstance(schema.get(name), str):
                self._anchors[base, schema[name]].append(schema)
        if isinstance(schema.get("$dynamicAnchor"), str):
            self._dynamic[schema["$dynamicAnchor"]].append(schema)
        if schema.get("$recursiveAnchor") is True:
            self._dynamic[""].append(schema)
        return base

    def targets(self, schema: Schema, name: str) -> Choices:
        """The schemas of which the reference in ``schema[name]`` names one."""
        base, fragment = _joined(self._bases.get(id(schema), ""), schema[name])
        resources = self._resources.get(base, [])
        if not fragment:
            found: list[Any] = [*resources]
        elif fragment.startswith("/"):
            roots = [*resources, self._schema]  # a value of `enum` may look like an id
            found = [target for root in roots for target in _pointed(root, fragment)]
        else:
            found = [*self._anchors.get((base, fragment), [])]
        if name != "$ref":
            found += self._dynamic.get(fragment, [])
        if not found:
            return [_UNRESOLVED]
        return [one for one in found if isinstance(one, Mapping)]


def _joined(base: str, reference: str) -> tuple[str, str]:
    """The address and the decoded fragment of a reference, or of an id, below ``base``."""
    try:
        address, fragment = urldefrag(reference)
        return urljoin(base, address) if address else base, unquote(fragment)
    except ValueError:  # not an address
        return reference, ""


def _pointed(root: Any, pointer: str) -> list[Any]:
    """What a JSON Pointer names; empty if it names nothing."""
    for part in pointer.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(root, Mapping) and name in root:
            root = root[name]
        elif isinstance(root, (list, tuple)) and name.isdecimal() and int(name) < len(root):
            root = root[int(name)]
        else:
            return []
    return [root]


def _schemas(schema: Schema, names: Iterable[str]) -> Choices:
    """The schemas in these keywords, each of which has one, a list of them, or some by name."""
    found: list[Schema] = []
    for name in names:
        value = schema.get(name)
        if isinstance(value, Mapping) and name not in _NAMED:
            value = [value]
        found += [one for one in _parts(value) if isinstance(one, Mapping)]
    return found


_NAMED: Final = {"patternProperties", "dependentSchemas", "dependencies"}


def _by_name(schema: Schema, name: str) -> dict[str, Schema]:
    value = schema.get(name)
    found = value if isinstance(value, Mapping) else {}
    return {name: one for name, one in found.items() if isinstance(one, Mapping)}


def _each(schemas: Choices) -> Iterator[Choices]:
    """All of them are applied."""
    return ([one] for one in schemas)


def _components(edges: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """The strongly connected components, each after those that it leads to (Tarjan's algorithm)."""
    order: dict[int, int] = {}
    lowest: dict[int, int] = {}
    stack: list[int] = []
    is_on_stack = [False] * len(edges)
    for root in range(len(edges)):
        calls = [] if root in order else [(root, iter(edges[root]))]
        while calls:
            node, following = calls[-1]
            if node not in order:
                order[node] = lowest[node] = len(order)
                stack.append(node)
                is_on_stack[node] = True
            for target in following:
                if target not in order:
                    calls.append((target, iter(edges[target])))
                    break
                if is_on_stack[target]:
                    lowest[node] = min(lowest[node], order[target])
            else:
                calls.pop()
                if calls:
                    caller = calls[-1][0]
                    lowest[caller] = min(lowest[caller], lowest[node])
                if lowest[node] == order[node]:
                    component: list[int] = []
                    while not component or component[-1] != node:
                        component.append(stack.pop())
                        is_on_stack[component[-1]] = False
                    yield component
