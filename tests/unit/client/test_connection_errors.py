"""Each way in which there is no server at a URL ends in one sentence.

It names the address, what was found there, and what to try.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler
from pathlib import Path

import pytest
from websockets.asyncio.server import serve

from agentsrv.client import (
    Client,
    NotAServerError,
    Options,
    ServerUnavailableError,
)
from agentsrv.client.connection_errors import address
from agentsrv.errors import AgentsrvError, ConfigurationError, UnauthenticatedError
from tests.support.certificates import make_certificate
from tests.support.fake_server import HELLO, FakeServer, idle

Serving = Callable[[Path], AbstractAsyncContextManager[int]]


def says(data: bytes, *, waits: bool = True) -> Serving:
    """A server that reads a request, unless it speaks first, answers and closes."""

    @asynccontextmanager
    async def serving(_: Path) -> AsyncIterator[int]:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if waits:
                await reader.read(4096)
            writer.write(data)
            if not waits:
                await reader.read(4096)
            writer.close()

        async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
            yield server.sockets[0].getsockname()[1]

    return serving


def http(status: str, *headers: str, body: str = "") -> Serving:
    """A server that answers with one HTTP response."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", body]
    return says("\r\n".join(lines).encode())


@asynccontextmanager
async def python_http(_: Path) -> AsyncIterator[int]:
    """``python -m http.server``."""
    from http.server import ThreadingHTTPServer

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Print nothing."""

    assert issubclass(Quiet, BaseHTTPRequestHandler)
    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        running = asyncio.create_task(asyncio.to_thread(server.serve_forever, 0.01))
        yield server.server_port
        server.shutdown()
        await running


@asynccontextmanager
async def tls(folder: Path) -> AsyncIterator[int]:
    """A server of the protocol, with a certificate that signs itself."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*make_certificate(folder))
    async with serve(lambda socket: socket.wait_closed(), "127.0.0.1", 0, ssl=context) as server:
        yield next(iter(server.sockets)).getsockname()[1]


@asynccontextmanager
async def nobody(_: Path) -> AsyncIterator[int]:
    """A port on which nothing listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        yield found.getsockname()[1]  # bound and not listening: nobody else can take it


@asynccontextmanager
async def silent(_: Path) -> AsyncIterator[int]:
    """A port that accepts connections and says nothing."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        found.listen()
        yield found.getsockname()[1]


@asynccontextmanager
async def websocket(_: Path) -> AsyncIterator[int]:
    """A WebSocket server of another protocol."""
    async with serve(lambda socket: socket.send("hello"), "127.0.0.1", 0) as server:
        yield next(iter(server.sockets)).getsockname()[1]


@asynccontextmanager
async def other_subprotocol(_: Path) -> AsyncIterator[int]:
    """A WebSocket server that speaks another subprotocol."""

    def choose(*_: object) -> str:
        return "graphql"

    handler = lambda socket: socket.wait_closed()  # noqa: E731
    async with serve(handler, "127.0.0.1", 0, select_subprotocol=choose) as server:  # type: ignore[arg-type]
        yield next(iter(server.sockets)).getsockname()[1]


@dataclass
class Case:
    """A URL, where ``PORT`` stands for the server's; what is raised, and what it says."""

    url: str
    serving: Serving
    error: type[AgentsrvError]
    found: str
    hint: str


PLAIN, SECURE = "ws://127.0.0.1:PORT", "wss://127.0.0.1:PORT"
CASES = {
    "refused": Case(PLAIN, nobody, ServerUnavailableError, "the connection was refused", "check the port"),
    "refused, TLS": Case(SECURE, nobody, ServerUnavailableError, "the connection was refused", "start the server"),
    "refused, two addresses": Case("ws://localhost:PORT", nobody, ServerUnavailableError, "no server at ws://localhost", ""),
    "no such name": Case("ws://no-such-host.invalid:PORT", nobody, ServerUnavailableError, "'no-such-host.invalid' cannot be resolved", "check the host"),
    "no answer": Case(PLAIN, silent, ServerUnavailableError, "no answer in time", "firewall"),
    "no answer, TLS": Case(SECURE, silent, ServerUnavailableError, "no answer in time", "firewall"),
    "plain to TLS": Case(PLAIN, tls, ServerUnavailableError, "no answer in HTTP", "try wss://"),
    "TLS to a closing port": Case(SECURE, says(b""), ServerUnavailableError, "ended during the handshake", "try ws://"),
    "TLS to HTTP": Case(SECURE, http("400 Bad Request"), ServerUnavailableError, "without TLS", "try ws://"),
    "TLS to SSH": Case(SECURE, says(b"SSH-2.0-OpenSSH_9.2\r\n", waits=False), ServerUnavailableError, "without TLS", "check the host"),
    "TLS to agentsrv": Case(SECURE, websocket, ServerUnavailableError, "ended during the handshake", "try ws://"),
    "self-signed": Case(SECURE, tls, ServerUnavailableError, "certificate is not trusted: self-signed certificate", "SSL_CERT_FILE"),
    "SSH": Case(PLAIN, says(b"SSH-2.0-OpenSSH_9.2\r\n", waits=False), NotAServerError, "found an SSH server, which sent 'SSH-2.0-OpenSSH_9.2'", "check the host"),
    "SMTP": Case(PLAIN, says(b"220 mx ESMTP Postfix\r\n", waits=False), NotAServerError, "a mail or FTP server", "check the host"),
    "FTP": Case(PLAIN, says(b"220 welcome\r\n", waits=False), NotAServerError, "a mail or FTP server", "check the host"),
    "IMAP": Case(PLAIN, says(b"* OK ready now\r\n", waits=False), NotAServerError, "an IMAP server", "check the host"),
    "Redis": Case(PLAIN, says(b"-ERR unknown command 'GET'\r\n"), NotAServerError, "a Redis server", "check the host"),
    "bytes": Case(PLAIN, says(b"\x00\x01\xff" * 9), ServerUnavailableError, "no answer in HTTP", "check the host"),
    "closes": Case(PLAIN, says(b""), ServerUnavailableError, "no answer in HTTP", "check the host"),
    "Python's HTTP server": Case(PLAIN, python_http, NotAServerError, "an HTTP server without WebSockets, which sent 'HTTP/1.0 200 OK'", "check the host"),
    "a page": Case(PLAIN, http("200 OK", body="<html>"), NotAServerError, "answers HTTP 200;", "the path"),
    "a wrong path": Case(PLAIN + "/old", http("404 Not Found", body="no such page"), NotAServerError, "HTTP 404 (no such page)", "the path"),
    "a redirect to a page": Case(PLAIN, http("302 Found", "Location: http://u:p@x.example/a?b"), NotAServerError, "redirects to http://x.example/a", "expected a WebSocket"),
    "401": Case(PLAIN, http("401 Unauthorized"), UnauthenticatedError, "HTTP 401", "check the token"),
    "403": Case(PLAIN, http("403 Forbidden", body="not from there"), UnauthenticatedError, "HTTP 403 (not from there)", "origin"),
    "502": Case(PLAIN, http("502 Bad Gateway", body="<html>"), ServerUnavailableError, "HTTP 502;", "proxy"),
    "503": Case(PLAIN, http("503 Service Unavailable"), ServerUnavailableError, "HTTP 503", "proxy"),
    "426": Case(PLAIN, http("426 Upgrade Required"), NotAServerError, "HTTP 426", "the path"),
    "101 without the rest": Case(PLAIN, http("101 Switching Protocols"), NotAServerError, "handshake is not that of a WebSocket", "check the host"),
    "another WebSocket": Case(PLAIN, websocket, NotAServerError, "found a WebSocket that sends no greeting", "expected 'agentsrv.v1'"),
    "another subprotocol": Case(PLAIN, other_subprotocol, NotAServerError, "a WebSocket of another protocol", "expected 'agentsrv.v1'"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
async def test_it_names_the_address_what_was_found_and_what_to_try(name, tmp_path):
    """And no password."""
    case = CASES[name]
    options = Options(open_timeout=0.5 if case.serving is silent else 10.0)
    async with case.serving(tmp_path) as port:
        url = case.url.replace("PORT", str(port))
        client = Client(url.replace("://", "://ada:secret@"), options)
        with pytest.raises(case.error) as raised:
            await client.__aenter__()
    message = raised.value.message
    assert url in message
    assert case.found in message
    assert case.hint in message
    assert "secret" not in message
    assert type(raised.value) is case.error


PROXIES = {
    "not there": ("http://127.0.0.1:1", ServerUnavailableError, "the connection was refused"),
    "of no known kind": ("gopher://127.0.0.1:1", ConfigurationError, "HTTPS_PROXY"),
    "SOCKS, without its library": ("socks5://127.0.0.1:1", ConfigurationError, "python-socks"),
}


@pytest.mark.parametrize("name", PROXIES)
async def test_a_proxy_of_the_environment_is_named(name, monkeypatch):
    """It is what fails, not the server."""
    proxy, error, found = PROXIES[name]
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(variable, proxy)
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(error, match=found):
        await Client("ws://agents.example:80").__aenter__()


async def test_a_proxy_that_refuses_is_named(monkeypatch, tmp_path):
    """With its status."""
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    async with http("407 Proxy Authentication Required")(tmp_path) as port:
        for variable in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(variable, f"http://127.0.0.1:{port}")
        with pytest.raises(
            ServerUnavailableError, match=r"the proxy of the environment refuses.*407"
        ):
            await Client("ws://agents.example:80").__aenter__()


WRONG = ["", "127.0.0.1:8765", "ftp://x", "ws://", "ws://x:99999", "ws://x:port", "ws://[::1", "ws://\udce9",
         "ws://x/\udce9", "ws://x#a"]  # fmt: skip


@pytest.mark.parametrize("url", WRONG)
def test_what_is_no_url_is_refused_before(url):
    """When the client is made."""
    with pytest.raises(ConfigurationError, match="expected one like ws://"):
        Client(url)


@pytest.mark.parametrize(
    "url", ["ws:/ann:s3cret@host", "ann:s3cret@host:80", "ws://ann:s3cret@host:x"]
)
def test_a_url_that_is_refused_is_shown_without_its_password(url):
    """Whatever is missing."""
    with pytest.raises(ConfigurationError, match="expected one like ws://") as refusal:
        Client(url)
    assert "s3cret" not in str(refusal.value)


def test_an_address_has_no_secrets():
    """Neither a password nor a query."""
    assert address("wss://ada:secret@x.example:1/a?token=secret#secret") == "wss://x.example:1/a"
    assert address("ws://[::1]:8765") == "ws://[::1]:8765"


async def test_an_outage_is_reported_and_its_end(hasty):
    """From the loss of a connection over each attempt to the return."""
    seen: list[str | None] = []
    back = asyncio.Event()

    async def ends(peer) -> None:
        peer.socket.transport.abort()

    async with FakeServer(ends, idle).running() as fake, Client(fake.url, hasty) as client:

        def see(outage) -> None:
            seen.append(outage and outage.reason)
            if outage is None:
                back.set()
                raise RuntimeError("what it raises is logged")

        client.on_connection = see
        await back.wait()
    assert seen[-1] is None
    assert seen[0] == f"the connection to {fake.url} was lost: it ended without a closing handshake"
    assert HELLO["protocol"] == "agentsrv.v1"
