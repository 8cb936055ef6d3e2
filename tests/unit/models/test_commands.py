import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from agentsrv.models.commands import ADAPTER, COMMANDS, EXAMPLES, Command, Create
from tests.unit.models.samples import OBJECTS

STEP = {"step_id": "a", "agent": "writer"}
TASK = "3f2a9c0d1b7e4a65"


def read(fields):
    """The command of a frame's fields, as a server reads them from JSON."""
    return ADAPTER.validate_json(json.dumps(fields))


def create(**fields) -> Create:
    """A create command read from JSON."""
    command = read({"command": "create", "task_description": "Why?", **fields})
    assert isinstance(command, Create)
    return command


def test_every_command_is_in_the_union():
    """A class that is not would be unknown to the session, the schema and the command lines."""
    assert set(Command.__subclasses__()) == set(COMMANDS.values())
    for name, kind in COMMANDS.items():
        assert get_args(kind.model_fields["command"].annotation) == (name,)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_of_a_reply_has_the_fields_of_its_type(name):
    """Those that are required, and no others."""
    declaration = COMMANDS[name].declaration
    fields = set(declaration.reply_example)
    required = declaration.reply.__required_keys__
    assert required <= fields <= required | declaration.reply.__optional_keys__


@pytest.mark.parametrize("name", COMMANDS)
def test_every_field_of_a_command_line_is_one_of_the_command(name):
    """Those of the arguments, of their keywords, and those that the line always has."""
    kind = COMMANDS[name]
    for line in kind.declaration.lines:
        fields = {*line.fields, *(argument.field for argument in line.arguments)}
        fields.update(*(argument.keyword_fields for argument in line.arguments))
        assert fields <= set(kind.model_fields)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_is_a_correct_command(name):
    """What a client is shown as correct is correct, and is that command."""
    assert EXAMPLES[name]["command"] == name
    assert type(read(EXAMPLES[name])) is COMMANDS[name]


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_field_is_refused(name):
    """A misspelt field is told, never ignored."""
    with pytest.raises(ValidationError) as refusal:
        read(EXAMPLES[name] | {"colour": "red"})
    (complaint,) = refusal.value.errors()
    assert (complaint["type"], complaint["loc"]) == ("extra_forbidden", (name, "colour"))


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_cannot_be_changed(name):
    """A command is a fact; it is frozen."""
    with pytest.raises(ValidationError, match="frozen"):
        read(EXAMPLES[name]).id = "other"


@pytest.mark.parametrize("command_id", ["", "x" * 64, "é" * 64, 0, -1, 2**63 - 1, -(2**63), None])
@pytest.mark.parametrize("name", COMMANDS)
def test_an_id_is_text_or_an_integer(name, command_id):
    """Any text of up to 64 characters and any 64-bit integer comes back as it was sent."""
    found = read(EXAMPLES[name] | {"id": command_id}).id
    assert found == command_id
    assert type(found) is type(command_id)


@pytest.mark.parametrize("command_id", ["x" * 65, 1.5, 1.0, True, False, [], {}, ["1"]])
@pytest.mark.parametrize("name", COMMANDS)
def test_other_ids_are_refused(name, command_id):
    """An id that cannot come back unchanged is refused; true is not 1."""
    with pytest.raises(ValidationError):
        read(EXAMPLES[name] | {"id": command_id})


SPAN = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

LIMITS: list[tuple[str, str, list[Any]]] = [
    ("create", "task_description", ["x", " ", "x" * 32_768, "\x00"]),
    ("create", "agent", ["writer", "A-z_0.9", "x" * 64, None]),
    ("create", "plan", [{"steps": [STEP]}, None]),
    ("create", "params", [{}, {"n": {"any": [1, 1.5, None, True, "x"]}}, {"": {}}]),
    ("create", "idempotency_key", ["k", "x" * 128, None]),
    ("create", "execute", [True, False]),
    ("create", "subscribe", [True, False]),
    ("create", "traceparent", [None, SPAN, f"cc-{SPAN[3:]}"]),
    ("create", "metadata", [{}, {"k" * 128: "v" * 1024}, {f"k{n}": "" for n in range(64)}]),
    ("execute", "task_id", [TASK, "x" * 64]),
    ("execute", "subscribe", [True, False]),
    ("status", "task_id", [TASK]),
    ("list", "status", ["pending", "input_required", "cancelled", None]),
    ("list", "limit", [1, 500]),
    ("list", "cursor", ["", "12", "x" * 256, None]),
    ("cancel", "task_id", [TASK]),
    ("cancel", "reason", ["", "x" * 1024, None]),
    ("cancel", "grace", [0, 0.5, 5, 3600, None]),
    ("subscribe", "task_id", [TASK]),
    ("subscribe", "after_seq", [0, 1, 2**62]),
    ("subscribe", "all", [False]),
    ("unsubscribe", "task_id", [TASK]),
    ("unsubscribe", "all", [False]),
    ("respond", "input_id", ["t/s/1", "x" * 256]),
    ("respond", "value", [None, False, 0, "", "x", [1, {"a": None}], {}]),
    ("respond", "action", ["accept"]),
    ("send", "task_id", [TASK]),
    ("send", "message", [None, True, 0, "", "x", [], {"a": [1]}]),
]
NOT_TEXT: list[Any] = [1, 1.5, True, [], {}]
NOT_BOOLEAN: list[Any] = [0, 1, "true", "yes", None, []]
BAD_TASKS = ["", "x" * 65, "a b", "a/b", "3f2a…", "a\n", *NOT_TEXT]
REFUSED: list[tuple[str, str, list[Any]]] = [
    ("create", "task_description", ["", "x" * 32_769, None, *NOT_TEXT]),
    ("create", "agent", ["", "a b", "x" * 65, *NOT_TEXT]),
    ("create", "plan", [{}, {"steps": []}, {"steps": [STEP, STEP]}, [STEP], "plan", 1, True]),
    ("create", "plan", [{"steps": [STEP], "name": "x"}, {"steps": [STEP | {"colour": 1}]}]),
    ("create", "plan", [{"steps": [STEP | {"timeout": True}]}]),
    ("create", "plan", [{"steps": [STEP | {"timeout": "5"}]}]),
    ("create", "plan", [{"steps": [STEP | {"max_retries": True}]}]),
    ("create", "params", [None, [], "x", 1, True]),
    ("create", "idempotency_key", ["", "x" * 129, *NOT_TEXT]),
    ("create", "execute", NOT_BOOLEAN),
    ("create", "subscribe", NOT_BOOLEAN),
    ("create", "traceparent", ["", "x", 1, SPAN.upper(), SPAN[:-1], f"{SPAN}-x", f"ff{SPAN[2:]}"]),
    ("create", "traceparent", [f"00-{'0' * 32}-{'b' * 16}-01", f"00-{'a' * 32}-{'0' * 16}-01"]),
    ("create", "metadata", [None, [], "x", {"k": 1}, {"k": None}, {"k" * 129: "v"}]),
    ("create", "metadata", [{"k": "v" * 1025}, {f"k{n}": "" for n in range(65)}]),
    ("execute", "task_id", [None, *BAD_TASKS]),
    ("execute", "subscribe", NOT_BOOLEAN),
    ("status", "task_id", [None, *BAD_TASKS]),
    ("list", "status", ["", "RUNNING", "done", *NOT_TEXT]),
    ("list", "limit", [0, -1, 501, 1.0, 1.5, True, "50", None]),
    ("list", "cursor", ["x" * 257, *NOT_TEXT]),
    ("cancel", "task_id", [None, *BAD_TASKS]),
    ("cancel", "idempotency_key", ["", "x" * 129, "given beside the task", *NOT_TEXT]),
    ("cancel", "reason", ["x" * 1025, *NOT_TEXT]),
    ("cancel", "grace", [-1, -0.001, 3600.5, True, "5", []]),
    ("subscribe", "task_id", [None, *BAD_TASKS]),
    ("subscribe", "after_seq", [-1, 1.0, 1.5, True, "0", None]),
    ("subscribe", "all", [True, *NOT_BOOLEAN]),
    ("unsubscribe", "task_id", [None, *BAD_TASKS]),
    ("unsubscribe", "all", [True, *NOT_BOOLEAN]),
    ("respond", "input_id", ["", "x" * 257, None, *NOT_TEXT]),
    ("respond", "action", ["yes", "expire", "decline", None, *NOT_TEXT]),
    ("send", "task_id", [None, *BAD_TASKS]),
]


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [(name, field, value) for name, field, values in LIMITS for value in values],
)
def test_a_field_may_be_at_its_limit(name, field, value):
    """The limits themselves are allowed, and the value arrives as it was sent."""
    command = read(EXAMPLES[name] | {field: value})
    found = command.model_dump(mode="json", exclude_unset=True)[field]
    assert found == value


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [(name, field, value) for name, field, values in REFUSED for value in values],
)
def test_a_field_has_its_limits(name, field, value):
    """Beyond its limits, or of another type, a value is refused; nothing is converted."""
    with pytest.raises(ValidationError):
        read(EXAMPLES[name] | {field: value})


@pytest.mark.parametrize("name", COMMANDS)
def test_a_missing_field_is_refused(name):
    """Whatever a command needs has to be there."""
    needed = [key for key, info in COMMANDS[name].model_fields.items() if info.is_required()]
    for field in needed:
        fields = {key: value for key, value in EXAMPLES[name].items() if key != field}
        with pytest.raises(ValidationError, match="Field required"):
            read(fields)


@pytest.mark.parametrize("fields", [{}, {"task_id": TASK, "idempotency_key": "k"}])
def test_cancel_names_exactly_one_task(fields):
    """Either the task's id or its idempotency key."""
    with pytest.raises(ValidationError, match="expected either task_id or idempotency_key"):
        read({"command": "cancel", **fields})


def test_cancel_may_name_the_task_by_its_key():
    """A client that never saw the id can cancel by the key that it chose."""
    assert read({"command": "cancel", "idempotency_key": "k"}).idempotency_key == "k"


@pytest.mark.parametrize("name", ["subscribe", "unsubscribe"])
@pytest.mark.parametrize("fields", [{}, {"task_id": TASK, "all": True}, {"all": False}])
def test_a_subscription_names_one_task_or_all(name, fields):
    """Either a task or all of them, not both and not neither."""
    with pytest.raises(ValidationError, match="expected either task_id or all: true"):
        read({"command": name, **fields})
    assert read({"command": name, "all": True}).all


def test_whoever_declines_gives_no_value():
    """A value beside decline is told, never ignored."""
    decline = {"command": "respond", "input_id": "t/s/1", "action": "decline"}
    assert read(decline).action == "decline"
    with pytest.raises(ValidationError, match="found a value in addition to decline"):
        read(decline | {"value": False})


@pytest.mark.parametrize("text", ["[]", '"ping"', "null", "{}", '{"command": null}'])
def test_what_names_no_command_is_refused(text):
    """Without a known command there is nothing to validate."""
    with pytest.raises(ValidationError):
        ADAPTER.validate_json(text)


# ------------------------------------------------------------------------ spec


def test_the_spec_is_the_same_for_the_same_parameters():
    """Neither the frame's id, nor the key, nor who watches or traces makes it another command."""
    spec = create().spec()
    assert create(id="7").spec() == create(id=7).spec() == spec
    assert create(idempotency_key="k").spec() == spec
    assert create(subscribe=False).spec() == spec
    assert create(traceparent=SPAN).spec() == spec
    assert create(agent=None, plan=None, params={}, metadata={}, execute=False).spec() == spec


@pytest.mark.parametrize(
    "fields",
    [
        {"task_description": "Why not?"},
        {"agent": "writer"},
        {"plan": {"steps": [STEP]}},
        {"params": {"n": 1}},
        {"metadata": {"k": "v"}},
        {"execute": True},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_other_parameters_make_another_spec(fields):
    """Whatever changes what the task does changes its spec."""
    assert create(**fields).spec() != create().spec()


@pytest.mark.parametrize("field", ["params", "metadata"])
def test_the_order_of_keys_makes_no_other_spec(field):
    """JSON objects have no order: the same parameters in another order are the same."""
    one, two = {"a": "1", "b": "2"}, {"b": "2", "a": "1"}
    assert create(**{field: one}).spec() == create(**{field: two}).spec()


@given(
    OBJECTS,
    st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=3),
    st.text(min_size=1),
)
def test_the_spec_is_all_that_a_worker_needs(params, metadata, text):
    """The command that is read back from a spec asks for the same work."""
    plan = {"steps": [STEP | {"input": params, "timeout": 2.5, "max_retries": 0}]}
    first = create(
        task_description=text,
        params=params,
        metadata=metadata,
        plan=plan,
        id=1,
        idempotency_key="k",
    )
    again = ADAPTER.validate_json(first.spec())
    assert again == first.model_copy(update={"id": None, "idempotency_key": None})
    assert again.spec() == first.spec()
