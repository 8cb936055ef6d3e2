from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsrv.errors import AgentsrvError, InvalidCommandError, UnknownCommandError
from agentsrv.models.commands import ADAPTER, COMMANDS
from agentsrv.models.events import InputRequired
from agentsrv.protocol import command_line
from agentsrv.protocol.typed_answer import read_answer

LATEST = "3f2a9c0d1b7e4a65"


def on_task(command, **fields):
    """A line that names a task by its beginning."""
    return {"command": command, "task_id": "3f2a", **fields}


def on_latest(command, **fields):
    """A line that means the connection's latest task."""
    return {"command": command, "task_id": LATEST, **fields}


def to_latest(value=None, **fields):
    """A line that answers the question of the connection's latest task."""
    given = {} if value is None else {"value": value}
    return {"command": "respond", "input_id": LATEST, **given, **fields}


LINES = {
    "create Analyze the benefits…": {
        "command": "create",
        "task_description": "Analyze the benefits…",
        "execute": False,
    },
    "run Analyze": {"command": "create", "task_description": "Analyze", "execute": True},
    "run   two  spaces  ": {
        "command": "create",
        "task_description": "two  spaces",
        "execute": True,
    },
    "RUN {this}": {"command": "create", "task_description": "{this}", "execute": True},
    "execute": on_latest("execute"),
    "execute 3f2a": on_task("execute"),
    "status": on_latest("status"),
    "Status": on_latest("status"),
    "  status  ": on_latest("status"),
    "status 3f2a": on_task("status"),
    "status 3f2a…": on_task("status"),
    "status 3f2a...": on_task("status"),
    "status …": on_latest("status"),
    "cancel": on_latest("cancel"),
    "cancel 3f2a": on_task("cancel"),
    "cancel 3f2a… no longer  needed": on_task("cancel", reason="no longer  needed"),
    "cancel … no longer needed": on_latest("cancel", reason="no longer needed"),
    "subscribe": on_latest("subscribe"),
    "subscribe 3f2a": on_task("subscribe"),
    "subscribe 3f2a… 12": on_task("subscribe", after_seq=12),
    "subscribe … 12": on_latest("subscribe", after_seq=12),
    "subscribe all": {"command": "subscribe", "all": True},
    "unsubscribe": on_latest("unsubscribe"),
    "unsubscribe 3f2a": on_task("unsubscribe"),
    "unsubscribe all": {"command": "unsubscribe", "all": True},
    "respond yes": to_latest("yes"),
    "respond   no, thank you ": to_latest("no, thank you"),
    'respond {"a": 1}': to_latest('{"a": 1}'),
    "respond a/b yes": to_latest("a/b yes"),
    "respond t/s/1 yes": {"command": "respond", "input_id": "t/s/1", "value": "yes"},
    "respond decline": to_latest(action="decline"),
    "respond t/s/go:1 Decline": {"command": "respond", "input_id": "t/s/go:1", "action": "decline"},
    "send 3f2a be  brief": on_task("send", message="be  brief"),
    "send … be brief": on_latest("send", message="be brief"),
    "list": {"command": "list"},
    "list running": {"command": "list", "status": "running"},
    "agents": {"command": "agents"},
    "auth agentsrv_0_x": {"command": "auth", "token": "agentsrv_0_x"},
    "ping": {"command": "ping"},
    "help": {"command": "help"},
}


@pytest.mark.parametrize(("text", "line"), LINES.items(), ids=LINES)
def test_a_line_means_a_command(text, line):
    """What a person types has the fields of the command that is meant, and they are valid."""
    assert command_line.parse(text, LATEST) == line
    ADAPTER.validate_python(line)


def test_every_command_can_be_typed():
    """There is a line for every command, and its usage and purpose are told."""
    assert {line["command"] for line in LINES.values()} == set(COMMANDS)
    told = {words.split()[0] for words in command_line.usage()}
    assert told == {*COMMANDS, "run"}
    assert all(command_line.usage().values())


@pytest.mark.parametrize(
    "text", ["execute", "status", "cancel", "subscribe", "unsubscribe", "respond yes", "send … x"]
)
def test_without_a_task_one_has_to_be_named(text):
    """A connection that has no task yet is told how to get one."""
    with pytest.raises(
        InvalidCommandError, match=rf"{text.split()[0]} needs a task id: .*run …, or see: list"
    ):
        command_line.parse(text, None)


ANSWERS: list[tuple[str, dict[str, Any], Any]] = [
    ("yes", {"type": "boolean"}, True),
    ("No", {"type": "boolean"}, False),
    ("y", {"type": "boolean"}, True),
    ("true", {"type": "boolean"}, True),
    ("yes", {"type": "string"}, "yes"),
    ("yes", {"enum": ["yes", "no"]}, "yes"),
    ("42", {"type": "integer"}, 42),
    ("42", {"type": "string"}, "42"),
    ('{"a": [1]}', {"type": "object"}, {"a": [1]}),
    ('"quoted"', {}, "quoted"),
    ("NaN", {}, "NaN"),
    ("as you like", {}, "as you like"),
]


@pytest.mark.parametrize(("text", "schema", "value"), ANSWERS, ids=str)
def test_an_answer_means_what_was_asked_for(text, schema, value):
    """Text where a text is asked for; else yes and no, JSON, and the rest as text."""
    asked = InputRequired("t/s/1", "s", 1, "?", schema, schema.get("enum"), None, None)
    assert read_answer(text, asked) == value


BAD = {
    "respond": r"ANSWER is missing; expected: respond \[INPUT_ID\] ANSWER \| decline",
    "respond t/s/1 ": "ANSWER is missing",
    "send": "TASK_ID is missing; expected: send TASK_ID TEXT",
    "send 3f2a": "TEXT is missing; expected: send TASK_ID TEXT",
    "create": "TEXT is missing; expected: create TEXT",
    "run": "TEXT is missing; expected: run TEXT",
    "run  ": "TEXT is missing",
    "auth": "TOKEN is missing; expected: auth TOKEN",
    "execute 3f2a now": r"found 'now' after the last argument; expected: execute \[TASK_ID\]",
    "status a b c": "found 'b c' after the last argument",
    "unsubscribe a b": "found 'b' after the last argument",
    "unsubscribe all b": "found 'b' after the last argument",
    "subscribe 3f2a twelve": r"found 'twelve' as AFTER_SEQ; expected: subscribe \[TASK_ID",
    "subscribe 3f2a -1": "found '-1' as AFTER_SEQ",
    "subscribe 3f2a 1.5": "found '1.5' as AFTER_SEQ",
    "subscribe 3f2a ²": "found '²' as AFTER_SEQ",
    "subscribe 3f2a 12 13": "found '13' after the last argument",
    "subscribe 3f2a 99999999999999999999": "found '99999999999999999999' as AFTER_SEQ",
    "ping pong": "found 'pong' after the last argument; expected: ping",
    "help me": "found 'me' after the last argument; expected: help",
    "agents all": "found 'all' after the last argument; expected: agents",
}


@pytest.mark.parametrize(("text", "message"), BAD.items(), ids=BAD)
def test_a_bad_line_says_what_was_expected(text, message):
    """A word too many, too few or of the wrong kind is told."""
    with pytest.raises(InvalidCommandError, match=message):
        command_line.parse(text, LATEST)


@pytest.mark.parametrize("text", ["rum x", "", " ", "…", "3f2a", "x" * 10_000, "élan vital"])
def test_an_unknown_word_is_told_with_the_known_ones(text):
    """The first word is told, cut to a length that can be read, with the words that there are."""
    with pytest.raises(
        UnknownCommandError, match=r"unknown command .*; expected one of run, "
    ) as refusal:
        command_line.parse(text, LATEST)
    assert refusal.value.example == {"command": "help"}
    assert len(refusal.value.message) < 250


@pytest.mark.parametrize("space", ["\t", "\n", "\r\n"])
def test_any_white_space_ends_the_first_word(space):
    """A line that was pasted with a tab or a line end behind its verb is understood."""
    assert command_line.parse(f"status{space}3f2a", None) == on_task("status")
    assert command_line.parse(f"run{space}Why?", None)["task_description"] == "Why?"


VERBS = st.sampled_from([words.split()[0] for words in command_line.usage()])
WORDS = st.sampled_from(["all", "…", "...", "12", "-1", "3f2a", "running", "\t", "  ", "{", "é"])


@given(
    st.text()
    | st.tuples(VERBS, st.lists(WORDS | st.text(), max_size=4).map(" ".join)).map(" ".join),
    st.none() | st.just(LATEST),
)
def test_any_line_is_a_command_or_refused(text, latest):
    """Whatever is typed gives the fields of a known command, or an error with a sentence."""
    refusal: AgentsrvError | None = None
    line: dict[str, Any] = {}
    try:
        line = command_line.parse(text, latest)
    except AgentsrvError as error:
        refusal = error
    if refusal is None:
        assert line["command"] in COMMANDS
    else:
        assert refusal.code in {"invalid_command", "unknown_command"}
        assert refusal.message
