"""The keys that sign JSON Web Tokens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from agentsrv.errors import ConfigurationError
from agentsrv.server.signing_keys import (
    MAX_SET,
    PATIENCE,
    STALE,
    KeySet,
    OneKey,
    open_keys,
    parse_set,
)
from tests.server.issuer import SECRET, jwk, pem, private_key, private_pem, token
from tests.server.people import bearer
from tests.server.talk import talking
from tests.server.test_tokens import guarded

RSA = private_key("RS256")
SMALL = private_key("RS256", bits=1024)


def key_set(*keys: dict[str, object]) -> bytes:
    """A JWKS."""
    return json.dumps({"keys": keys}).encode()


@pytest.mark.parametrize(
    ("algorithm", "content", "sentence"),
    [
        ("HS256", SECRET[:31], "a secret of 31 bytes; expected at least 32"),
        ("HS256", SECRET[:31] + b"\n", "a secret of 31 bytes"),
        ("HS256", b"", "expected a file with the secret"),
        ("HS256", pem(RSA), "expected a file with the secret"),
        ("RS256", b"nonsense", "public key .PEM. of RS256"),
        ("RS256", pem(private_key("ES256")), "public key .PEM. of RS256"),
        ("RS256", pem(SMALL), "a key of 1024 bits; expected at least 2048"),
        ("RS256", private_pem(RSA), "a private key; expected the public one"),
        ("ES256", private_pem(private_key("ES256")), "a private key"),
        ("ES256", pem(RSA), "public key .PEM. of ES256"),
        ("ES256", pem(ec.generate_private_key(ec.SECP384R1())), "public key .PEM. of ES256"),
        ("ES256", None, "FileNotFoundError"),
    ],
)
def test_a_key_that_will_not_do_is_refused_at_the_start(tmp_path, algorithm, content, sentence):
    """Weak ones, those for another algorithm, and those that were not to be given away."""
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=sentence) as refused:
        OneKey(file, algorithm)
    if content:
        assert content.decode() not in refused.value.message


def test_a_set_has_the_keys_for_its_algorithm():
    """Others are passed over: of other types, curves, uses and algorithms."""
    found = parse_set(
        key_set(
            jwk("RS256", RSA, "one"),
            jwk("RS256", private_key("RS256", 1), "two", use="sig", alg="RS256"),
            jwk("RS256", RSA, "for encryption", use="enc"),
            jwk("RS256", RSA, "for another", alg="PS256"),
            jwk("ES256", private_key("ES256"), "curve"),
            jwk("HS256", SECRET, "secret"),
        ),
        "RS256",
    )
    assert set(found) == {"one", "two"}


@pytest.mark.parametrize(
    ("data", "error", "sentence"),
    [
        (b"nonsense", ValueError, "Expecting value"),
        (b"[]", ValueError, "expected a JSON object with keys"),
        (b'{"keys": {}}', ValueError, "expected a JSON object with keys"),
        (b'{"keys": [1, {"kty": "RSA", "kid": "a"}]}', ValueError, "a key cannot be used"),
        (key_set(), ConfigurationError, "no key for RS256"),
        (key_set(jwk("RS256", SMALL, "a")), ConfigurationError, "1024 bits"),
    ],
)
def test_a_set_that_will_not_do_is_refused(data, error, sentence):
    """As one key is."""
    with pytest.raises(error, match=sentence):
        parse_set(data, "RS256")


async def test_a_set_is_read_again_when_a_key_is_missing_or_it_is_old(caplog):
    """But not for each stranger who names a key; a failure leaves what was read before."""
    now, reads = [1000.0], list[int]()
    content: list[Callable[[], bytes]] = [lambda: key_set(jwk("HS256", SECRET, "a"))]

    def load() -> bytes:
        reads.append(1)
        return content[0]()

    keys = KeySet(load, "HS256", lambda: now[0])
    await keys.read()
    content[0] = lambda: key_set(jwk("HS256", SECRET, "b"))
    for _ in range(10):
        assert await keys.find("../../etc/passwd") is None
        assert await keys.find("a") == SECRET
    assert len(reads) == 1
    now[0] += PATIENCE + 1
    assert await asyncio.gather(*(keys.find("b") for _ in range(10))) == [SECRET] * 10
    assert len(reads) == 2
    assert await keys.find("a") is None

    def fail() -> bytes:
        raise OSError("no answer")

    content[0] = fail
    now[0] += STALE + 1
    assert await keys.find("b") == SECRET
    assert "no answer; the keys that were read before still count" in caplog.text
    assert len(reads) == 3


async def test_a_token_that_names_no_key_means_the_only_one():
    """Of two it means none."""
    one = KeySet(lambda: key_set(jwk("HS256", SECRET, "a")), "HS256")
    two = KeySet(lambda: key_set(jwk("HS256", SECRET, "a"), jwk("HS256", SECRET, "b")), "HS256")
    await one.read()
    await two.read()
    assert await one.find(None) == SECRET
    assert await two.find(None) is None


@pytest.mark.parametrize("both", [True, False])
async def test_there_is_one_source_of_keys(tmp_path, both):
    """Neither none nor two."""
    with pytest.raises(ConfigurationError, match="either jwt_key or jwt_jwks"):
        await open_keys(tmp_path if both else None, "keys.json" if both else None, "HS256")


async def test_a_set_comes_over_https_or_from_this_machine():
    """Over plain http anybody in between could sign."""
    with pytest.raises(ConfigurationError, match="expected a file or an https URL"):
        await open_keys(None, "http://issuer.example/keys", "RS256")


async def test_a_server_takes_tokens_of_a_set_in_a_file(tmp_path):
    """Each by the key that it names."""
    file = tmp_path / "keys.json"
    second = private_key("ES256", 1)
    file.write_bytes(key_set(jwk("ES256", private_key("ES256"), "a"), jwk("ES256", second, "b")))
    async with guarded(file, "ES256", jwt_jwks=str(file)) as server:
        for key, key_id in ((private_key("ES256"), "a"), (second, "b")):
            text = token("ES256", key, {"kid": key_id})
            async with talking(server, additional_headers=bearer(text)) as talk:
                assert (await talk.ask("list"))["type"] == "reply"
        for key_id in ("a", "c", "/dev/null", "../keys.json"):
            async with talking(server) as talk:
                text = token("ES256", second, {"kid": key_id})
                assert (await talk.ask(f"auth {text}"))["code"] == "unauthenticated"


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[str]:
    """An HTTP server that always answers the same; yields a URL on it."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/keys"


def http(body: bytes) -> bytes:
    """A whole answer."""
    return b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body


async def test_a_server_takes_tokens_of_a_set_at_a_url(tmp_path):
    """Which it reads when it starts."""
    body = key_set(jwk("RS256", RSA, "a"))
    async with (
        answering(http(body)) as url,
        guarded(tmp_path, "RS256", jwt_jwks=url) as server,
        talking(server) as talk,
    ):
        assert (await talk.ask(f"auth {token('RS256', headers={'kid': 'a'})}"))[
            "principal"
        ] == "ada"


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", "404"),
        (b"HTTP/1.1 302 Found\r\nLocation: /x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
         "302"),
        (http(b" " * (MAX_SET + 1)), "more than 1048576 bytes"),
        (b"", "cannot be read"),
    ],
)  # fmt: skip
async def test_a_set_that_cannot_be_had_keeps_a_server_from_starting(answer, sentence):
    """Redirects are not followed, and nobody may fill the memory."""
    async with answering(answer) as url:
        with pytest.raises(ConfigurationError, match=sentence):
            await open_keys(None, url, "RS256")
