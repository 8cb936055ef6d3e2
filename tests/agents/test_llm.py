import asyncio
import json
import logging
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from agentsrv.agents.llm import Embedder, LanguageModel, connect
from agentsrv.errors import ModelError, PermanentError
from tests.agents.fake_model import Calls, Hang, Raw, fake_model, refusal

KEY = "sk-very-secret-0123456789"
ASK = [{"role": "user", "content": "Hello?"}]


@pytest.fixture
async def fake():
    """A scripted endpoint."""
    async with fake_model() as model:
        yield model


@pytest.fixture
async def llm(fake):
    """A language model behind it."""
    async with connect(fake.url, KEY, 5.0) as client:
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
    async with connect(fake.url, None, 5.0) as client:
        await LanguageModel(client, "fake", 100).complete(ASK)
    assert KEY not in str(fake.requests[0].headers)


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
    """Whoever reads the result can see that the text has no end."""
    choice = {"index": 0, "delta": {"content": "One"}, "finish_reason": "length"}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    body = f"data: {json.dumps(chunk | {'choices': [choice]})}\n\ndata: [DONE]\n\n"
    fake.script(Raw(body, kind="text/event-stream"))
    assert await streamed(llm) == ["One"]
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
        with pytest.raises(PermanentError, match=f"answered {status}: not like this"):
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
    async with connect("http://127.0.0.1:1/v1", KEY, 5.0) as client:
        with pytest.raises(ModelError, match="no connection"):
            await LanguageModel(client, "fake", 100).complete(ASK)


@pytest.mark.parametrize("text", [None, "One"])
async def test_silence_ends_with_the_timeout(fake, text):
    """Before the first byte, and in the middle of a stream."""
    fake.script(Hang(text))
    async with connect(fake.url, KEY, 0.1) as client:
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
    vectors = await Embedder(llm.client, "embeds").embed(["a", "bbb"])
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
    ],
)
async def test_vectors_that_cannot_be_compared_are_a_model_error(fake, llm, reply):
    """A vector for each text, all of one dimension, all of numbers."""
    fake.embed = reply
    with pytest.raises(ModelError):
        await Embedder(llm.client, "embeds").embed(["a", "b"])
