"""No token comes into the log of a real server, in whatever way it is given."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from agentsrv.server.auth.keys import make_key
from tests.support.handshakes import shout
from tests.support.principals import TODAY

GOOD_KEY, _GOOD = make_key("ada", TODAY)
OTHER_KEY, _ = make_key("eve", TODAY)
JWT = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJzZWNyZXQtc3ViamVjdCJ9.c2VjcmV0LXNpZ25hdHVyZQ"
TOKENS = {"right": GOOD_KEY, "unknown": OTHER_KEY, "forged": JWT, "nonsense": "s3cr3t-nonsense"}


def by_header(token):
    """As programs do."""
    return {"additional_headers": {"Authorization": f"Bearer {token}"}}, "/", []


def by_another_scheme(token):
    """Nobody should, and somebody will."""
    return {"additional_headers": {"Authorization": f"Basic {token}"}}, "/", []


def by_subprotocol(token):
    """As browsers must."""
    return {"subprotocols": ["agentsrv.v1", f"bearer.{token}"]}, "/", []


def by_path(token):
    """This is no way, and people try it."""
    return {}, f"/?token={token}", []


def by_command(token):
    """The first command, and the line of a person."""
    return {}, "/", [json.dumps({"command": "auth", "token": token})]


def by_line(token):
    """Typed."""
    return {}, "/", [f"auth {token}"]


def by_broken_frames(token):
    """Whatever is wrong with them is told without them."""
    return {}, "/", [f'{{"command": "auth", "token": "{token}"', f"atuh {token}"]


def by_wrong_fields(token):
    """A field that is too long, of another type, or of another name."""
    return {}, "/", [
        json.dumps({"command": "auth", "tokn": token}),
        json.dumps({"command": "auth", "token": [token]}),
        json.dumps({"command": "auth", "token": token * 400}),
        json.dumps({"command": "create", "task_description": token, "traceparent": token}),
    ]  # fmt: skip


WAYS = (
    by_header, by_another_scheme, by_subprotocol, by_path, by_command, by_line,
    by_broken_frames, by_wrong_fields,
)  # fmt: skip


def broken(token):
    """Requests that are none, each with the token where it is looked at or quoted."""
    begin = ("GET / HTTP/1.1", "Host: 127.0.0.1", "Upgrade: websocket", "Connection: Upgrade")
    yield (*begin, f"Authorization: Bearer {token}\x01")
    yield (*begin, f"Authorization Bearer {token}")
    yield (*begin, f"Sec-WebSocket-Protocol: bearer.{token}/\x80")
    yield (*begin, "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {token}")
    yield (f"GET /{token}\x01 HTTP/1.1", *begin[1:])
    yield (f"POST /{token} HTTP/1.1", "Host: 127.0.0.1")
    yield (f"GET /metrics?token={token} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: {token}")
    yield (token, "Host: 127.0.0.1")


VERBOSE = """
import logging
from agentsrv import App
logging.basicConfig(level=logging.DEBUG)
logging.getLogger().setLevel(logging.DEBUG)
app = App()
"""


@pytest.fixture(params=["--log-format=text", "--log-format=json", "mine:app"])
def log(request, tmp_path):
    """Serves with one key, in each format and with all that libraries tell at the finest level."""
    (tmp_path / "mine.py").write_text(VERBOSE)
    command = [sys.executable, "-m", "agentsrv", "serve", "--port=0", "--store=memory:"]
    keys = f"--api-keys={_GOOD.line().strip()}"
    process = subprocess.Popen(
        [*command, keys, request.param], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    stderr = process.stderr
    assert stderr is not None
    lines = []

    def url():
        while True:
            lines.append(stderr.readline())
            found = lines[-1].partition("listening on ")[2]
            if found:
                return found.strip().rstrip('"}')

    def whole():
        process.terminate()
        lines.append(process.communicate(timeout=20)[1])
        return "".join(lines)

    yield url, whole
    process.kill()
    process.wait()
    stderr.close()


async def test_no_token_comes_into_the_log(log):
    """Right or wrong, by every way, and the log is not silent about those who were refused."""
    start, whole = log
    url = start()
    came_in = 0
    for way in WAYS:
        for token in TOKENS.values():
            options, path, frames = way(token)
            with suppress(InvalidHandshake, ConnectionClosed):
                async with connect(url + path, **options) as socket:
                    hello = json.loads(await socket.recv())
                    came_in += hello["authenticated"]
                    for frame in frames:
                        await socket.send(frame)
                        came_in += json.loads(await socket.recv())["type"] == "reply"
            for lines in broken(token):
                assert not (await shout(int(url.rpartition(":")[2]), *lines)).startswith(
                    b"HTTP/1.1 1"
                )
    text = whole()
    assert came_in == 4  # the right one: by header, by subprotocol, by command and by line
    assert "refused" in text
    for name, token in TOKENS.items():
        assert token not in text, name
        assert token[12:30] not in text, name
