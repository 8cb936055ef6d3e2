"""The bad-input catalogue: each input has its answer, and the server lives on."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from agentsrv.models.commands import COMMANDS
from tests.e2e.acceptance import fields, frames, handshakes, texts
from tests.e2e.acceptance.conftest import LENGTHS, faults
from tests.e2e.acceptance.handshakes import Rows
from tests.e2e.acceptance.probe import ALIVE, Outcome, knock, say
from tests.support.handshakes import handshake
from tests.support.principals import ADA_KEY, BOB_KEY
from tests.support.server_process import ServerProcess
from tests.support.targets import Target
from tests.support.wire import Wire

ROUNDS: Final = {"short": 3, "long": 100}
GROWTH: Final = 8 << 20  # bytes; the allocator keeps a few arenas more or less of what it had

Probe = Callable[[int, bytes], Outcome]


@pytest.fixture(scope="module")
def target(server: ServerProcess) -> Target:
    """A task of Bob's, which asks something."""
    with Wire(server.port, request=handshake(Authorization=f"Bearer {BOB_KEY}")) as wire:
        create = {"command": "create", "task_description": "x", "agent": "asker", "execute": True}
        task_id = wire.ask(create | {"idempotency_key": "bobs"})["task_id"]
    return Target(task_id, f"{task_id}/step_001/1", "bobs", None)


@pytest.fixture(scope="module")
def watcher(server: ServerProcess) -> Iterator[Wire]:
    """A connection that is there all the time."""
    with Wire(server.port, request=handshake()) as wire:
        yield wire


@pytest.fixture(scope="module")
def catalogue(target: Target) -> list[tuple[str, Probe, Rows]]:
    """All rows, by where they are sent."""
    return [
        ("handshakes", knock, handshakes.rows()),
        ("frames", say, frames.rows()),
        ("texts", say, texts.rows(target)),
        ("fields", say, fields.rows()),
        ("strangers", partial(say, request=handshake(Authorization=None)), texts.strangers()),
    ]


def try_all(
    server: ServerProcess, watcher: Wire, catalogue: list[tuple[str, Probe, Rows]]
) -> list[tuple[str, str, Outcome]]:
    """Send each row; return those that were answered otherwise."""
    wrong = []
    for room, probe, rows in catalogue:
        for name, (data, what, words) in rows.items():
            found = probe(server.port, data)
            is_quoted = any(key[-30:-10] in found.words for key in (ADA_KEY, BOB_KEY))
            if not found.is_as_expected(what, words) or is_quoted:
                wrong.append((room, name, found))
            assert watcher.ask(ALIVE)["type"] == "reply", name
    for name, data in frames.CUT.items():
        with Wire(server.port, request=handshake()) as wire:
            wire.socket.sendall(data)
        assert watcher.ask(ALIVE)["type"] == "reply", name
    return wrong


def resident(server: ServerProcess) -> int:
    """Bytes of memory that the server has now."""
    pages = Path(f"/proc/{server.pid}/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


@pytest.mark.parametrize("length", LENGTHS)
def test_each_bad_input_has_its_answer(server, watcher, catalogue, note, length):
    """Round after round; the connection that is no part of it lives, and memory stays flat."""
    wrong = try_all(server, watcher, catalogue)
    before = resident(server)
    for _ in range(ROUNDS[length]):
        wrong += try_all(server, watcher, catalogue)
    after = resident(server)
    inputs = sum(len(rows) for _, _, rows in catalogue) + len(frames.CUT)
    note(
        f"{inputs} inputs tried in {ROUNDS[length] + 1} rounds, wrongly answered = {len(wrong)}, "
        f"memory {before / 1e6:.1f} MB after the first and {after / 1e6:.1f} MB after the last"
    )
    assert wrong == []
    assert faults(server) == []
    assert after - before < GROWTH
    log = server.log.read_text()
    assert ADA_KEY not in log
    assert BOB_KEY not in log


def test_every_field_of_every_command_has_a_row():
    """But for those that take any JSON."""
    told = {tuple(name.split()[:2]) for name in fields.rows()}
    expected = {
        (f"{name}:", field)
        for name, command in COMMANDS.items()
        for field in {*command.model_fields, "unknown"} - {"command"}
    }
    assert expected - told == {("respond:", "value")}
