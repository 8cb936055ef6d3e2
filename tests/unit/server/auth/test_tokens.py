"""Whose a JSON Web Token is, on its own and at a server's door."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from agentsrv.client import Client
from agentsrv.errors import UnauthenticatedError
from agentsrv.server.auth import handshake
from agentsrv.server.auth.signing_keys import SingleKey
from agentsrv.server.auth.tokens import LEEWAY, TokenVerifier
from agentsrv.wiring import Server
from tests.integration.server.auth.test_handshake import closing_code
from tests.support.clients import run_task
from tests.support.issuer import (
    AUDIENCE,
    ISSUER,
    SECRET,
    bad,
    claims,
    forged,
    good,
    pem,
    private_key,
    token,
)
from tests.support.principals import ADA, ADA_KEY, bearer
from tests.support.talk import serving, talking


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    """The issuer's secret."""
    file = tmp_path / "secret"
    file.write_bytes(SECRET + b"\n")
    return file


@asynccontextmanager
async def guarded(file: Path, algorithm: str = "HS256", **more: object) -> AsyncIterator[Server]:
    """A server that takes the issuer's tokens."""
    settings = {"jwt_algorithm": algorithm, "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}
    key = {} if "jwt_jwks" in more else {"jwt_key": file}
    async with serving(**settings, **key, **more) as server:  # type: ignore[arg-type]
        yield server


def verifier(file: Path) -> TokenVerifier:
    """Knows the tokens above."""
    key = SingleKey(file, "HS256")
    return TokenVerifier(key, algorithm="HS256", issuer=ISSUER, audience=AUDIENCE)


@pytest.mark.parametrize("name", list(good()))
async def test_a_good_token_is_its_subject(secret_file, name):
    """Until its exp, and the leeway behind it."""
    identity = await verifier(secret_file).identify(good()[name])
    assert identity.principal == ("auth0|0042" if "bar" in name else "ada")
    seconds = identity.expires_at - time.time() - LEEWAY
    assert (seconds < 0) is (name == "expired within the leeway")


@pytest.mark.parametrize("name", list(bad()))
async def test_a_bad_token_is_nobodys(secret_file, name):
    """Only one that was good once is told why."""
    with pytest.raises(UnauthenticatedError) as refused:
        await verifier(secret_file).identify(bad()[name])
    has_expired = name.startswith("expired")
    assert refused.value.message == (
        "the token has expired" if has_expired else "the token is not accepted"
    )
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


async def test_the_door_opens_to_good_tokens(secret_file):
    """By header and by command."""
    async with guarded(secret_file) as server:
        for name, text in good().items():
            async with talking(server, additional_headers=bearer(text)) as talk:
                assert (await talk.ask("list"))["type"] == "reply", name
            async with talking(server) as talk:
                assert (await talk.ask(f"auth {text}"))["type"] == "reply", name
        async with Client(server.url, token=token()) as client:
            assert (await run_task(client, "x", agent="echo")).final_output == "x"


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
async def test_public_keys_verify_what_private_keys_sign(tmp_path, algorithm):
    """And the public one, which everybody has, is no secret to sign with."""
    file = tmp_path / "key.pem"
    public = pem(private_key(algorithm))
    file.write_bytes(public)
    confused = [
        forged({"alg": "HS256"}, claims(), secret)
        for secret in (public, public.rstrip(b"\n"), public.replace(b"\n", b""))
    ]
    async with guarded(file, algorithm) as server:
        good = token(algorithm)
        async with talking(server, additional_headers=bearer(good)) as talk:
            assert (await talk.ask(f"auth {good}"))["principal"] == "ada"
        for bad in [token(algorithm, private_key(algorithm, 1)), token(), *confused]:
            with pytest.raises(InvalidStatus):
                await connect(server.url, additional_headers=bearer(bad))


async def test_a_token_that_expires_ends_its_connection(secret_file, monkeypatch):
    """With 4401, behind the leeway; renewed in time, it goes on."""
    monkeypatch.setattr(handshake, "RECHECK_INTERVAL", 0.02)
    real, ahead = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + ahead[0])
    async with (
        guarded(secret_file) as server,
        talking(server, additional_headers=bearer(token())) as first,
        talking(server, additional_headers=bearer(token())) as renewed,
    ):
        ahead[0] = 300 + LEEWAY - 10
        assert (await renewed.ask({"command": "auth", "token": token(exp=int(real()) + 9999)}))[
            "principal"
        ] == "ada"
        assert (await first.ask("list"))["type"] == "reply"
        ahead[0] = 300 + LEEWAY + 10
        assert await closing_code(first) == (4401, "the token is no longer valid")
        assert (await renewed.ask("list"))["type"] == "reply"


async def test_a_client_that_is_asked_for_tokens_outlives_them(secret_file, monkeypatch):
    """It comes back with the next one; a stream goes on where it was."""
    monkeypatch.setattr(handshake, "RECHECK_INTERVAL", 0.02)
    real, ahead, given = time.time, [0.0], []
    monkeypatch.setattr(time, "time", lambda: real() + ahead[0])

    async def current() -> str:
        given.append(token(exp=int(time.time()) + 300))
        return given[-1]

    async with guarded(secret_file) as server, Client(server.url, token=current) as client:
        first = client.hello.connection_id
        task = await client.create("x", agent="echo")
        ahead[0] = 300 + LEEWAY + 10
        async with asyncio.timeout(30):
            while client.hello.connection_id == first:  # noqa: ASYNC110 - as a caller would
                await asyncio.sleep(0.02)
        await task.execute()
        seqs = [record.seq async for record in task.events()]
        assert seqs == list(range(1, len(seqs) + 1))
    assert len(given) == 2


async def test_keys_and_tokens_may_both_be_taken(secret_file):
    """The same name is the same principal, whatever says it."""
    async with guarded(secret_file, api_keys=ADA) as server:
        async with talking(server, additional_headers=bearer(ADA_KEY)) as talk:
            await talk.ask({"command": "create", "task_description": "x", "agent": "echo"})
        async with talking(server, additional_headers=bearer(token())) as talk:
            assert (await talk.ask("list"))["total"] == 1
