"""Files that settings name: whatever is no regular file is refused, and never waited for."""

import inspect
import os
import socket
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from agentsrv.agents.llm import Endpoint
from agentsrv.client import Client, Options
from agentsrv.engine.vault import Vault
from agentsrv.errors import ConfigurationError
from agentsrv.server.auth.authenticator import open_authenticator
from agentsrv.server.auth.keys import add_key, make_key
from agentsrv.server.startup_checks import tls_context
from agentsrv.settings import Settings
from tests.support.certificates import make_certificate


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


MAKE: dict[str, Callable[[Path], Any]] = {
    "a folder": Path.mkdir,
    "a named pipe": os.mkfifo,
    "a socket": _socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
}


async def _access(path: Path, **settings: Any) -> None:
    await open_authenticator(Settings(**settings), lambda: 0.0)


def _add_key(path: Path) -> None:
    add_key(path, make_key("ada", date(2026, 1, 1))[1])


def _tls_cert(path: Path) -> None:
    _, key = make_certificate(path.parent)
    tls_context(Settings(tls_cert=path, tls_key=key))


def _tls_key(path: Path) -> None:
    certificate, _ = make_certificate(path.parent)
    tls_context(Settings(tls_cert=certificate, tls_key=path))


TOKENS = {"jwt_issuer": "https://issuer.example", "jwt_audience": "agentsrv"}
READ: dict[str, Callable[[Path], Any]] = {
    "key_file": lambda path: _access(path, key_file=path),
    "key_file, written": _add_key,
    "jwt_key": lambda path: _access(path, jwt_key=path, jwt_algorithm="HS256", **TOKENS),
    "jwt_jwks": lambda path: _access(path, jwt_jwks=str(path), jwt_algorithm="RS256", **TOKENS),
    "tls_cert": _tls_cert,
    "tls_key": _tls_key,
    "the key for secret answers": lambda path: Vault(None, path).load(),
    "ca": lambda path: Client("wss://localhost", Options(ca=path)),
}


async def _refused(read: Callable[[], Any], told: str) -> None:
    async def reading() -> None:
        found = read()
        if inspect.isawaitable(found):
            await found

    with pytest.raises(ConfigurationError, match=told):
        await reading()


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("name", READ)
async def test_what_is_no_regular_file_is_refused_by_its_setting(name, kind, tmp_path):
    """A pipe has nobody who writes, and a device no end."""
    path = tmp_path / "named"
    MAKE[kind](path)
    setting = name.partition(",")[0]
    await _refused(lambda: READ[name](path), f"{setting} is .*named', which is {kind}; expected")


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("reader", ["client", "model"])
async def test_the_file_of_the_variable_is_one_too(reader, kind, tmp_path, monkeypatch):
    """The client and the model's endpoint read it."""
    path = tmp_path / "named"
    MAKE[kind](path)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    read = {
        "client": lambda: Client("wss://localhost"),
        "model": lambda: Endpoint("https://x/v1", None, 1.0),
    }
    await _refused(read[reader], f"SSL_CERT_FILE is .*named', which is {kind}")


@pytest.mark.parametrize("name", [".env", "agentsrv.toml"])
def test_a_file_of_settings_that_is_a_pipe_is_refused(name, tmp_path, monkeypatch):
    """Before it is opened."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo(name)
    with pytest.raises(ConfigurationError, match=f"{name}, which is a named pipe"):
        Settings()
