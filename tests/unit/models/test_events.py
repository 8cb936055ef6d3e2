from dataclasses import fields
from datetime import UTC, datetime

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsrv.errors import AgentsrvError
from agentsrv.models import events as e
from tests.unit.models.samples import AT, IDS, INTEGERS, STAMPS, any_event, sample

KINDS = pytest.mark.parametrize("kind", e.EVENTS.values(), ids=lambda kind: kind.__name__)

# The protocol's table of events: the fields of ``data``, in its order.
PROTOCOL = {
    "task_created": "task_description agent params metadata traceparent",
    "task_queued": "position",
    "task_started": "node traceparent",
    "plan_created": "steps planned_by reason",
    "step_started": "step_id attempt agent description",
    "step_progress": "step_id attempt done total message",
    "partial_output": "step_id attempt offset output",
    "step_retrying": (
        "step_id attempt next_attempt retry_in error_message retry_count reason traceback"
    ),
    "step_completed": "step_id attempt status result cached duration",
    "step_failed": "step_id attempt error_message retry_count partial_output degraded traceback",
    "step_lost": "step_id attempt losses suspected",
    "step_skipped": "step_id reason",
    "step_cancelled": "step_id attempt partial_output",
    "input_required": "input_id step_id attempt prompt schema options default expires_at",
    "input_received": "input_id step_id action value by",
    "message_received": "message by",
    "task_cancelling": "reason by grace",
    "task_recovered": "node completed_steps traceparent",
    "task_completed": "status final_output degraded missing_steps duration",
    "task_failed": "status error_message failed_step retry_count partial_output",
    "task_cancelled": "status reason by stopped partial_output",
}
TERMINAL = {"task_completed", "task_failed", "task_cancelled"}


def test_the_events_are_those_of_the_protocol():
    """Every event of the protocol has a class with its fields, and there are no others."""
    found = {
        name: " ".join(column.name for column in fields(kind))  # type: ignore[arg-type]
        for name, kind in e.EVENTS.items()
    }
    assert found == PROTOCOL


@KINDS
@settings(max_examples=40)  # for each of the kinds
@given(data=st.data())
def test_an_event_survives_its_encoding(kind, data):
    """What is decoded equals what was encoded, whatever the fields hold."""
    event = data.draw(any_event(kind))
    task_id, seq, stamp = data.draw(st.tuples(IDS, INTEGERS, STAMPS))
    record = e.decode(e.encode(event, task_id, seq, stamp))
    assert record.event == event
    assert (record.event_type, record.task_id) == (kind.event_type, task_id)
    assert (record.seq, record.timestamp) == (seq, stamp)


@KINDS
def test_a_frame_has_exactly_the_fields_of_the_protocol(kind):
    """An encoded event is a frame with the five fields of an event and their values."""
    event = sample(kind)
    assert orjson.loads(e.encode(event, "t1", 7, AT)) == {
        "type": "event",
        "event_type": kind.event_type,
        "task_id": "t1",
        "seq": 7,
        "timestamp": AT,
        "data": {column.name: getattr(event, column.name) for column in fields(event)},  # type: ignore[arg-type]
    }


@KINDS
@settings(max_examples=40)  # for each of the kinds
@given(data=st.data())
def test_the_predicates_agree_with_the_decoded_event(kind, data):
    """Bytes are told apart without decoding exactly as their decoded event would be."""
    body = e.encode(data.draw(any_event(kind)), data.draw(IDS), 1, AT)
    record = e.decode(body)
    assert e.is_terminal(body) is record.is_terminal is (record.event_type in TERMINAL)
    assert e.is_terminal(body) is isinstance(record.event, e.TERMINAL_EVENTS)
    assert e.is_life_cycle(body) is record.event_type.startswith(("task_", "input_"))


def test_text_that_looks_like_a_terminal_event_is_none():
    """A piece of output that quotes a terminal frame does not end the task."""
    quoted = e.encode(sample(e.TaskCompleted), "t1", 9, AT).decode()
    body = e.encode(e.PartialOutput(quoted, 1, 0, quoted), quoted, 1, AT)
    assert not e.is_terminal(body)
    assert not e.is_life_cycle(body)


@pytest.mark.parametrize("value", [object(), {1, 2}, 2**65, "\ud800", {1: "a"}])
def test_what_is_not_json_is_not_encoded(value):
    """A value that JSON cannot hold is a TypeError, not bytes that nobody can read."""
    with pytest.raises(TypeError):
        e.encode(e.StepCompleted("look", 1, "completed", value, False, 0.0), "t1", 1, AT)


def test_text_and_bytes_decode_alike():
    """A frame may come as text or as bytes."""
    body = e.encode(sample(e.TaskQueued), "t1", 2, AT)
    assert e.decode(body) == e.decode(body.decode()) == e.to_record(orjson.loads(body))


def test_data_of_a_newer_server_is_dropped():
    """Fields that this version does not know are dropped, and those that miss are None."""
    frame = orjson.loads(e.encode(sample(e.TaskCancelled), "t1", 2, AT))
    frame["data"]["colour"] = "red"
    del frame["data"]["reason"]
    assert e.to_record(frame).event == e.TaskCancelled("cancelled", None, "ann", True, "")


def test_an_unknown_event_type_is_named():
    """A record can be read whatever its type; making an event of it names what is known."""
    frame = orjson.loads(e.encode(sample(e.TaskQueued), "t1", 2, AT))
    frame["event_type"] = "task_teleported"
    record = e.to_record(frame)
    assert not record.is_terminal
    with pytest.raises(AgentsrvError, match=r"task_teleported.*task_created"):
        _ = record.event


# Up to the year 9000; whole milliseconds and whatever lies between.
MOMENTS = st.floats(0, 221_845_392_000) | st.integers(0, 2**31 * 1000).map(lambda ms: ms / 1000)


@given(st.lists(MOMENTS, min_size=1, max_size=5))
def test_a_timestamp_says_what_datetime_says(moments):
    """Each timestamp is at most a millisecond before its moment, in whatever order they come."""
    for at in [*moments, *reversed(moments)]:
        stamp = e.format_timestamp(at)
        said = datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
        assert stamp == said.strftime("%Y-%m-%dT%H:%M:%S.") + f"{said.microsecond // 1000:03d}Z"
        assert -0.000_1 <= at - said.timestamp() <= 0.001_1


@given(st.lists(MOMENTS, min_size=2, max_size=6))
def test_timestamps_sort_as_their_moments(moments):
    """As texts, timestamps of one clock are in the order of time."""
    stamps = [e.format_timestamp(at) for at in sorted(moments)]
    assert stamps == sorted(stamps)


@pytest.mark.parametrize(
    ("at", "stamp"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (0.999, "1970-01-01T00:00:00.999Z"),
        (1_000_000_000.25, "2001-09-09T01:46:40.250Z"),
        (1_709_164_800.5, "2024-02-29T00:00:00.500Z"),
        (1_709_164_799.9999, "2024-02-28T23:59:59.999Z"),
    ],
)
def test_known_timestamps(at, stamp):
    """Timestamps are RFC 3339 in UTC, cut to milliseconds."""
    assert e.format_timestamp(at) == stamp
