"""What a server may be exposed to."""

from __future__ import annotations

import asyncio
import ssl

import pytest
from websockets.asyncio.client import connect

from agentsrv.client import Client
from agentsrv.errors import ConfigurationError
from agentsrv.server.startup_checks import (
    client_address,
    host_of,
    is_loopback,
    origin_of,
    tls_context,
)
from agentsrv.settings import Settings
from tests.support.certificates import make_certificate
from tests.support.clients import run_task
from tests.support.principals import ADA
from tests.support.talk import Talk, serving


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("LOCALHOST", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("192.0.2.1", False),
        ("localhost.example", False),
        ("127.0.0.1.example", False),
    ],
)
def test_only_loopback_is_loopback(host, expected):
    """All addresses of this machine and names that only look alike are not."""
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", ["203.0.113.7"], "203.0.113.7"),
        ("127.0.0.1", ["198.51.100.1, 203.0.113.7"], "203.0.113.7"),
        ("127.0.0.1", ["198.51.100.1", "203.0.113.7"], "203.0.113.7"),
        ("127.0.0.1", ["203.0.113.7, 10.1.2.3"], "203.0.113.7"),
        ("127.0.0.1", ["10.1.2.3"], "10.1.2.3"),
        ("127.0.0.1", ["203.0.113.7, nonsense\n"], "127.0.0.1"),
        ("127.0.0.1", [""], "127.0.0.1"),
        ("192.0.2.9", ["203.0.113.7"], "192.0.2.9"),
        ("::1", ["2001:db8::1"], "::1"),
        ("127.0.0.1", ["203.0.113.7:5678"], "203.0.113.7"),
        ("127.0.0.1", ["198.51.100.1:1, 203.0.113.7:2, 10.1.2.3:3"], "203.0.113.7"),
        ("127.0.0.1", ["2001:db8::1"], "2001:db8::1"),
        ("127.0.0.1", ["[2001:db8::1]"], "2001:db8::1"),
        ("127.0.0.1", ["[2001:db8::1]:443"], "2001:db8::1"),
        ("127.0.0.1", ['"[2001:db8::1]:443"'], "2001:db8::1"),
        ("127.0.0.1", ["203.0.113.7:"], "203.0.113.7"),
        ("127.0.0.1", ["[2001:db8::1]x"], "127.0.0.1"),
        ("127.0.0.1", ["[2001:db8::1"], "2001:db8::1"),
        ("127.0.0.1", ["app.example:443"], "127.0.0.1"),
        ("127.0.0.1", ["unknown"], "127.0.0.1"),
        ("::ffff:127.0.0.1", ["203.0.113.7"], "203.0.113.7"),
        ("127.0.0.1", ["203.0.113.7, ::ffff:10.1.2.3"], "203.0.113.7"),
        ("127.0.0.1", ["[::ffff:203.0.113.7]:80"], "203.0.113.7"),
    ],
)
def test_the_word_of_our_proxies_is_taken_and_nobody_elses(peer, forwarded, address):
    """What stands left of the first address that is none of ours may be made up."""
    assert client_address(peer, forwarded, ["127.0.0.1", "10.0.0.0/8"]) == address


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://app.example", "https://app.example"),
        ("https://app.example:443", "https://app.example"),
        ("http://app.example:80", "http://app.example"),
        ("https://app.example:80", "https://app.example:80"),
        ("http://app.example:8080/", "http://app.example:8080"),
        ("HTTPS://APP.Example", "https://app.example"),
        (" https://app.example ", "https://app.example"),
        ("https://b\u00fccher.example", "https://xn--bcher-kva.example"),
        ("http://[::1]:80", "http://[::1]"),
        ("http://[::1]:8765", "http://[::1]:8765"),
        ("chrome-extension://abcdefgh", "chrome-extension://abcdefgh"),
        ("*", None),
        ("https://*.example", None),
        ("app.example", None),
        ("app.example:443", None),
        ("//app.example", None),
        ("https://", None),
        ("https://app.example/page", None),
        ("https://app.example?x", None),
        ("https://ada@app.example", None),
        ("https://app.example:https", None),
        ("https://app.example, https://b.example", None),
        ("https://[", None),
        ("https://" + "a" * 300 + ".example", None),
        ("wss://app.example", None),
        ("ws://app.example:80", None),
        ("null", None),
        ("", None),
    ],
)
def test_an_origin_is_written_as_browsers_write_it(url, origin):
    """In lower case, and without the scheme's own port."""
    assert origin_of(url) == origin


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("app.example", "app.example"),
        ("APP.example:443", "app.example"),
        ("192.0.2.1:80", "192.0.2.1"),
        ("::1", "::1"),
        ("[::1]:8765", "::1"),
        ("b\u00fccher.example", "xn--bcher-kva.example"),
        ("https://app.example", None),
        ("app.example/", None),
        ("*", None),
        ("*.example", None),
        ("ada@app.example", None),
        ("app.example:http", None),
        ("a b", None),
        ("[", None),
        ("", None),
    ],
)
def test_a_host_is_a_name_or_an_address(name, host):
    """Without a port."""
    assert host_of(name) == host


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"allowed_origins": "*"}, "'\\*', which is not an origin .* https://app.example$"),
        ({"allowed_origins": "app.example"}, "expected scheme://host .* https://app.example$"),
        ({"allowed_origins": "wss://b.example"}, "such as https://b.example$"),
        ({"allowed_origins": "WS://b.example:80"}, "such as http://b.example$"),
        ({"allowed_origins": "b.example:443"}, "such as https://b.example$"),
        ({"allowed_origins": "https://a.example,null"}, "allowed_origins contains 'null'"),
        ({"allowed_origins": "https://*.example"}, "which is not an origin"),
        ({"allowed_origins": "https://a.example/page"}, "which is not an origin"),
        ({"allowed_hosts": "https://a.example"}, "which is not a host name .* such as a.example$"),
        ({"allowed_hosts": "*"}, "which is not a host name"),
        ({"allowed_hosts": "a.example,*.example"}, "allowed_hosts contains '\\*.example'"),
        ({"allowed_hosts": "a.example/ws"}, "which is not a host name"),
    ],
)
async def test_a_name_that_can_never_match_is_refused_at_the_start(names, expected):
    """Instead of refusing all who come by it."""
    with pytest.raises(ConfigurationError, match=expected):
        async with serving(**names):
            pass


async def test_a_server_speaks_tls(tmp_path, monkeypatch):
    """Clients that trust its certificate run tasks; plain text is not answered."""
    cert, key = make_certificate(tmp_path)
    async with serving(tls_cert=cert, tls_key=key) as server:
        assert server.url.startswith("wss://127.0.0.1:")
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        async with Client(server.url) as client:
            assert (await run_task(client, "x", agent="echo")).final_output == "x"
        async with connect(server.url) as socket:
            assert (await Talk(socket).next())["type"] == "hello"
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert not (await reader.read()).startswith(b"HTTP")
        writer.close()


def test_old_versions_of_tls_are_refused(tmp_path):
    """Whatever the machine's defaults are."""
    cert, key = make_certificate(tmp_path)
    context = tls_context(Settings(tls_cert=cert, tls_key=key))
    assert context is not None
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


async def test_behind_a_proxy_nobody_asks_for_tls():
    """The proxy encrypts, so others may reach the address."""
    async with serving(host="0.0.0.0", behind_proxy=True, api_keys=ADA) as server:
        assert server.url.startswith("ws://0.0.0.0:")
