import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from agentsrv.server.auth.keys import read_keys
from agentsrv.settings import Settings
from tests.support.cli import app, in_a_thread
from tests.support.principals import ADA, ADA_KEY, BOB_KEY


@pytest.fixture
def guarded(monkeypatch) -> Iterator[str]:
    """A server that lets Ada in, and nobody else."""

    @asynccontextmanager
    async def serving() -> AsyncIterator[str]:
        settings = Settings(port=0, store="memory:", drain_timeout=0.01, api_keys=ADA)  # type: ignore[arg-type]
        async with app.running(settings) as running:
            yield running.url

    yield from in_a_thread(serving)


@pytest.fixture
def keys(agentsrv, tmp_path, monkeypatch):
    """Runs ``agentsrv keys`` on a file of its own."""
    monkeypatch.setenv("AGENTSRV_KEY_FILE", str(tmp_path / "keys"))
    return lambda *arguments: agentsrv("keys", *arguments)


def test_a_key_is_made_listed_and_revoked(keys, tmp_path):
    """It is shown once; the list has its id, and the file neither."""
    made = keys("create", "ada")
    text = made.out.strip()
    assert (made.code, made.out.count("\n")) == (0, 1)
    assert text.startswith("agentsrv_")
    assert text not in made.err
    key_id = text.split("_")[1]
    listed = keys("list")
    assert listed.out.startswith(f"{key_id}  ada  created ")
    assert text not in listed.out + (tmp_path / "keys").read_text()
    row = json.loads(keys("list", "--json").out)
    assert (row["key_id"], row["principal"], row["revoked"]) == (key_id, "ada", None)
    assert "digest" not in row
    for _ in range(2):
        assert keys("revoke", key_id).out == f"key {key_id} of ada is revoked\n"
    assert ", revoked 2" in keys("list").out
    assert len((tmp_path / "keys").read_text().splitlines()) == 2


def test_the_file_may_be_named(agentsrv, tmp_path):
    """Beside the one of the server, or where there is none."""
    file = tmp_path / "others"
    assert agentsrv("keys", "create", "bob", "--key-file", str(file)).code == 0
    assert [key.principal for key in read_keys(file).values()] == ["bob"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("create", "no name"), "expected up to 64"),
        (("revoke", "00000000"), "has no key '00000000'"),
    ],
)
def test_what_cannot_be_is_told(keys, arguments, sentence):
    """In one sentence, with the exit code of a wrong use."""
    result = keys(*arguments)
    assert (result.code, result.out) == (2, "")
    assert sentence in result.err


def test_without_a_file_there_are_no_keys(agentsrv):
    """The sentence says what to set."""
    result = agentsrv("keys", "list")
    assert (result.code, result.out) == (2, "")
    assert "expected --key-file" in result.err


def test_commands_say_who_asks(agentsrv, guarded, monkeypatch):
    """By an option or the variable; who is not let in is told so by exit code 4."""
    task = ("run", "Greet", "--agent", "greeter", "--param", "name=Ada", "--url", guarded)
    assert agentsrv(*task, "--token", ADA_KEY).out == "Hello Ada\n"
    for arguments in (task, ("list", "--url", guarded)):
        refused = agentsrv(*arguments)
        assert (refused.code, refused.out) == (4, "")
        assert "expected a token" in refused.err
        refused = agentsrv(*arguments, "--token", BOB_KEY)
        assert (refused.code, refused.out) == (4, "")
        assert "rejects the token" in refused.err
        assert BOB_KEY not in refused.err
    monkeypatch.setenv("AGENTSRV_TOKEN", ADA_KEY)
    assert "Greet" in agentsrv("list", "--url", guarded).out
    assert ADA_KEY not in agentsrv("list", "--help").out


def test_a_process_that_serves_itself_asks_nobody(agentsrv, monkeypatch, tmp_path):
    """Whatever the settings of the server say that is not there."""
    monkeypatch.setattr("agentsrv.cli.running.DEFAULT_URL", "ws://127.0.0.1:1")
    monkeypatch.delenv("AGENTSRV_URL")
    monkeypatch.setenv("AGENTSRV_API_KEYS", ADA)
    monkeypatch.setenv("AGENTSRV_BEHIND_PROXY", "true")
    monkeypatch.setenv("AGENTSRV_TLS_CERT", "none.pem")
    monkeypatch.setenv("AGENTSRV_JWT_ISSUER", "https://issuer.example")
    monkeypatch.setenv("AGENTSRV_KEY_FILE", str(tmp_path / "none"))
    result = agentsrv("run", "What is there?")
    assert result.code == 0, result.err
