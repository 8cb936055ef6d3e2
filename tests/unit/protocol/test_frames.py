import orjson
import pytest

from agentsrv import errors
from agentsrv.protocol import PROTOCOL, frames


def test_hello():
    """The first frame has exactly the fields of the protocol."""
    frame = frames.hello(
        version="0.1.0",
        connection_id="c1",
        authenticated=True,
        limits={"max_frame": 1024},
        commands=["ping"],
    )
    assert orjson.loads(frame) == {
        "type": "hello",
        "protocol": "agentsrv.v1",
        "server": {"name": "agentsrv", "version": "0.1.0"},
        "connection_id": "c1",
        "authenticated": True,
        "limits": {"max_frame": 1024},
        "commands": ["ping"],
    }
    assert PROTOCOL == "agentsrv.v1"


@pytest.mark.parametrize("command_id", ["1", "", 7, -(2**63), 2**63 - 1, None])
def test_reply(command_id):
    """A reply has the command, the id as it was sent, and the command's own result."""
    frame = frames.reply("create", command_id, {"task_id": "t1", "seq": 2})
    assert orjson.loads(frame) == {
        "type": "reply",
        "command": "create",
        "id": command_id,
        "task_id": "t1",
        "seq": 2,
    }


def test_reply_without_a_result():
    """Commands that answer nothing but that they were carried out have no more fields."""
    assert orjson.loads(frames.reply("unsubscribe", None, {})) == {
        "type": "reply",
        "command": "unsubscribe",
        "id": None,
    }


def test_error():
    """An error has exactly the fields that apply: those without a value are left out."""
    frame = frames.error("status", 3, errors.NotFoundError("there is no task 'x'"))
    assert orjson.loads(frame) == {
        "type": "error",
        "command": "status",
        "id": 3,
        "code": "not_found",
        "message": "there is no task 'x'",
        "retryable": False,
    }


def test_error_with_everything():
    """Where they apply, the time to wait, the details and an example are told."""
    refusal = errors.OverloadedError(
        "full",
        retry_after=0.0,
        details=[{"field": "x", "reason": "y"}],
        example={"command": "help"},
    )
    assert orjson.loads(frames.error(None, None, refusal)) == {
        "type": "error",
        "command": None,
        "id": None,
        "code": "overloaded",
        "message": "full",
        "retryable": True,
        "retry_after": 0.0,
        "details": [{"field": "x", "reason": "y"}],
        "example": {"command": "help"},
    }


# The protocol's codes, apart from those of rooms that this version has not.
RETRYABLE = {
    "invalid_json": False,
    "invalid_command": False,
    "unknown_command": False,
    "not_found": False,
    "invalid_state": False,
    "conflict": False,
    "seq_ahead": False,
    "too_large": False,
    "overloaded": True,
    "shutting_down": True,
    "unavailable": True,
    "internal": True,
}


@pytest.mark.parametrize(("code", "retryable"), RETRYABLE.items())
def test_every_code_has_its_error(code, retryable):
    """The error that a code stands for writes that code, and tells whether to try again."""
    frame = orjson.loads(frames.error("ping", None, errors.by_code(code)("no")))
    assert (frame["code"], frame["retryable"]) == (code, retryable)


def test_an_unknown_code_is_some_error():
    """A client of an older version survives a code that it does not know."""
    assert errors.by_code("out_of_coffee") is errors.AgentsrvError


def test_caught_up():
    """A subscription that has caught up says with which task and where."""
    assert orjson.loads(frames.caught_up("t1", 12)) == {
        "type": "caught_up",
        "task_id": "t1",
        "seq": 12,
    }


def test_goaway():
    """A closing server says why, and when to come back."""
    assert orjson.loads(frames.goaway("drain", 1.5)) == {
        "type": "goaway",
        "reason": "drain",
        "reconnect_in": 1.5,
    }
