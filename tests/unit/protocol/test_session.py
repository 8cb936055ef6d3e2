import json

import orjson
import pytest

from agentsrv.models.commands import COMMANDS, EXAMPLES, Cancel, Create, List, Ping, Status
from agentsrv.protocol.session import MAX_BAD_FRAMES, MAX_DETAILS, Refusal, Request, Session

TASK = "3f2a9c0d1b7e4a65"


def accepted(text, session=None) -> Request:
    """The request that a frame makes."""
    found = (session or Session(is_authenticated=True)).receive(
        text if isinstance(text, str) else json.dumps(text)
    )
    assert isinstance(found, Request), found
    return found


def refused(text, session=None):
    """The answer to a frame that is not understood."""
    found = (session or Session(is_authenticated=True)).receive(
        text if isinstance(text, str) else json.dumps(text)
    )
    assert isinstance(found, Refusal), found
    frame = orjson.loads(found.frame)
    assert frame["type"] == "error"
    return frame


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_is_a_request(name):
    """Each command's example is understood as that command, and names its task whole."""
    request = accepted(EXAMPLES[name] | {"id": 7})
    assert type(request.command) is COMMANDS[name]
    assert (request.name, request.command.id, request.is_abbreviated) == (name, 7, False)


def test_white_space_before_a_frame_is_nothing():
    """A frame may be indented, as JSON or as a line."""
    assert isinstance(accepted(' \t\r\n{"command": "ping"}').command, Ping)
    assert isinstance(accepted(" \t\r\nping").command, Ping)


def test_an_array_of_json_stays_what_it_is():
    """A plan's arrays, as JSON has them, are accepted by strict models."""
    steps = [{"step_id": "a", "agent": "w"}, {"step_id": "b", "agent": "w", "depends_on": ["a"]}]
    request = accepted({"command": "create", "task_description": "x", "plan": {"steps": steps}})
    assert isinstance(request.command, Create)
    assert request.command.plan is not None
    assert request.command.plan.steps[1].depends_on == ("a",)


def test_a_line_is_a_request():
    """What does not begin like JSON is a command line; a cut task id is marked as such."""
    request = accepted("status 3f2a…")
    assert request == Request(Status(task_id="3f2a"), is_abbreviated=True)
    assert accepted("list running").command == List(status="running")  # type: ignore[arg-type]
    assert accepted("run Why?").command == Create(task_description="Why?", execute=True)


def test_a_line_means_the_latest_task_of_its_connection():
    """The session remembers the latest task, and lines without an id mean it."""
    session = Session(is_authenticated=True)
    assert refused("cancel", session)["code"] == "invalid_command"
    session.latest_task = TASK
    assert accepted("cancel", session) == Request(Cancel(task_id=TASK))


@pytest.mark.parametrize(
    ("frame", "is_abbreviated"),
    [
        ({"command": "status", "task_id": TASK}, False),
        ({"command": "status", "task_id": TASK[:-1]}, True),
        ({"command": "status", "task_id": TASK[:4]}, True),
        ({"command": "status", "task_id": TASK[:3]}, False),
        ({"command": "subscribe", "task_id": TASK[:4]}, True),
        ({"command": "subscribe", "all": True}, False),
        ({"command": "respond", "input_id": TASK, "value": "yes"}, False),
        (f"status {TASK[:4]}…", True),
        (f"status {TASK[:3]}", False),
        ("unsubscribe all", False),
        (f"respond {TASK}/a/1 yes", True),
        ("list", False),
    ],
    ids=str,
)
def test_a_prefix_of_a_task_id_is_to_be_resolved(frame, is_abbreviated):
    """From four characters on, in JSON and in lines; what was typed as an answer is resolved too."""
    assert accepted(frame).is_abbreviated is is_abbreviated


@pytest.mark.parametrize("text", ["[]", '"ping"', "\ufeff{}", '[{"command": "ping"}]', "{"])
def test_what_begins_like_json_is_not_a_line(text):
    """Arrays, strings and byte order marks are wrong JSON, not unknown command lines."""
    assert refused(text)["code"] == "invalid_json"


@pytest.mark.parametrize("text", ["", " ", "\n\t\r"])
def test_an_empty_frame_is_told(text):
    """An empty frame is answered with what a command looks like."""
    frame = refused(text)
    assert (frame["code"], frame["example"]) == ("invalid_json", {"command": "help"})


@pytest.mark.parametrize("text", ["\x0c", "\x0b", "\x1f", "\xa0", "\u3000", " \x0c \u2028\n"])
def test_other_white_space_is_told_too(text):
    """A frame of white space that JSON does not know is refused like any other."""
    assert refused(text)["code"] in {"invalid_json", "unknown_command"}


def test_bad_json_has_an_example():
    """Whoever sends bad JSON is told where it is bad and shown a correct command."""
    frame = refused('{"command": "ping"')
    assert frame["code"] == "invalid_json"
    assert "line 1, column" in frame["message"]
    accepted(frame["example"])
    assert (frame["command"], frame["id"]) == (None, None)


@pytest.mark.parametrize(
    "fields", [{}, {"command": "crate"}, {"command": None}, {"command": 1}, {"command": ["ping"]}]
)
def test_an_unknown_command_has_an_example(fields):
    """Whoever names no known command is told which there are and shown a correct one."""
    frame = refused(fields | {"id": "x"})
    assert (frame["code"], frame["id"]) == ("unknown_command", "x")
    assert all(name in frame["message"] for name in COMMANDS)
    accepted(frame["example"])


@pytest.mark.parametrize("command_id", ["", "x" * 64, "é", 0, -5, 2**63 - 1, None])
def test_the_id_comes_back_in_an_error(command_id):
    """A refused command's name and id are in the answer, exactly as they were sent."""
    frame = refused({"command": "status", "id": command_id})
    assert (frame["command"], frame["id"]) == ("status", command_id)
    assert type(frame["id"]) is type(command_id)


@pytest.mark.parametrize(
    "command_id", ["x" * 65, 1.5, True, [], {"a": 1}], ids=lambda v: repr(v)[:9]
)
def test_a_wrong_id_does_not_come_back(command_id):
    """An id that is none is not echoed, and the answer says which field is wrong."""
    frame = refused({"command": "ping", "id": command_id})
    assert (frame["code"], frame["id"]) == ("invalid_command", None)
    assert {detail["field"] for detail in frame["details"]} == {"id"}


def test_a_misspelt_field_is_told_with_the_right_ones():
    """The answer names the unknown field and the fields that the command has."""
    frame = refused({"command": "create", "task_descripton": "x", "id": 1})
    assert (frame["code"], frame["id"]) == ("invalid_command", 1)
    reasons = {detail["field"]: detail["reason"] for detail in frame["details"]}
    assert set(reasons) == {"task_description", "task_descripton"}
    assert reasons["task_description"] == "Field required"
    assert reasons["task_descripton"].startswith("unknown field; ")
    assert all(name in reasons["task_descripton"] for name in COMMANDS["create"].model_fields)
    first = frame["details"][0]
    assert frame["message"] == f"{first['field']}: {first['reason']}"
    assert frame["example"] == EXAMPLES["create"]


def test_the_path_leads_to_the_wrong_field():
    """A complaint about something deep inside says where it is."""
    steps = [{"step_id": "a", "agent": "w"}, {"step_id": "b", "agent": "w", "colour": 1}]
    frame = refused({"command": "create", "task_description": "x", "plan": {"steps": steps}})
    assert frame["details"] == [{"field": "plan.steps.1.colour", "reason": "unknown field"}]
    steps[1] = {"step_id": "b", "agent": "w", "depends_on": ["z"]}
    frame = refused({"command": "create", "task_description": "x", "plan": {"steps": steps}})
    assert frame["details"] == [
        {"field": "plan", "reason": "step 'b' depends on 'z', which is not in the plan"}
    ]


def test_a_rule_of_the_whole_command_is_told_under_its_name():
    """A complaint that belongs to no field has the command's name in its place."""
    frame = refused({"command": "cancel"})
    assert frame["details"] == [
        {"field": "cancel", "reason": "expected either task_id or idempotency_key"}
    ]
    assert frame["message"] == "cancel: expected either task_id or idempotency_key"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (1.5, "1.5"),
        (True, "true"),
        ("1", "'1'"),
        ("a\nb", r"'a\nb'"),
        ("x" * 41, "41 characters"),
        ([1], "an array"),
        ({"a": 1}, "an object"),
    ],
)
def test_a_complaint_tells_what_was_found(value, found):
    """Behind what was expected; a long text by its length."""
    frame = refused({"command": "list", "limit": value})
    assert frame["message"] == f"limit: Input should be a valid integer; found {found}"


def test_not_every_complaint_is_told():
    """A frame with a thousand unknown fields is answered with the first few."""
    frame = refused({"command": "ping"} | {f"f{number}": 1 for number in range(1000)})
    assert len(frame["details"]) == MAX_DETAILS == 10


def test_a_bad_line_is_answered_like_a_bad_frame():
    """The answers to lines are the same JSON frames."""
    frame = refused("list everything")
    assert (frame["code"], frame["command"]) == ("invalid_command", "list")
    assert frame["details"][0]["field"] == "status"
    assert refused("lisp")["code"] == "unknown_command"


def test_the_twentieth_bad_frame_in_a_row_is_the_last():
    """Nineteen are answered, the twentieth is answered and ends the connection."""
    session = Session(is_authenticated=True)
    found = [session.receive("nonsense") for _ in range(MAX_BAD_FRAMES)]
    assert [refusal.is_last for refusal in found if isinstance(refusal, Refusal)] == (
        [False] * 19 + [True]
    )


def test_a_good_frame_forgives_the_bad_ones():
    """Only bad frames in a row count, whatever is wrong with them."""
    session = Session(is_authenticated=True)
    bad = ["nonsense", "[", '{"command": "pong"}', '{"command": "status"}', ""]
    for _ in range(3):
        for number in range(19):
            refusal = session.receive(bad[number % len(bad)])
            assert isinstance(refusal, Refusal)
            assert not refusal.is_last
        accepted("ping", session)


@pytest.mark.parametrize("name", COMMANDS)
def test_who_has_not_said_who_it_is_may_do_little(name):
    """Other commands are understood and refused; that is no bad frame, and may be said again."""
    session = Session(is_authenticated=False)
    frame = EXAMPLES[name] | {"id": 7}
    for _ in range(MAX_BAD_FRAMES + 1):
        if name in ("auth", "ping", "help"):
            accepted(frame, session)
        else:
            answer = refused(frame, session)
            assert (answer["code"], answer["command"], answer["id"]) == (
                "unauthenticated", name, 7,
            )  # fmt: skip
    session.is_authenticated = True
    accepted(frame, session)


def test_bad_frames_count_from_the_first():
    """Also of somebody who has not said who it is."""
    session = Session(is_authenticated=False)
    found = [session.receive("nonsense") for _ in range(MAX_BAD_FRAMES)]
    assert isinstance(found[-1], Refusal)
    assert found[-1].is_last


def test_a_token_is_not_shown():
    """Neither by the command nor by a complaint about another field of it."""
    frame = {"command": "auth", "token": "agentsrv_secret"}
    assert "secret" not in repr(accepted(frame))
    assert "secret" not in str(refused(frame | {"tokn": 1}))
    assert "secret" not in str(refused(frame | {"token": ["agentsrv_secret"]}))
    assert "secret" not in str(refused(frame | {"token": "agentsrv_secret" * 1000}))


@pytest.mark.parametrize("text", ["a\nb", "a\x00b", "\x1f"])
def test_an_id_that_is_no_json_is_not_echoed(text):
    """Of a frame that is too large to be parsed before authentication."""
    frame = '{"command":"create","x":[' + "1," * 40 + f'1],"id":"{text}"}}'
    answer = Session(is_authenticated=False).receive(frame)
    assert isinstance(answer, Refusal)
    assert json.loads(answer.frame)["id"] is None
