import dataclasses
from typing import Any, cast

import pytest

from agentsrv.client import ProtocolError
from agentsrv.client.frames import check, check_reply, to_record
from agentsrv.models.events import EVENTS, Event, decode, encode
from agentsrv.protocol import examples

ENVELOPE = {"task_id": examples.TASK, "seq": 1, "timestamp": examples.AT}
WRONG: list[Any] = [None, 1.5, "x", True, [[]], {"a": {}}]
"""Values of which at least one is of another type than any field."""


def refused(read, fields: dict[str, Any], name: str) -> list[Any]:
    """The values in the place of field ``name`` that are refused."""
    found = []
    for value in WRONG:
        try:
            read({**fields, name: value})
        except ProtocolError:
            found.append(value)
    return found


def a_reply(command: str):
    """Reads a reply to ``command``."""
    return lambda fields: check_reply(command, fields)


def an_event(event_type: str):
    """Reads an event with the data."""
    return lambda data: to_record({"event_type": event_type, **ENVELOPE, "data": data})


def data(event: Event) -> dict[str, Any]:
    """An event's data as a frame has it."""
    return dict(decode(encode(event, examples.TASK, 1, examples.AT)).data)


FREE = {("step_completed", "result"), ("message_received", "message"), ("input_received", "value"),
        ("input_required", "default")}  # fmt: skip
CHECKED = [
    *(("reply", name, dict(fields)) for name, fields in examples.REPLIES.items() if fields),
    *(("event", name, data(event)) for name, event in examples.EVENTS.items()),
]
OPTIONAL = {
    (event_type, field.name)
    for event_type, kind in EVENTS.items()
    for field in dataclasses.fields(cast("Any", kind))
    if field.default is not dataclasses.MISSING
}


@pytest.mark.parametrize(("kind", "name", "fields"), CHECKED, ids=lambda value: str(value)[:20])
def test_a_frame_is_refused_without_a_field_or_with_one_of_another_type(kind, name, fields):
    """Each field of each reply and event that the protocol names."""
    read = a_reply(name) if kind == "reply" else an_event(name)
    read(fields)
    read({**fields, "of_a_newer_server": 1})
    for field in fields:
        if (name, field) not in FREE:
            assert refused(read, fields, field), field
        rest = {key: value for key, value in fields.items() if key != field}
        if (name, field) in OPTIONAL:
            read(rest)
        else:
            with pytest.raises(ProtocolError, match=f"{field}: Field required"):
                read(rest)


def test_an_event_of_a_newer_server_is_accepted():
    """With whatever data it has."""
    record = an_event("step_dreamt")({"of": [1]})
    assert record.data == {"of": [1]}


@pytest.mark.parametrize("name", ENVELOPE)
def test_an_event_needs_its_envelope(name):
    """Also where its type is unknown."""
    frame = {"event_type": "step_dreamt", **ENVELOPE, "data": {}}
    with pytest.raises(ProtocolError, match="Input should be"):
        to_record({**frame, name: None})


@pytest.mark.parametrize(
    ("frame", "told"),
    [
        ({"server": {"name": "x"}}, "server.version: Field required"),
        ({"limits": {"max_frame": "x"}}, "limits.max_frame: .* found 'x'"),
    ],
)
def test_an_error_names_the_field_and_what_was_found(frame, told):
    """The first one that is wrong."""
    with pytest.raises(ProtocolError, match=told):
        check("hello", {**examples.FRAMES["hello"], **frame})
