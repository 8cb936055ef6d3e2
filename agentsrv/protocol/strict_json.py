"""JSON as every program reads it alike: what RFC 8259 leaves open is refused."""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn

from agentsrv.errors import InvalidJson

MAX_DEPTH: Final = 32  # objects and arrays within each other
MAX_INTEGER: Final = (1 << 63) - 1  # what other languages' integers hold
MAX_DIGITS: Final = 20  # of such an integer, with its sign
BYTE_ORDER_MARK: Final = "\ufeff"  # is seen on no screen, so it wants a word
EXAMPLE: Final = {"command": "create", "task_description": "How does async I/O work?"}


def parse_object(text: str) -> dict[str, Any]:
    """Parse one JSON object.

    Raises:
        InvalidJson: It is no object, or not strictly JSON: see ``parse``.
    """
    value = parse(text)
    if not isinstance(value, dict):
        raise _invalid(f"found {_KINDS[type(value)]}; expected one object")
    return value


def parse(text: str) -> Any:
    """Parse one JSON value.

    Raises:
        InvalidJson: It is none, is nested too deep, repeats a key, or has a number or a text
            that not every program can hold.
    """
    if text.count("{") + text.count("[") > MAX_DEPTH:  # the exact count is ten times as dear
        _check_depth(text)
    try:
        value = _DECODER.decode(text)
        if "\\u" in text:  # only an escape can hold half of a pair; UTF-8 itself cannot
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        if text.startswith(BYTE_ORDER_MARK):
            raise _invalid("found a byte order mark; expected none") from None
        raise _invalid(f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except UnicodeEncodeError:
        raise _invalid("found half of a surrogate pair; expected whole characters") from None
    return value


def _check_depth(text: str) -> None:
    depth, in_string, escaped = 0, False, False
    for character in text:
        if in_string:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                in_string = False
        elif character == '"':
            in_string = True
        elif character in "{[":
            depth += 1
            if depth > MAX_DEPTH:
                raise _invalid(f"nested more than {MAX_DEPTH} deep")
        elif character in "}]":
            depth -= 1


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _invalid(f"the key {key!r} occurs twice")
            seen.add(key)
    return value


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS or not -MAX_INTEGER - 1 <= (number := int(digits)) <= MAX_INTEGER:
        raise _invalid(f"found the integer {digits[:24]}; expected at most 64 bits")
    return number


def _real(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise _invalid(f"found the number {digits[:24]}; expected one that a double holds")
    return number


def _constant(name: str) -> NoReturn:
    raise _invalid(f"found {name}, which JSON does not have")


def _invalid(message: str) -> InvalidJson:
    return InvalidJson(f"not valid JSON: {message}", example=EXAMPLE)


_KINDS: Final = {
    list: "an array",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}
_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_pairs,
    parse_int=_integer,
    parse_float=_real,
    parse_constant=_constant,
)
