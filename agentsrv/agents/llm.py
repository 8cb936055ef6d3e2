"""Language models and embeddings from any OpenAI-compatible endpoint.

Theory of operation
===================

An `Endpoint` owns the HTTP client of one base URL. `LanguageModel` and `Embedder` build requests
and send them through `Endpoint.post`, which yields the bytes of the answer. `endpoint_answers` and
`embedding_answers` parse and check these bytes without I/O.

`Endpoint.post` converts every HTTP failure to a `ModelError`, follows no redirect (it would send
the key to another host) and limits the time of an exchange twice: ``timeout`` seconds without a
byte, and ``timeout * CONTENT_TIMEOUT_FACTOR`` seconds without content, because an endpoint may send
keep-alive comments for ever.

Endpoints accept different options. If a refusal names an option of `OPTION_NAMES`, the option is
dropped (``max_completion_tokens`` is first replaced by ``max_tokens``) and the request is repeated
at once. The endpoint remembers the dropped options for each model, so later requests omit them from
the start. A refusal of the option's *value* (too large, out of range) is an error instead.

Configuration comes from the settings only: ``OPENAI_*`` variables are ignored. The proxies of the
environment are used, except for endpoints on this machine.

This module needs the extra ``llm``. It is imported only if a model is configured.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import re
import ssl
import zlib
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import parse_qsl, urlsplit

import httpx2
import openai
import orjson
from openai.resources.chat.completions import AsyncCompletions
from openai.types.chat import ChatCompletion
from pydantic import BaseModel

from agentsrv.agents.code_fences import json_text
from agentsrv.agents.embedding_answers import MAX_VECTORS, read_vectors
from agentsrv.agents.endpoint_answers import ChatAnswer, ModelAnswerReader, Tokens
from agentsrv.agents.endpoint_errors import MAX_ERROR, refused
from agentsrv.agents.reasoning import AnswerPiece
from agentsrv.config_files import check_regular
from agentsrv.error_text import describe, redact, redact_url
from agentsrv.errors import ConfigurationError, ModelError

if TYPE_CHECKING:
    from types import TracebackType

    from agentsrv.telemetry.tracing import ModelSpan, Tracing

NO_KEY: Final = "none"  # the official client requires a key; servers without keys ignore it
CONTENT_TIMEOUT_FACTOR: Final = 10  # of llm_timeout: the longest time without content
CHUNKS_PER_TURN: Final = 32  # chunks of a body that are read before other work of the loop
MAX_INFLATED: Final = 64 << 10  # bytes that are decompressed at once
MAX_CAUSES: Final = 10  # causes of a connection error that are followed
CONNECTION_LIMITS: Final = httpx2.Limits(max_connections=1000, max_keepalive_connections=100)
REQUEST_PATHS: Final = ("/chat/completions", "/completions", "/embeddings")
LOOPBACK_HOSTS: Final = ("localhost", "127.0.0.1", "::1")
OPTION_NAMES: Final = {
    "max_completion_tokens": ("max_completion_tokens",),
    "max_tokens": ("max_tokens",),
    "stream_options": ("stream_options", "include_usage"),
    "response_format": ("response_format", "json_schema", "structured output"),
    "temperature": ("temperature",),
    "encoding_format": ("encoding_format",),
}
"""Options that an endpoint may reject, and the words by which its refusals name them."""
OPTION_STATUSES: Final = frozenset({400, 404, 415, 422, 500, 501})
"""Statuses with which endpoints reject an option."""
_VALUE_REFUSED: Final = re.compile(
    r"too (?:large|many|long|high|small|low)|exceed|at (?:most|least)|(?:less|greater) than"
    r"|out of range|between|maximum context|context[_ ]length",
    re.IGNORECASE,
)
_TRANSPORT: Final = frozenset({"self", "extra_headers", "extra_query", "extra_body", "timeout"})

Message = Mapping[str, Any]
"""One message of a chat in the endpoint's format: ``role``, ``content`` and others."""

_log = logging.getLogger("agentsrv.llm")


class Endpoint:
    """An OpenAI-compatible endpoint: its address, its key and its connections.

    Connections are opened on demand and shared by all steps; ``close``, or leaving ``async with``,
    closes them. Failed requests are not repeated, because the server retries the step.

    Args:
        url: The base URL, to which ``/chat/completions`` and ``/embeddings`` are added. Its query
            is sent with each request.
        key: Bearer token for this endpoint. White space around it is removed.
        timeout: Seconds without a byte from the endpoint after which a request fails.

    Attributes:
        address: ``HOST:PORT``, for messages.
        url: The base URL without its query.

    Raises:
        ConfigurationError: The URL, the key, or a proxy of the environment cannot be used.
    """

    def __init__(self, url: str, key: str | None, timeout: float) -> None:
        self._key = clean_key(key)
        self.url, self._query = base_url(url, self._key)
        self.address = f"{self.url.host}:{self.url.port or _port(self.url)}"
        self._timeout = timeout
        self._dropped: dict[str, set[str]] = {}
        try:
            self._http = httpx2.AsyncClient(
                timeout=timeout,
                limits=CONNECTION_LIMITS,
                follow_redirects=False,
                trust_env=self.url.host not in LOOPBACK_HOSTS,  # a proxy cannot reach this machine
                verify=_trusted(self.url),
            )
        except (ImportError, ValueError, OSError, httpx2.InvalidURL) as error:
            raise ConfigurationError(
                "the environment's proxy or certificates cannot be used for the model's endpoint "
                f"(HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE): {describe(error)}; expected "
                "an http:// or https:// proxy and an existing file, or the endpoint's host in "
                "NO_PROXY"
            ) from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    @cached_property
    def client(self) -> openai.AsyncOpenAI:
        """The official client of this endpoint, on the same connections."""
        client = openai.AsyncOpenAI(
            base_url=str(self.url),
            api_key=self._key or NO_KEY,
            max_retries=0,
            timeout=self._timeout,
            default_query=dict(parse_qsl(self._query)),
            http_client=self._http,
        )
        # It reads these from OPENAI_* variables, which are meant for another endpoint.
        client.organization = client.project = client.admin_api_key = client.webhook_secret = None
        client._custom_headers = {}  # noqa: SLF001 - OPENAI_CUSTOM_HEADERS; there is no option
        return client

    def content_deadline(self) -> ContentDeadline:
        """Return a new time limit for one exchange."""
        return ContentDeadline(self._timeout * CONTENT_TIMEOUT_FACTOR)

    async def post(
        self, path: str, body: Mapping[str, Any], deadline: ContentDeadline
    ) -> AsyncGenerator[bytes, None]:
        """Send a request and yield the body of its answer, decompressed, as it arrives.

        Closing the generator ends the exchange. The caller renews ``deadline`` at each content.

        Raises:
            ModelError: The endpoint cannot be reached, is silent, breaks off, or answers with a
                status other than 2xx; `ModelRefusedError` if another attempt cannot succeed.
        """
        content = orjson.dumps(body, default=_plain)
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if self._key is not None:
            headers["authorization"] = f"Bearer {self._key}"
        url = f"{str(self.url).rstrip('/')}{path}{'?' if self._query else ''}{self._query}"
        request = self._http.build_request("POST", url, content=content, headers=headers)
        response: httpx2.Response | None = None
        try:
            async with deadline.limit():
                response = await self._http.send(request, stream=True)
            chunks, received = response.aiter_raw(), 0
            inflate = _inflater(response.headers.get("content-encoding", ""))
            is_good = HTTPStatus(200) <= response.status_code < HTTPStatus(300)
            error_body = b""
            while True:
                async with deadline.limit():
                    chunk = await anext(chunks, None)
                if chunk is None:
                    break
                received += 1
                if received % CHUNKS_PER_TURN == 0:
                    await asyncio.sleep(0)
                for part in inflate(chunk):
                    if is_good:
                        yield part
                    elif len(error_body) < MAX_ERROR:
                        error_body += part
                if not is_good and len(error_body) >= MAX_ERROR:
                    break
        except ModelError:
            raise
        except TimeoutError:
            raise ModelError(
                f"the model's endpoint at {self.address} was silent for too long: it sent bytes "
                f"but no content for {deadline.seconds:g} s ({CONTENT_TIMEOUT_FACTOR} times "
                "llm_timeout)"
            ) from None
        except httpx2.TimeoutException:
            raise ModelError(
                f"the model's endpoint at {self.address} was silent for too long (llm_timeout is "
                f"{self._timeout:g} s)"
            ) from None
        except httpx2.ConnectError as error:
            raise self._redacted(ModelError(self._unreachable(error))) from None
        except Exception as error:  # noqa: BLE001 - a malformed answer may raise anything
            raise self._redacted(
                ModelError(
                    f"the exchange with the model's endpoint at {self.address} broke off: "
                    f"{describe(error)}"
                )
            ) from None
        finally:
            if response is not None:
                await response.aclose()
        if not is_good:
            raise refused(response.status_code, response.headers, self._without_key(error_body))

    def adapted(self, model: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``request`` without the options that the endpoint has rejected for ``model``."""
        dropped = self._dropped.get(model, set())
        adapted = {name: value for name, value in request.items() if name not in dropped}
        if "max_completion_tokens" in dropped & request.keys() and "max_tokens" not in dropped:
            adapted.setdefault("max_tokens", request["max_completion_tokens"])
        return adapted

    def drops_option(self, model: str, sent: Mapping[str, Any], error: ModelError) -> bool:
        """Return whether ``error`` rejects an option of ``sent``; later requests omit it."""
        if error.status not in OPTION_STATUSES or _VALUE_REFUSED.search(error.message):
            return False
        words = error.message.lower()
        for option, names in OPTION_NAMES.items():
            if option in sent and any(name in words for name in names):
                self._dropped.setdefault(model, set()).add(option)
                _log.warning(
                    "the model %s at %s rejects %s; later requests omit it: %s",
                    model, self.address, option, error.message,
                )  # fmt: skip
                return True
        return False

    @contextmanager
    def redacting(self) -> Iterator[None]:
        """Remove the key from a `ModelError` that is raised in the block."""
        try:
            yield
        except ModelError as error:
            self._redacted(error)
            raise

    def _unreachable(self, error: BaseException) -> str:
        reason: BaseException = error
        seen = 0
        while (cause := reason.__cause__ or reason.__context__) is not None and seen < MAX_CAUSES:
            reason, seen = cause, seen + 1
        message = f"no connection to the model's endpoint at {self.address}: {describe(reason)}"
        if "CERTIFICATE_VERIFY_FAILED" in message:
            message += "; for a private CA set SSL_CERT_FILE to the file of its certificate"
        return message

    def _without_key(self, body: bytes) -> bytes:
        return body if self._key is None else body.replace(self._key.encode(), b"***")

    def _redacted(self, error: ModelError) -> ModelError:
        message = error.message
        if self._key is not None:
            message = message.replace(self._key, "***")
        message = redact(message)
        if message != error.message:
            error.message, error.args = message, (message,)
        return error


class ContentDeadline:
    """The time at which an exchange fails unless the endpoint sends content before."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.renew()

    def renew(self) -> None:
        """Restart the limit, because content has arrived."""
        self._deadline = asyncio.get_running_loop().time() + self.seconds

    def limit(self) -> asyncio.Timeout:
        """Return the timeout of one wait."""
        return asyncio.timeout_at(self._deadline)


def clean_key(key: str | None) -> str | None:
    """Return the key without white space around it; ``None`` if it is empty.

    Raises:
        ConfigurationError: It contains characters that HTTP headers do not allow.
    """
    key = (key or "").strip()
    if not key.isascii() or any(not "!" <= char <= "~" for char in key):
        raise ConfigurationError(
            "llm_key contains characters that HTTP headers do not allow; expected printable ASCII "
            "without spaces or line ends inside"
        )
    return key or None


def base_url(url: str, key: str | None) -> tuple[httpx2.URL, str]:
    """Return the base URL of an endpoint and its query.

    A path of `REQUEST_PATHS` at its end and a fragment are removed.

    Raises:
        ConfigurationError: It is not an http URL with a host.
    """
    text = url.strip()
    parts, found = urlsplit(""), httpx2.URL("")
    try:
        parts = urlsplit(text)
        found = httpx2.URL(text)
        is_usable = parts.scheme in ("http", "https") and re.search(r"\s", text) is None
        is_usable = is_usable and bool(parts.hostname)
        is_usable = is_usable and (parts.port is None or parts.port > 0)
    except (ValueError, httpx2.InvalidURL):
        is_usable = False
    if not is_usable:
        raise ConfigurationError(
            f"llm_url is {redact_url(url)!r}; expected the base URL of an endpoint with its "
            "scheme, such as http://127.0.0.1:8080/v1"
        )
    if found.userinfo and key is not None:
        raise ConfigurationError(
            "llm_url has a user name and llm_key is set; expected one of them: both would be the "
            "Authorization header"
        )
    path = parts.path.rstrip("/")
    ending = next((path_ for path_ in REQUEST_PATHS if path.endswith(path_)), "")
    path = path.removesuffix(ending).rstrip("/")
    return found.copy_with(path=path or "/", query=None, fragment=None), parts.query


def _trusted(url: httpx2.URL) -> ssl.SSLContext | bool:
    """Return the certificate authorities with which the endpoint's certificate is checked."""
    if url.scheme != "https":
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # not used; reading the CAs takes 50 ms
    file = os.environ.get("SSL_CERT_FILE")  # also for this machine, where trust_env is off
    if not file:
        return True
    check_regular(Path(file), f"SSL_CERT_FILE is {file!r}")
    return ssl.create_default_context(cafile=file)


def _port(url: httpx2.URL) -> int:
    return 443 if url.scheme == "https" else 80


def _plain(value: Any) -> Any:
    """Convert values that orjson rejects: pydantic models that the official client returns."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=True, exclude={"reasoning_content"})
    raise TypeError(f"{type(value).__name__} is not JSON")


def _inflater(encoding: str) -> Callable[[bytes], Iterator[bytes]]:
    """Return a function that decompresses a body in parts of at most `MAX_INFLATED` bytes.

    Raises:
        ModelError: The encoding is unknown, or cannot be read in bounded memory.
    """
    match encoding.strip().lower():
        case "" | "identity":
            return lambda data: iter((data,))
        case "gzip" | "x-gzip" | "deflate":
            stream = zlib.decompressobj(wbits=47)
        case _:
            raise ModelError(
                f"the model's endpoint compressed its answer by {encoding[:50]!r}; expected gzip "
                "or no compression"
            )

    def inflate(data: bytes) -> Iterator[bytes]:
        while data:
            try:
                part = stream.decompress(data, MAX_INFLATED)
            except zlib.error as error:
                raise ModelError(f"the answer of the model's endpoint is broken: {error}") from None
            if part:
                yield part
            data = stream.unconsumed_tail

    return inflate


@dataclass(slots=True)
class Usage:
    """The tokens and answers of a model, as its endpoint counts them.

    Attributes:
        requests: Complete answers.
        prompt_tokens: Tokens of the requests.
        completion_tokens: Tokens of the answers.
        truncated: Answers that were cut off at the token limit.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    truncated: int = 0

    def add(self, tokens: Tokens | None, finish_reason: str) -> None:
        """Count one answer, with 0 tokens if the endpoint reports none."""
        self.requests += 1
        self.truncated += finish_reason == "length"
        if tokens is not None:
            self.prompt_tokens += tokens.prompt
            self.completion_tokens += tokens.completion

    def counts(self) -> dict[str, int]:
        """Return the counts by name, as in a step's result."""
        return asdict(self)


@dataclass(frozen=True, eq=False, slots=True)
class LanguageModel:
    """A chat model behind an OpenAI-compatible endpoint.

    The methods take ``messages`` in the endpoint's format and any further option of its
    ``/chat/completions`` by name (``temperature``, ``tools``, …); parameters that only this
    endpoint has go into ``extra_body``. They raise

    - `ModelError` if another attempt may succeed: the endpoint is overloaded (with ``retry_after``
      if it sent one), broken, silent or unreachable, or its answer is invalid;
    - `ModelRefusedError`, both a `ModelError` and a `PermanentError`, if another attempt cannot
      succeed: an invalid key, model or request, a refusal by the model or by a content filter;
    - `ModelTruncatedError`, a `ModelRefusedError` with the text so far: the answer reached the
      token limit.

    Cancelling a call closes its HTTP exchange, so the endpoint can stop working on it.

    Attributes:
        endpoint: The endpoint of the model.
        model: The name of the model.
        max_tokens: Maximum number of tokens in one answer.
        tracing: Records a span for each request, if the server is traced.
        usage: Usage of this object.
        total: Usage of this object and all copies made by ``counting``.
    """

    endpoint: Endpoint
    model: str
    max_tokens: int
    tracing: Tracing | None = None
    usage: Usage = field(default_factory=Usage)
    total: Usage = field(default_factory=Usage)

    @property
    def client(self) -> openai.AsyncOpenAI:
        """The official client of the endpoint, for other libraries; it raises openai's errors."""
        return self.endpoint.client

    def counting(self) -> LanguageModel:
        """Return the same model with a separate ``usage``, which begins at 0."""
        return replace(self, usage=Usage())

    async def create(self, messages: Sequence[Message], **options: Any) -> ChatCompletion:
        """Return the endpoint's whole answer, for example with ``tools`` among the options.

        It has one choice. Reasoning is in its message's ``reasoning_content``, never in its
        ``content``. An answer that was cut off has the ``finish_reason`` ``length``.
        """
        return _completion(await self._answer(messages, options), self.model)

    async def complete(
        self,
        messages: Sequence[Message],
        schema: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> str:
        """Return the text of the answer, without reasoning.

        Args:
            messages: The chat so far.
            schema: JSON Schema for the text; JSON is extracted from a code fence around it. Not
                every endpoint follows a schema, so validate the text.
            options: Further options of the endpoint.
        """
        if schema is not None:
            options["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "strict": True, "schema": schema},
            }
        answer = await self._answer(messages, options)
        with self.endpoint.redacting():
            answer.check_text()
        return answer.text if schema is None else json_text(answer.text)

    async def stream(
        self,
        messages: Sequence[Message],
        on_reasoning: Callable[[str], None] | None = None,
        **options: Any,
    ) -> AsyncGenerator[str, None]:
        """Yield the text of the answer as it is written, in pieces of at least one character.

        An incomplete answer raises its error at the end. Use the generator through
        `contextlib.aclosing`: closing it closes the HTTP exchange.

        Args:
            messages: The chat so far.
            on_reasoning: Called with each piece of the model's reasoning, which is not yielded.
            options: Further options of the endpoint.
        """
        request = self._request(messages, options)
        request |= {"stream": True, "stream_options": {"include_usage": True}}
        with self._span(request) as span:
            answer = ChatAnswer()
            async with aclosing(self._pieces(request)) as pieces:
                async for piece, answer in pieces:  # noqa: B007 - the last answer is complete
                    if piece.reasoning and on_reasoning is not None:
                        on_reasoning(piece.reasoning)
                    if piece.text:
                        yield piece.text
            with self.endpoint.redacting():
                self._count(answer, span)
                answer.check_text()

    async def _answer(self, messages: Sequence[Message], options: Mapping[str, Any]) -> ChatAnswer:
        request = self._request(messages, options)
        with self._span(request) as span:
            answer = ChatAnswer()
            async with aclosing(self._pieces(request)) as pieces:
                async for _, answer in pieces:  # noqa: B007 - the last answer is complete
                    pass
            with self.endpoint.redacting():
                self._count(answer, span)
        return answer

    async def _pieces(
        self, request: Mapping[str, Any]
    ) -> AsyncGenerator[tuple[AnswerPiece, ChatAnswer], None]:
        """Yield each piece with the answer so far; a last empty piece has the complete answer."""
        model = str(request["model"])
        while True:
            reader, has_begun = ModelAnswerReader(), False
            sent, deadline = self.endpoint.adapted(model, request), self.endpoint.content_deadline()
            exchange = self.endpoint.post("/chat/completions", sent, deadline)
            try:
                with self.endpoint.redacting():
                    async with aclosing(exchange) as chunks:
                        async for data in chunks:
                            for piece in reader.feed(data):
                                has_begun = True
                                yield piece, reader.answer
                                deadline.renew()
                            if reader.done:
                                break
                    for piece in reader.finish():
                        yield piece, reader.answer
            except ModelError as error:
                if has_begun or not self.endpoint.drops_option(model, sent, error):
                    raise
            else:
                yield AnswerPiece("", ""), reader.answer
                return

    def _request(self, messages: Sequence[Message], options: Mapping[str, Any]) -> dict[str, Any]:
        for name in options:
            if name not in _known_options():
                raise TypeError(
                    f"unexpected option {name!r}; parameters that only some endpoints have go into "
                    "extra_body"
                )
        chosen = dict(options)
        extra = chosen.pop("extra_body", None) or {}
        own: dict[str, Any] = {"model": self.model}
        if "max_tokens" not in chosen:
            own["max_completion_tokens"] = self.max_tokens
        return own | chosen | dict(extra) | {"messages": list(messages)}

    def _span(self, request: Mapping[str, Any]) -> AbstractContextManager[ModelSpan | None]:
        if self.tracing is None:
            return nullcontext()
        return self.tracing.model_call("chat", request["model"], self.endpoint.url, request)

    def _count(self, answer: ChatAnswer, span: ModelSpan | None) -> None:
        """Check that an answer is complete, then count it.

        Raises:
            ModelError: It is incomplete.
        """
        answer.check_end()
        self.usage.add(answer.tokens, answer.kind)
        self.total.add(answer.tokens, answer.kind)
        if span is not None:
            span.set_attributes(
                response__id=answer.id or None,
                response__model=answer.model or None,
                response__finish_reasons=[answer.kind],
            )
            if answer.tokens is not None:
                span.set_attributes(
                    usage__input_tokens=answer.tokens.prompt,
                    usage__output_tokens=answer.tokens.completion,
                )


@cache
def _known_options() -> frozenset[str]:
    """Return the options that the official client accepts, and ``extra_body``."""
    known = inspect.signature(AsyncCompletions.create).parameters
    return frozenset(known) - _TRANSPORT | {"extra_body"}


def _completion(answer: ChatAnswer, model: str) -> ChatCompletion:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text or None}
    if answer.tool_calls:
        message["tool_calls"] = answer.tool_calls
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    completion: dict[str, Any] = {
        "id": answer.id,
        "object": "chat.completion",
        "created": 0,
        "model": answer.model or model,
        "choices": [
            {"index": 0, "finish_reason": answer.kind, "message": message, "logprobs": None}
        ],
    }
    if answer.tokens is not None:
        completion["usage"] = {
            "prompt_tokens": answer.tokens.prompt,
            "completion_tokens": answer.tokens.completion,
            "total_tokens": answer.tokens.prompt + answer.tokens.completion,
        }
    return ChatCompletion.model_validate(completion)


@dataclass(frozen=True, eq=False, slots=True)
class Embedder:
    """An embedding model at an OpenAI-compatible endpoint; raises the errors of `LanguageModel`."""

    endpoint: Endpoint
    model: str
    tracing: Tracing | None = None

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return the vectors of ``texts``, in their order, all with the same dimension."""
        span = (
            nullcontext()
            if self.tracing is None
            else self.tracing.model_call("embeddings", self.model, self.endpoint.url)
        )
        request = {"model": self.model, "input": list(texts), "encoding_format": "float"}
        with span, self.endpoint.redacting():
            while True:
                sent = self.endpoint.adapted(self.model, request)
                try:
                    return read_vectors(await self._body(sent), len(texts))
                except ModelError as error:
                    if not self.endpoint.drops_option(self.model, sent, error):
                        raise

    async def _body(self, request: Mapping[str, Any]) -> bytes:
        body = bytearray()
        exchange = self.endpoint.post("/embeddings", request, self.endpoint.content_deadline())
        async with aclosing(exchange) as chunks:
            async for data in chunks:
                body += data
                if len(body) > MAX_VECTORS:
                    raise ModelError(
                        f"the embedding endpoint sent more than {MAX_VECTORS:,} bytes at once"
                    )
        return bytes(body)
