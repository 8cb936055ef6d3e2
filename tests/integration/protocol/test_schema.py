"""The published schema: against the models, a foreign parser, and frames of servers that run."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from websockets.asyncio.client import connect

from agentsrv import errors
from agentsrv.models.commands import ADAPTER, COMMANDS
from agentsrv.models.events import EVENTS, decode
from agentsrv.protocol.close_codes import CLOSES
from agentsrv.protocol.frame_types import FRAMES
from agentsrv.protocol.schema import reply_name
from tests.support.nodejs import npm_folder
from tests.support.published_schema import DOCUMENT, MESSAGES, complaints, name_of
from tests.support.talk import Talk, serving

PARSE = Path(__file__).with_name("parse_asyncapi.cjs")


async def conversation() -> list[dict[str, Any]]:
    """The frames of a real server: every kind of reply, a whole task, a refusal, a goodbye."""
    frames: list[dict[str, Any]] = []
    async with serving() as server:
        socket = await connect(server.url)
        talk = Talk(socket)

        async def until(kind: str, **fields: Any) -> dict[str, Any]:
            while True:
                frames.append(await talk.next())
                if name_of(frames[-1]) == kind and fields.items() <= frames[-1].items():
                    return frames[-1]

        await until("hello")
        work = {"command": "create", "task_description": "x", "execute": True, "id": "a"}
        await talk.send(work | {"agent": "asker"})
        asked = await until("input_required")
        task = {"task_id": asked["task_id"]}
        await talk.send({"command": "status", **task})
        await talk.send({"command": "send", **task, "message": {"hurry": True}})
        await until("message_received")
        await talk.send(
            {"command": "respond", "input_id": asked["data"]["input_id"], "value": True}
        )
        await until("task_completed")
        steps = [{"step_id": "a", "agent": "waiter", "timeout": 9, "input": [1]}]
        await talk.send(work | {"plan": {"steps": steps}, "execute": False})
        waiting = {"task_id": (await until("create_reply"))["task_id"]}
        await talk.send({"command": "execute", **waiting})
        await until("step_started")
        for command in ({"command": "subscribe", **waiting}, {"command": "unsubscribe", **waiting}):
            await talk.send(command)
        for command in ({"command": "subscribe", "all": True}, {"command": "cancel", **waiting}):
            await talk.send(command)
        await until("task_cancelled")
        await talk.send({"command": "auth", "token": "of nobody, where nobody is asked"})
        for name in ("list", "agents", "help", "ping", "crate"):
            await talk.send({"command": name})
        await until("error")
    await until("goaway")
    return frames


def test_every_command_event_error_and_close_code_is_in_it():
    """Each reply, too, and no message besides."""
    expected = {*COMMANDS, *map(reply_name, COMMANDS), *FRAMES, *EVENTS}
    assert set(MESSAGES) == expected
    assert set(DOCUMENT["channels"]["socket"]["messages"]) == expected
    refused = DOCUMENT["components"]["schemas"]["ErrorFrame"]["properties"]["code"]["enum"]
    assert refused == list(errors.BY_CODE)
    assert [shown["name"] for shown in MESSAGES["error"]["examples"]] == refused
    assert set(DOCUMENT["channels"]["socket"]["x-close-codes"]) == {str(code) for code in CLOSES}
    assert DOCUMENT["info"]["version"] == "1.2.3"


@pytest.mark.parametrize("name", MESSAGES)
def test_every_message_has_an_example_that_its_schema_and_its_model_take(name):
    """Commands are those that the server reads, events those that the client reads."""
    shown = [example["payload"] for example in MESSAGES[name]["examples"]]
    assert shown
    for payload in shown:
        assert not complaints(name, payload)
        if name in COMMANDS:
            assert type(ADAPTER.validate_python(payload)) is COMMANDS[name]
        else:
            assert name_of(payload) == name
        if name in EVENTS:
            assert type(decode(json.dumps(payload)).event) is EVENTS[name]


@pytest.mark.parametrize(
    ("name", "frame"),
    [
        ("ping", {}),
        ("ping", {"command": "ping", "if": 1}),
        ("create", {"command": "create", "task_description": ""}),
        ("list", {"command": "list", "status": "gone"}),
        ("ping_reply", {"type": "reply", "command": "ping"}),
        ("error", {"type": "error", "command": None, "id": None, "code": "x", "message": "x"}),
        ("task_queued", {"type": "event", "event_type": "task_queued"}),
        ("hello", {"type": "hello"}),
    ],
)
def test_what_is_wrong_is_refused(name, frame):
    """The schemas say more than that there is an object."""
    assert complaints(name, frame)


async def test_what_a_server_sends_is_as_published():
    """Every frame of a run, with every kind of reply in it."""
    frames = await conversation()
    for frame in frames:
        assert not complaints(name_of(frame), frame), frame
    seen = {name_of(frame) for frame in frames}
    assert {*map(reply_name, COMMANDS), *FRAMES} <= seen
    assert len(seen & set(EVENTS)) >= 10


@pytest.mark.interop
@pytest.mark.timeout(300)  # the first time it is installed
def test_the_parser_of_asyncapi_finds_no_fault():
    """It reads every message, and has no error, warning or hint to tell."""
    parsed = subprocess.run(
        ["node", PARSE, npm_folder("asyncapi", "@asyncapi/parser@3.6.0")],
        input=json.dumps(DOCUMENT),
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(parsed.stdout)
    assert told["diagnostics"] == []
    assert set(told["messages"]) == set(MESSAGES)


@pytest.fixture
def generated(tmp_path, monkeypatch) -> ModuleType:
    """The models that datamodel-code-generator makes of the schemas."""
    source, target = tmp_path / "schema.json", tmp_path / "generated_models.py"
    components = {"schemas": DOCUMENT["components"]["schemas"]}
    source.write_text(
        json.dumps({"openapi": "3.1.0", "info": DOCUMENT["info"], "components": components})
    )
    command = [sys.executable, "-m", "datamodel_code_generator", f"--input={source}"]
    options = ["--input-file-type=openapi", "--output-model-type=pydantic_v2.BaseModel"]
    more = ["--target-python-version=3.11", "--formatters=builtin", "--use-annotated"]
    subprocess.run([*command, *options, *more, f"--output={target}"], check=True)
    spec = importlib.util.spec_from_file_location("generated_models", target)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where pydantic looks for it
    spec.loader.exec_module(module)
    return module


async def test_a_client_generated_from_it_reads_a_run(generated):
    """The models take each frame and give it back whole."""
    for frame in await conversation():
        model = getattr(generated, MESSAGES[name_of(frame)]["title"])
        read = model.model_validate_json(json.dumps(frame))
        written = read.model_dump_json(by_alias=True, exclude_unset=True)
        assert json.loads(written.replace('000Z"', 'Z"')) == frame  # it writes microseconds
