"""Texts that are no command, or one that cannot be: the code and the words of the answer."""

from __future__ import annotations

import json
from typing import Any, Final

from agentsrv.models.commands import COMMANDS, EXAMPLES
from agentsrv.protocol.session import OPEN_COMMANDS
from tests.e2e.acceptance.handshakes import Rows
from tests.e2e.acceptance.probe import text
from tests.support.issuer import bad
from tests.support.principals import ADA_KEY
from tests.support.targets import GHOST, Target

GUARDED: Final = [name for name in COMMANDS if name not in OPEN_COMMANDS]
StepOutputs = dict[str, tuple[str, str, str]]
NOT_JSON: Final = "not valid JSON: "
ONE_OBJECT: Final = "expected one object"
DEEP: Final = "nested more than 32 deep"
BITS: Final = "expected at most 64 bits"
DOUBLE: Final = "expected one that a double holds"
PAIR: Final = "found half of a surrogate pair; expected whole characters"


def ping(value: str) -> str:
    """A command whose id is this JSON."""
    return f'{{"command": "ping", "id": {value}}}'


def create(**fields: Any) -> str:
    """A task, but for ``fields``."""
    return json.dumps({"command": "create", "task_description": "x"} | fields)


def plan(*steps: dict[str, Any]) -> str:
    """A task with a plan of these steps."""
    return create(plan={"steps": [{"agent": "echo"} | step for step in steps]})


JSON: Final[StepOutputs] = {
    "an empty frame": ("", "invalid_json", "found an empty frame; expected a command"),
    "white space": (" \t\r\n", "invalid_json", "found an empty frame; expected a command"),
    "a byte order mark": ("\ufeff" + ping("1"), "invalid_json", "found a byte order mark; expected none"),
    "a null": ("\0", "unknown_command", "unknown command '\\\\x00'"),
    "half an object": ('{"command": "ping"', "invalid_json", "line 1, column 19"),
    "a string without its end": ('{"command": "ping', "invalid_json", "Unterminated string…column 13"),
    "text behind it": (ping("1") + " x", "invalid_json", "Extra data at line 1, column 30"),
    "two objects": (ping("1") + ping("2"), "invalid_json", "Extra data"),
    "a comma too many": ('{"command": "ping",}', "invalid_json", "line 1, column"),
    "a comment": ('{"command": "ping" /* now */}', "invalid_json", "line 1, column 20"),
    "single quotes": ("{'command': 'ping'}", "invalid_json", "double quotes…line 1, column 2"),
    "a name without quotes": ('{command: "ping"}', "invalid_json", "double quotes…column 2"),
    "a control character": ('{"command": "p\ning"}', "invalid_json", "Invalid control character…column 15"),
    "an escape that is none": ('{"command": "\\x70ing"}', "invalid_json", "Invalid \\\\escape…column 14"),
    "an escape cut short": ('{"command": "\\u00"}', "invalid_json", "Invalid \\\\uXXXX escape"),
    "an array": ("[]", "invalid_json", f"found an array; {ONE_OBJECT}"),
    "commands in an array": (f"[{ping('1')}]", "invalid_json", f"found an array; {ONE_OBJECT}"),
    "a string": ('"ping"', "invalid_json", f"found a string; {ONE_OBJECT}"),
    "NaN": (ping("NaN"), "invalid_json", "found NaN, which JSON does not have"),
    "Infinity": (ping("Infinity"), "invalid_json", "found Infinity, which JSON does not have"),
    "-Infinity": (ping("-Infinity"), "invalid_json", "found -Infinity, which JSON does not have"),
    "1e400": (ping("1e400"), "invalid_json", f"found the number 1e400; {DOUBLE}"),
    "-1e400": (ping("-1e400"), "invalid_json", f"found the number -1e400; {DOUBLE}"),
    "a plus": (ping("+1"), "invalid_json", "Expecting value…column 27"),
    "a zero before": (ping("01"), "invalid_json", "column 28"),
    "a hexadecimal number": (ping("0x1"), "invalid_json", "column 28"),
    "a dot at the end": (ping("1."), "invalid_json", "column 28"),
    "True": (ping("True"), "invalid_json", "Expecting value…column 27"),
    "an integer over 64 bits": (ping(str(1 << 63)), "invalid_json", f"the integer 9223372036854775808; {BITS}"),
    "an integer under 64 bits": (ping(str(-(1 << 63) - 1)), "invalid_json", BITS),
    "an integer of 5000 digits": (ping("9" * 5000), "invalid_json", f"the integer {'9' * 24}; {BITS}"),
    "an integer of 900,000 digits": (ping("9" * 900_000), "invalid_json", BITS),
    "half a surrogate pair": (ping('"\\ud800"'), "invalid_json", PAIR),
    "the other half": (ping('"\\udc00"'), "invalid_json", PAIR),
    "halves in the wrong order": (ping('"\\udc00\\ud800"'), "invalid_json", PAIR),
    "half a pair as a key": ('{"command": "ping", "\\ud800": 1}', "invalid_json", PAIR),
    "a key twice": ('{"command": "ping", "command": "ping"}', "invalid_json", "the key 'command' occurs twice"),
    "a key twice, deep inside": (
        create(params="?").replace('"?"', '{"a": [{"b": 1, "b": 2}]}'), "invalid_json", "the key 'b' occurs twice",
    ),
    "a key twice, by an escape": ('{"command": "ping", "i\\u0064": 1, "id": 1}', "invalid_json", "'id' occurs twice"),
    "33 levels of arrays": (ping("[" * 32 + "]" * 32), "invalid_json", DEEP),
    "33 levels of objects": ('{"a":' * 32 + "{}" + "}" * 32, "invalid_json", DEEP),
    "a megabyte of brackets": ("[" * 1_000_000, "invalid_json", DEEP),
    "a megabyte of braces": ('{"":' * 250_000, "invalid_json", DEEP),
}  # fmt: skip

NAMES: Final[StepOutputs] = {
    "no command": ('{"id": 3}', "unknown_command", "found no command; expected one of create, execute"),
    "command null": ('{"command": null}', "unknown_command", "found no command"),
    "command a number": ('{"command": 1}', "unknown_command", "found no command"),
    "command an array": ('{"command": ["ping"]}', "unknown_command", "found no command"),
    "an unknown command": ('{"command": "crate"}', "unknown_command", "found 'crate'; expected one of create"),
    "a command of another case": ('{"command": "PING"}', "unknown_command", "found 'PING'; expected one of"),
    "a command with a space": ('{"command": "ping "}', "unknown_command", "found 'ping '"),
    "a command with a null": ('{"command": "ping\\u0000"}', "unknown_command", "found 'ping\\\\x00'"),
    "a command of an attribute": ('{"command": "__class__"}', "unknown_command", "found '__class__'"),
    "a long command": (json.dumps({"command": "x" * 900_000}), "unknown_command", f"found '{'x' * 40}';"),
}  # fmt: skip

LINES: Final[StepOutputs] = {
    "an unknown word": ("lisp", "unknown_command", "unknown command 'lisp'; expected one of run, create"),
    "HTTP": ("GET / HTTP/1.1", "unknown_command", "unknown command 'GET'"),
    "a number": ("1", "unknown_command", "unknown command '1'"),
    "null": ("null", "unknown_command", "unknown command 'null'"),
    "a long word": ("x" * 900_000, "unknown_command", f"unknown command '{'x' * 40}'"),
    "run without a text": ("run", "invalid_command", "TEXT is missing; expected: run TEXT"),
    "create without a text": ("create  ", "invalid_command", "TEXT is missing; expected: create TEXT"),
    "run with a text that is too long": ("run " + "x" * 32_769, "invalid_command", "task_description: …at most 32768…found 32769"),
    "status of no task": ("status", "invalid_command", "status needs a task id"),
    "status of two": ("status a b", "invalid_command", "found 'b' after the last argument; expected: status [TASK_ID]"),
    "status of an id that is none": ("status a/b", "invalid_command", "task_id: …pattern…found 'a/b'"),
    "subscribe from a word": ("subscribe a b", "invalid_command", "expected: subscribe [TASK_ID [AFTER_SEQ]]"),
    "subscribe from a negative number": ("subscribe a -1", "invalid_command", "expected: subscribe [TASK_ID"),
    "subscribe from a large number": ("subscribe a " + "9" * 30, "invalid_command", "expected: subscribe"),
    "subscribe from a digit of elsewhere": ("subscribe a ٣", "invalid_command", "expected: subscribe"),
    "respond without an answer": ("respond", "invalid_command", "ANSWER is missing; expected: respond"),
    "respond to no question": ("respond yes", "invalid_command", "respond needs a task id"),
    "send without a text": ("send a", "invalid_command", "expected: send TASK_ID TEXT"),
    "list of no status": ("list everything", "invalid_command", "status: …'pending'…found 'everything'"),
    "auth without a token": ("auth", "invalid_command", "TOKEN is missing; expected: auth TOKEN"),
    "auth with a token that is too long": ("auth " + "x" * 8193, "invalid_command", "token: …at most 8192"),
    "ping and more": ("ping pong", "invalid_command", "found 'pong' after the last argument; expected: ping"),
    "help and a null": ("help \0", "invalid_command", "found '\\\\x00' after the last argument; expected: help"),
}  # fmt: skip

FIELDS: Final[StepOutputs] = {
    "a misspelt field": (create(excute=True), "invalid_command", "excute: unknown field; did you mean execute? create has: id"),
    "a field with a long name": (create(**{"x" * 900_000: 1}), "invalid_command", f"{'x' * 64}: unknown field"),
    "a field without a name": (create(**{"": 1}), "invalid_command", ": unknown field; create has"),
    "a field with a null in its name": (create(**{"a\0b": 1}), "invalid_command", "unknown field"),
    "a thousand unknown fields": (
        create(**{f"f{number}": 1 for number in range(1000)}), "invalid_command", "f0: unknown field",
    ),
    "a wrong id": (ping("true"), "invalid_command", "id: …found true"),
    "a null in an id": (json.dumps({"command": "status", "task_id": "a\0"}), "invalid_command", "task_id: …pattern…found 'a\\\\x00'"),
    "a line break behind an id": (json.dumps({"command": "status", "task_id": f"{GHOST}\n"}), "invalid_command", "task_id: …pattern"),
    "a bell in an id": (json.dumps({"command": "status", "task_id": "a\ab"}), "invalid_command", "task_id: …found 'a\\\\x07b'"),
    "a path as an id": (json.dumps({"command": "status", "task_id": "../../etc/passwd"}), "invalid_command", "pattern"),
    "an id with a quote": (json.dumps({"command": "status", "task_id": "' OR 1=1 --"}), "invalid_command", "pattern"),
    "an agent with a path": (create(agent="../echo"), "invalid_command", "agent: …pattern"),
    "an agent of nobody": (create(agent="nobody"), "invalid_command", "nobody…the agents are asker, echo"),
    "no agent, and no planner": (create(), "invalid_command", "planner"),
    "an agent and a plan": (create(agent="echo", plan={"steps": [{"step_id": "a", "agent": "echo"}]}), "invalid_command", "agent"),
    "a plan without steps": (create(plan={}), "invalid_command", "plan.steps: Field required"),
    "a plan of no steps": (create(plan={"steps": []}), "invalid_command", "plan.steps: …at least 1"),
    "a plan of 101 steps": (plan(*({"step_id": f"s{n}"} for n in range(101))), "invalid_command", "plan.steps: …at most 100…not 101"),
    "a plan with a step twice": (plan({"step_id": "a"}, {"step_id": "a"}), "invalid_command", "plan: step_id 'a' occurs twice"),
    "a plan with a step that is not there": (plan({"step_id": "a", "depends_on": ["b"]}), "invalid_command", "step 'a' depends on 'b', which is not in the plan"),
    "a plan with a cycle": (
        plan({"step_id": "a", "depends_on": ["b"]}, {"step_id": "b", "depends_on": ["a"]}), "invalid_command", "steps a, b depend on each other in a cycle",
    ),
    "a step that depends on itself": (plan({"step_id": "a", "depends_on": ["a"]}), "invalid_command", "cycle"),
    "a step of no agent": (plan({"step_id": "a", "agent": "nobody"}), "invalid_command", "nobody…the agents are"),
    "params of the wrong type": (create(agent="echo", params={"times": "x"}), "invalid_command", "params.times"),
    "a deadline in the past": (create(agent="echo", deadline=0), "invalid_command", "deadline: …greater than 0…found 0"),
    "too much metadata": (create(agent="echo", metadata={str(n): "" for n in range(65)}), "invalid_command", "metadata: …at most 64"),
    "metadata with a long key": (create(agent="echo", metadata={"x" * 129: ""}), "invalid_command", "metadata.…at most 128"),
    "metadata that is no text": (create(agent="echo", metadata={"a": 1}), "invalid_command", "metadata.a: …valid string; found 1"),
    "cancel of nothing": ('{"command": "cancel"}', "invalid_command", "cancel: expected either task_id or idempotency_key"),
    "cancel of two": (
        json.dumps({"command": "cancel", "task_id": GHOST, "idempotency_key": "k"}), "invalid_command", "expected either task_id or idempotency_key",
    ),
    "cancel by a key of nothing": (json.dumps({"command": "cancel", "idempotency_key": "k"}), "not_found", "'k'"),
    "subscribe to nothing": ('{"command": "subscribe"}', "invalid_command", "expected either task_id or all: true"),
    "subscribe to all and one": (
        json.dumps({"command": "subscribe", "task_id": GHOST, "all": True}), "invalid_command", "expected either task_id or all: true",
    ),
    "unsubscribe from nothing": ('{"command": "unsubscribe"}', "invalid_command", "expected either task_id or all: true"),
    "true for 1": ('{"command": "list", "limit": true}', "invalid_command", "limit: …valid integer; found true"),
    "1 for true": (create(agent="echo", execute=1), "invalid_command", "execute: …valid boolean; found 1"),
    "1.0 for 1": ('{"command": "list", "limit": 1.5}', "invalid_command", "limit: …valid integer; found 1.5"),
    "a text for 1": ('{"command": "list", "limit": "1"}', "invalid_command", "limit: …valid integer; found '1'"),
    "a page too large": ('{"command": "list", "limit": 501}', "invalid_command", "limit: …equal to 500; found 501"),
    "a cursor of nobody": ('{"command": "list", "cursor": "x"}', "invalid_command", "cursor…next_cursor"),
    "a status of nobody": ('{"command": "list", "status": "gone"}', "invalid_command", "status: …'pending'…found 'gone'"),
    "an answer beside decline": (
        json.dumps({"command": "respond", "input_id": "a/b/1", "action": "decline", "value": 1}), "invalid_command", "found a value in addition to decline",
    ),
    "an answer to no question": ('{"command": "respond", "input_id": "x"}', "not_found", "no question 'x'"),
    "a token of nobody": ('{"command": "auth", "token": "nonsense"}', "unauthenticated", "the token is not accepted"),
}  # fmt: skip


def about(whose: str, target: Target) -> StepOutputs:
    """Each command about a task that is another's, or nobody's."""
    none = f"no task {target.task_id!r}"
    one = {"task_id": target.task_id}
    return {
        f"{whose} task: {name}": (json.dumps(fields), "not_found", told)
        for name, fields, told in (
            ("status", {"command": "status"} | one, none),
            ("execute", {"command": "execute"} | one, none),
            ("cancel", {"command": "cancel"} | one, none),
            ("cancel by key", {"command": "cancel", "idempotency_key": target.key}, repr(target.key)),
            ("subscribe", {"command": "subscribe"} | one, none),
            ("send", {"command": "send", "message": 1} | one, none),
            ("respond", {"command": "respond", "input_id": target.input_id, "value": True}, "no question"),
            ("resume", {"command": "create", "task_description": "x", "resume_from": target.task_id}, none),
        )
    }  # fmt: skip


def rows(target: Target) -> Rows:
    """All that who is known may send, with another's task, as frames."""
    ghost = Target(GHOST, f"{GHOST}/step_001/1", "key-of-none", None)
    tasks = about("another's", target) | about("nobody's", ghost)
    return framed({**JSON, **NAMES, **LINES, **FIELDS, **tasks})


def strangers() -> Rows:
    """What comes from those who have not said who they are."""
    rows = framed(
        {
            f"{name}, of a stranger": (
                json.dumps(EXAMPLES[name]), "unauthenticated", "is not authenticated",
            )
            for name in GUARDED
        }
    )  # fmt: skip
    for name, token in bad().items():
        command = text(json.dumps({"command": "auth", "token": token}))
        told = (
            "the token has expired" if name.startswith("expired") else "the token is not accepted"
        )
        rows[f"auth by JWT: {name}"] = (
            (command, 4401, told) if token else (command, "invalid_command", "token: …at least 1")
        )
    rows["auth by a wrong key"] = (text(f"auth {ADA_KEY[:-1]}"), 4401, "the token is not accepted")
    rows["a bad frame of a stranger"] = (text("{"), "invalid_json", "line 1, column 2")
    rows["a binary frame of a stranger"] = (bytes((0x82, 0x80, 0, 0, 0, 0)), 1003, "text frames")
    rows["twenty bad frames of a stranger"] = (text("nonsense") * 20, 4400, "too many bad frames")
    return rows


def framed(texts: StepOutputs) -> Rows:
    """Texts as frames."""
    return {name: (text(content), code, words) for name, (content, code, words) in texts.items()}
