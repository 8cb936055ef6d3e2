import json

import pytest
from hypothesis import given

from agentsrv.adapters.ag_ui.messages import EXAMPLE, AguiSession, CancelRun, RunAgentInput
from agentsrv.errors import InvalidCommandError, NotFoundError, OverloadedError
from agentsrv.models.commands import Auth, Create, Respond
from agentsrv.protocol.session import MAX_BAD_FRAMES, Refusal
from tests.support.agui_front import EVENTS, Front
from tests.unit.models.samples import JSON


def read(**fields):
    """A run that is wanted."""
    found = AguiSession().receive(json.dumps(Front("Say hello.").run_input("r", **fields)))
    assert isinstance(found, RunAgentInput), found
    return found


def refused(frame, session=None):
    """The event that answers a frame that is none."""
    text = frame if isinstance(frame, str) else json.dumps(frame)
    found = (session or AguiSession()).receive(text)
    assert isinstance(found, Refusal), found
    event = json.loads(found.frame)
    EVENTS.validate_python(event)
    return event


def test_the_user_s_last_message_is_the_task():
    """With what the front end forwards to us; the rest is another's."""
    ours = {
        "agent": "echo",
        "params": {"times": 2},
        "deadline": 5.5,
    }
    given = read(
        messages=[
            {"id": "1", "role": "user", "content": "Not this."},
            {"id": "2", "role": "user", "content": [{"type": "text", "text": "Say "},
                                                    {"type": "text", "text": "hello."}]},
            {"id": "3", "role": "assistant", "content": "Not this."},
        ],
        forwardedProps={"agentsrv": ours, "theirs": 1},
    )  # fmt: skip
    command = given.create()
    assert isinstance(command, Create)
    assert command.execute
    assert command.task_description == "Say hello."
    assert (command.agent, command.params, command.deadline) == ("echo", {"times": 2}, 5.5)
    assert command.metadata == {"ag-ui.threadId": "t", "ag-ui.runId": "r"}


def test_a_plan_of_the_front_end_is_taken():
    """Its arrays are those of JSON."""
    steps = [{"step_id": "a", "agent": "w"}, {"step_id": "b", "agent": "w", "depends_on": ["a"]}]
    command = read(forwardedProps={"agentsrv": {"plan": {"steps": steps}}}).create()
    assert command.plan is not None
    assert [step.step_id for step in command.plan.steps] == ["a", "b"]


def test_a_run_is_the_same_task_by_its_thread_and_its_id():
    """And another run, or that of another thread, is another."""
    key = read().create().idempotency_key
    assert read(state={"more": 1}).create().idempotency_key == key
    assert read(runId="r2").create().idempotency_key != key
    assert read(threadId="t2").create().idempotency_key != key
    long = read(threadId="t" * 256, runId="r" * 256).create()
    assert len(long.idempotency_key or "") <= 128


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"messages": []}, "found none of a user"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "found none of a user"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 32_769}]}, "messages"),
        ({"messages": [{"role": "user"}]}, "more than text"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "more than text"),
        ({"forwardedProps": {"agentsrv": {"agnt": "x"}}}, "forwardedProps.agentsrv.agnt"),
        ({"forwardedProps": {"agentsrv": {"execute": False}}}, "forwardedProps.agentsrv.execute"),
        ({"forwardedProps": {"agentsrv": {"agent": 7}}}, "forwardedProps.agentsrv.agent"),
        ({"forwardedProps": {"agentsrv": "echo"}}, "forwardedProps.agentsrv"),
    ],
)
def test_what_makes_no_task_is_told(fields, word):
    """By the field, where there is one."""
    with pytest.raises(InvalidCommandError, match=word):
        read(**fields).create()


def test_answers_to_interrupts_are_answers_to_questions():
    """An abandoned one is declined; all must be of one task."""
    given = read(
        resume=[
            {"interruptId": "ab/s/1", "status": "resolved", "payload": {"yes": True}},
            {"interruptId": "ab/s/2", "status": "cancelled"},
        ]
    )
    assert given.resumed_task == "ab"
    assert [entry.command(0) for entry in given.resume] == [
        Respond(input_id="ab/s/1", value={"yes": True}),
        Respond(input_id="ab/s/2", action="decline"),
    ]
    assert read(resume=[]).resumed_task is None
    two = [{"interruptId": f"{task}/s/1", "status": "resolved"} for task in ("ab", "cd")]
    told = refused(Front().run_input("r", resume=two))
    assert "expected one task" in told["message"]


def test_two_commands_are_ours():
    """To cancel, and to come in by another token."""
    session = AguiSession()
    assert session.receive('{"command": "cancel"}') == CancelRun(command="cancel")
    found = session.receive('{"command": "cancel", "reason": "too slow"}')
    assert isinstance(found, CancelRun)
    assert found.reason == "too slow"
    assert isinstance(session.receive('{"command": "auth", "token": "x"}'), Auth)


@pytest.mark.parametrize(
    ("frame", "code", "word"),
    [
        ("", "invalid_json", ""),
        ("status", "invalid_json", ""),
        ("[1]", "invalid_json", "one object"),
        ('{"threadId": "t", "threadId": "t"}', "invalid_json", "twice"),
        ({}, "invalid_command", "threadId"),
        ({**EXAMPLE, "runId": ""}, "invalid_command", "runId"),
        ({**EXAMPLE, "runId": "r" * 257}, "invalid_command", "runId"),
        ({**EXAMPLE, "messages": "hello"}, "invalid_command", "messages"),
        ({**EXAMPLE, "resume": [{"status": "resolved"}]}, "invalid_command", "interruptId"),
        ({"command": "create", "task_description": "x"}, "invalid_command", "cancel"),
        ({"command": "cancel", "grace": 1}, "invalid_command", "grace"),
    ],
)
def test_a_frame_that_is_none_is_a_run_error(frame, code, word):
    """It says what was expected and whether to try again."""
    told = refused(frame)
    assert (told["type"], told["code"]) == ("RUN_ERROR", code)
    assert word in told["message"]
    assert told["metadata"]["agentsrv"]["retryable"] is False


def test_while_a_run_goes_on_a_refusal_does_not_end_it():
    """It comes as an event of our own, with all that an error has."""
    session = AguiSession()
    session.is_running = True
    told = refused("nonsense", session)
    assert (told["type"], told["name"]) == ("CUSTOM", "agentsrv.error")
    assert told["value"]["code"] == "invalid_json"
    told = json.loads(session.refused(OverloadedError("full", retry_after=2.0)))
    assert told["value"] == {
        "code": "overloaded", "message": "full", "retryable": True, "retry_after": 2.0,
    }  # fmt: skip


def test_too_many_bad_frames_in_a_row_are_the_last():
    """A good one between them begins the count anew."""
    session = AguiSession()
    for _ in range(MAX_BAD_FRAMES - 1):
        found = session.receive("nonsense")
        assert isinstance(found, Refusal)
        assert not found.is_last
    session.receive('{"command": "cancel"}')
    for number in range(MAX_BAD_FRAMES):
        found = session.receive("nonsense")
        assert isinstance(found, Refusal)
        assert found.is_last == (number == MAX_BAD_FRAMES - 1)


def test_without_a_token_that_counts_nothing_is_done():
    """The connection is about to be closed."""
    session = AguiSession()
    session.is_authenticated = False
    assert refused(EXAMPLE, session)["code"] == "unauthenticated"


@given(JSON)
def test_any_state_and_any_props_are_another_s(value):
    """Nothing of it is looked at but what is ours."""
    assert read(state=value, forwardedProps={"theirs": value}).create().agent is None


def test_every_refusal_is_an_event_of_ag_ui():
    """Also one with nothing but a message."""
    EVENTS.validate_python(json.loads(AguiSession().refused(NotFoundError("no such task"))))


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [1] * 19_000},
        {"messages": [], "resume": [{}] * 19_000},
        {"messages": [], "resume": [1] * 19_000},
    ],
    ids=["messages", "empty answers", "answers"],
)
def test_a_large_invalid_frame_stops_at_its_first_errors(fields):
    """Not each of its elements is an error."""
    given = {"threadId": "t", "runId": "r"} | fields
    assert len(refused(given)["metadata"]["agentsrv"]["details"]) <= 2


def test_of_many_unknown_fields_a_few_are_reported():
    """They are dropped before they become errors."""
    given = {"command": "cancel"} | {f"k{number}": 1 for number in range(19_000)}
    assert len(refused(given)["metadata"]["agentsrv"]["details"]) == 10
    many = {"threadId": "t", "runId": "r", "messages": [[]] * 20_001}
    assert refused(many)["code"] == "too_large"
