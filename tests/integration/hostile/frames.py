"""Hostile frames and floods, as data: an entry is a line with what must come of it.

``test_frames.py`` sends each of them to a real server; ``floods.py`` measures the floods.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Final, Literal, NamedTuple

from tests.support.wire import PING, PONG, TEXT, framed

MIB: Final = 1 << 20
CONTINUATION: Final = 0x0
UNFINISHED: Final = 0x7F  # what is left of a header's first byte when FIN is cleared
Sender = Literal["stranger", "client"]
"""Who sends it: a connection that is not authenticated, or one that is."""
STRANGER: Final = "stranger"
CLIENT: Final = "client"


def many(piece: str, count: int) -> str:
    """The same piece, with commas between."""
    return ",".join([piece] * count)


def keys(count: int, value: str = "1") -> str:
    """Members of an object, each with another key."""
    return ",".join(f'"k{number}":{value}' for number in range(count))


def create(members: str) -> str:
    """A ``create`` with these members in addition."""
    return '{"command":"create","id":7,"task_description":"x",' + members + "}"


def steps(text: str) -> str:
    """A ``create`` with a plan of these steps."""
    return create('"plan":{"steps":[' + text + "]}")


def step(members: str) -> str:
    """A step with these members in addition."""
    return '{"step_id":"a","agent":"echo",' + members + "}"


def send(value: str) -> str:
    """A ``send`` of this value to a task that does not exist."""
    return '{"command":"send","id":7,"task_id":"none","message":' + value + "}"


def dense_plan() -> str:
    """A valid plan: 100 steps, each of which depends on all before it."""
    plan = [
        {"step_id": f"s{number}", "agent": "echo", "depends_on": [f"s{n}" for n in range(number)]}
        for number in range(100)
    ]
    return create('"plan":' + json.dumps({"steps": plan}))


def split(text: str, fragments: int, opcode: int = TEXT) -> bytes:
    """A message in so many empty fragments, with the text in the last one."""
    first = bytearray(framed(opcode, b""))
    first[0] &= UNFINISHED
    empty = bytearray(framed(CONTINUATION, b""))
    empty[0] &= UNFINISHED
    return bytes(first) + bytes(empty) * (fragments - 2) + framed(CONTINUATION, text.encode())


class Hostile(NamedTuple):
    """A message, and what the server answers: an error's code, ``reply``, or a close code."""

    name: str
    sender: Sender
    make: Callable[[], str]
    answer: str | int
    is_command: bool = False
    """Whether the protocol allows it, and only the agent's parameters do not."""


FRAMES: Final = (
    # Values: the bound is checked before anything is parsed.
    Hostile("empty steps", CLIENT, lambda: steps(many("{}", 340_000)), "too_large"),
    Hostile("numbers as steps", CLIENT, lambda: steps(many("1", 500_000)), "too_large"),
    Hostile("strings as steps", CLIENT, lambda: steps(many('""', 300_000)), "too_large"),
    Hostile("dependencies", CLIENT, lambda: steps(step(f'"depends_on":[{many("1", 490_000)}]')), "too_large"),
    Hostile("metadata", CLIENT, lambda: create(f'"metadata":{{{keys(80_000)}}}'), "too_large"),
    Hostile("params", CLIENT, lambda: create(f'"params":{{"a":[{many("[]", 300_000)}]}}'), "too_large"),
    Hostile("unknown keys in a ping", CLIENT, lambda: '{"command":"ping","id":7,' + keys(80_000) + "}", "too_large"),
    Hostile("unknown keys in an auth", CLIENT, lambda: '{"command":"auth","id":7,"token":"x",' + keys(80_000) + "}", "too_large"),
    Hostile("an id of many values", CLIENT, lambda: '{"command":"ping","id":[' + many("1", 300_000) + "]}", "too_large"),
    Hostile("a command of many values", CLIENT, lambda: '{"command":[' + many("1", 300_000) + "]}", "too_large"),
    Hostile("values after a long text", CLIENT, lambda: send('["' + "x" * 500_000 + '",' + many("1", 200_000) + "]"), "too_large"),
    Hostile("values among escaped quotes", CLIENT, lambda: send('["' + '\\"' * 100_000 + '",' + many("1", 200_000) + "]"), "too_large"),
    # Errors: just below the bound, each value or key would be one.
    Hostile("19,000 empty steps", CLIENT, lambda: steps(many("{}", 19_000)), "invalid_command"),
    Hostile("19,000 numbers as steps", CLIENT, lambda: steps(many("1", 19_000)), "invalid_command"),
    Hostile("19,000 numbers as dependencies", CLIENT, lambda: steps(step(f'"depends_on":[{many("1", 19_000)}]')), "invalid_command"),
    Hostile("100 steps with 180 unknown keys", CLIENT, lambda: steps(many("{" + keys(180) + "}", 100)), "invalid_command"),
    Hostile("a step with 19,000 unknown keys", CLIENT, lambda: steps(step(keys(19_000))), "invalid_command"),
    Hostile("a plan with 19,000 unknown keys", CLIENT, lambda: create(f'"plan":{{"steps":[],{keys(19_000)}}}'), "invalid_command"),
    Hostile("19,000 numbers in the metadata", CLIENT, lambda: create(f'"metadata":{{{keys(19_000)}}}'), "invalid_command"),
    Hostile("19,000 strings in the metadata", CLIENT, lambda: create(f'"metadata":{{{keys(19_000, chr(34) * 2)}}}'), "invalid_command"),
    Hostile("19,000 unknown keys in a ping", CLIENT, lambda: '{"command":"ping","id":7,' + keys(19_000) + "}", "invalid_command"),
    Hostile("an id of 19,000 members", CLIENT, lambda: '{"command":"ping","id":{' + keys(19_000) + "}}", "invalid_command"),
    Hostile("a name of 19,000 members", CLIENT, lambda: '{"command":{' + keys(19_000) + "}}", "unknown_command"),
    Hostile("a respond of 19,000 values", CLIENT, lambda: '{"command":"respond","id":7,"input_id":"a/b/1","value":[' + many("1", 19_000) + "]}", "not_found"),
    Hostile("19,000 unknown params", CLIENT, lambda: create(f'"agent":"echo","params":{{{keys(19_000)}}}'), "invalid_command", is_command=True),
    Hostile("an unknown param with a long name", CLIENT, lambda: create('"agent":"echo","params":{"' + "k" * 900_000 + '":1}'), "invalid_command", is_command=True),
    Hostile("a param of 19,000 wrong elements", CLIENT, lambda: create(f'"agent":"lister","params":{{"numbers":[{many("{}", 19_000)}]}}'), "invalid_command", is_command=True),
    Hostile("a param of 19,000 wrong members", CLIENT, lambda: create(f'"agent":"lister","params":{{"named":{{{keys(19_000, chr(34) * 2)}}}}}'), "invalid_command", is_command=True),
    Hostile("a param of 19,000 unknown members", CLIENT, lambda: create(f'"agent":"lister","params":{{"closed":{{{keys(19_000)}}}}}'), "invalid_command", is_command=True),
    # Depth, and brackets in strings, which are none.
    Hostile("arrays in arrays", CLIENT, lambda: "[" * MIB, "invalid_json"),
    Hostile("objects in objects", CLIENT, lambda: '{"a":' * (MIB // 5), "invalid_json"),
    Hostile("33 deep after a long text", CLIENT, lambda: send('["' + "x" * 900_000 + '",' + "[" * 32 + "]" * 33), "invalid_json"),
    Hostile("500,000 brackets in a string", CLIENT, lambda: send('"' + "[]" * 500_000 + '"'), "not_found"),
    Hostile("900,000 commas in a string", CLIENT, lambda: send('"' + "," * 900_000 + '"'), "not_found"),
    # Strings, keys, numbers and white space.
    Hostile("a long text", CLIENT, lambda: create(f'"agent":"{"x" * 900_000}"'), "invalid_command"),
    Hostile("a long task id", CLIENT, lambda: '{"command":"status","id":7,"task_id":"' + "a" * 900_000 + '"}', "invalid_command"),
    Hostile("a long traceparent", CLIENT, lambda: create(f'"traceparent":"{"0" * 900_000}"'), "invalid_command"),
    Hostile("a long key", CLIENT, lambda: '{"command":"ping","' + "k" * 900_000 + '":1}', "invalid_command"),
    Hostile("a long key twice", CLIENT, lambda: '{"command":"ping","' + "k" * 450_000 + '":1,"' + "k" * 450_000 + '":1}', "invalid_json"),
    Hostile("19,000 equal keys", CLIENT, lambda: '{"command":"ping",' + many('"a":1', 19_000) + "}", "invalid_json"),
    Hostile("a long name", CLIENT, lambda: '{"command":"' + "c" * 900_000 + '"}', "unknown_command"),
    Hostile("a long id", CLIENT, lambda: '{"command":"ping","id":"' + "7" * 900_000 + '"}', "invalid_command"),
    Hostile("a long integer", CLIENT, lambda: send("1" * 900_000), "invalid_json"),
    Hostile("a long fraction", CLIENT, lambda: send("0." + "1" * 900_000), "not_found"),
    Hostile("a long exponent", CLIENT, lambda: send("1e" + "9" * 900_000), "invalid_json"),
    Hostile("escapes", CLIENT, lambda: send('"' + "\\u00e9" * 150_000 + '"'), "not_found"),
    Hostile("backslashes", CLIENT, lambda: send('"' + "\\\\" * 450_000 + '"'), "not_found"),
    Hostile("white space", CLIENT, lambda: "{" + " " * 900_000 + '"command":"ping"}', "reply"),
    Hostile("only white space", CLIENT, lambda: "\n" * 900_000, "invalid_json"),
    Hostile("quotes", CLIENT, lambda: '"' * 900_000, "invalid_json"),
    # Command lines.
    Hostile("a line of words", CLIENT, lambda: "a " * 450_000, "unknown_command"),
    Hostile("a status of words", CLIENT, lambda: "status " + "a " * 450_000, "invalid_command"),
    Hostile("a subscribe of words", CLIENT, lambda: "subscribe " + "a " * 450_000, "invalid_command"),
    Hostile("a long word", CLIENT, lambda: "a" * 900_000, "unknown_command"),
    # Valid, and charged by its size.
    Hostile("4,950 dependencies", CLIENT, dense_plan, "reply"),
    Hostile("19,000 values as a message", CLIENT, lambda: send("[" + many("1", 19_000) + "]"), "not_found"),
    Hostile("more than max_frame", CLIENT, lambda: "x" * (MIB + 1), 1009),
    # Before authentication.
    Hostile("16 KiB and a byte", STRANGER, lambda: "x" * 16_385, 1009),
    Hostile("a mebibyte", STRANGER, lambda: steps(many("{}", 340_000)), 1009),
    Hostile("a create", STRANGER, lambda: create('"agent":"echo"'), "unauthenticated"),
    Hostile("an invalid create", STRANGER, lambda: create('"agent":1'), "unauthenticated"),
    Hostile("a create of 5,000 steps", STRANGER, lambda: steps(many("{}", 5_000)), "unauthenticated"),
    Hostile("a create of invalid JSON", STRANGER, lambda: steps(many("{", 5_000)), "unauthenticated"),
    Hostile("a create named at its end", STRANGER, lambda: '{"a":[' + many("1", 5_000) + '],"command":"create"}', "unauthenticated"),
    Hostile("a ping of 1,000 keys", STRANGER, lambda: '{"command":"ping","id":7,' + keys(1_000) + "}", "too_large"),
    Hostile("an auth of 1,000 keys", STRANGER, lambda: '{"command":"auth","id":7,"token":"x",' + keys(1_000) + "}", "too_large"),
    Hostile("deep nothing", STRANGER, lambda: "[" * 16_000, "unauthenticated"),
    Hostile("a line of words by a stranger", STRANGER, lambda: "create " + "a " * 8_000, "unauthenticated"),
    Hostile("a token of 16,000 characters", STRANGER, lambda: '{"command":"auth","id":7,"token":"' + "t" * 16_000 + '"}', "invalid_command"),
)  # fmt: skip


class Flood(NamedTuple):
    """Bytes that a connection sends again and again, and whether it reads what comes."""

    name: str
    sender: Sender
    make: Callable[[], bytes]
    reads: bool = True


def frames(texts: Iterable[str]) -> bytes:
    """Whole text frames, one after the other."""
    return b"".join(framed(TEXT, text.encode()) for text in texts)


FLOODS: Final = (
    Flood("pongs", STRANGER, lambda: framed(PONG, b"") * 10_000),
    Flood("pings", STRANGER, lambda: framed(PING, b"x" * 125) * 1_000),
    Flood("empty pings", STRANGER, lambda: framed(PING, b"") * 10_000),
    Flood("pings, unread", STRANGER, lambda: framed(PING, b"x" * 125) * 1_000, reads=False),
    Flood("fragments", STRANGER, lambda: split("ping", 4_000)),
    Flood("ping commands", STRANGER, lambda: frames(["ping"] * 1_000)),
    Flood("invalid frames", STRANGER, lambda: frames(["{"] * 19 + ["ping"]) * 50),
    Flood("creates", STRANGER, lambda: frames([steps(many("{}", 5_000))] * 8)),
    Flood("pongs", CLIENT, lambda: framed(PONG, b"") * 10_000),
    Flood("pings", CLIENT, lambda: framed(PING, b"x" * 125) * 1_000),
    Flood("fragments", CLIENT, lambda: split("ping", 4_000)),
    Flood("ping commands", CLIENT, lambda: frames(["ping"] * 1_000)),
    Flood("4,950 dependencies", CLIENT, lambda: frames([dense_plan()] * 10)),
    Flood("19,000 values", CLIENT, lambda: frames([send("[" + many("1", 19_000) + "]")] * 8)),
    Flood("340,000 steps", CLIENT, lambda: frames([steps(many("{}", 340_000))])),
    Flood("19,000 unknown keys", CLIENT, lambda: frames(['{"command":"ping",' + keys(19_000) + "}"] * 4)),
    Flood("help, unread", CLIENT, lambda: frames(["help"] * 1_000), reads=False),
    Flood("list", CLIENT, lambda: frames(['{"command":"list","limit":500}'] * 100)),
)  # fmt: skip
