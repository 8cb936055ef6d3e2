from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from agentsrv.bench import capacity, load, machine, suite, target
from agentsrv.bench.app import EVENTS, app
from agentsrv.bench.figures import Report
from agentsrv.bench.sizes import Bench
from agentsrv.bench.target import LocalServer, RemoteServer
from agentsrv.client import ServerUnavailableError
from agentsrv.errors import ConfigurationError, UnauthenticatedError
from agentsrv.server.open_files import OTHER_FILES
from tests.bench.sizes import TINY
from tests.support.principals import ADA, ADA_KEY
from tests.support.talk import serving

WORK = "import time\nwhile time.process_time() < 0.1: pass\nprint(flush=True)\ntime.sleep(60)"
LOCAL = {"tasks", "stored", "replay", *suite.SHARED}  # need servers of the bench's own


@pytest.fixture(autouse=True)
def no_settling(monkeypatch) -> None:
    """A tiny server has nothing left to do behind its last answer."""
    monkeypatch.setattr(capacity, "SETTLE", 0.01)


@pytest.fixture
def own() -> Iterator[LocalServer]:
    """Servers with a store in a scratch folder."""
    place = LocalServer()
    yield place
    place.close()


@pytest.fixture
def shared(dsn) -> Iterator[LocalServer]:
    """Servers with a store that they can share."""
    place = LocalServer(dsn)
    yield place
    place.close()


@pytest.fixture
async def remote(own) -> AsyncIterator[RemoteServer]:
    """A server that is not the bench's."""
    async with own.server() as running:
        yield RemoteServer(running.url)


async def measured(
    place: LocalServer | RemoteServer, *names: str, rounds: int = TINY.rounds
) -> Report:
    """What the probes find."""
    report = Report(lambda _: None)
    await suite.measure(Bench(place, replace(TINY, rounds=rounds), report), names)
    return report


@pytest.mark.slow
@pytest.mark.parametrize("name", suite.PROBES)
async def test_every_probe_measures_a_real_server(request, name):
    """Each figure has its rounds, and is a number; those of speed are above nothing."""
    is_shared = name in suite.SHARED
    place = request.getfixturevalue("shared" if is_shared else "own")
    report = await measured(place, name, rounds=1 if is_shared else TINY.rounds)
    assert report.figures
    assert report.notes == []
    for figure in report.figures:
        assert figure.key.startswith(f"{name}.")
        assert all(map(math.isfinite, figure.values))
        if "/s" in figure.label:
            assert min(figure.values) > 0
    keys = [figure.key for figure in report.figures]
    assert len(keys) == len(set(keys))


async def test_a_database_is_measured_and_left_as_it_was(shared, dsn):
    """Its servers have a schema of their own for as long as they run; the store has no file."""
    report = await measured(shared, "commit", "stored")
    assert {figure.key for figure in report.figures} == {"commit.reply.p50", "commit.reply.p99"}
    assert report.notes == ["stored: left out: the store has no file"]
    connection = await asyncpg.connect(dsn)
    schemas = await connection.fetch("SELECT nspname FROM pg_namespace WHERE oid >= 16384")
    tables = await connection.fetch("SELECT relname FROM pg_class WHERE oid >= 16384")
    await connection.close()
    assert [*schemas, *tables] == []


async def test_nodes_share_the_work_and_their_commits_are_counted(shared):
    """What one is asked for, another runs."""
    async with shared.cluster("worker", "gateway", "gateway") as cluster:
        assert cluster.schema is not None
        before = await cluster.schema.flushes()
        _, gateway, beside = cluster.targets
        run = await load.run(gateway, 4, 20, connections=4, beside=[beside])
        assert (run.tasks, run.events) == (20, 20 * EVENTS)
        assert await cluster.schema.flushes() > before


async def test_all_processes_listen_when_the_first_load_comes(shared):
    """Else one of them would have all connections; what the children compute counts."""
    async with shared.cluster("all", processes=2) as cluster:
        told = (shared.folder / "node-0" / "server.log").read_bytes()
        assert told.count(target.LISTENS) == 2
        run = await load.run(cluster.targets[0], 4, 200, connections=4)
        assert run.server_seconds is not None
        assert run.server_seconds > 0


@pytest.mark.parametrize("name", suite.SHARED)
async def test_a_store_that_cannot_be_shared_is_told(own, name):
    """With the one that can."""
    report = await measured(own, name)
    assert report.figures == []
    assert report.notes == [
        f"{name}: left out: servers cannot share the store; expected postgresql://…"
    ]


async def test_a_database_that_is_not_there_is_told():
    """Before a server is started."""
    place = LocalServer("postgresql://postgres@127.0.0.1:1/postgres")
    with pytest.raises(ConfigurationError, match="cannot create a schema in PostgreSQL"):
        await measured(place, "throughput")
    place.close()


def test_a_missing_extra_is_told(monkeypatch):
    """With the command that installs it."""
    monkeypatch.setattr("agentsrv.resources.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'agentsrv\[postgres\]'"):
        LocalServer("postgresql://127.0.0.1/postgres")


@pytest.mark.parametrize("name", suite.PROBES)
async def test_a_server_that_is_not_there_is_told(name):
    """Unless the probe says first that it needs a server of its own."""
    if name in LOCAL:
        report = await measured(RemoteServer("ws://127.0.0.1:1"), name)
        assert report.figures == []
        assert name in report.notes[0]
    else:
        with pytest.raises(ServerUnavailableError, match=r"127\.0\.0\.1:1"):
            await measured(RemoteServer("ws://127.0.0.1:1"), name)


async def test_a_server_of_somebody_else_is_measured_from_outside(remote):
    """Its speed is seen, its process is not."""
    report = await measured(remote, "throughput", "commit", "idle", "tasks")
    keys = {figure.key for figure in report.figures}
    assert {"throughput.1.tasks", "commit.reply.p50", "idle.5.with"} <= keys
    assert not {key for key in keys if "memory" in key or "sync" in key}
    assert [note.partition(":")[0] for note in report.notes] == ["tasks"]


async def test_a_server_that_asks_who_is_there_is_told():
    """By the token that its Python client sends, too."""
    async with serving(app, api_keys=ADA) as running:
        report = await measured(RemoteServer(running.url, ADA_KEY), "commit", rounds=1)
        assert {figure.key for figure in report.figures} == {"commit.reply.p50", "commit.reply.p99"}
        with pytest.raises(UnauthenticatedError):
            await measured(RemoteServer(running.url), "commit")


async def test_a_server_of_another_application_is_refused():
    """With the command that starts the right one."""
    async with serving() as running:
        with pytest.raises(ConfigurationError, match=r"agentsrv serve agentsrv\.bench\.app"):
            await measured(RemoteServer(running.url), "throughput")


async def test_a_store_without_a_file_has_no_history():
    """The probes of what is stored are left out, and say why."""
    place = LocalServer("memory:")
    try:
        report = await measured(place, "commit", "stored", "replay")
    finally:
        place.close()
    assert {figure.key.partition(".")[0] for figure in report.figures} == {"commit"}
    assert report.notes == [
        f"{name}: left out: the store has no file" for name in ("stored", "replay")
    ]


def test_a_file_that_exists_is_never_touched(tmp_path):
    """It would be somebody's store."""
    path = tmp_path / "mine.db"
    path.write_bytes(b"precious")
    with pytest.raises(ConfigurationError, match=r"mine\.db exists"):
        LocalServer(f"sqlite:///{path}")
    assert path.read_bytes() == b"precious"


async def test_nothing_is_left_behind(tmp_path, monkeypatch):
    """Neither the store that was named nor the scratch folder; the user's settings do not count."""
    monkeypatch.setenv("AGENTSRV_MAX_FRAME", "not a number")
    place = LocalServer(f"sqlite:///{tmp_path / 'mine.db'}")
    await measured(place, "commit", "stored")
    place.close()
    assert list(tmp_path.iterdir()) == []
    assert not place.folder.exists()


async def test_a_server_that_does_not_start_says_why(tmp_path):
    """The last line of its log is the sentence."""
    place = LocalServer(f"sqlite:///{tmp_path / 'nowhere' / 'mine.db'}")
    with pytest.raises(ConfigurationError, match=r"did not start: .*nowhere does not exist"):
        await measured(place, "throughput")
    place.close()


async def test_a_limit_of_open_files_is_told(own, monkeypatch):
    """Fewer connections are measured, and it is said plainly."""
    limits: list[tuple[int, int]] = [(100, OTHER_FILES + 4)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limits.append(limit))
    report = await measured(own, "idle")
    assert limits[-1] == (OTHER_FILES + 4, OTHER_FILES + 4)
    assert report.notes == ["4 connections instead of 5: more open files are not permitted"]


async def test_a_system_that_does_not_tell_memory_is_measured_without(own, monkeypatch):
    """The figures of memory are missing, the others are there."""
    monkeypatch.setattr(target, "HAS_PROC", False)
    report = await measured(own, "idle", "tasks", "subscribers", "replay")
    keys = {figure.key for figure in report.figures}
    assert {"idle.5.with", "subscribers.3.events", "replay.events"} <= keys
    assert not {key for key in keys if "memory" in key or "cost" in key or "tasks." in key}
    assert report.notes == ["tasks: left out: this system does not tell what a process takes"]


async def test_an_unknown_probe_is_refused(own):
    """Before anything is measured."""
    with pytest.raises(ConfigurationError, match="no probe 'speed'"):
        await measured(own, "throughput", "speed")


async def test_the_report_can_be_read_again(own, tmp_path):
    """As JSON, with the machine."""
    report = await measured(own, "commit")
    path = tmp_path / "figures.json"
    suite.write(report, path)
    found = json.loads(path.read_text())
    assert found["machine"]["cores"] >= 1
    assert [each["key"] for each in found["figures"]] == [each.key for each in report.figures]
    for each in found["figures"]:
        assert each["low"] <= each["median"] <= each["high"]


@pytest.mark.skipif(not machine.HAS_PROC, reason="platform: it does not tell what others take")
def test_what_a_process_and_its_children_compute_is_told():
    """Of this one it is what it says itself; a child counts while it lives."""
    before, found = time.process_time(), machine.cpu_seconds(os.getpid())
    with subprocess.Popen([sys.executable, "-c", WORK], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        taken, beside = machine.cpu_seconds(child.pid), machine.cpu_seconds(os.getpid())
        child.kill()
    assert before <= found
    assert beside - found >= taken >= 0.1


def test_fsyncs_are_timed_where_the_store_would_be(tmp_path: Path):
    """And the file that was written for it is removed."""
    assert len(machine.sync_times(tmp_path, 3)) == 3
    assert list(tmp_path.iterdir()) == []
