"""Secret answers: the agent that asked is given them, and nobody else."""

from __future__ import annotations

import logging
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Secret, SecretStr

from agentsrv import App, PermanentError, Step, StepContext
from agentsrv.agents.questions import is_secret
from agentsrv.client import Client
from agentsrv.engine.agent_errors import diagnose
from agentsrv.engine.vault import Vault
from agentsrv.errors import InvalidInputError, UnavailableError
from agentsrv.resources import open_vault
from agentsrv.settings import Settings
from agentsrv.testing import serving

SECRET = "open-sesame"


class Account(BaseModel):
    name: str
    password: SecretStr


class Password(Secret[str]):
    pass


class Login(Account):
    password: Password  # type: ignore[assignment]


SCHEMAS = {
    "text": (SecretStr, SECRET),
    "model": (Account, {"name": "ann", "password": SECRET}),
    "list": (list[SecretStr], [SECRET]),
    "optional": (SecretStr | None, SECRET),
    "generic": (Secret[str], SECRET),
    "subclass of a generic one": (Password, SECRET),
    "member of a model": (Login, {"name": "ann", "password": SECRET}),
    "json schema": ({"type": "string", "writeOnly": True}, SECRET),
}


def application(seen: list[str], *, fails: bool = False) -> App:
    """An agent that asks for a secret, waits for a message, and may quote the secret."""
    app = App()

    @app.agent(retries=0)
    async def asker(step: Step, ctx: StepContext, kind: str = "text", waits: bool = False) -> str:
        answer = await ctx.ask("The password?", SCHEMAS[kind][0])
        if waits:
            async for _ in ctx.messages():
                break
        seen.append(texts_in(answer))
        if fails:
            raise ValueError(f"refused: {texts_in(answer)}")
        return "logged in"

    return app


def texts_in(answer: Any) -> str:
    """The secret in an answer."""
    while not isinstance(answer, (str, SecretStr, Secret)):
        answer = answer.password if isinstance(answer, Account) else answer[0]
    return answer if isinstance(answer, str) else answer.get_secret_value()


async def ask(client: Client, value: Any, **params: Any) -> tuple[str, list[Any]]:
    """A task that asks, answered; its id and what was seen of it until it is answered."""
    task = await client.start("x", agent="asker", params=params)
    records = []
    async for record in task.events():
        records.append(record)
        if record.event_type == "input_required":
            await task.respond(record.data["input_id"], value)
        if record.event_type == "input_received":
            break
    return task.id, records


@pytest.mark.parametrize("kind", SCHEMAS)
async def test_only_the_agent_sees_the_answer(kind, tmp_path: Path, caplog):
    """No event, status, log line or byte of the store has it; the key's file is the owner's."""
    caplog.set_level(logging.DEBUG)
    seen: list[str] = []
    file = tmp_path / "log.db"
    settings = Settings(port=0, store=f"sqlite:///{file}")
    async with application(seen).running(settings) as running, Client(running.url) as client:
        task, records = await ask(client, SCHEMAS[kind][1], kind=kind)
        records += [record async for record in client.task(task).events(records[-1].seq)]
        shown = [repr(records), repr(await client.task(task).status()), repr(await client.list())]
    assert records[-1].event_type == "task_completed"
    assert seen == [SECRET]
    assert not any(SECRET in text for text in [*shown, caplog.text])
    assert not any(SECRET.encode() in path.read_bytes() for path in tmp_path.glob("*"))  # noqa: ASYNC240
    assert stat.S_IMODE((tmp_path / "log.db.key").stat().st_mode) == 0o600


async def test_an_error_that_quotes_the_secret_is_logged_without_it(caplog):
    """Neither the event nor the traceback in the log has it."""
    caplog.set_level(logging.DEBUG, "agentsrv")
    async with serving(application([], fails=True)) as client:
        task, _ = await ask(client, SECRET)
        records = [record async for record in client.task(task).events()]
    assert records[-1].data["error_message"] == "ValueError: refused: ***"
    assert SECRET not in repr(records)
    assert "ValueError: refused: ***" in caplog.text
    assert SECRET not in caplog.text


async def test_a_wrong_answer_is_refused_without_repeating_it():
    """The question stays open."""
    async with serving(application([])) as client:
        task = await client.start("x", agent="asker", params={"kind": "model"})
        async for record in task.events():
            if record.event_type == "input_required":
                with pytest.raises(InvalidInputError) as refusal:
                    await task.respond(record.data["input_id"], {"password": SECRET})
                assert SECRET not in repr(refusal.value) + repr(refusal.value.details)
                await task.respond(record.data["input_id"], SCHEMAS["model"][1])
        assert record.event_type == "task_completed"


@pytest.mark.parametrize("lost", [False, True])
async def test_an_answer_is_read_after_a_restart_if_the_key_is_still_there(lost, tmp_path: Path):
    """Without it the step fails, and says so."""
    settings = Settings(port=0, store=f"sqlite:///{tmp_path / 'log.db'}", drain_timeout=0.1)
    seen: list[str] = []
    async with application(seen).running(settings) as running, Client(running.url) as client:
        task, _ = await ask(client, SECRET, waits=True)
    if lost:
        (tmp_path / "log.db.key").unlink()
    async with application(seen).running(settings) as running, Client(running.url) as client:
        if not lost:
            await client.task(task).send("go on")
        end = [record async for record in client.task(task).events()][-1]
    assert seen == ([] if lost else [SECRET])
    if lost:
        assert "cannot be decrypted: its key was lost or replaced" in end.data["error_message"]


async def test_without_the_extra_the_question_is_refused(monkeypatch):
    """The message says what to install."""
    monkeypatch.setitem(sys.modules, "cryptography", None)
    async with serving(application([])) as client:
        task = await client.start("x", agent="asker")
        end = [record async for record in task.events()][-1]
    assert "pip install 'agentsrv[secrets]'" in end.data["error_message"]


def test_nodes_that_share_a_key_read_each_others_answers():
    """And an answer cannot be moved to another question."""
    key = "k" * 32
    sealed = Vault(key).seal("t/s/1", {"a": SECRET})
    assert Vault(key).open("t/s/1", sealed) == {"a": SECRET}
    for vault, input_id in ((Vault(key), "t/s/2"), (Vault("o" * 32), "t/s/1"), (Vault(), "t/s/1")):
        with pytest.raises(PermanentError, match="cannot be decrypted"):
            vault.open(input_id, sealed)


def test_a_shared_store_needs_the_setting():
    """A key of one node's own would be of no use to the others."""
    with pytest.raises(PermanentError, match="needs the setting secret_key"):
        Vault(is_shared=True).prepare()
    with pytest.raises(UnavailableError, match="secret_key"):
        Vault(is_shared=True).seal("t/s/1", SECRET)


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, False),
        ({"properties": {"writeOnly": {"type": "string"}}}, False),
        ({"type": "string", "writeOnly": True}, True),
        ({"anyOf": [{"type": "null"}, {"$defs": {"a": {"writeOnly": True}}}]}, True),
    ],
)
def test_a_schema_with_write_only_is_secret(schema, expected):
    """At any depth; a property of that name is not one."""
    assert is_secret(schema) is expected


def test_a_key_is_made_whole_or_not_at_all(tmp_path, monkeypatch):
    """A disk that is full while the key is written leaves no file, and the next try makes one."""
    file = tmp_path / "store.key"

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(PermanentError, match="No space left"):
            Vault(None, file).prepare()
    assert list(tmp_path.iterdir()) == []
    vault = Vault(None, file)
    vault.prepare()
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_an_empty_key_file_is_reported(tmp_path):
    """It is not taken for a key, nor replaced."""
    (tmp_path / "store.key").touch()
    with pytest.raises(PermanentError, match="is empty"):
        Vault(None, tmp_path / "store.key").prepare()


def test_a_secret_is_in_no_text_of_a_group():
    """Neither in the message, nor cut off at its end, nor with an inner error of the traceback."""
    secrets = {SECRET, f"{SECRET}-twice"}

    def fail(text: str) -> Exception:
        try:
            raise ValueError(text)  # noqa: TRY301 - a traceback of its own
        except ValueError as error:
            return error

    inner = [fail(f"bad {SECRET}-twice"), fail("x" * 1960 + SECRET)]
    try:
        raise ExceptionGroup("both", inner)  # noqa: TRY301 - the same
    except ExceptionGroup as group:
        found = diagnose(group, None, secrets)
    texts = [found.message, *(frame.get("error") or "" for frame in found.traceback or ())]
    assert not any("open" in text for text in texts)
    assert "bad ***" in found.message
    assert any("bad ***" in text for text in texts[1:])


async def test_the_key_is_beside_the_database_itself(tmp_path: Path) -> None:
    """Each name of a database leads to the same key."""
    (tmp_path / "data").mkdir()
    (tmp_path / "link.db").symlink_to(tmp_path / "data" / "agentsrv.db")
    vault = await open_vault(Settings(store=f"sqlite:///{tmp_path}/link.db"))
    vault.prepare()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["agentsrv.db.key"]
