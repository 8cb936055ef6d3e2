import asyncio
import json
import logging
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from agentsrv.agents.llm import Embedder, Endpoint, LanguageModel
from agentsrv.errors import (
    ConfigurationError,
    ModelError,
    ModelRefusedError,
    ModelTruncatedError,
    PermanentError,
)
from tests.support.fake_model import Calls, Hang, Raw, fake_model, refusal

KEY = "sk-very-secret-0123456789"
ASK: list[Any] = [{"role": "user", "content": "Hello?"}]


@pytest.fixture
async def fake():
    """A scripted endpoint."""
    async with fake_model() as model:
        yield model


@pytest.fixture
async def llm(fake):
    """A language model behind it."""
    async with Endpoint(fake.url, KEY, 5.0) as client:
        yield LanguageModel(client, "fake", 100)


async def streamed(llm, **options):
    """Return the pieces that are streamed."""
    async with aclosing(llm.stream(ASK, **options)) as pieces:
        return [piece async for piece in pieces]


async def test_a_chat_is_bound_to_the_model_and_its_limit(fake, llm):
    """The author names neither; further options pass through; the key goes into its header."""
    fake.script("Hello, you.")
    assert await llm.complete(ASK, temperature=0.5) == "Hello, you."
    (request,) = fake.requests
    assert request.path == "/v1/chat/completions"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.body == {
        "model": "fake",
        "messages": ASK,
        "max_completion_tokens": 100,
        "temperature": 0.5,
    }


async def test_without_a_key_none_of_the_environment_is_sent(fake, monkeypatch):
    """The key of another service does not leak to this endpoint."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    fake.script("Hello.")
    async with Endpoint(fake.url, None, 5.0) as client:
        await LanguageModel(client, "fake", 100).complete(ASK)
    assert KEY not in str(fake.requests[0].headers)


OPENAI = ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID", "WEBHOOK_SECRET")


@pytest.mark.process  # platform.platform() may start one
async def test_nothing_of_the_environment_is_sent(fake, monkeypatch):
    """Neither by the model nor by the official client: it is meant for another endpoint."""
    for name in OPENAI:
        monkeypatch.setenv(f"OPENAI_{name}", KEY)
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"x-secret: {KEY}")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    fake.script("Hello.")
    async with Endpoint(fake.url, None, 5.0) as endpoint:
        await LanguageModel(endpoint, "fake", 100).complete(ASK)
        await endpoint.client.chat.completions.create(model="fake", messages=ASK)
    assert len(fake.requests) == 2
    assert KEY not in str([request.headers for request in fake.requests])


@pytest.mark.parametrize("key", [f"{KEY}\n", f" {KEY}\r\n", f"\t{KEY}"])
async def test_white_space_around_a_key_is_dropped(fake, key):
    """A file ends with a line end."""
    fake.script("Hello.")
    async with Endpoint(fake.url, key, 5.0) as endpoint:
        await LanguageModel(endpoint, "fake", 100).complete(ASK)
    assert fake.requests[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "key", [f"{KEY}\n{KEY}", f"{KEY}é", f"{KEY}\0", f"Bearer {KEY}", f"{KEY}\x7f"]
)
def test_a_key_that_no_header_may_hold_is_refused(key):
    """At the start, without showing it."""
    with pytest.raises(ConfigurationError, match="llm_key contains characters") as refused:
        Endpoint("http://127.0.0.1:1/v1", key, 5.0)
    assert KEY not in str(refused.value)


@pytest.mark.parametrize(
    "ending",
    ["", "/", "//", "/chat/completions", "/chat/completions/", "/embeddings", "/completions", "#x"],
)
async def test_the_base_url_may_have_an_ending(fake, ending):
    """That of a chat or of embeddings, and slashes."""
    fake.script("Hello.")
    async with Endpoint(f" {fake.url}{ending} ", None, 5.0) as endpoint:
        await LanguageModel(endpoint, "fake", 100).complete(ASK)
        await endpoint.client.chat.completions.create(model="fake", messages=ASK)
    assert [request.path for request in fake.requests] == ["/v1/chat/completions"] * 2


async def test_a_query_of_the_base_url_is_sent(fake):
    """By the model and by the official client."""
    fake.script("Hello.")
    async with Endpoint(f"{fake.url}/chat/completions?api-version=1", None, 5.0) as endpoint:
        await LanguageModel(endpoint, "fake", 100).complete(ASK)
        await endpoint.client.chat.completions.create(model="fake", messages=ASK)
    assert [request.path for request in fake.requests] == ["/v1/chat/completions?api-version=1"] * 2


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8080/v1",
        "localhost:8080",
        "api.example.com/v1",
        "/v1",
        "http://",
        "http:///v1",
        "http://a:b/v1",
        "http://a:99999/v1",
        "http://a:0/v1",
        "ftp://a/v1",
        "http://[::1/v1",
        "http://a b/v1",
        "",
        "file:///etc/passwd",
    ],
)
def test_a_url_that_is_no_base_url_is_refused(url):
    """At the start, with what was expected."""
    with pytest.raises(ConfigurationError, match=r"llm_url is .*such as http://127\.0"):
        Endpoint(url, None, 5.0)


def test_a_url_with_a_password_and_a_key_are_refused():
    """Both would be the same header; the password is not shown."""
    with pytest.raises(ConfigurationError, match="expected one of them") as refused:
        Endpoint("http://me:hidden@127.0.0.1:1/v1", KEY, 5.0)
    assert "hidden" not in str(refused.value)


async def test_a_password_of_the_url_is_sent_and_never_shown(fake):
    """As basic authentication; not in the error of a connection."""
    fake.script("Hello.")
    async with Endpoint(fake.url.replace("://", "://me:hidden@"), None, 5.0) as endpoint:
        await LanguageModel(endpoint, "fake", 100).complete(ASK)
    assert fake.requests[0].headers["authorization"].startswith("Basic ")
    async with Endpoint("http://me:hidden@127.0.0.1:1/v1", None, 5.0) as endpoint:
        with pytest.raises(ModelError, match=r"at 127\.0\.0\.1:1") as caught:
            await LanguageModel(endpoint, "fake", 100).complete(ASK)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    "proxy", ["socks5://127.0.0.1:1", "socks5h://a:1", "gopher://a", "http://a:x"]
)
def test_a_proxy_that_cannot_be_used_is_refused(monkeypatch, proxy):
    """With the variables that may name it."""
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(ConfigurationError, match="ALL_PROXY"):
        Endpoint("https://llm.example/v1", None, 5.0)


async def test_an_endpoint_on_this_machine_needs_no_proxy(fake, monkeypatch):
    """Whatever the environment says."""
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    fake.script("Hello.")
    async with Endpoint(fake.url, None, 5.0) as endpoint:
        assert await LanguageModel(endpoint, "fake", 100).complete(ASK) == "Hello."


def test_certificates_that_are_not_there_are_refused(monkeypatch):
    """With the variable that names them."""
    monkeypatch.setenv("SSL_CERT_FILE", "/no/such/file.pem")
    for url in ("https://llm.example/v1", "https://127.0.0.1:1/v1"):
        with pytest.raises(ConfigurationError, match="SSL_CERT_FILE"):
            Endpoint(url, None, 5.0)


async def test_reasoning_is_handed_over_apart(fake, llm):
    """By the function that asks for it, and as a field of a whole answer."""
    fake.script("<think>let me see</think>\n\nIt is 42.")
    thoughts: list[str] = []
    assert "".join(await streamed(llm, on_reasoning=thoughts.append)) == "It is 42."
    assert "".join(thoughts) == "let me see"
    message = (await llm.create(ASK)).choices[0].message
    assert (message.content, message.reasoning_content) == ("It is 42.", "let me see")
    await llm.create([*ASK, message])
    assert fake.requests[-1].body["messages"][1] == {"role": "assistant", "content": "It is 42."}


async def test_a_text_is_streamed_in_pieces_and_counted(fake, llm):
    """The pieces are the text, and the usage is that of the endpoint."""
    fake.script("One two  three.")
    pieces = await streamed(llm)
    assert pieces == ["One ", "two  ", "three."]
    assert fake.requests[0].body["stream_options"] == {"include_usage": True}
    assert llm.usage.counts() == {
        "requests": 1,
        "prompt_tokens": 11,
        "completion_tokens": 7,
        "truncated": 0,
    }
    assert llm.counting().usage.requests == 0


async def test_an_answer_that_is_cut_off_is_counted(fake, llm):
    """It is an error with the text so far: another attempt would be cut off as well."""
    choice = {"index": 0, "delta": {"content": "One"}, "finish_reason": "length"}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    body = f"data: {json.dumps(chunk | {'choices': [choice]})}\n\ndata: [DONE]\n\n"
    fake.script(Raw(body, kind="text/event-stream"))
    with pytest.raises(ModelTruncatedError, match="cut off at the token limit") as caught:
        await streamed(llm)
    assert caught.value.text == "One"
    assert llm.usage.truncated == 1


async def test_a_schema_is_sent_as_the_format_of_the_answer(fake, llm):
    """As the endpoint wants it."""
    fake.script("{}")
    await llm.complete(ASK, {"type": "object"})
    assert fake.requests[0].body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "strict": True, "schema": {"type": "object"}},
    }


async def test_tools_are_called_through_create(fake, llm):
    """The whole answer has the calls."""
    fake.script(Calls({"add": {"left": 1}}))
    answer = await llm.create(ASK, tools=[])
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("add", '{"left": 1}')


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
async def test_what_no_retry_mends_is_permanent(fake, llm, status):
    """The endpoint's own words are told."""
    fake.script(refusal(status, "not like this"))
    for ask in (llm.complete(ASK), streamed(llm)):
        with pytest.raises(ModelRefusedError, match=f"answered {status}: not like this"):
            await ask
    assert len(fake.requests) == 2


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
async def test_what_passes_is_not_retried_here(fake, llm, status):
    """Each is one request; the next attempt is the server's."""
    fake.script(refusal(status, "come back later"))
    for ask in (llm.complete(ASK), streamed(llm)):
        with pytest.raises(ModelError, match=f"answered {status}: come back later") as caught:
            await ask
        assert caught.value.retry_after is None
    assert len(fake.requests) == 2


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("7", 7.0),
        ("1.5", 1.5),
        ("1e999", None),
        ("nan", None),
        ("999999999", 86_400.0),
        ("Fri, 31 Dec 1999 23:59:59", 0.0),
        ("Fri, 99 Dec 99999 23:59:59 GMT", None),
        ("0", 0.0),
        (timedelta(hours=1), 3600.0),
        (-timedelta(hours=1), 0.0),
        ("soon", None),
        ("-1", None),
        ("", None),
    ],
)
async def test_an_overloaded_endpoint_may_say_when(fake, llm, header, wanted):
    """In seconds or as a date; anything else is as if it had said nothing."""
    if isinstance(header, timedelta):
        header = format_datetime(datetime.now(UTC) + header, usegmt=True)
    fake.script(refusal(429, "slow down", retry_after=header))
    with pytest.raises(ModelError) as caught:
        await llm.complete(ASK)
    assert caught.value.retry_after == pytest.approx(wanted, abs=60)


NONSENSE = {
    "broken JSON": Raw('{"choices": [{"mess'),
    "a page": Raw("<html>Welcome</html>", kind="text/html"),
    "no choices": Raw('{"object": "chat.completion", "choices": []}'),
    "another shape": Raw('{"choices": 7}'),
    "a choice without a message": Raw('{"choices": [{"index": 0}]}'),
    "a list": Raw("[]"),
    "no text": Raw('{"choices": [{"index": 0, "message": {"role": "assistant"}}]}'),
}


@pytest.mark.parametrize("reply", NONSENSE.values(), ids=NONSENSE)
async def test_an_answer_that_makes_no_sense_is_a_model_error(fake, llm, reply):
    """Whatever stands in it."""
    fake.script(reply)
    with pytest.raises(ModelError):
        await llm.complete(ASK)


BROKEN = {
    "broken JSON": Raw('data: {"choices": [{"del\n\n', kind="text/event-stream"),
    "nothing": Raw("", kind="text/event-stream"),
    "no end": Raw(
        'data: {"choices": [{"index": 0, "delta": {"content": "One"}}]}\n\n',
        kind="text/event-stream",
    ),
    "an error": Raw('data: {"error": {"message": "out of memory"}}\n\n', kind="text/event-stream"),
    "cut": Raw('data: {"choices": [{"ind', kind="text/event-stream", cut=True),
    "another shape": Raw('data: {"choices": [{"index": 0}]}\n\n', kind="text/event-stream"),
    "a page": Raw("<html>Welcome</html>", kind="text/html"),
}


@pytest.mark.parametrize("reply", BROKEN.values(), ids=BROKEN)
async def test_a_broken_stream_is_a_model_error(fake, llm, reply):
    """Half a text is never taken for a whole one."""
    fake.script(reply)
    with pytest.raises(ModelError):
        await streamed(llm)


async def test_an_endpoint_that_is_not_there_is_a_model_error():
    """As one that refuses the connection."""
    async with Endpoint("http://127.0.0.1:1/v1", KEY, 5.0) as client:
        with pytest.raises(ModelError, match=r"no connection .* at 127\.0\.0\.1:1: .*Refused"):
            await LanguageModel(client, "fake", 100).complete(ASK)


@pytest.mark.parametrize("text", [None, "One"])
async def test_silence_ends_with_the_timeout(fake, text):
    """Before the first byte, and in the middle of a stream."""
    fake.script(Hang(text))
    async with Endpoint(fake.url, KEY, 0.1) as client:
        with pytest.raises(ModelError, match="silent"):
            await streamed(LanguageModel(client, "fake", 100))
    if fake.asked.is_set():  # a busy machine may take as long to connect
        await fake.hung_up.wait()


@pytest.mark.parametrize("text", [None, "One two"])
async def test_a_cancelled_stream_hangs_up(fake, llm, text):
    """The endpoint sees it, before and after its first piece."""
    fake.script(Hang(text))
    begun = asyncio.Event()

    async def read():
        async with aclosing(llm.stream(ASK)) as pieces:
            async for _ in pieces:
                begun.set()

    task = asyncio.create_task(read())
    if text is not None:
        await begun.wait()
    await fake.asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await fake.hung_up.wait()


async def test_a_stream_that_is_left_early_hangs_up(fake, llm):
    """Through ``aclosing``, at once."""
    fake.script(Hang("One two"))
    async with aclosing(llm.stream(ASK)) as pieces:
        assert await anext(pieces) == "One "
    await fake.hung_up.wait()


async def test_a_wrong_option_is_the_authors_error(llm):
    """It is no fault of the endpoint."""
    with pytest.raises(TypeError, match="no_such_option"):
        await llm.complete(ASK, no_such_option=1)


async def test_the_key_is_in_no_log_and_in_no_error(fake, llm, caplog):
    """Not at the finest level, and not where the endpoint repeats it."""
    caplog.set_level(logging.DEBUG)
    told = []
    for reply in (refusal(401, f"wrong key {KEY}"), refusal(500, KEY), Raw(f'{{"{KEY}'), "fine"):
        fake.script(reply)
        try:
            await llm.complete(ASK)
        except (ModelError, PermanentError) as error:
            told.append(str(error))
            logging.getLogger("test").exception("seen")
    assert len(told) == 3
    assert "***" in told[0]
    assert caplog.records
    assert KEY not in caplog.text + "".join(told) + repr(llm)


async def test_vectors_come_in_the_order_of_the_texts(fake, llm):
    """Whatever the order of the answer."""
    fake.embed = lambda text: [float(len(text)), 1.0]
    vectors = await Embedder(llm.endpoint, "embeds").embed(["a", "bbb"])
    assert vectors == [[1.0, 1.0], [3.0, 1.0]]


@pytest.mark.parametrize(
    "reply",
    [
        refusal(500, "no"),
        Raw('{"data": []}'),
        Raw('{"data": null}'),
        Raw('{"data": [{"index": 0, "embedding": []}, {"index": 1, "embedding": []}]}'),
        Raw('{"data": [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [1, 2]}]}'),
        Raw('{"data": [{"index": 0, "embedding": [NaN]}, {"index": 1, "embedding": [1]}]}'),
        Raw("<html>"),
        Raw('{"data": [{"embedding": [1]}]}'),
        Raw('{"data": [{"embedding": [1]}, {"embedding": [1]}, {"embedding": [1]}]}'),
        Raw('{"data": [{"index": 0, "embedding": [1]}, {"index": 0, "embedding": [1]}]}'),
        Raw('{"data": [{"index": 7, "embedding": [1]}, {"index": 0, "embedding": [1]}]}'),
        Raw('{"data": [{"index": "0", "embedding": [1]}, {"index": 1, "embedding": [1]}]}'),
        Raw('{"data": [{"embedding": [1e300]}, {"embedding": [1]}]}'),
        Raw('{"data": [{"embedding": ["1"]}, {"embedding": [1]}]}'),
        Raw('{"data": [{"embedding": [true]}, {"embedding": [1]}]}'),
        Raw('{"data": [{"embedding": [[1], [2]]}, {"embedding": [1]}]}'),
        Raw('{"data": [{"embedding": "####"}, {"embedding": "####"}]}'),
        Raw('{"data": [{"embedding": ""}, {"embedding": ""}]}'),
        Raw('{"data": [{"embedding": null}, {}]}'),
        Raw('{"data": [7, null]}'),
        Raw('{"data": {"0": [1]}}'),
        Raw('{"error": {"message": "no such model"}}'),
        Raw("7"),
        Raw("[" * 100_000),
        Raw(""),
    ],
)
async def test_vectors_that_cannot_be_compared_are_a_model_error(fake, llm, reply):
    """A vector for each text, all of one dimension, all of numbers."""
    fake.embed = reply
    with pytest.raises(ModelError):
        await Embedder(llm.endpoint, "embeds").embed(["a", "b"])


FORMS = {
    "without an index": '{"data": [{"embedding": [1.5, 2]}, {"embedding": [3, 4]}]}',
    "nested": '{"data": [{"index": 0, "embedding": [[1.5, 2]]}, {"index": 1, "embedding": [[3, 4]]}]}',
    "base64": '{"data": [{"embedding": "AADAPwAAAEA="}, {"embedding": "AABAQAAAgEA="}]}',
    "a list": '[{"index": 1, "embedding": [[3, 4]]}, {"index": 0, "embedding": [[1.5, 2]]}]',
    "bare": "[[1.5, 2], [3, 4]]",
}


@pytest.mark.parametrize("reply", FORMS.values(), ids=FORMS)
async def test_vectors_may_come_in_other_forms(fake, llm, reply):
    """As endpoints send them."""
    fake.embed = Raw(reply)
    vectors = await Embedder(llm.endpoint, "embeds").embed(["a", "b"])
    assert vectors == [[1.5, 2.0], [3.0, 4.0]]
