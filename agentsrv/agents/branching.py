"""Limits the work of validating a value against a schema that branches into itself.

Theory of operation
===================

A union without a discriminator is validated by trying its choices. If several of them lead back to
the union, as in ``Expr = Not | Neg | int`` whose models have a field of type ``Expr``, each level
of a value is tried once for each choice of the level above: a value of *n* levels costs
``width ** n`` validations, and as many errors, if ``width`` choices of one node can apply to it. A
few hundred bytes are enough to block the event loop and exhaust the memory. Neither pydantic nor a
validator of JSON Schemas can be interrupted, so the work is estimated first:

- `width_of` finds the width of a JSON Schema: how often one part of a value is validated for each
  validation of the value itself. Only parts count that lead to a reference that leads to itself.
  ``list[JSON] | dict[str, JSON]`` has width 1: one choice accepts a list, the other an object.
- `dispatched` rewrites a schema for a validator that does not know discriminators: it applies only
  the choice that the tag names, by ``if`` and ``then``, so such a union has width 1.
- `is_too_much` sums ``width ** depth`` over all parts of a value, visiting each part once. It
  stops as soon as the sum is larger than ``MAX_WORK``.

The width
---------
A keyword of a schema applies other schemas either to the same value (``anyOf``, ``if``, ``$ref``)
or to its parts (``properties``, ``items``). So the schemas are the nodes of a graph with two kinds
of edges. The width of a node, separate for objects and for lists, is the sum of

- the schemas that its own keywords apply to one part, if they are *recursive*: a cycle can be
  reached from them. ``properties`` and ``additionalProperties`` never apply to the same part, so
  they count once; each pattern of ``patternProperties`` counts in addition. Fields with different
  names are different parts (except for pydantic, where a field may have names that its JSON Schema
  does not list); and
- the widths of the nodes that it applies to the same value. With ``unevaluatedProperties`` or
  ``unevaluatedItems``, the validator tries these, and what they apply, once more to learn which
  parts have been evaluated.

The width of the schema is the largest of any node. Recursion and width are computed once for each
strongly connected component of the graph, after the components that it leads to, so the time is
linear in the size of the schema. Nodes that apply each other to the same value form a component of
more than one node. There, a validator may follow any path without repetition; the number of such
paths is estimated by the product of the nodes' branches.

Where the graph is not known exactly, the estimate errs on the large side: a reference that cannot
be resolved counts as recursive, and one with several possible targets has the widest of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urldefrag, urljoin

MAX_WORK: Final = 3000.0  # validations of an object or a list; one that fails takes 15 µs
LEAF: Final = 0.05  # validations that any other value counts as
HINT: Final = (
    "the type is a recursive union, for which each level multiplies the work; expected fewer "
    "levels, or a type with a discriminator"
)

BY_TAG: Final = "x-agentsrv-by-tag"  # marks a union that `dispatched` has rewritten
KEPT: Final = {"$schema", "$defs", "title", "description", "default", "examples"}
"""Keywords that `dispatched` keeps in a union; others could contradict the rewritten schema."""
MAX_WIDTH: Final = 1_000_000
"""Widths are capped at this value, which keeps the numbers small."""
MAX_NAMES: Final = 500
"""If a value may have more recursive fields than this, their names are not distinguished."""
_UNRESOLVED: Final[Mapping[str, Any]] = {}
"""The node for the targets of references that cannot be resolved."""

# Keywords that apply schemas to the same value.
_UNIONS: Final = ("anyOf", "oneOf")
_OTHERS: Final = ("allOf", "if", "then", "else", "not", "dependentSchemas", "dependencies")
_REFERENCES: Final = ("$ref", "$dynamicRef", "$recursiveRef")
# Keywords that apply schemas to parts; of the keywords in one line, one applies to each part.
# `propertyNames` is missing because names have no parts.
_OTHER_FIELDS: Final = ("additionalProperties", "unevaluatedProperties")
_POSITIONS: Final = ("prefixItems", "items", "additionalItems", "unevaluatedItems")
_UNEVALUATED: Final = ("unevaluatedProperties", "unevaluatedItems")

Schema = Mapping[str, Any]
Choices = Sequence[Schema]
"""Alternative schemas: one of them is applied."""


def width_of(schema: Schema, *, uses_discriminators: bool) -> int:
    """Return the number of branches in which each level of a value is tried; 1 is harmless.

    Args:
        schema: A JSON Schema.
        uses_discriminators: Whether the validator is pydantic's, which tries only the choice that
            a discriminator names.
    """
    return _Graph(schema, uses_discriminators=uses_discriminators).width()


def dispatched(schema: Mapping[str, Any]) -> Any:
    """Rewrite each union that has a discriminator as an ``if`` and ``then`` for each tag.

    A union is kept as it is if its choices do not restrict their tags to strings, or if two
    choices accept the same tag.
    """

    def rewritten(node: Any) -> Any:
        if isinstance(node, (list, tuple)):
            return [rewritten(item) for item in node]
        if not isinstance(node, Mapping):
            return node
        inner = {name: rewritten(value) for name, value in node.items()}
        return _by_tag(schema, inner) or inner

    return rewritten(schema)


def _by_tag(schema: Mapping[str, Any], node: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a union with a discriminator as `dispatched` rewrites it, ``None`` for other nodes."""
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
    """Return the schema at a pointer from the root; ``None`` for other references."""
    found = _pointed(schema, ref[1:]) if isinstance(ref, str) and ref.startswith("#/") else []
    return found[0] if found else None


def _is_alone(union: Mapping[str, Any]) -> bool:
    return union.keys() <= KEPT | {"discriminator", "oneOf"}


def _has(tag: str, values: Sequence[str]) -> dict[str, Any]:
    """Return the schema of an object whose tag is one of the values."""
    return {"type": "object", "properties": {tag: {"enum": values}}, "required": [tag]}


def _tags(choice: Any, tag: str) -> list[str]:
    """Return the strings that a choice accepts as its tag; empty if it accepts other values."""
    fields = choice.get("properties") if isinstance(choice, Mapping) else None
    field = fields.get(tag) if isinstance(fields, Mapping) else None
    if not isinstance(field, Mapping):
        return []
    values = [field["const"]] if "const" in field else field.get("enum")
    is_of_texts = isinstance(values, list) and all(isinstance(item, str) for item in values)
    return values if is_of_texts else []  # type: ignore[return-value] # checked above


def is_too_much(value: Any, width: int) -> bool:
    """Whether validating ``value`` against a schema of this width exceeds ``MAX_WORK``."""
    if width <= 1:
        return False
    work, weight, level = 0.0, 1.0, [value]
    while level and work <= MAX_WORK:
        inner = [item for item in level if isinstance(item, (Mapping, list, tuple))]
        work += weight * (len(inner) + LEAF * (len(level) - len(inner)))
        weight *= width
        level = [part for item in inner for part in _parts(item)]
    return work > MAX_WORK


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, (list, tuple)):
        yield from value


class _Node(NamedTuple):
    """The schemas that a schema applies, as numbers of nodes; each inner list is alternatives."""

    same: list[list[int]]
    """Applied to the same value."""
    named: dict[str, int]
    """Applied to the field with this name."""
    others: list[int]
    """Alternatives for a field with another name."""
    fields: list[list[int]]
    """Applied in addition to one field of an object, with any name."""
    elements: list[list[int]]
    """Applied to one element of a list."""
    tries_again: bool
    """Whether it has ``unevaluatedProperties`` or ``unevaluatedItems``."""


class _Width(NamedTuple):
    """The number of recursive schemas that are applied to one part."""

    fields: int = 0
    """Applied to a field of an object."""
    elements: int = 0
    """Applied to an element of a list."""
    named: Mapping[str, int] = MappingProxyType({})
    """Applied to the field with this name, in addition to ``fields``."""

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
    """A JSON Schema as a graph: nodes are schemas, edges lead to the schemas that they apply."""

    def __init__(self, schema: Schema, *, uses_discriminators: bool) -> None:
        self._uses_discriminators = uses_discriminators
        self._resolver = _Resolver(schema)
        self._numbers: dict[int, int] = {}
        self._waiting: list[Schema] = []
        self._nodes: list[_Node] = []
        self._number(schema)
        for found in self._waiting:  # `_node` appends to the list
            self._nodes.append(self._node(found))

    def width(self) -> int:
        """Return the largest width of any node."""
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
            return [[self._number(item) for item in group] for group in groups if group]

        positions = _schemas(schema, _POSITIONS)
        named, others = _by_name(schema, "properties"), _schemas(schema, _OTHER_FIELDS)
        fields = [*_each(_schemas(schema, ("patternProperties",)))]
        if self._uses_discriminators:
            named, others = {}, [*named.values(), *others]
            fields.append(_schemas(schema, ("prefixItems",)))  # a named tuple may be an object
        return _Node(
            same=applied(self._same(schema)),
            named={name: self._number(item) for name, item in named.items()},
            others=[self._number(item) for item in others],
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
        if BY_TAG in schema:  # only one of the conditions in `allOf` can hold
            yield others
        else:
            yield from _each(others)
        for name in _REFERENCES:
            if isinstance(schema.get(name), str):
                yield self._resolver.targets(schema, name)

    def _recursive(self) -> list[bool]:
        """Return for each node whether a cycle can be reached from it."""
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
            following = [number for item in component for number in edges[item]]
            is_cycle = not set(component).isdisjoint(following)
            if is_cycle or any(found[number] for number in following):
                for item in component:
                    found[item] = True
        return found

    def _widths(self, recursive: Sequence[bool]) -> list[_Width]:
        """Return the width of each node."""
        nodes = self._nodes
        widths = [_Width()] * len(nodes)
        again = [_Width()] * len(nodes)  # the width of trying a node's schemas once more

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
        """The targets of dynamic references, by the anchor's name."""
        waiting: list[tuple[Any, str]] = [(schema, "")]
        while waiting:
            found, base = waiting.pop()
            if isinstance(found, Mapping):
                if id(found) in self._bases:
                    continue
                base = self._bases[id(found)] = self._read(found, base)
            waiting.extend((part, base) for part in _parts(found))

    def _read(self, schema: Schema, base: str) -> str:
        """Register the names that a schema defines; return the base of the references in it."""
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
        """Return the possible targets of the reference in ``schema[name]``."""
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
        return [item for item in found if isinstance(item, Mapping)]


def _joined(base: str, reference: str) -> tuple[str, str]:
    """Return the address and the decoded fragment of a reference or id, relative to ``base``."""
    try:
        address, fragment = urldefrag(reference)
        return urljoin(base, address) if address else base, unquote(fragment)
    except ValueError:  # not an address
        return reference, ""


def _pointed(root: Any, pointer: str) -> list[Any]:
    """Return the target of a JSON Pointer in a list; an empty list if there is no target."""
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
    """Return the schemas in these keywords: each has one, a list of them, or a mapping of them."""
    found: list[Schema] = []
    for name in names:
        value = schema.get(name)
        if isinstance(value, Mapping) and name not in _NAMED:
            value = [value]
        found += [item for item in _parts(value) if isinstance(item, Mapping)]
    return found


_NAMED: Final = {"patternProperties", "dependentSchemas", "dependencies"}


def _by_name(schema: Schema, name: str) -> dict[str, Schema]:
    value = schema.get(name)
    found = value if isinstance(value, Mapping) else {}
    return {name: item for name, item in found.items() if isinstance(item, Mapping)}


def _each(schemas: Choices) -> Iterator[Choices]:
    """Return groups of one schema each: all of them are applied."""
    return ([item] for item in schemas)


def _components(edges: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Yield strongly connected components, each after those that it leads to (Tarjan)."""
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
