"""Language models and embeddings, from any OpenAI-compatible endpoint.

This module needs the extra ``llm``; nothing else imports it before a model is configured.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import openai
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletion

from agentsrv.agents.text import shorten
from agentsrv.errors import AgentsrvError, ModelError, PermanentError

if TYPE_CHECKING:
    from agentsrv.telemetry.tracing import ModelSpan, Tracing

MAX_TOLD = 500  # characters of an endpoint's own words in an error
NO_KEY: Final = "none"  # the official client insists on one; servers without keys ignore it
PASSING: Final = frozenset(
    {
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.CONFLICT,
        HTTPStatus.TOO_EARLY,
        HTTPStatus.TOO_MANY_REQUESTS,
    }
)
"""The refusals of the client's own making (4xx) that another attempt may mend."""

Message = Mapping[str, Any]
"""One message of a chat, as the endpoint takes it: ``role``, ``content`` and the like."""


def connect(url: str, key: str | None, timeout: float) -> openai.AsyncOpenAI:
    """Return a client of the endpoint at ``url``; close it with ``await client.close()``.

    It opens connections as they are needed and shares them among all who use it. It does not
    retry: a step's retries are the server's.

    Args:
        url: The base URL, to which ``/chat/completions`` and ``/embeddings`` are added.
        key: What the endpoint knows us by; sent to nobody else.
        timeout: Seconds without a byte from the endpoint until a request has failed.
    """
    return openai.AsyncOpenAI(base_url=url, api_key=key or NO_KEY, timeout=timeout, max_retries=0)


@dataclass(slots=True)
class Usage:
    """What was asked of a model, by its endpoint's own account.

    Attributes:
        requests: Answers that were received to their end.
        prompt_tokens: Tokens that were sent.
        completion_tokens: Tokens that were written.
        truncated: Answers that were cut off at the limit of their tokens.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    truncated: int = 0

    def add(self, told: CompletionUsage | None, finish_reason: str | None) -> None:
        """Count one answer; an endpoint that tells no tokens counts as 0."""
        self.requests += 1
        self.truncated += finish_reason == "length"
        if told is not None:
            self.prompt_tokens += told.prompt_tokens or 0
            self.completion_tokens += told.completion_tokens or 0

    def counts(self) -> dict[str, int]:
        """The counts by name, as a step's result tells them."""
        return asdict(self)


@dataclass(frozen=True, eq=False, slots=True)
class LanguageModel:
    """A chat model behind an OpenAI-compatible endpoint: the client and the name in one.

    All calls take ``messages`` as the endpoint does, and any further option of its
    ``/chat/completions`` by name (``temperature``, ``tools``, ...). They raise

    - `ModelError` where another attempt may succeed: the endpoint is overloaded (with
      ``retry_after``, if it says so), broken, silent or out of reach, or its answer makes no sense;
    - `PermanentError` where none will: a wrong key, model or request.

    Cancelling a call closes its HTTP exchange, so the endpoint can stop working on it.

    Attributes:
        client: The official client, for everything that is not here, and for other libraries;
            it raises its own errors.
        model: The name of the model.
        max_tokens: Tokens of one answer, at most.
        tracing: Makes a span of each request, where the server is traced.
        usage: Counts what this object was used for.
        total: Counts what all that came of one ``counting`` were used for.
    """

    client: openai.AsyncOpenAI
    model: str
    max_tokens: int
    tracing: Tracing | None = None
    usage: Usage = field(default_factory=Usage)
    total: Usage = field(default_factory=Usage)

    def counting(self) -> LanguageModel:
        """The same model with a count of its own, which begins at 0."""
        return replace(self, usage=Usage())

    async def create(self, messages: Sequence[Message], **options: Any) -> ChatCompletion:
        """Return the endpoint's whole answer, for example with ``tools`` among the options."""
        request = self._request(messages, options)
        with _translated(self.client), self._span(request) as span:
            answer: ChatCompletion = await self.client.chat.completions.create(**request)
            choices = getattr(answer, "choices", None)  # the client takes anything for an answer
            if not (isinstance(choices, list) and choices and choices[0].message):
                raise ModelError("the model's endpoint sent something that is no chat completion")
            self._count(answer.usage, answer.choices[0].finish_reason, span)
            if span is not None:
                span.tell(response__id=answer.id, response__model=answer.model)
        return answer

    async def complete(
        self,
        messages: Sequence[Message],
        schema: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> str:
        """Return the text of the answer.

        Args:
            messages: The chat so far.
            schema: JSON Schema that the text is to follow. Not every endpoint obeys it, and an
                answer that is cut off at ``max_tokens`` never does: validate the text.
            options: Further options of the endpoint.
        """
        if schema is not None:
            options["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "strict": True, "schema": schema},
            }
        text = (await self.create(messages, **options)).choices[0].message.content
        if not text:
            raise ModelError("the model answered without a text")
        return text

    async def stream(
        self, messages: Sequence[Message], **options: Any
    ) -> AsyncGenerator[str, None]:
        """Yield the text of the answer as it is written, in pieces of at least one character.

        A stream that ends before the model has finished is a `ModelError`. Use it through
        `contextlib.aclosing`: closing it closes the HTTP exchange.
        """
        request = self._request(messages, options)
        request |= {"stream": True, "stream_options": {"include_usage": True}}
        usage: CompletionUsage | None = None
        finish_reason: str | None = None
        with _translated(self.client), self._span(request) as span:
            async with await self.client.chat.completions.create(**request) as chunks:
                async for chunk in chunks:
                    usage = chunk.usage or usage
                    for choice in chunk.choices or ():
                        finish_reason = choice.finish_reason or finish_reason
                        if choice.delta.content:
                            yield choice.delta.content
            if finish_reason is None:
                raise ModelError("the stream ended before the model had finished")
            self._count(usage, finish_reason, span)

    def _request(self, messages: Sequence[Message], options: Mapping[str, Any]) -> dict[str, Any]:
        own = {"model": self.model, "max_completion_tokens": self.max_tokens}
        return own | dict(options) | {"messages": list(messages)}

    def _span(self, request: Mapping[str, Any]) -> AbstractContextManager[ModelSpan | None]:
        if self.tracing is None:
            return nullcontext()
        return self.tracing.model_call("chat", request["model"], self.client.base_url, request)

    def _count(
        self, told: CompletionUsage | None, finish_reason: str, span: ModelSpan | None
    ) -> None:
        self.usage.add(told, finish_reason)
        self.total.add(told, finish_reason)
        if span is not None:
            span.tell(response__finish_reasons=[finish_reason])
            if told is not None:
                span.tell(
                    usage__input_tokens=told.prompt_tokens,
                    usage__output_tokens=told.completion_tokens,
                )


@dataclass(frozen=True, eq=False, slots=True)
class Embedder:
    """An embedding model behind an OpenAI-compatible endpoint; errors as of `LanguageModel`."""

    client: openai.AsyncOpenAI
    model: str
    tracing: Tracing | None = None

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return the vector of each of ``texts``, in their order, all of one dimension."""
        span = (
            nullcontext()
            if self.tracing is None
            else self.tracing.model_call("embeddings", self.model, self.client.base_url)
        )
        with _translated(self.client), span:
            answer = await self.client.embeddings.create(
                model=self.model, input=list(texts), encoding_format="float"
            )
            by_place = {entry.index: entry.embedding for entry in answer.data or ()}
            vectors = [by_place[place] for place in range(len(texts))]
        if len({len(vector) for vector in vectors}) > 1 or not all(
            vector and all(map(math.isfinite, vector)) for vector in vectors
        ):
            raise ModelError("the embedding endpoint sent vectors that cannot be compared")
        return vectors


@contextmanager
def _translated(client: openai.AsyncOpenAI) -> Iterator[None]:
    """Raise the official client's errors as ours, without its key, whoever repeats it."""
    try:
        yield
    except openai.APIStatusError as error:
        raise _refusal(error, client.api_key) from None
    except openai.APITimeoutError:
        raise ModelError("the model's endpoint was silent for too long") from None
    except openai.APIConnectionError as error:
        cause = error.__cause__ or error
        raise ModelError(f"no connection to the model's endpoint: {cause!r}") from None
    except openai.APIError as error:
        told = _shown(error.message, client.api_key)
        raise ModelError(f"the model's endpoint reports: {told}") from None
    except (ValueError, AttributeError, KeyError) as error:
        # JSON that is none, or that has another shape than the official client takes for granted
        told = _shown(f"{type(error).__name__}: {error}", client.api_key)
        raise ModelError(f"the answer of the model's endpoint makes no sense: {told}") from None


def _refusal(error: openai.APIStatusError, key: str) -> AgentsrvError:
    status = error.status_code
    body = error.body if isinstance(error.body, dict) else {}
    told = _shown(str(body.get("message") or error.message), key)
    message = f"the model's endpoint answered {status}: {told}"
    if HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR and (
        status not in PASSING
    ):
        return PermanentError(message)
    return ModelError(message, retry_after=_retry_after(error.response.headers.get("retry-after")))


def _retry_after(value: str | None) -> float | None:
    """Read the header of RFC 9110, section 10.2.3: seconds or a date; None where it is neither."""
    if value is None:
        return None
    try:
        if value.strip().isdigit():
            return float(value)
        return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError):  # no date; or one without a zone
        return None


def _shown(text: str, key: str) -> str:
    """Return an endpoint's own words on one line, short, and without our key."""
    if key != NO_KEY:
        text = text.replace(key, "***")
    return shorten(text, MAX_TOLD)
