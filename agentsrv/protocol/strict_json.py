"""Strict and bounded JSON: everything that RFC 8259 leaves open to the parser is rejected.

Python's parser builds an object per value, and the models build an error per invalid value, so a
frame of 1 MiB could cost seconds and a gigabyte. Before anything is parsed, the text is therefore
measured by string methods that run in C:

1. ``text.count(",")`` and the number of brackets are upper bounds of the number of values and of
   the depth: separators inside strings are counted, too. Nearly all texts pass here.
2. A text above a bound is stripped of its strings (``_outside_strings``), and what remains is
   counted exactly. A text with more quotation marks than ``MAX_VALUES`` members need is rejected
   without that, so the strings that are cut out are bounded as well.
"""

from __future__ import annotations

import json
from itertools import accumulate
from typing import Any, Final, NoReturn

from agentsrv.errors import InvalidJsonError, TooLargeError

MAX_DEPTH: Final = 32  # objects and arrays within each other
MAX_VALUES: Final = 20_000  # values in one text: objects, arrays and what they contain
MAX_QUOTES: Final = 4 * MAX_VALUES  # of as many keys and strings
MAX_INTEGER: Final = (1 << 63) - 1  # what other languages' integers hold
MAX_DIGITS: Final = 20  # of such an integer, with its sign
MAX_KEY_SHOWN: Final = 64  # characters of a key in an error
BYTE_ORDER_MARK: Final = "\ufeff"  # invisible, so the error names it
EXAMPLE: Final = {"command": "create", "task_description": "How does async I/O work?"}


def parse_object(text: str) -> dict[str, Any]:
    """Parse one JSON object.

    Raises:
        InvalidJsonError: It is not an object, or not strict JSON; see ``parse``.
    """
    value = parse(text)
    if not isinstance(value, dict):
        raise _invalid(f"found {_KINDS[type(value)]}; expected one object")
    return value


def parse(text: str) -> Any:
    """Parse one JSON value.

    Raises:
        InvalidJsonError: It is invalid, is nested too deep, repeats a key, or contains a number or
            a string that not every program can represent.
        TooLargeError: It has more than ``MAX_VALUES`` values.
    """
    check_size(text)
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


def check_size(text: str) -> None:
    """Check the number of values and the depth, without parsing.

    Raises:
        InvalidJsonError: It is nested more than ``MAX_DEPTH`` deep.
        TooLargeError: It has more than ``MAX_VALUES`` values.
    """
    brackets = text.count("{") + text.count("[")
    if brackets > MAX_DEPTH or (len(text) > MAX_VALUES and text.count(",") >= MAX_VALUES):
        _check_exactly(text)


def _check_exactly(text: str) -> None:
    """Count outside strings only; of a text with too many strings, only its beginning."""
    data = text.encode(errors="surrogatepass")
    if b"\\" in data:
        data = data.replace(rb"\\", b"").replace(rb"\"", b"")
    *pieces, last = data.split(b'"', MAX_QUOTES)
    has_many_strings = b'"' in last
    outside = b"".join(pieces[::2] if has_many_strings else [*pieces, last][::2])
    outside = outside.translate(None, b" \t\r\n")
    brackets = outside.translate(None, _NO_BRACKETS)
    depths = accumulate(map(_STEPS.__getitem__, brackets[: 2 * MAX_VALUES]))
    if max(depths, default=0) > MAX_DEPTH:
        raise _invalid(f"nested more than {MAX_DEPTH} deep")
    # A container that is not empty has one element more than it has commas.
    opened, empty = brackets.count(b"[") + brackets.count(b"{"), outside.count(b"[]")
    values = 1 + outside.count(b",") + opened - empty - outside.count(b"{}")
    if values > MAX_VALUES or has_many_strings:
        found = f"{values:,}" if not has_many_strings else f"more than {MAX_VALUES:,}"
        raise TooLargeError(
            f"found {found} JSON values in one frame; expected at most {MAX_VALUES:,}: send "
            "several smaller commands, or long data as one string"
        )


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _invalid(f"the key {key[:MAX_KEY_SHOWN]!r} occurs twice")
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


def _invalid(message: str) -> InvalidJsonError:
    return InvalidJsonError(f"not valid JSON: {message}", example=EXAMPLE)


_STEPS: Final = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_NO_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in _STEPS)
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
