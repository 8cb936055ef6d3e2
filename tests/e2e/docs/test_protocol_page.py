"""docs/reference/protocol.md against the models, and against a server that runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.frames import CloseCode

from agentsrv import errors
from agentsrv.models import commands, events
from agentsrv.models.plan import Step
from agentsrv.models.states import TaskStatus
from agentsrv.protocol import command_line
from agentsrv.protocol.close_codes import CLOSES, Close
from agentsrv.server import batching, requests
from agentsrv.server.auth import authenticator
from agentsrv.settings import Settings
from tests.support.talk import Talk, serving, talking

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "reference" / "protocol.md").read_text(encoding="utf-8")
NOT_SENT = "not sent yet"
BY_THE_LIBRARY = {1002, 1007, 1009, 1011}  # websockets closes with them by itself


def section(title: str, level: int = 2) -> str:
    """What stands between the heading ``title`` and the next of its level or above."""
    start = PAGE.index(f"\n{'#' * level} {title}\n")
    end = re.compile(rf"\n#{{1,{level}}} ").search(PAGE, start + 1)
    return PAGE[start : end.start() if end else len(PAGE)]


def tables(text: str) -> Iterator[dict[str, list[str]]]:
    """The tables: for each, its rows by the first column's text; the header has the key ""."""
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in block.splitlines()
        ]
        yield {"": rows[0]} | {row[0].strip("`"): row for row in rows[2:]}


def table(title: str, level: int, first: str) -> dict[str, list[str]]:
    """The one table of a section whose first column is headed ``first``."""
    (found,) = (rows for rows in tables(section(title, level)) if rows[""][0] == first)
    return {key: row for key, row in found.items() if key}


def names(text: str) -> list[str]:
    """The words in code spans."""
    return re.findall(r"`(\w+)`", text)


def json_blocks() -> list[dict[str, Any]]:
    """The JSON examples of the page."""
    return [json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)]


def named_in_code(*packages: str) -> str:
    """The source of some packages of the server."""
    return "\n".join(
        file.read_text()
        for package in packages
        for file in sorted((ROOT / "agentsrv" / package).rglob("*.py"))
    )


def all_codes(error: type[errors.AgentsrvError] = errors.AgentsrvError) -> set[str]:
    """The codes of an error class and all below it; the client's own are not on the wire."""
    children = (child for child in error.__subclasses__() if child.__module__ == errors.__name__)
    return {error.code}.union(*map(all_codes, children))


def test_each_command_has_its_section():
    """No command is missing, and none is there that the server does not have."""
    assert re.findall(r"^### `(\w+)`$", PAGE, re.MULTILINE) == list(commands.COMMANDS)


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_each_field_of_a_command_stands_in_its_table(name):
    """The table has the model's fields beside ``id`` and ``command``, and their defaults."""
    model = commands.COMMANDS[name].model_fields
    rows = table(f"`{name}`", 3, "field")
    assert set(rows) == set(model) - {"id", "command"}
    for field, (_, _, default, _) in rows.items():
        assert (default == "") == model[field].is_required(), field
        if re.fullmatch(r"`.*`", default):
            assert json.loads(default.strip("`")) == model[field].get_default(
                call_default_factory=True, validated_data={}
            )


def test_each_field_of_a_plans_step_stands_in_its_table():
    """The steps of a client's own plan are described in full."""
    assert set(table("`create`", 3, "a step's field")) == set(Step.model_fields)


def test_each_event_stands_in_the_table_with_its_data():
    """Every type, every data field in its order, and nothing else."""
    rows = table("Events", 2, "event")
    found = {event_type: names(row[1]) for event_type, row in rows.items()}
    assert found == {
        event_type: [field.name for field in fields(kind)]  # type: ignore[arg-type]
        for event_type, kind in events.EVENTS.items()
    }


def test_events_marked_as_not_sent_are_those_that_nobody_makes():
    """The mark stands exactly where the engine has no code that makes the event."""
    source = named_in_code("engine")
    unmade = {
        event_type
        for event_type, kind in events.EVENTS.items()
        if not re.search(rf"\b{kind.__name__}\(", re.sub(r"case .*", "", source))
    }
    rows = table("Events", 2, "event")
    assert {event_type for event_type, row in rows.items() if NOT_SENT in row[2]} == unmade


def test_each_error_code_stands_in_the_table():
    """The codes are those of the error classes, and so is what may be sent again."""
    rows = table("Errors", 2, "code")
    assert set(rows) == all_codes()
    for code, row in rows.items():
        assert row[1] == ("yes" if errors.by_code(code).retryable else "no"), code


def test_codes_marked_as_not_sent_are_those_that_the_server_never_raises():
    """The mark stands exactly where no package of the server makes an error of that code."""
    source = named_in_code(
        "adapters", "agents", "delivery", "engine", "protocol", "server", "store"
    )
    rows = table("Errors", 2, "code")
    unmade = {code for code in rows if f"{errors.by_code(code).__name__}(" not in source}
    assert {code for code, row in rows.items() if NOT_SENT in row[2]} == unmade


def limits() -> dict[str, str]:
    """The settings that the page names as limits, and what they are by default."""
    return {
        name: row[2]
        for rows in tables(section("Limits"))
        for row in rows.values()
        for name in names(row[1])
    }


def test_limits_are_those_of_the_settings():
    """Each setting that is named is one, with its default; a star stands where it is open."""
    for name, limit in limits().items():
        default = Settings.model_fields[name].default
        assert (default is None) == limit.endswith("*"), name
        if default is not None and name != "max_frame":
            assert float(limit.split(", and")[0].replace(",", "")) == default, name


def test_each_close_code_stands_in_the_table():
    """Those that the server's code names, and those of the library beneath."""
    used = re.findall(r"\bCloseCode\.(\w+)", named_in_code("server"))
    own = {CloseCode[name].value for name in used} | {
        requests.BAD_FRAMES,
        batching.STALLED,
        authenticator.UNAUTHENTICATED,
    }
    rows = table("Close codes", 2, "code")
    assert {int(code) for code in rows} == own | BY_THE_LIBRARY
    assert {
        int(code): Close(row[1], reconnect=row[2].startswith("yes")) for code, row in rows.items()
    } == CLOSES


def test_each_status_of_a_task_stands_in_the_table():
    """The statuses are those of the state machine."""
    assert set(table("States", 2, "status")) == set(TaskStatus)


def test_each_command_line_stands_in_the_table():
    """The lines are those that ``help`` tells."""
    rows = table("Command lines", 2, "line")
    assert {line.replace("\\|", "|") for line in rows} == set(command_line.usage())


def test_each_example_of_a_command_is_valid():
    """Every JSON block with a command passes the models; each command has one."""
    examples = [block for block in json_blocks() if "type" not in block]
    for example in examples:
        commands.ADAPTER.validate_json(json.dumps(example))
    assert {example["command"] for example in examples} == set(commands.COMMANDS)


def test_each_example_of_an_answer_is_one():
    """Examples of events have the fields of their class, examples of errors a known code."""
    examples = [block for block in json_blocks() if "type" in block]
    assert {example["type"] for example in examples} == {"event", "error"}
    for example in examples:
        if example["type"] == "event":
            record = events.to_record(example)
            assert list(record.data) == [field.name for field in fields(record.event)]  # type: ignore[arg-type]
        else:
            assert example["code"] in all_codes()


async def test_each_frame_has_the_fields_that_the_page_names():
    """Frames of each type, but for goaway, are taken from a server that runs."""
    rows = table("Frames", 2, "`type`")
    async with serving() as server, connect(server.url) as socket:
        talk = Talk(socket)
        seen = {"hello": await talk.next()}
        await talk.send({"command": "crate"})
        await talk.send(
            {"command": "create", "task_description": "x", "agent": "echo", "execute": True}
        )
        while not {"event", "caught_up", "error", "reply"} <= set(seen):
            frame = await talk.next()
            seen.setdefault(frame["type"], frame)
    for kind in ("hello", "error", "event", "caught_up"):
        assert set(seen[kind]) - {"type"} <= set(names(rows[kind][2])), kind
    assert set(seen["hello"]["server"]) <= set(names(rows["hello"][2]))
    assert set(seen["hello"]["limits"]) <= set(names(section("Frames")))
    of_frames = {"max_depth", "max_values", "max_description"}
    assert set(seen["hello"]["limits"]) - of_frames <= set(limits())
    assert set(rows) == {*seen, "goaway"}


async def test_each_reply_has_the_fields_that_the_page_names():
    """A server that runs is asked every command, and its hello is compared too."""
    async with serving() as server, talking(server) as talk:
        created = await talk.ask('{"command":"create","task_description":"x","agent":"echo"}')
        fill = {
            "task_description": "x",
            "agent": "echo",
            "task_id": created["task_id"],
            "token": "x",
        }
        asker = {"command": "create", "task_description": "x", "agent": "asker", "execute": True}
        await talk.ask(asker)
        asked = await talk.until("input_required")
        listening = await talk.ask(asker)
        await talk.until("step_started")
        special = {
            "respond": {"input_id": asked["data"]["input_id"], "value": True},
            "send": {"task_id": listening["task_id"], "message": "x"},
        }
        for name, model in commands.COMMANDS.items():
            needed = {key: value for key, value in fill.items() if key in model.model_fields}
            reply = await talk.ask({"command": name, "id": 1, **needed, **special.get(name, {})})
            assert reply["type"] == "reply", reply
            told = re.search(r"^Reply: (.*)$", section(f"`{name}`", 3), re.MULTILINE)
            assert told, name
            assert names(told[1]) == list(reply)[3:], name
            assert list(reply)[:3] == ["type", "command", "id"]
        status = await talk.ask({"command": "status", "task_id": created["task_id"]})
        text = section("`status`", 3)
        assert set(status["steps"][0]) <= set(names(text))
