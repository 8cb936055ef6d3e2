"""Commands against a server whose frames lack fields or have others of the same names."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from agentsrv.cli.exits import Exit
from agentsrv.protocol import examples
from tests.support.cli import in_a_thread
from tests.support.fake_server import HELLO, T1, FakeServer, Peer, event

COMMANDS = {
    "list": ["list"],
    "list --json": ["list", "--json"],
    "agents": ["agents"],
    "agents --json": ["agents", "--json"],
    "status": ["status", T1],
    "status --json": ["status", T1, "--json"],
    "cancel": ["cancel", T1],
    "respond": ["respond", T1, "yes"],
    "respond --decline": ["respond", T1, "--decline"],
    "tail": ["tail", T1],
    "tail --json": ["tail", T1, "--json"],
    "run": ["run", "text"],
    "run --json": ["run", "text", "--json"],
    "top": ["top"],
}
QUESTION = event(1, "input_required")["data"]
GOOD: dict[str, dict[str, Any]] = {name: dict(fields) for name, fields in examples.REPLIES.items()}
GOOD["status"]["inputs"] = [QUESTION]
CHANGES: dict[str, Callable[[Any], Any]] = {
    "missing": lambda _: {},
    "null": dict.fromkeys,
    "numbers": lambda fields: dict.fromkeys(fields, 7),
    "lists of texts": lambda fields: {name: ["x"] for name in fields},
    "lists of objects": lambda fields: {name: [{}] for name in fields},
    "objects": lambda fields: {name: {"properties": 1} for name in fields},
}
EVENTS = ["task_created", "plan_created", "step_started", "step_progress", "partial_output",
          "step_completed", "task_completed"]  # fmt: skip


def answers(replies: Callable[[str], dict[str, Any]], events: list[dict[str, Any]]) -> Any:
    """A script that answers each command, and sends events after a subscription."""

    async def script(peer: Peer) -> None:
        async for text in peer.socket:
            try:
                command = orjson.loads(text)
            except ValueError:  # a command line
                command = {"command": str(text).split()[0], "id": None}
            name = command["command"]
            envelope = {"command": name, "id": command["id"]}
            await peer.send({"type": "reply"} | replies(name) | envelope)
            if name == "subscribe" or command.get("subscribe"):
                await peer.send(*events)

    return script


def running(script: Any, hello: dict[str, Any]) -> Any:
    """The URL of a fake server in a thread."""

    async def greets(peer: Peer) -> None:
        await peer.send(hello)
        await script(peer)

    @asynccontextmanager
    async def serving() -> AsyncIterator[str]:
        async with FakeServer(greets, greet=False).running() as server:
            yield server.url

    return in_a_thread(serving)


@pytest.fixture
def against(agentsrv, monkeypatch):
    """Runs a command against a server with these replies, events and greeting."""
    servers = []

    def run(arguments, replies=GOOD.__getitem__, events=(), hello=HELLO):
        servers.append(running(answers(replies, list(events)), hello))
        monkeypatch.setenv("AGENTSRV_URL", next(servers[-1]))
        return agentsrv(*arguments)

    yield run
    for server in servers:
        assert next(server, None) is None


def check(result) -> None:
    """Check that a command failed with one sentence, which says what cannot be read."""
    assert result.code in (Exit.FAILED, Exit.NO_SERVER)
    assert "Traceback" not in result.err
    last = result.err.splitlines()[-1]
    assert "cannot be read" in last or "no greeting" in last
    assert last.startswith(("agentsrv: ", "{"))


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_reply_with_other_fields_is_one_sentence(against, name, change):
    """Whichever command it answers."""
    check(against(COMMANDS[name], lambda command: CHANGES[change](GOOD[command])))


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("field", ["server", "limits", "protocol"])
def test_a_greeting_with_other_fields_is_one_sentence(against, name, field):
    """Before any command is sent."""
    result = against(COMMANDS[name], hello=HELLO | {field: ["x"]})
    assert result.code == Exit.NO_SERVER
    assert "Traceback" not in result.err


@pytest.mark.parametrize("name", ["tail", "tail --json", "run", "run --json"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("event_type", EVENTS)
def test_an_event_with_other_data_is_one_sentence(against, name, change, event_type):
    """Whichever event it is."""
    frames = [event(seq, kind) for seq, kind in enumerate(EVENTS, 1)]
    frame = frames[EVENTS.index(event_type)]
    frame["data"] = CHANGES[change](frame["data"])
    replies = GOOD | {"create": GOOD["create"] | {"task_id": T1}}
    replies["status"] = GOOD["status"] | {"task_id": T1}
    check(against(COMMANDS[name], replies.__getitem__, frames))


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    "wrong", [{"details": ["x"]}, {"details": [{}]}, {"retry_after": "x"}, {"code": None}]
)
def test_a_refusal_with_other_fields_is_one_sentence(against, name, wrong):
    """Its details are printed, and waited for is what it says."""
    refusal = {"type": "error", "code": "invalid_command", "message": "no", "retryable": False}
    check(against(COMMANDS[name], lambda _: refusal | wrong))


def test_a_list_without_end_ends(against):
    """A page that is empty or too long is the last one."""
    empty = GOOD["list"] | {"tasks": [], "next_cursor": "x"}
    long = GOOD["list"] | {"tasks": GOOD["list"]["tasks"] * 9, "next_cursor": "x"}
    for page in (empty, long):
        result = against(["list", "--limit", "5"], (GOOD | {"list": page}).__getitem__)
        assert result.code == Exit.DONE
