"""Hostile and unusual endpoints of language models, over real sockets."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from contextlib import aclosing, asynccontextmanager

import pytest

from agentsrv.agents.endpoint_errors import MAX_WORDS
from agentsrv.agents.llm import Endpoint, LanguageModel
from agentsrv.errors import ModelError, PermanentError
from tests.integration.hostile.endpoints import CASES

ASK = [{"role": "user", "content": "hi"}]
GROWTH = 50 << 20  # bytes that one answer may take in memory


@asynccontextmanager
async def answering(respond):
    """A server that answers each request with the bytes of ``respond``; yields URL and requests."""
    requests = []

    async def serve(reader, writer):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
            requests.append((head, json.loads(await reader.readexactly(int(length)))))
            writer.write(respond(requests[-1][1]))
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has seen enough
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", requests


async def ask(llm, way, options):
    """The text, by a stream or as a whole."""
    if way == "complete":
        return await llm.complete(ASK, **options)
    async with aclosing(llm.stream(ASK, **options)) as pieces:
        found = [piece async for piece in pieces]
    assert all(found)
    return "".join(found)


@pytest.mark.parametrize("way", ["stream", "complete"])
@pytest.mark.parametrize("name", CASES)
async def test_an_answer_is_a_text_or_a_model_error(name, way):
    """Nothing else; with the endpoint's words; final where another attempt would not help."""
    case = CASES[name]
    if case.only not in (None, way):
        return
    async with (
        answering(case.respond) as (url, requests),
        Endpoint(url, "sk-key-of-the-test", 5.0) as endpoint,
    ):
        llm = LanguageModel(endpoint, "m", 100)
        if case.text is not None:
            assert await ask(llm, way, dict(case.options)) == case.text
            assert llm.usage.requests == 1
        else:
            with pytest.raises(ModelError, match=case.error) as caught:
                await ask(llm, way, dict(case.options))
            assert isinstance(caught.value, PermanentError) is case.final
            assert len(caught.value.message) < 3 * MAX_WORDS
            assert caught.value.message.isprintable()
            assert "sk-key" not in caught.value.message
        assert len(requests) == case.requests


@pytest.mark.parametrize("name", ["no max_completion_tokens", "no token limit", "no temperature"])
async def test_what_an_endpoint_does_not_take_is_remembered(name):
    """For that model; the second question is one request."""
    case = CASES[name]
    async with answering(case.respond) as (url, requests), Endpoint(url, None, 5.0) as endpoint:
        for _ in range(2):
            await LanguageModel(endpoint, "m", 100).complete(ASK, **dict(case.options))
        assert len(requests) == case.requests + 1
        await LanguageModel(endpoint, "other", 100).complete(ASK, **dict(case.options))
        assert len(requests) == 2 * case.requests + 1


@pytest.mark.parametrize("name", ["a bomb", "a bomb as an error", "events without text"])
async def test_memory_is_bounded(name):
    """Whatever a body expands to."""
    case = CASES[name]
    async with answering(case.respond) as (url, _), Endpoint(url, None, 5.0) as endpoint:
        tracemalloc.start()
        try:
            with pytest.raises(ModelError):
                await LanguageModel(endpoint, "m", 100).complete(ASK)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < GROWTH


async def test_a_redirect_does_not_take_the_key_along():
    """Nothing is sent to where it leads."""
    moved = b"HTTP/1.1 308 Moved\r\nlocation: %s\r\ncontent-length: 0\r\n\r\n"
    async with (
        answering(lambda _: b"") as (elsewhere, there),
        answering(lambda _: moved % elsewhere.encode()) as (url, here),
        Endpoint(url, "sk-key-of-the-test", 5.0) as endpoint,
    ):
        with pytest.raises(ModelError, match="redirects are not followed"):
            await LanguageModel(endpoint, "m", 100).complete(ASK)
    assert (len(here), len(there)) == (1, 0)


async def test_a_trickle_without_content_ends():
    """Bytes alone do not keep a request alive."""

    async def drip(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while True:
                writer.write(b": wait\n\n")
                await writer.drain()
                await asyncio.sleep(0.01)
        except ConnectionError:
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(drip, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        async with Endpoint(url, None, 0.2) as endpoint:
            with pytest.raises(
                ModelError, match="silent for too long: it sent bytes but no content"
            ):
                await LanguageModel(endpoint, "m", 100).complete(ASK)
