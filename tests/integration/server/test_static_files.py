"""Pages over HTTP, as a client that knows HTTP gets them from a server that runs."""

from __future__ import annotations

import asyncio
import gzip
import re
from http.client import HTTPConnection
from importlib.resources import files

import orjson
import pytest

from agentsrv.protocol.schema import document
from agentsrv.version import __version__
from agentsrv.wiring import Server
from tests.support.talk import serving

KINDS = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
Answer = tuple[int, dict[str, str], bytes]


async def request(server: Server, method: str, path: str, **headers: str) -> Answer:
    """The status, the headers by their names in lower case, and the body."""

    def ask() -> Answer:
        connection = HTTPConnection("127.0.0.1", server.port, timeout=30)
        try:
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, headers=given)
            answer = connection.getresponse()
            told = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, told, answer.read()
        finally:
            connection.close()

    return await asyncio.to_thread(ask)


async def test_the_schema_is_served():
    """It is that of the server's version."""
    async with serving() as server:
        status, headers, body = await request(server, "GET", "/asyncapi.json")
    assert (status, headers["content-type"]) == (200, "application/json")
    assert "content-encoding" not in headers
    assert orjson.loads(body) == orjson.loads(orjson.dumps(document(__version__)))


@pytest.mark.parametrize(
    ("accepted", "is_compressed"),
    [
        ("gzip", True),
        ("deflate, GZIP;q=0.5", True),
        ("br, gzip ; q=0", False),
        ("gzip;q=0.000", False),
        ("deflate", False),
        ("identity", False),
    ],
)
async def test_it_is_compressed_where_that_is_taken(accepted, is_compressed):
    """What is taken is told by Accept-Encoding; caches are told that it matters."""
    async with serving() as server:
        _, headers, body = await request(server, "GET", "/asyncapi.json", Accept_Encoding=accepted)
    assert headers["vary"] == "Accept-Encoding"
    assert (headers.get("content-encoding") == "gzip") is is_compressed
    text = gzip.decompress(body) if is_compressed else body
    assert orjson.loads(text)["asyncapi"]


async def test_a_head_has_the_headers_and_no_body():
    """Also where there is nothing."""
    async with serving() as server:
        for path in ("/asyncapi.json", "/healthz", "/nothing"):
            got = await request(server, "GET", path)
            asked = await request(server, "HEAD", path)
            assert asked[0] == got[0]
            assert asked[1]["content-length"] == got[1]["content-length"] == str(len(got[2]))
            assert asked[2] == b""


async def test_other_methods_are_refused():
    """They are told which there are."""
    async with serving() as server:
        status, headers, _ = await request(server, "DELETE", "/asyncapi.json")
    assert (status, headers["allow"]) == (405, "GET, HEAD")


async def test_who_has_a_page_already_is_told_so():
    """By its ETag; who has another one is given the page."""
    async with serving() as server:
        _, headers, body = await request(server, "GET", "/")
        etag = headers["etag"]
        status, again, nothing = await request(server, "GET", "/", If_None_Match=f'"x", {etag}')
        other = await request(server, "GET", "/", If_None_Match='W/"x"')
    assert (status, again["etag"], nothing) == (304, etag, b"")
    assert "no-cache" in again["cache-control"]
    assert (other[0], other[2]) == (200, body)


async def test_the_console_is_served_with_a_strict_policy():
    """Each file has its type; the page names no file that is not there; nothing may come from
    outside, be framed, or become markup.
    """
    names = {file.name for file in files("agentsrv").joinpath("console").iterdir()}
    async with serving() as server:
        _, _, page = await request(server, "GET", "/")
        named = re.findall(r'(?:src|href)="console/([^"]+)"', page.decode())
        assert set(named) <= names
        answers = [await request(server, "GET", f"/console/{name}") for name in sorted(set(named))]
        assert (await request(server, "GET", "/console/index.html"))[0] == 404
        assert (await request(server, "GET", "/console/protocol.d.ts"))[0] == 404
    for (status, headers, _), name in zip(answers, sorted(set(named)), strict=True):
        assert (status, headers["content-type"].split(";")[0]) == (200, KINDS[name.split(".")[-1]])
        assert headers["x-content-type-options"] == "nosniff"
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["require-trusted-types-for"] == "'script'"
