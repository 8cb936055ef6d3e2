"""The files for deployment, as far as a machine without Docker and systemd can try them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from agentsrv.settings import Settings
from tests.support.certificates import make_certificate
from tests.support.principals import ADA, ADA_KEY, bearer
from tests.support.programs import require
from tests.support.server_process import ServerProcess, free_port, wait_for_port
from tests.support.talk import Talk

ROOT: Final = Path(__file__).parents[3]
DEPLOY: Final = ROOT / "examples" / "deploy"
NAME: Final = "agents.example"
SILENCE: Final = 1.0  # seconds after which nginx gives up here, in place of a minute
PING: Final = 0.2  # seconds between the server's pings here, in place of 20
EXPOSED: Final = 20  # of 100, in systemd's own rating; below, it calls a unit OK
WRAPPER: Final = """
daemon off;
pid {folder}/nginx.pid;
error_log stderr;
worker_processes 1;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/site.conf;
}}
"""


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's, each with its arguments."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    found = [line.partition(" ") for line in lines if line]
    return [(name, " ".join(arguments.split())) for name, _, arguments in found]


def replaced(text: str, **changes: str) -> str:
    """A file with each ``old`` in it put in its place; all of them must be there."""
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


def test_the_image_is_pinned_unprivileged_and_without_secrets():
    """As its file says it; what is copied into it is in the checkout."""
    steps = instructions()
    for name, arguments in steps:
        if name == "FROM":
            assert re.match(r"python:3\.\d+\.\d+-slim-\w+( AS build)?$", arguments)
        if name == "COPY" and "--from" not in arguments:
            *sources, _ = arguments.split()
            assert all((ROOT / source).exists() for source in sources)
    last = max(place for place, (name, _) in enumerate(steps) if name == "FROM")
    users = [arguments for name, arguments in steps[last:] if name == "USER"]
    assert users == ["10001"]
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    variables = dict(re.findall(r"AGENTSRV_(\w+)=(\S+)", dict(steps)["ENV"]))
    assert variables.keys() == {"HOST", "PORT", "STORE"}
    settings = Settings(**{name.lower(): value for name, value in variables.items()})
    assert settings.store == "sqlite:////data/agentsrv.db"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """As the examples run it, but for pings that come sooner."""
    process = ServerProcess(
        tmp_path_factory.mktemp("deployed"),
        "tests.e2e.acceptance.app:app",
        "--behind-proxy",
        f"--allowed-hosts={NAME}",
        f"--ping-interval={PING}",
        environment={"AGENTSRV_API_KEYS": ADA},
    )
    process.start()
    yield process
    assert process.stop() == 0


def test_the_health_check_of_the_image_tells_whether_the_server_lives(server):
    """By its exit status."""
    (check,) = [arguments for name, arguments in instructions() if name == "HEALTHCHECK"]
    _, *arguments = json.loads(check.partition("CMD ")[2])
    for port, status in ((server.port, 0), (free_port(), 1)):
        result = subprocess.run(
            [sys.executable, *arguments],
            env=os.environ | {"AGENTSRV_PORT": str(port)},
            capture_output=True,
            check=False,
        )
        assert result.returncode == status, result.stderr


@pytest.mark.interop
def test_systemd_accepts_the_unit_and_finds_it_sandboxed(tmp_path):
    """No line that it does not know, and an exposure that it calls OK."""
    require("systemd-analyze")
    unit = tmp_path / "agentsrv.service"
    program = f"{sys.executable} -m agentsrv"
    unit.write_text(
        replaced(
            (DEPLOY / "agentsrv.service").read_text(),
            **{"/opt/agentsrv/bin/agentsrv": program},
        )
    )
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSED}", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert rated.returncode == 0, rated.stdout


@pytest.fixture
def nginx(server: ServerProcess, tmp_path: Path) -> Iterator[int]:
    """The real one, with the example but for addresses, files and a shorter patience; its port."""
    program = require("nginx")
    certificate, key = make_certificate(tmp_path)
    port = free_port()
    changes = {
        "127.0.0.1:8765": f"127.0.0.1:{server.port}",
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        f"/etc/ssl/{NAME}.pem": str(certificate),
        f"/etc/ssl/private/{NAME}.key": str(key),
        "proxy_read_timeout 60s": f"proxy_read_timeout {SILENCE:g}s",
    }
    (tmp_path / "site.conf").write_text(replaced((DEPLOY / "nginx.conf").read_text(), **changes))
    (tmp_path / "nginx.conf").write_text(WRAPPER.format(folder=tmp_path))
    command = [program, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"), "-e", "stderr"]
    with (tmp_path / "nginx.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        started = wait_for_port(port, lambda: process.poll() is None)
        assert started, (tmp_path / "nginx.log").read_text()
        yield port
    finally:
        process.terminate()
        process.wait()


def through(port: int, local: str = "127.0.0.1", **headers: str) -> Any:
    """Connect through nginx, as a client would by its name."""
    trusted = ssl.create_default_context()
    trusted.check_hostname = False  # the certificate is for localhost
    trusted.verify_mode = ssl.CERT_NONE
    return connect(
        f"wss://{NAME}:{port}",
        host="127.0.0.1",
        local_addr=(local, 0),
        ssl=trusted,
        additional_headers=bearer(ADA_KEY) | headers,
        proxy=None,
        max_size=None,
    )


@pytest.mark.interop
async def test_a_task_runs_through_nginx(server, nginx):
    """Over TLS, with a frame of nearly a megabyte in, and one as large out."""
    async with through(nginx) as socket:
        talk = Talk(socket)
        hello = await talk.next()
        assert hello["authenticated"]
        text = "x" * 30_000
        params = {"times": 30, "more": "y" * 1_000_000}
        await talk.ask({"command": "create", "task_description": text, "agent": "echo",
                        "params": params, "execute": True})  # fmt: skip
        completed = await talk.until("task_completed")
        assert completed["data"]["final_output"] == text * 30


@pytest.mark.interop
async def test_a_connection_that_is_silent_stays_open(server, nginx):
    """The server's pings keep it, for longer than nginx would wait."""
    async with through(nginx) as socket:
        talk = Talk(socket)
        await talk.next()
        await asyncio.sleep(2 * SILENCE)  # of nginx's own clock, which no test can wind
        assert (await talk.ask("ping"))["type"] == "reply"


@pytest.mark.interop
async def test_the_log_tells_the_client_that_nginx_saw(server, nginx):
    """And not whom the client claims to be; a page of another site is turned away."""
    with pytest.raises(InvalidStatus) as refused:
        async with through(
            nginx, "127.0.0.2", Origin="https://evil.example", **{"X-Forwarded-For": "6.6.6.6"}
        ):
            pass
    assert refused.value.response.status_code == 403
    own = f"https://{NAME}:{nginx}"
    async with through(nginx, Origin=own) as socket:
        assert (await Talk(socket).next())["type"] == "hello"
    assert "6.6.6.6" not in server.wait_for_log("refused 127.0.0.2: HTTP 403")


@pytest.mark.interop
async def test_plain_requests_pass_nginx(nginx, server):
    """Health, as a balancer asks for it."""
    trusted = ssl.create_default_context()
    trusted.check_hostname = False
    trusted.verify_mode = ssl.CERT_NONE
    reader, writer = await asyncio.open_connection("127.0.0.1", nginx, ssl=trusted)
    writer.write(f"GET /healthz HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"ok\n")
