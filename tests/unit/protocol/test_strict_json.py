import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsrv.errors import InvalidJsonError
from agentsrv.protocol.strict_json import MAX_DEPTH, parse_object
from tests.unit.models.samples import OBJECTS

MIB = 1 << 20


def nested(depth, opening="[", inner="1", closing="]"):
    """An object that holds arrays, ``depth`` deep in all."""
    return '{"a":' + opening * (depth - 1) + inner + closing * (depth - 1) + "}"


REFUSED = {
    "empty": ("", "Expecting value at line 1, column 1"),
    "blank": (" \n", "Expecting value"),
    "byte order mark": ("\ufeff{}", "found a byte order mark; expected none"),
    "NaN": ('{"a": NaN}', "found NaN, which JSON does not have"),
    "Infinity": ('{"a": Infinity}', "found Infinity"),
    "-Infinity": ('{"a": [-Infinity]}', "found -Infinity"),
    "1e400": ('{"a": 1e400}', "found the number 1e400"),
    "-1e400": ('{"a": -1e400}', "found the number -1e400"),
    "1e309 by digits": ('{"a": ' + "9" * 310 + ".0}", "found the number 999"),
    "first half of a pair": (r'{"a": "\ud800"}', "half of a surrogate pair"),
    "second half of a pair": (r'{"a": "x\udc00y"}', "half of a surrogate pair"),
    "halves in the wrong order": (r'{"a": "\udc00\ud800"}', "half of a surrogate pair"),
    "half of a pair in a key": (r'{"\ud800": 1}', "half of a surrogate pair"),
    "half of a pair deep inside": (r'{"a": [{"b": ["\uD83D"]}]}', "half of a surrogate pair"),
    "trailing text": ('{"a": 1} x', "Extra data at line 1, column 10"),
    "two objects": ("{}{}", "Extra data"),
    "trailing comma": ('{"a": 1,}', "not valid JSON"),
    "no end": ('{"a": 1', "not valid JSON"),
    "single quotes": ("{'a': 1}", "not valid JSON"),
    "bare key": ("{a: 1}", "not valid JSON"),
    "comment": ('{"a": 1 /* one */}', "not valid JSON"),
    "leading zero": ('{"a": 01}', "not valid JSON"),
    "plus sign": ('{"a": +1}', "not valid JSON"),
    "hexadecimal": ('{"a": 0x10}', "not valid JSON"),
    "half a real": ('{"a": 1.}', "not valid JSON"),
    "True": ('{"a": True}', "not valid JSON"),
    "control character": ('{"a": "\x01"}', "Invalid control character"),
    "line end in a string": ('{"a": "x\ny"}', "Invalid control character"),
    "bad escape": (r'{"a": "\x41"}', "not valid JSON"),
    "short escape": (r'{"a": "\u12"}', "not valid JSON"),
    "no-break space": ("{\u00a0}", "not valid JSON"),
    "2**63": ('{"a": 9223372036854775808}', "found the integer 9223372036854775808"),
    "-2**63-1": ('{"a": -9223372036854775809}', "found the integer -9223372036854775809"),
    "5,000 digits": ('{"a": ' + "9" * 5000 + "}", "found the integer 999999999999999999999999;"),
    "key twice": ('{"a": 1, "a": 1}', "the key 'a' occurs twice"),
    "key twice by escape": (r'{"a": 1, "\u0061": 2}', "the key 'a' occurs twice"),
    "key twice inside": ('{"a": [{"b": 1, "c": 2, "c": 3}]}', "the key 'c' occurs twice"),
    "array": ("[]", "found an array; expected one object"),
    "array of an object": ('[{"command": "ping"}]', "found an array"),
    "string": ('"ping"', "found a string"),
    "integer": ("1", "found a number"),
    "real": ("1.5", "found a number"),
    "true": ("true", "found true or false"),
    "null": ("null", "found null"),
    "33 deep": (nested(33), "nested more than 32 deep"),
    "33 deep by objects": (nested(33, '{"a":', "1", "}"), "nested more than 32 deep"),
    "33 deep in the second member": ('{"s": "[[", "a":' + nested(32) + "}", "more than 32 deep"),
    "deep behind a quoted escape": ('{"s": "\\\\", "a":' + nested(32) + "}", "more than 32 deep"),
    "an array bomb": ("[" * MIB, "nested more than 32 deep"),
    "an object bomb": ('{"a":' * (MIB // 5), "nested more than 32 deep"),
    "a bomb behind a bracket": ('{"a":' + "[" * MIB + "]" * MIB + "}", "nested more than 32 deep"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_what_programs_read_differently_is_refused(text, message):
    """The refusal says what was found, and shows a correct command."""
    with pytest.raises(InvalidJsonError) as refusal:
        parse_object(text)
    assert message in refusal.value.message
    assert len(refusal.value.message) < 200
    assert refusal.value.example == {
        "command": "create",
        "task_description": "How does async I/O work?",
    }


ACCEPTED = {
    "empty object": ("{}", {}),
    "white space": (' \t\r\n{ "a" :\n1 }\r\n', {"a": 1}),
    "pair": (r'{"a": "\ud83d\ude00"}', {"a": "😀"}),
    "pair as it is": ('{"a": "😀"}', {"a": "😀"}),
    "backslash before u": (r'{"a": "\\ud800"}', {"a": "\\ud800"}),
    "NUL": (r'{"a": "\u0000"}', {"a": "\0"}),
    "2**63-1": ('{"a": 9223372036854775807}', {"a": 2**63 - 1}),
    "-2**63": ('{"a": -9223372036854775808}', {"a": -(2**63)}),
    "-0": ('{"a": -0}', {"a": 0}),
    "1e308": ('{"a": 1e308}', {"a": 1e308}),
    "1e-400": ('{"a": 1e-400}', {"a": 0.0}),
    "a real beyond 64 bits": ('{"a": 1e30}', {"a": 1e30}),
    "same key in other objects": ('{"a": {"a": 1}, "b": {"a": 1}}', {"a": {"a": 1}, "b": {"a": 1}}),
    "empty key": ('{"": 1}', {"": 1}),
    "true, false, null": ('{"a": [true, false, null]}', {"a": [True, False, None]}),
    "NaN as text": ('{"a": "NaN"}', {"a": "NaN"}),
}


@pytest.mark.parametrize(("text", "value"), ACCEPTED.values(), ids=ACCEPTED)
def test_what_every_program_reads_alike_is_read(text, value):
    """Correct JSON within the limits is read as it is, with its types."""
    found = parse_object(text)
    assert found == value
    assert repr(found) == repr(value)


def test_32_deep_is_deep_enough():
    """The limit itself is allowed, whatever mix of objects and arrays reaches it."""
    assert MAX_DEPTH == 32
    beside = '{"s": [[]], "t": "[[[", "a":' + nested(31) + "}"
    for text in (nested(32), nested(32, '{"a":', "1", "}"), beside):
        assert parse_object(text) == json.loads(text)


def test_many_shallow_brackets_are_not_deep():
    """Depth is counted, not brackets."""
    text = '{"a":[' + ",".join(["[]", "{}"] * 500) + "]}"
    assert parse_object(text) == json.loads(text)


@pytest.mark.parametrize("filling", ["[" * 100, "{" * 100, '\\"[' * 100, "\\\\" + "]" * 100])
def test_brackets_inside_strings_are_not_counted(filling):
    """Text may hold any number of brackets, and quotes that are escaped do not end it."""
    text = '{"a": "' + filling + '", "' + filling + '": [[1]]}'
    assert parse_object(text) == json.loads(text)


def test_a_frame_of_one_mebibyte_is_read():
    """The largest frame is only a frame."""
    for body in ("x" * MIB, "[]" * (MIB // 2), "é" * MIB):
        assert parse_object('{"a": "' + body + '"}') == {"a": body}
    many = {"a": list(range(9_000)), "b": [[]] * 9_000}
    assert parse_object(json.dumps(many)) == many


@given(OBJECTS, st.booleans(), st.sampled_from([None, 1, "\t"]))
def test_any_object_comes_back(value, escaped, indent):
    """Whatever object json.dumps writes within the limits is read as it was."""
    text = json.dumps(value, ensure_ascii=escaped, indent=indent)
    found = parse_object(text)
    assert found == value
    assert json.dumps(found, sort_keys=True) == json.dumps(value, sort_keys=True)


FRAGMENTS = st.sampled_from(
    [
        *'{}[]":,\\ \n',
        '"a"',
        '{"a":',
        "1",
        "-",
        "1e999",
        "NaN",
        "null",
        r"\ud800",
        "\ufeff",
        "9" * 30,
    ]
)


@given(st.text() | st.lists(FRAGMENTS, max_size=40).map("".join))
def test_any_text_is_an_object_or_invalid(text):
    """Nothing but a dict comes out and nothing but InvalidJsonError is raised."""
    try:
        value = parse_object(text)
    except InvalidJsonError:
        return
    assert isinstance(value, dict)
    assert json.loads(text) == value
