"""Certificates of servers: which are trusted, and what is said about the others."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest

from agentsrv.client import Client, Options
from agentsrv.client.errors import ServerUnavailableError
from agentsrv.errors import ConfigurationError
from tests.support.certificates import make_certificate
from tests.support.talk import serving


@pytest.fixture
async def secure(tmp_path):
    """A server with a certificate that it signed itself: its URL and the file."""
    certificate, key = make_certificate(tmp_path)
    async with serving(tls_cert=certificate, tls_key=key) as server:
        yield server.url, certificate


async def test_a_certificate_is_trusted_by_the_file_of_its_ca(secure):
    """That of a server is one, if it signed itself."""
    url, certificate = secure
    for ca in (certificate, str(certificate)):
        async with Client(url, Options(ca=ca)) as client:
            assert client.hello.protocol


async def test_a_certificate_is_trusted_by_the_variable(secure, monkeypatch):
    """As OpenSSL reads it."""
    url, certificate = secure
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with Client(url) as client:
        assert client.hello.protocol


@pytest.mark.parametrize("variable", [None, "/no/such/file.pem"])
async def test_a_certificate_that_is_not_trusted_is_told_with_the_option(
    secure, monkeypatch, variable
):
    """And with the variable."""
    url, _ = secure
    if variable is not None:
        monkeypatch.setenv("SSL_CERT_FILE", variable)
    with pytest.raises(
        ServerUnavailableError, match=r"not trusted: self.signed .*--ca FILE"
    ) as refused:
        async with Client(url):
            pass
    assert url in refused.value.message
    assert "SSL_CERT_FILE" in refused.value.message
    assert variable is None or variable in refused.value.message


async def test_a_certificate_of_another_ca_is_not_trusted(secure, tmp_path):
    """Only those of the file are."""
    (tmp_path / "other").mkdir()
    other, _ = make_certificate(tmp_path / "other")
    with pytest.raises(ServerUnavailableError, match="not trusted"):
        async with Client(secure[0], Options(ca=other)):
            pass


async def test_a_certificate_of_another_name_needs_the_name(secure):
    """The file of the CA would not help."""
    url, certificate = secure
    with pytest.raises(ServerUnavailableError, match="connect by a name that the certificate has"):
        async with Client(url.replace("127.0.0.1", "0.0.0.0"), Options(ca=certificate)):
            pass


@pytest.mark.parametrize("content", [None, b"", b"nonsense", b"\0" * 99, "key"])
def test_a_file_without_a_certificate_is_refused(tmp_path, content):
    """When the client is made, with its name."""
    file = tmp_path / "ca.pem"
    if content == "key":
        file = make_certificate(tmp_path)[1]
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"ca is '.*pem'.*; expected a (PEM )?file"):
        Client("wss://127.0.0.1:1", Options(ca=file))


@pytest.mark.parametrize("way", ["--ca", "AGENTSRV_CA", "SSL_CERT_FILE"])
async def test_the_commands_take_the_file(secure, way):
    """As an option and as a variable."""
    url, certificate = secure
    option = (way, str(certificate)) if way == "--ca" else ()
    variable = {} if option else {way: str(certificate)}
    command = (sys.executable, "-m", "agentsrv", "list", "--url", url)
    assert "--ca FILE" in (await run(*command)).stderr
    ran = await run(*command, *option, **variable)
    assert (ran.returncode, ran.stderr) == (0, "")


async def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program while the loop serves."""
    return await asyncio.to_thread(
        subprocess.run,
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **variables},
    )
