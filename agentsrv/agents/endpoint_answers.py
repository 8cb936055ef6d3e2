"""Parses chat completions of an OpenAI-compatible endpoint, from one document or a stream.

Theory of operation
===================

Endpoints differ in the answers that they send, and no answer is trusted. This module has no I/O: it
takes bytes and returns checked values, or raises `ModelError` and nothing else. The same holds for
`endpoint_errors`, `embedding_answers`, `reasoning` and `code_fences`. `agentsrv.agents.llm` does
the I/O.

`ModelAnswerReader` parses the body of one chat completion. It receives the bytes as they arrive.
The first byte that is not white space decides the format, whatever the request and the content type
were:

    ``{`` or ``[``                  one JSON document: buffered, parsed at the end
    ``data:``, ``event:``, ``:`` …  server-sent events: each is parsed when it is complete
    anything else                   a page or plain text: an error that quotes the body

Both formats end in `_take`, which merges a ``message`` or a ``delta`` into the answer. Content
passes two filters: surrogate pairs that were split over two chunks are joined, and unpaired halves
are replaced by U+FFFD; `ReasoningFilter` separates a leading ``<think>…</think>`` from the text.

An answer is complete when the endpoint has sent a finish reason (one JSON document may omit it,
because the document itself is complete). ``[DONE]`` or the end of the connection without a finish
reason means that the stream broke. `ChatAnswer.check_end` and `check_text` raise errors for
complete answers that are not a text:

    finish reason error, abort …    `ModelError`: another attempt may succeed
    content_filter, safety …        `ModelRefusedError`: final
    a refusal                       `ModelRefusedError`, with the model's words
    length, max_tokens …            `ModelTruncatedError`: final, with the text so far
    tool calls, or no text          `ModelError`

Limits: `MAX_BODY` bytes of a document or of one event, `MAX_STREAM` bytes of a stream, `MAX_IDLE`
consecutive events with neither text nor reasoning, `MAX_ERROR` bytes of an error's body.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from agentsrv.agents.endpoint_errors import (
    MAX_ERROR,
    MAX_WORDS,
    describe_body,
    load,
    nonsense,
    reported,
    reported_or,
    words_in,
)
from agentsrv.agents.reasoning import AnswerPiece, ReasoningFilter
from agentsrv.errors import ModelError, ModelRefusedError, ModelTruncatedError
from agentsrv.knowledge.text import shorten
from agentsrv.models.text import joined, split

MAX_BODY: Final = 4 << 20  # bytes of one JSON document or event of a chat
MAX_STREAM: Final = 64 << 20  # bytes of a stream
MAX_IDLE: Final = 10_000  # consecutive events without text or reasoning
MAX_TOKENS: Final = 1 << 53  # larger counts of tokens are ignored
SNIFFED_BYTES: Final = 64  # bytes of a body that decide its format

_LENGTH: Final = frozenset({"length", "max_tokens", "model_length", "max_output_tokens"})
_FILTER: Final = frozenset(
    "content_filter safety recitation prohibited_content blocklist spii sensitive".split()
)
_BROKEN: Final = frozenset(
    "error abort aborted cancelled canceled network_error insufficient_system_resource timeout"
    " failed".split()
)
_EVENT_FIELDS: Final = (b"data:", b"event:", b"id:", b"retry:", b":")
_LONGEST_FIELD: Final = max(map(len, _EVENT_FIELDS))
_REASONING: Final = ("reasoning_content", "reasoning", "thinking")

Json = dict[str, Any]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of a request and of its answer, as the endpoint counts them; 0 if it does not."""

    prompt: int = 0
    completion: int = 0


@dataclass(slots=True)
class ChatAnswer:
    """A chat completion with checked types.

    Attributes:
        text: The content, without reasoning.
        reasoning: The model's reasoning, from the content or from a separate field.
        refusal: The model's refusal; empty if there is none.
        tool_calls: Each with ``id``, ``type`` and ``function`` (``name`` and ``arguments``).
        finish_reason: Lower case, as the endpoint sent it; empty if it sent none.
        is_stream: Whether it arrived as server-sent events.
        tokens: ``None`` if the endpoint did not count.
    """

    id: str = ""
    model: str = ""
    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    tool_calls: list[Json] = field(default_factory=list)
    finish_reason: str = ""
    is_stream: bool = False
    tokens: Tokens | None = None

    @property
    def kind(self) -> FinishReason:
        """The finish reason as one of OpenAI's values."""
        if self.finish_reason in _LENGTH:
            return "length"
        if self.finish_reason in _FILTER:
            return "content_filter"
        return "tool_calls" if self.tool_calls else "stop"

    def check_end(self) -> None:
        """Check that the answer is complete and was not refused.

        Raises:
            ModelError: The answer broke off.
            ModelRefusedError: The model or a filter refused.
        """
        if not self.finish_reason and self.is_stream:
            raise ModelError(
                "the stream ended before the model had finished: it had no finish_reason"
            )
        if self.finish_reason in _BROKEN:
            raise ModelError(
                f"the model's endpoint broke the answer off: finish_reason {self.finish_reason!r}"
            )
        if self.refusal:
            raise ModelRefusedError(f"the model refuses: {shorten(self.refusal, MAX_WORDS)}")
        if self.finish_reason in _FILTER:
            raise ModelRefusedError(
                "a content filter of the model's endpoint stopped the answer: finish_reason "
                f"{self.finish_reason!r}"
            )

    def check_text(self) -> None:
        """Check that the answer is a complete text.

        Raises:
            ModelError: As for `check_end`, or the answer has no text or calls tools.
            ModelTruncatedError: It was cut off at the token limit.
        """
        self.check_end()
        if self.finish_reason in _LENGTH:
            so_far = f"; the text so far: {shorten(self.text, MAX_WORDS)}" if self.text else ""
            raise ModelTruncatedError(
                "the model's answer was cut off at the token limit (setting llm_max_tokens, "
                f"option max_completion_tokens): raise it or ask for less{so_far}",
                text=self.text,
            )
        if self.tool_calls:
            names = ", ".join(call["function"]["name"] for call in self.tool_calls)
            raise ModelError(
                f"the model calls tools ({shorten(names, MAX_WORDS)}) where a text was expected; "
                "ask with create() to receive tool calls"
            )
        if not self.text.strip():
            found = "only reasoning" if self.reasoning else "nothing"
            raise ModelError(f"the model answered without a text: the endpoint sent {found}")


class ModelAnswerReader:
    """Parses the body of one chat completion; see the module's theory of operation.

    Call `feed` with the bytes as they arrive until `done` or the end of the body, then `finish`.
    """

    def __init__(self) -> None:
        self.done = False
        """Whether the endpoint has announced the end of the answer."""
        self._answer = ChatAnswer()
        self._form: Literal["", "document", "events", "page"] = ""
        self._buffer = bytearray()
        self._searched = 0  # first bytes of the buffer that contain no line end
        self._size = 0
        self._idle = 0
        self._event = ""
        self._data: list[bytes] = []
        self._data_size = 0
        self._half = ""  # the first half of a surrogate pair whose second half is missing
        self._thoughts = ReasoningFilter()
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._refusal: list[str] = []
        self._calls: dict[int, Json] = {}
        self._arguments: dict[int, list[str]] = {}  # of the tool calls

    def feed(self, data: bytes) -> Iterator[AnswerPiece]:
        """Parse further bytes of the body; yield the pieces that they add to the answer.

        Raises:
            ModelError: The body is malformed, reports an error or is too large.
        """
        self._size += len(data)
        self._buffer += data
        if not self._form:
            self._sniff()
        if self._form == "events":
            if self._size > MAX_STREAM:
                raise ModelError(f"the model's stream has more than {MAX_STREAM:,} bytes")
            yield from self._events()
        elif self._form == "page":
            del self._buffer[MAX_ERROR:]
        if len(self._buffer) > MAX_BODY:
            raise ModelError(f"the model's endpoint sent more than {MAX_BODY:,} bytes at once")

    def finish(self) -> Iterator[AnswerPiece]:
        """Parse the rest after the end of the body; then `answer` is complete.

        Raises:
            ModelError: As for `feed`; or the body is neither JSON nor events.
        """
        answer = self._answer
        if not self._form and self._buffer:
            self._sniff(is_end=True)
        if self._form == "document":
            yield from self._document(load(bytes(self._buffer)))
        elif self._form == "events" and not self.done:
            self._buffer += b"\n\n"
            try:
                yield from self._events()
            except ModelError:
                if not answer.finish_reason:  # events after the finish reason are not needed
                    raise
        elif not self._form or self._form == "page":
            raise ModelError(
                "the model's endpoint answered with "
                + describe_body(bytes(self._buffer))
                + " where JSON was expected"
            )
        yield from self._added(self._thoughts.feed(joined(self._half)))
        yield from self._added(self._thoughts.end())
        answer.text, answer.reasoning = "".join(self._text), "".join(self._reasoning)
        answer.refusal = "".join(self._refusal)
        answer.tool_calls = [self._calls[place] for place in sorted(self._calls)]
        for place, parts in self._arguments.items():
            self._calls[place]["function"]["arguments"] = "".join(parts)
        for number, call in enumerate(answer.tool_calls):
            if not call["function"]["name"]:
                raise ModelError("the model's endpoint sent a tool call without a name")
            call["id"] = call["id"] or f"call_{number}"

    @property
    def answer(self) -> ChatAnswer:
        """The answer; `finish` sets its text, reasoning, refusal and arguments."""
        return self._answer

    def _sniff(self, *, is_end: bool = False) -> None:
        self._buffer = self._buffer.lstrip()
        start = bytes(self._buffer[:SNIFFED_BYTES]).removeprefix(b"\xef\xbb\xbf").lstrip()
        if not start:
            return
        if start[:1] in (b"{", b"["):
            self._form = "document"
        elif start.startswith(_EVENT_FIELDS):
            self._form = "events"
            self._answer.is_stream = True
            del self._buffer[: self._buffer.index(start[:1])]
        elif is_end or len(start) >= _LONGEST_FIELD:
            self._form = "page"

    def _events(self) -> Iterator[AnswerPiece]:
        while not self.done:
            end = self._line_end()
            if end < 0:
                return
            line = bytes(self._buffer[:end])
            skip = 2 if self._buffer[end : end + 2] == b"\r\n" else 1
            del self._buffer[: end + skip]
            self._searched = 0
            if line:
                self._line(line)
            elif self._data or self._event:
                yield from self._dispatch()

    def _line_end(self) -> int:
        """Return the end of the buffer's first line; -1 if the line is incomplete."""
        newline = self._buffer.find(b"\n", self._searched)
        stop = len(self._buffer) if newline < 0 else newline
        carriage = self._buffer.find(b"\r", self._searched, stop)
        if carriage >= 0 and carriage + 1 < len(self._buffer):  # otherwise a line feed may follow
            return carriage
        self._searched = max(0, stop - 1) if newline < 0 else 0
        return newline if carriage < 0 else -1

    def _line(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            self._data_size += len(value)
            if self._data_size > MAX_BODY:
                raise ModelError(
                    f"the model's endpoint sent an event of more than {MAX_BODY:,} bytes"
                )
        elif name == b"event":
            self._event = value.decode(errors="replace")
        elif not name:
            self._count_idle()

    def _dispatch(self) -> Iterator[AnswerPiece]:
        lines, name = self._data, self._event
        self._data, self._event, self._data_size = [], "", 0
        data = b"\n".join(lines)
        if data.strip() == b"[DONE]":
            self.done = True
        elif data.strip():
            try:
                documents = [load(data)]
            except ModelError:
                if len(lines) == 1:
                    raise
                documents = [load(line) for line in lines if line.strip() != b"[DONE]"]
                self.done = lines[-1].strip() == b"[DONE]"
            for document in documents:
                yield from self._document(document, name)

    def _document(self, document: Any, event: str = "") -> Iterator[AnswerPiece]:
        if not isinstance(document, dict):
            if self._form == "document" and isinstance(document, list) and words_in(document):
                raise reported(document)
            raise nonsense("a JSON object was expected", document)
        choices = document.get("choices")
        if document.get("error") or event == "error" or document.get("object") == "error":
            raise reported(document)
        if choices is None:
            if self._form == "document" or not (document.keys() & {"usage", "id", "object"}):
                raise reported_or("no choices", document)
            choices = []
        if not isinstance(choices, list):
            raise nonsense("choices are not a list", choices)
        if self._form == "document" and not choices:
            raise nonsense("no choices", document)
        answer = self._answer
        answer.id = answer.id or _text_of(document.get("id"))
        answer.model = answer.model or _text_of(document.get("model"))
        answer.tokens = _tokens(document.get("usage")) or answer.tokens
        before = self._idle
        for choice in choices:
            yield from self._choice(choice)
        if self._idle == before:
            self._count_idle()

    def _choice(self, choice: Any) -> Iterator[AnswerPiece]:
        if not isinstance(choice, dict):
            raise nonsense("a choice is not an object", choice)
        if choice.get("index") not in (0, "0", None):
            return
        part = choice.get("delta") if self._answer.is_stream else choice.get("message")
        if part is None and self._answer.is_stream:
            part = choice.get("message") or {}
        if not isinstance(part, dict):
            raise nonsense("a choice without a message", choice)
        reason = choice.get("finish_reason")
        if reason is not None and not isinstance(reason, str):
            raise nonsense("a finish_reason that is not text", reason)
        yield from self._take(part)
        self._answer.finish_reason = (reason or "").lower() or self._answer.finish_reason

    def _take(self, part: Json) -> Iterator[AnswerPiece]:
        """Merge a message or a delta into the answer."""
        content, reasoning, refusal = _content(part.get("content"))
        reasoning += next((_text_of(part[key]) for key in _REASONING if part.get(key)), "")
        content, self._half = split(self._half + content)
        found = self._thoughts.feed(content)
        refused = part.get("refusal") or ""
        refused = refused if isinstance(refused, str) else words_in(refused)
        self._refusal.append(joined(refusal + refused))
        calls = part.get("tool_calls") or []
        if not calls and isinstance(part.get("function_call"), dict):  # older than tool calls
            calls = [{"function": part["function_call"]}]
        if not isinstance(calls, list):
            raise nonsense("tool_calls are not a list", calls)
        for number, call in enumerate(calls):
            self._call(call, number)
        yield from self._added(replace(found, reasoning=found.reasoning + joined(reasoning)))

    def _call(self, call: Any, number: int) -> None:
        if not isinstance(call, dict) or not isinstance(call.get("function") or {}, dict):
            raise nonsense("a tool call is not an object", call)
        index = call.get("index", number)
        place = index if isinstance(index, int) else number
        function = call.get("function") or {}
        arguments = function.get("arguments")
        if isinstance(arguments, dict):
            arguments = json.dumps(arguments)
        empty = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        known = self._calls.setdefault(place, empty)
        known["id"] = known["id"] or _text_of(call.get("id"))
        known["function"]["name"] += joined(_text_of(function.get("name")))
        self._arguments.setdefault(place, []).append(joined(_text_of(arguments)))
        self._idle = 0

    def _added(self, piece: AnswerPiece) -> Iterator[AnswerPiece]:
        if piece.ends_thought:
            self._reasoning += self._text
            self._text.clear()
        if piece.text or piece.reasoning:
            self._idle = 0
            self._text.append(piece.text)
            self._reasoning.append(piece.reasoning)
            yield piece

    def _count_idle(self) -> None:
        self._idle += 1
        if self._idle > MAX_IDLE:
            raise ModelError(
                f"the model's endpoint sent more than {MAX_IDLE:,} events in a row without text"
            )


def _content(content: Any) -> tuple[str, str, str]:
    """Return the text, reasoning and refusal of a ``content``: a string or a list of parts."""
    if content is None or isinstance(content, str):
        return content or "", "", ""
    if not isinstance(content, list):
        raise nonsense("a content that is not text", content)
    text, reasoning, refusal = "", "", ""
    for part in content:
        if not isinstance(part, dict):
            raise nonsense("a part of a content is not an object", part)
        if part.get("type") in ("thinking", "reasoning"):
            inner = part.get("thinking") or part.get("text")
            reasoning += _content(inner)[0] if isinstance(inner, str | list) else ""
        elif isinstance(part.get("text"), str):
            text += part["text"]
        refusal += _text_of(part.get("refusal"))
    return text, reasoning, refusal


def _text_of(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _tokens(usage: Any) -> Tokens | None:
    if not isinstance(usage, dict):
        return None
    return Tokens(_count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")))


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < MAX_TOKENS:
        return 0
    return int(value)
