"""The keys that sign JSON Web Tokens."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from agentsrv.errors import ConfigurationError
from agentsrv.server.auth.signing_keys import (
    MAX_AGE,
    MAX_SET,
    MAX_THREADS,
    MAX_UNKNOWN,
    REFRESH_AFTER,
    REQUEST_INTERVAL,
    UNKNOWN_WINDOW,
    KeySet,
    SingleKey,
    open_keys,
    parse_set,
)
from tests.support.issuer import SECRET, jwk, pem, private_key, private_pem, token
from tests.support.principals import bearer
from tests.support.talk import talking
from tests.unit.server.auth.test_tokens import guarded

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
        ("ES256", None, "which does not exist"),
    ],
)
def test_a_key_that_will_not_do_is_refused_at_the_start(tmp_path, algorithm, content, sentence):
    """Weak ones, those for another algorithm, and those that were not to be given away."""
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=sentence) as refused:
        SingleKey(file, algorithm)
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


def test_a_key_that_will_not_do_is_passed_over(caplog):
    """With a warning: the others of the set still count, and of two with one id the first."""
    jwk_private = jwt.get_algorithm_by_name("RS256").to_jwk(RSA, as_dict=True)
    found = parse_set(
        key_set(
            jwk("RS256", SMALL, "small"),
            {"kty": "RSA", "kid": "broken"},
            jwk_private | {"kid": "private", "key_ops": None, "use": "sig"},
            jwk("RS256", RSA, "good"),
            jwk("RS256", private_key("RS256", 1), "good"),
            jwk("RS256", RSA, None),
        ),
        "RS256",
    )
    assert set(found) == {"good", None}
    assert found["good"].public_numbers() == RSA.public_key().public_numbers()
    assert caplog.text.count("it is ignored") == 3


@pytest.mark.parametrize(
    ("data", "error", "sentence"),
    [
        (b"nonsense", ValueError, "Expecting value"),
        (b"[]", ValueError, "expected a JSON object with keys"),
        (b'{"keys": {}}', ValueError, "expected a JSON object with keys"),
        (b'{"keys": [1, {"kty": "RSA", "kid": "a"}]}', ConfigurationError, "that cannot be used"),
        (b'{"keys": [{"kty": "RSA", "n": 1, "e": []}]}', ConfigurationError, "that cannot be used"),
        (key_set(jwk("HS256", SECRET, "a")), ConfigurationError, "no key for RS256"),
        (key_set(), ConfigurationError, "no key for RS256"),
        (key_set(jwk("RS256", SMALL, "a")), ConfigurationError, "1024 bits"),
    ],
)
def test_a_set_that_will_not_do_is_refused(data, error, sentence):
    """As one key is."""
    with pytest.raises(error, match=sentence):
        parse_set(data, "RS256")


class Issuer:
    """Publishes keys, on a clock that only moves when somebody sleeps."""

    def __init__(self, *keys: dict[str, object]) -> None:
        self.time = 1000.0
        self.requests = 0
        self.answer: Callable[[], bytes] = lambda: key_set(*keys)

    def load(self) -> bytes:
        """One request."""
        self.requests += 1
        return self.answer()

    async def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.time += seconds
        await asyncio.sleep(0)

    async def keys(self) -> KeySet:
        """Its keys, read once."""
        keys = KeySet(self.load, "HS256", lambda: self.time, self.sleep)
        await keys.read()
        return keys


OLD, NEW = jwk("HS256", SECRET, "old"), jwk("HS256", SECRET[::-1], "new")


async def test_a_new_key_is_found_by_the_login_that_needs_it():
    """All logins that need one share a request."""
    issuer = Issuer(OLD)
    keys = await issuer.keys()
    issuer.answer = lambda: key_set(OLD, NEW)
    assert await asyncio.gather(*(keys.find("new") for _ in range(10))) == [SECRET[::-1]] * 10
    assert issuer.requests == 2


async def test_strangers_do_not_use_up_the_requests():
    """However many there are, a new key is found; they are refused without a request each."""
    issuer = Issuer(OLD)
    keys = await issuer.keys()
    for number in range(10):
        found = await asyncio.gather(*(keys.find(f"{number}.{n}") for n in range(100)))
        assert found == [None] * 100
    assert issuer.requests <= 21
    issuer.answer = lambda: key_set(OLD, NEW)
    begun = issuer.time
    assert await keys.find("new") == SECRET[::-1]
    assert issuer.time - begun <= REQUEST_INTERVAL


async def test_an_address_of_strangers_does_not_wait():
    """It is refused at once for a minute; others are not, and its own good tokens are not."""
    issuer = Issuer(OLD)
    keys = await issuer.keys()
    for _ in range(MAX_UNKNOWN):
        assert await keys.find("none", "192.0.2.1") is None
    requests = issuer.requests
    assert await keys.find("none", "192.0.2.1") is None
    assert await keys.find("old", "192.0.2.1") == SECRET
    assert issuer.requests == requests
    assert await keys.find("none", "192.0.2.2") is None
    assert issuer.requests > requests
    issuer.time += UNKNOWN_WINDOW
    requests = issuer.requests
    assert await keys.find("none", "192.0.2.1") is None
    assert issuer.requests > requests


async def test_what_is_known_of_addresses_is_bounded(monkeypatch):
    """The oldest is forgotten."""
    monkeypatch.setattr("agentsrv.server.auth.signing_keys.MAX_SOURCES", 10)
    keys = await Issuer(OLD).keys()
    for number in range(30):
        await keys.find("none", f"192.0.2.{number}")
    assert len(keys._unknown) == 10


async def test_known_keys_never_wait_for_the_issuer(monkeypatch):
    """Not while it hangs, not for a set that is old, not beside a stranger who waits."""
    monkeypatch.setattr("agentsrv.server.auth.signing_keys.KEY_TIMEOUT", 0.1)
    issuer, may = Issuer(OLD), threading.Event()
    keys = await issuer.keys()

    def hang() -> bytes:
        may.wait()
        return key_set(OLD)

    issuer.answer = hang
    try:
        stranger = asyncio.create_task(keys.find("none"))
        while issuer.requests < 2:  # noqa: ASYNC110 - it is counted in a thread
            await asyncio.sleep(0)
        issuer.time += REFRESH_AFTER + 1
        for _ in range(1000):
            find = keys.find("old")
            with pytest.raises(StopIteration) as found:  # it ends without a turn of the loop
                find.send(None)
            assert found.value.value == SECRET
        assert await stranger is None
    finally:
        may.set()


async def test_a_set_that_is_old_is_read_again_in_the_background():
    """By the first login after that."""
    issuer = Issuer(OLD)
    keys = await issuer.keys()
    issuer.answer = lambda: key_set(NEW)
    issuer.time += REFRESH_AFTER + 1
    assert await keys.find("old") == SECRET
    assert await keys.find("new") == SECRET[::-1]
    assert await keys.find("old") is None


def fail() -> bytes:
    """What an issuer that is down does."""
    raise OSError("no answer")


FAILURES: dict[str, Callable[[], bytes]] = {
    "down": fail,
    "a page": lambda: b"<html>log in</html>",
    "nothing": lambda: b"",
    "no keys": lambda: b'{"keys": []}',
    "no key for the algorithm": lambda: key_set(jwk("RS256", RSA, "old")),
    "weak keys": lambda: key_set(jwk("HS256", b"x" * 8, "old")),
    "nested": lambda: b'{"keys":' + b"[" * 100_000,
    "too many keys": lambda: key_set(*[OLD] * 1001),
    "not UTF-8": lambda: b'{"keys": "\xff"}',
    "an integer of many digits": lambda: b'{"keys": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("name", FAILURES)
async def test_the_last_good_keys_count_for_a_day(name, caplog):
    """Whatever the issuer answers; the log says so once."""
    caplog.set_level(logging.INFO, "agentsrv.listener")
    issuer = Issuer(OLD)
    keys = await issuer.keys()
    issuer.answer = FAILURES[name]
    for _ in range(3):
        issuer.time += REFRESH_AFTER + 1
        assert await keys.find("new") is None
        assert await keys.find("old") == SECRET
    assert caplog.text.count("the keys that were read before remain valid for up to 24 hours") == 1
    issuer.time += MAX_AGE
    assert await keys.find("old") is None
    issuer.answer = lambda: key_set(OLD)
    assert await keys.find("old") == SECRET
    assert "jwt_jwks can be read again" in caplog.text


async def test_requests_that_never_end_are_left_behind(monkeypatch):
    """A few of them; nothing waits for them, and no further ones begin."""
    monkeypatch.setattr("agentsrv.server.auth.signing_keys.FETCH_TIMEOUT", 0.05)
    issuer, may = Issuer(OLD), threading.Event()
    keys = await issuer.keys()

    def hang() -> bytes:
        may.wait()
        return key_set(NEW)

    issuer.answer = hang
    try:
        for _ in range(MAX_THREADS + 3):
            assert await keys.find("new") is None
        assert issuer.requests == 1 + MAX_THREADS
        assert await keys.find("old") == SECRET
    finally:
        may.set()
    while keys._threads:  # noqa: ASYNC110 - they end by themselves
        await asyncio.sleep(0)
    issuer.answer = lambda: key_set(NEW)
    assert await keys.find("new") == SECRET[::-1]


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
