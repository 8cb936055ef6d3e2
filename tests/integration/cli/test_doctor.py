"""Each check of the doctor, well and ill; the stores, servers and endpoints are real."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentsrv.cli import doctor
from agentsrv.cli.doctor import Level, examine
from agentsrv.store.sqlite.schema import APPLICATION
from agentsrv.store.sqlite.store import SqliteStore
from tests.support.fake_model import fake_model
from tests.support.store_conditions import held
from tests.support.store_tasks import new_task
from tests.support.talk import serving, talking


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder and an environment without settings."""
    for name in os.environ:
        if name.startswith("AGENTSRV_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


async def found(topic: str, **given: Any) -> tuple[Level, str]:
    """What the one finding about a topic says; its text is followed by the advice."""
    (finding,) = [finding async for finding in examine(given) if finding.what.startswith(topic)]
    return finding.level, f"{finding.what}; {finding.advice}"


async def test_a_new_server_has_nothing_to_mend():
    """Each topic has a finding, and none is bad."""
    findings = [finding async for finding in examine({"max_connections": 10, "port": 0})]
    topics = [finding.what.partition(":")[0] for finding in findings]
    assert topics == [
        "settings", "address", "SQLite", "store", "disk", "open files", "knowledge", "access",
        "models",
    ]  # fmt: skip
    assert {finding.level for finding in findings} == {Level.OK}


@pytest.mark.parametrize("place", ["environment", ".env", "agentsrv.toml"])
async def test_a_misspelt_setting_is_told_with_what_was_meant(folder, monkeypatch, place):
    """Wherever it stands."""
    match place:
        case "environment":
            monkeypatch.setenv("AGENTSRV_CONCURENCY", "3")
        case ".env":
            (folder / ".env").write_text("AGENTSRV_CONCURENCY=3\nOTHER=1\nAGENTSRV_PORT=1\n")
        case _:
            (folder / "agentsrv.toml").write_text("concurency = 3\nport = 1\n")
    level, text = await found("unknown")
    assert level is Level.FAIL
    assert place in text
    assert text.lower().endswith("concurrency?")


async def test_what_is_like_no_setting_has_no_suggestion(monkeypatch):
    """It is told all the same; the variables of the command line are known."""
    monkeypatch.setenv("AGENTSRV_XYZ", "3")
    monkeypatch.setenv("AGENTSRV_URL", "ws://127.0.0.1:1")
    monkeypatch.setenv("AGENTSRV_TOKEN", "secret")
    level, text = await found("unknown")
    assert (level, "remove it" in text, "AGENTSRV_XYZ" in text) == (Level.FAIL, True, True)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("port = 'many'", "port is 'many'"),
        ("port = ", "agentsrv.toml"),
        ("store = 'mysql:'", "store is 'mysql:'"),
    ],
)
async def test_a_value_that_cannot_be_ends_the_examination(folder, line, told):
    """It is told as the server would tell it."""
    (folder / "agentsrv.toml").write_text(line)
    findings = [finding async for finding in examine({})]
    assert [finding.level for finding in findings] == [Level.FAIL]
    assert told in findings[0].what


async def test_a_server_that_uses_the_store_is_told_and_not_disturbed(folder):
    """It writes on while it is looked at, and nothing in its folder is different behind it."""
    store = f"sqlite:///{folder}/t.db"
    work = {"command": "create", "task_description": "x", "execute": True, "agent": "talker"}
    async with serving(store=store) as server, talking(server) as talk:
        created = await talk.ask(work | {"params": {"pieces": 200, "pause": 0.001}})
        await talk.until("partial_output")
        files = sorted(folder.iterdir())
        for _ in range(20):
            level, text = await found("store", store=store)
            assert (level, f"a server (process {os.getpid()}) uses it" in text) == (
                Level.WARN,
                True,
            )
            assert "tasks: 1, unfinished: " in text
        assert sorted(folder.iterdir()) == files
        ended = await talk.ask({"command": "subscribe", "task_id": created["task_id"]})
        assert ended["type"] == "reply"
        assert (await talk.log(created["task_id"]))[-1]["event_type"] == "task_completed"
        assert not server.broken.done()
    files = sorted(folder.iterdir())
    assert await found("store", store=store) == (
        Level.OK,
        f"store: {folder}/t.db, tasks: 1, unfinished: 0; ",
    )
    assert sorted(folder.iterdir()) == files


async def test_stores_that_will_not_do(folder, monkeypatch):
    """Of another program, no database, no folder, not ours to write; or one that forgets."""
    with sqlite3.connect(folder / "other.db") as db:
        db.execute("CREATE TABLE mine (x)")
    db.close()
    (folder / "text.db").write_text("This is no database, however long it may be." * 30)
    for name, told in (
        ("other.db", "another program's"),
        ("text.db", "not a database"),
        ("no/where.db", "mkdir -p no"),
    ):
        level, text = await found("store", store=f"sqlite:///{name}")
        assert (level, told in text) == (Level.FAIL, True), text
    assert (await found("store", store="memory:"))[0] is Level.WARN
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    level, text = await found("store", store="sqlite:///t.db")
    assert (level, "cannot be written" in text) == (Level.FAIL, True)


async def test_a_store_of_an_older_version_is_told(folder):
    """The next start changes it; an empty file is none."""
    (folder / "new.db").touch()
    assert (await found("store", store="sqlite:///new.db"))[0] is Level.OK
    with sqlite3.connect(folder / "old.db") as db:
        db.execute("CREATE TABLE task (ended_at REAL)")
        db.execute(f"PRAGMA application_id = {APPLICATION}")
        db.execute("PRAGMA user_version = 1")
    db.close()
    level, text = await found("store", store="sqlite:///old.db")
    assert (level, "agentsrv backup" in text) == (Level.WARN, True)


@pytest.mark.parametrize(
    ("free", "level"), [(1 << 40, Level.OK), (1 << 29, Level.WARN), (1 << 20, Level.FAIL)]
)
async def test_a_disk_that_fills_up_is_told(monkeypatch, free, level):
    """Before it is full."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert (await found("disk"))[0] is level


@pytest.mark.parametrize(
    ("limits", "level", "told"),
    [
        ((1024, 1 << 20), Level.OK, "up to 1048576"),
        ((1024, 2048), Level.WARN, "limit to 10300, or set max_connections to 1748"),
        ((20_000, 20_000), Level.OK, "up to 20000"),
        ((1024, resource.RLIM_INFINITY), Level.OK, "any number"),
    ],
)
async def test_too_few_open_files_are_told(monkeypatch, limits, level, told):
    """With the number that would do."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    found_level, text = await found("open files")
    assert (found_level, told in text) == (level, True), text


async def test_an_sqlite_that_will_not_do(monkeypatch):
    """It is too old, or has no full-text search."""
    monkeypatch.setattr(doctor, "MIN_SQLITE_VERSION", (99, 0, 0))
    level, text = await found("SQLite")
    assert (level, "99.0.0" in text) == (Level.FAIL, True)


async def test_the_knowledge_base(folder):
    """A folder that is missing, one without texts, one with."""
    assert (await found("knowledge", knowledge=folder / "no"))[0] is Level.FAIL
    texts = folder / "texts"
    texts.mkdir()
    assert (await found("knowledge", knowledge=texts))[0] is Level.WARN
    (texts / "a.md").write_text("# A\n\nText.\n")
    level, text = await found("knowledge", knowledge=texts)
    assert (level, "files: 1" in text, "will be made" in text) == (Level.OK, True, True)
    async with serving(store=f"sqlite:///{folder}/t.db", knowledge=texts):
        pass
    level, text = await found("knowledge", knowledge=texts, store=f"sqlite:///{folder}/t.db")
    assert (level, "index" in text, "will be made" in text) == (Level.OK, True, False)


async def test_models_are_asked():
    """What answers is told; what does not, too, and without the key."""
    async with fake_model() as fake:
        fake.embed = lambda text: [float(len(text)), 1.0]
        fake.script("Hello.")
        given = {"llm_url": fake.url, "llm_key": "sk-secret"}
        findings = [
            finding
            async for finding in examine(given | {"llm_model": "m", "embedding_model": "e"})
            if "model" in finding.what
        ]
        assert [finding.level for finding in findings] == [Level.OK] * 2
        assert "vectors of 2 numbers" in findings[1].what
        assert fake.requests[0].body["max_completion_tokens"] == doctor.ANSWER
    level, text = await found("models", **given, llm_model="m")
    assert (level, "no connection" in text, "sk-secret" in text) == (Level.FAIL, True, False)
    level, text = await found("models", llm_model="m")
    assert (level, "expected llm_url" in text) == (Level.FAIL, True)


def test_the_command_tells_by_its_exit_status(agentsrv, monkeypatch):
    """0 where nothing fails; 1 where something does, with what to do below it."""
    monkeypatch.delenv("AGENTSRV_URL")
    well = agentsrv("doctor", "--port=0")
    assert (well.code, well.err) == (0, "")
    ill = agentsrv("doctor", "--port=0", "--store=sqlite:///no/where.db")
    assert ill.code == 1
    assert "FAIL  store: no folder no\n      mkdir -p no\n" in ill.out


async def make_store(path: Path) -> None:
    """A store with a task."""
    store = SqliteStore(path)
    await store.open()
    await store.create(new_task(events=[b'{"seq":1}']))
    await store.close()


async def test_a_program_that_writes_to_the_store_is_named(folder):
    """It is what a server would wait for."""
    await make_store(folder / "t.db")
    with held(folder / "t.db", "BEGIN IMMEDIATE") as pid:
        level, text = await found("lock", store=f"sqlite:///{folder}/t.db")
    assert (level, f"process {pid} is writing" in text) == (Level.WARN, True)


async def test_hard_links_are_told(folder):
    """Each name would have a write-ahead log of its own."""
    await make_store(folder / "t.db")
    (folder / "other.db").hardlink_to(folder / "t.db")
    level, text = await found("links", store="sqlite:///t.db")
    assert (level, "has 2 names" in text) == (Level.WARN, True)


async def test_a_long_write_ahead_log_is_told(folder, monkeypatch):
    """Somebody keeps it from being shortened."""
    await make_store(folder / "t.db")
    monkeypatch.setattr(doctor, "LONG_WAL_BYTES", -1)
    with held(folder / "t.db", "SELECT count(*) FROM task"):
        level, text = await found("write-ahead log", store="sqlite:///t.db")
    assert (level, "lsof" in text) == (Level.WARN, True)


async def test_a_damaged_task_is_named(folder):
    """With what to do; the store is told as usual besides."""
    await make_store(folder / "t.db")
    content = (folder / "t.db").read_bytes()
    (folder / "t.db").write_bytes(content.replace(b'{"seq":1}', b'{"seq":7}'))
    level, text = await found("damage", store="sqlite:///t.db")
    assert (level, "t1" in text, "agentsrv backup" in text) == (Level.FAIL, True, True)
    assert (await found("store", store="sqlite:///t.db"))[0] is Level.OK


@pytest.mark.parametrize(
    ("store", "told"),
    [
        ("sqlite:///:memory:", "memory:"),
        ("sqlite:///.", "is a folder"),
        ("sqlite:///a/..", "is a folder"),
        ("sqlite:///", "expected sqlite:///FILE"),
        ("sqlite:///a.db?timeout=5", "there are no parameters"),
        ("sqlite:///file:a.db", "expected a file's name"),
        ("sqlite:////dev/null", "not a regular file"),
        ("mysql://me:secret@host/db", "mysql://me:***@host/db"),
        ("postgres+asyncpg://me:secret@host/db", "me:***@host"),
    ],
)
async def test_names_that_are_no_store_are_told(folder, store, told):
    """In one sentence, without a password; nothing is made."""
    findings = [finding async for finding in examine({"store": store, "port": 0})]
    texts = [f.what for f in findings if f.level is Level.FAIL]
    assert len(texts) == 1
    assert told in texts[0]
    assert "secret" not in texts[0]
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("variables", "level", "told"),
    [
        ({"AGENTSRV_PORT": "tcp://10.96.0.7:8765"}, Level.WARN, "Kubernetes"),
        ({"SSL_CERT_FILE": "/no/file.pem"}, Level.FAIL, "/no/file.pem"),
    ],
)
async def test_variables_of_others_are_told(monkeypatch, variables, level, told):
    """Those that do not concern the server are a warning, those without which TLS fails are not."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found_level, text = await found("variable")
    assert (found_level, told in text) == (level, True), text


async def test_a_port_that_is_taken_is_told():
    """With the process that has it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        level, text = await found("address", port=taken.getsockname()[1])
    assert (level, f"taken by process {os.getpid()}" in text) == (Level.FAIL, True), text
    level, text = await found("address", host="no.such.host.invalid")
    assert (level, "cannot be resolved" in text) == (Level.FAIL, True), text


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"key_file": "nowhere"}, "nowhere"),
        ({"tls_cert": "c", "tls_key": "k"}, "tls_cert"),
        ({"host": "0.0.0.0"}, "which others can reach"),
        ({"jwt_algorithm": "HS256", "jwt_issuer": "i", "jwt_audience": "a"}, "jwt_key or jwt_jwks"),
    ],
)
async def test_what_keeps_a_server_from_its_start_is_told(given, told):
    """In the sentence of the server."""
    level, text = await found("access", **given)
    assert (level, told in text) == (Level.FAIL, True), text


@pytest.mark.parametrize(("end", "told"), [(b"", False), (b"\n", True), (b"\r\n", True)])
async def test_a_line_end_of_a_secret_is_told(folder, end, told):
    """It is not part of the secret."""
    (folder / "secret").write_bytes(b"s" * 40 + end)
    jwt = {"jwt_algorithm": "HS256", "jwt_issuer": "i", "jwt_audience": "a", "jwt_key": "secret"}
    level, text = await found("jwt_key", **jwt)
    assert (level, "40 bytes" in text, "line end" in text) == (Level.OK, True, told)
