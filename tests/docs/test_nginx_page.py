"""docs/nginx.md: its configuration, in a real nginx before a real server."""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
import ssl
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.docs.pages import of
from tests.server.certificates import make_certificate
from tests.server.people import ADA, ADA_KEY, bearer
from tests.server.talk import Talk, serving

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
WHOLE = """
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{page}
}}
"""


def configured(folder: Path, port: int, upstream: int) -> Path:
    """The page's configuration, with other ports and another certificate."""
    (page,) = of("nginx.md", "nginx")
    certificate, key = make_certificate(folder)
    for theirs, ours in {
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "127.0.0.1:8765": f"127.0.0.1:{upstream}",
        "/etc/ssl/agents.example.pem": str(certificate),
        "/etc/ssl/agents.example.key": str(key),
    }.items():
        assert theirs in page
        page = page.replace(theirs, ours)
    file = folder / "nginx.conf"
    file.write_text(WHOLE.format(folder=folder, page=page))
    return file


@pytest.mark.interop
@pytest.mark.skipif(NGINX is None, reason="there is no nginx")
async def test_clients_come_through_with_their_address(tmp_path, caplog):
    """By the public name; another's word about the address is not believed."""
    caplog.set_level(logging.INFO, "agentsrv.door")
    assert NGINX is not None
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    trust = ssl.create_default_context()
    async with serving(api_keys=ADA, behind_proxy=True, allowed_hosts=["agents.example"]) as server:
        upstream = int(server.url.rpartition(":")[2])
        file = configured(tmp_path, port, upstream)
        trust.load_verify_locations(tmp_path / "cert.pem")
        process = await asyncio.create_subprocess_exec(
            NGINX, "-p", str(tmp_path), "-c", str(file), "-e", str(tmp_path / "error.log")
        )
        options = {"host": "127.0.0.1", "port": port, "ssl": trust, "server_hostname": "localhost"}
        url = "wss://agents.example/"
        try:
            for _ in range(200):
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    break
            async with connect(url, additional_headers=bearer(ADA_KEY), **options) as socket_:
                talk = Talk(socket_)
                assert (await talk.next())["authenticated"] is True
                await talk.send(
                    {"command": "create", "task_description": "x", "agent": "echo", "execute": True}
                )
                assert (await talk.until("task_completed"))["data"]["final_output"] == "x"
            forged = {**bearer("agentsrv_0"), "X-Forwarded-For": "203.0.113.9"}
            with pytest.raises(InvalidStatus) as refused:
                await connect(url, additional_headers=forged, **options)
            assert refused.value.response.status_code == 401
            told = [record.getMessage() for record in caplog.records]
            assert "refused 127.0.0.1: HTTP 401" in told
        finally:
            process.terminate()
            await process.wait()
