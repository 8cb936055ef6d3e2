"""Reader of everything that an OpenAI-compatible endpoint sends: answers, streams, vectors, errors.

Theory of operation. Endpoints differ in what they send, and what they send is not trusted. This
module is pure: it takes bytes and returns checked values, or raises `ModelError` and nothing else.
`agentsrv.agents.llm` does the input and output.

`AnswerReader` reads the body of one chat completion. It is fed with the bytes as they arrive, and
its first byte that is no white space decides what the body is, whatever was asked for and whatever
the content type says:

    ``{`` or ``[``                  one JSON document: buffered, read at the end
    ``data:``, ``event:``, ``:`` …  server-sent events: each is read as soon as it is complete
    anything else                   a page or plain text: an error with the body's words

Both forms end in the same `_take`, which merges a ``message`` or a ``delta`` into the answer.
Content passes two filters: `_Joiner` joins surrogate pairs that were split over two chunks and
replaces halves by U+FFFD, `Thoughts` separates a leading ``<think>…</think>`` from the text.

An answer is whole when the endpoint gave a finish reason (in one JSON document it may be absent,
because the document itself is complete). ``[DONE]`` or the end of the connection without one means
that the stream broke. `Answer.check` turns what is whole but not a text into errors:

    finish reason error, abort …    `ModelError`: another attempt may succeed
    content_filter, safety …        `ModelRefused`: final
    a refusal                       `ModelRefused`, with the model's words
    length, max_tokens …            `ModelTruncated`: final, with the text so far
    tool calls, or no text          `ModelError`

Bounds: `MAX_BODY` bytes of a document or of one event, `MAX_STREAM` bytes of a stream, `MAX_IDLE`
events in a row that bring neither text nor reasoning, `MAX_ERROR` bytes of an error's body.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from html import unescape
from http import HTTPStatus
from typing import Any, Final, Literal

import orjson

from agentsrv.agents.text import shorten
from agentsrv.errors import ModelError, ModelRefused, ModelTruncated

MAX_BODY: Final = 4 << 20  # bytes of one JSON document or event of a chat
MAX_VECTORS: Final = 32 << 20  # bytes of an answer with vectors
MAX_STREAM: Final = 64 << 20  # bytes of a stream
MAX_IDLE: Final = 10_000  # events in a row without text or reasoning
MAX_ERROR: Final = 64 << 10  # bytes that are read of an error's body
MAX_PAGE: Final = 8 << 10  # characters of a page in which its words are looked for
MAX_WORDS: Final = 500  # characters of an endpoint's own words in an error
MAX_RETRY_AFTER: Final = 86_400.0  # seconds
MAX_TOKENS: Final = 1 << 53  # of a count that is believed
MAX_DEPTH: Final = 4  # levels of an error in which its words are looked for
SNIFFED: Final = 64  # bytes of a body that decide its form
MAX_LISTED: Final = 5  # errors of a list that are shown
FLOAT32: Final = 3.4028234663852886e38  # the largest number of a vector

PASSING: Final = frozenset({408, 409, 425, 429})
"""The statuses below 500 after which another attempt may succeed."""
_FINAL_CODES: Final = frozenset(
    "invalid_request_error authentication_error permission_error not_found_error invalid_api_key"
    " model_not_found context_length_exceeded unsupported_parameter unsupported_value".split()
)
_LENGTH: Final = frozenset({"length", "max_tokens", "model_length", "max_output_tokens"})
_FILTER: Final = frozenset(
    "content_filter safety recitation prohibited_content blocklist spii sensitive".split()
)
_BROKEN: Final = frozenset(
    "error abort aborted cancelled canceled network_error insufficient_system_resource timeout"
    " failed".split()
)
_TOOLS: Final = frozenset({"tool_calls", "function_call", "tool_use"})
_EVENT_FIELDS: Final = (b"data:", b"event:", b"id:", b"retry:", b":")
_MOST_FIELD: Final = max(map(len, _EVENT_FIELDS))
_WORDS: Final = (
    "message", "error", "detail", "details", "msg", "error_message", "error_description",
    "errors", "reason", "description", "title",
)  # fmt: skip
_REASONING: Final = ("reasoning_content", "reasoning", "thinking")
_THOUGHTS: Final = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "[think]": "[/think]",
}
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_HIGH: Final = re.compile("[\ud800-\udbff]$")
_HIDDEN: Final = {"<script": "</script", "<style": "</style", "<!--": "-->"}
"""Elements whose content is not shown; the closing tags are left to `_TAG`."""
_STATUS: Final = re.compile("[45][0-9][0-9]")
_STATUSES: Final = range(400, 600)
_TAG: Final = re.compile(r"<[^<>]*>")
_FENCE_OPEN: Final = re.compile(r"```[a-zA-Z]*[ \t]*\r?\n")

Json = dict[str, Any]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of a request and of its answer, as the endpoint counts them; 0 where it does not."""

    prompt: int = 0
    completion: int = 0


@dataclass(slots=True)
class Answer:
    """A chat completion, checked.

    Attributes:
        text: The content, without reasoning.
        reasoning: What the model thought, from the content or from a field of its own.
        refusal: The words in which the model refuses; empty if it does not.
        tool_calls: Each with ``id``, ``type`` and ``function`` (``name`` and ``arguments``).
        finish_reason: Lower case, as the endpoint gave it; empty if it gave none.
        is_stream: Whether it came as server-sent events.
        tokens: None if the endpoint did not count.
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
        """The finish reason as one of OpenAI's."""
        if self.finish_reason in _LENGTH:
            return "length"
        if self.finish_reason in _FILTER:
            return "content_filter"
        return "tool_calls" if self.tool_calls else "stop"

    def check_end(self) -> None:
        """Check that the answer is whole and that neither model nor endpoint refused it.

        Raises:
            ModelError: The answer broke off.
            ModelRefused: The model or a filter refused.
        """
        if not self.finish_reason and self.is_stream:
            raise ModelError(
                "the stream ended before the model had finished: it gave no finish_reason"
            )
        if self.finish_reason in _BROKEN:
            raise ModelError(
                f"the model's endpoint broke the answer off: finish_reason {self.finish_reason!r}"
            )
        if self.refusal:
            raise ModelRefused(f"the model refuses: {shorten(self.refusal, MAX_WORDS)}")
        if self.finish_reason in _FILTER:
            raise ModelRefused(
                "a content filter of the model's endpoint stopped the answer: finish_reason "
                f"{self.finish_reason!r}"
            )

    def check_text(self) -> None:
        """Check that the answer is a whole text.

        Raises:
            ModelError: See `check_end`; or it has no text, or calls tools.
            ModelTruncated: It was cut off at the token limit.
        """
        self.check_end()
        if self.finish_reason in _LENGTH:
            told = f"; the text so far: {shorten(self.text, MAX_WORDS)}" if self.text else ""
            raise ModelTruncated(
                "the model's answer was cut off at the token limit (setting llm_max_tokens, "
                f"option max_completion_tokens): raise it or ask for less{told}",
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


@dataclass(frozen=True, slots=True)
class Piece:
    """What a chunk added; one of the two may be empty."""

    text: str
    reasoning: str


class AnswerReader:
    """Reads the body of one chat completion; see the module's theory of operation.

    Call `feed` with the bytes as they come until `done` or the end of the body, then `finish`.
    """

    def __init__(self) -> None:
        self.done = False
        """The endpoint said that nothing will follow."""
        self._answer = Answer()
        self._form: Literal["", "document", "events", "page"] = ""
        self._buffer = bytearray()
        self._searched = 0  # bytes of the buffer without a line end
        self._size = 0
        self._idle = 0
        self._event = ""
        self._data: list[bytes] = []
        self._data_size = 0
        self._joiner = _Joiner()
        self._thoughts = Thoughts()
        self._calls: dict[int, Json] = {}

    def feed(self, data: bytes) -> Iterator[Piece]:
        """Take bytes of the body; yields what they add to the answer.

        Raises:
            ModelError: The body is broken, reports an error or is too large.
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

    def finish(self) -> Iterator[Piece]:
        """The body has ended: yields the rest; afterwards `answer` is complete."""
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
                if not answer.finish_reason:  # what follows the end is not needed
                    raise
        elif not self._form or self._form == "page":
            raise ModelError(
                "the model's endpoint answered with "
                + describe_body(bytes(self._buffer))
                + " where JSON was expected"
            )
        rest = self._thoughts.feed(self._joiner.end())
        end = self._thoughts.end()
        yield from self._added(rest.text + end.text, rest.reasoning + end.reasoning)
        answer.tool_calls = [self._calls[place] for place in sorted(self._calls)]
        for number, call in enumerate(answer.tool_calls):
            if not call["function"]["name"]:
                raise ModelError("the model's endpoint sent a tool call without a name")
            call["id"] = call["id"] or f"call_{number}"

    @property
    def answer(self) -> Answer:
        """What was read so far."""
        return self._answer

    def _sniff(self, *, is_end: bool = False) -> None:
        self._buffer = self._buffer.lstrip()
        start = bytes(self._buffer[:SNIFFED]).removeprefix(b"\xef\xbb\xbf").lstrip()
        if not start:
            return
        if start[:1] in (b"{", b"["):
            self._form = "document"
        elif start.startswith(_EVENT_FIELDS):
            self._form = "events"
            self._answer.is_stream = True
            del self._buffer[: self._buffer.index(start[:1])]
        elif is_end or len(start) >= _MOST_FIELD:
            self._form = "page"

    def _events(self) -> Iterator[Piece]:
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
        """Where the first line of the buffer ends; -1 if it does not yet."""
        newline = self._buffer.find(b"\n", self._searched)
        stop = len(self._buffer) if newline < 0 else newline
        carriage = self._buffer.find(b"\r", self._searched, stop)
        if carriage >= 0 and carriage + 1 < len(self._buffer):  # or its line feed may follow
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

    def _dispatch(self) -> Iterator[Piece]:
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

    def _document(self, document: Any, event: str = "") -> Iterator[Piece]:
        if not isinstance(document, dict):
            if self._form == "document" and isinstance(document, list) and words_in(document):
                raise reported(document)
            raise _nonsense("a JSON object was expected", document)
        choices = document.get("choices")
        if document.get("error") or event == "error" or document.get("object") == "error":
            raise reported(document)
        if choices is None:
            if self._form == "document" or not (document.keys() & {"usage", "id", "object"}):
                raise _reported_or("no choices", document)
            choices = []
        if not isinstance(choices, list):
            raise _nonsense("choices are not a list", choices)
        if self._form == "document" and not choices:
            raise _nonsense("no choices", document)
        answer = self._answer
        answer.id = answer.id or _text_of(document.get("id"))
        answer.model = answer.model or _text_of(document.get("model"))
        answer.tokens = _tokens(document.get("usage")) or answer.tokens
        before = self._idle
        for choice in choices:
            yield from self._choice(choice)
        if self._idle == before:
            self._count_idle()

    def _choice(self, choice: Any) -> Iterator[Piece]:
        if not isinstance(choice, dict):
            raise _nonsense("a choice is not an object", choice)
        if choice.get("index") not in (0, None):
            return
        part = choice.get("delta") if self._answer.is_stream else choice.get("message")
        if part is None and self._answer.is_stream:
            part = choice.get("message") or {}
        if not isinstance(part, dict):
            raise _nonsense("a choice without a message", choice)
        reason = choice.get("finish_reason")
        if reason is not None and not isinstance(reason, str):
            raise _nonsense("a finish_reason that is not text", reason)
        yield from self._take(part)
        self._answer.finish_reason = (reason or "").lower() or self._answer.finish_reason

    def _take(self, part: Json) -> Iterator[Piece]:
        """Merge a message or a delta into the answer."""
        content, reasoning = _content(part.get("content"))
        if self._form == "document" and "</think>" in content and "<think>" not in content:
            content = f"<think>{content}"  # templates that begin the thought leave only its end
        reasoning += next((_text_of(part[key]) for key in _REASONING if part.get(key)), "")
        split = self._thoughts.feed(self._joiner.feed(content))
        self._answer.refusal += _whole_unicode(_text_of(part.get("refusal")))
        calls = part.get("tool_calls") or []
        if not isinstance(calls, list):
            raise _nonsense("tool_calls are not a list", calls)
        for number, call in enumerate(calls):
            self._call(call, number)
        yield from self._added(split.text, split.reasoning + _whole_unicode(reasoning))

    def _call(self, call: Any, number: int) -> None:
        if not isinstance(call, dict) or not isinstance(call.get("function") or {}, dict):
            raise _nonsense("a tool call is not an object", call)
        index = call.get("index", number)
        function = call.get("function") or {}
        arguments = function.get("arguments")
        if isinstance(arguments, dict):
            arguments = json.dumps(arguments)
        empty = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        known = self._calls.setdefault(index if isinstance(index, int) else number, empty)
        known["id"] = known["id"] or _text_of(call.get("id"))
        known["function"]["name"] += _whole_unicode(_text_of(function.get("name")))
        known["function"]["arguments"] += _whole_unicode(_text_of(arguments))
        self._idle = 0

    def _added(self, text: str, reasoning: str) -> Iterator[Piece]:
        if text or reasoning:
            self._idle = 0
            self._answer.text += text
            self._answer.reasoning += reasoning
            yield Piece(text, reasoning)

    def _count_idle(self) -> None:
        self._idle += 1
        if self._idle > MAX_IDLE:
            raise ModelError(
                f"the model's endpoint sent more than {MAX_IDLE:,} events in a row without text"
            )


class Thoughts:
    """Separates reasoning that a text begins with, as ``<think>…</think>``, from the text.

    Tags may be split over pieces. A tag that is not closed leaves no text. Tags further inside a
    text belong to the text: it may speak of them.
    """

    def __init__(self) -> None:
        self._state: Literal["start", "thought", "text"] = "start"
        self._held = ""
        self._closing = ""
        self._was_thought = False

    def feed(self, piece: str) -> Piece:
        """Take a piece of content; returns what is known of it."""
        if self._state == "text":
            return Piece(piece, "")
        self._held += piece
        reasoning = ""
        while self._held:
            if self._state == "thought":
                place = self._held.lower().find(self._closing)
                if place < 0:
                    keep = _overlap(self._held.lower(), self._closing)
                    cut = len(self._held) - keep
                    reasoning, self._held = reasoning + self._held[:cut], self._held[cut:]
                    break
                reasoning += self._held[:place]
                self._held = self._held[place + len(self._closing) :]
                self._state, self._was_thought = "start", True
                continue
            begun = self._held.lstrip()
            low = begun[:16].lower()
            opening = next((tag for tag in _THOUGHTS if low.startswith(tag)), None)
            if opening is not None:
                self._state, self._closing = "thought", _THOUGHTS[opening]
                self._held = begun[len(opening) :]
                continue
            if not begun or any(tag.startswith(low) for tag in _THOUGHTS):
                break
            self._state = "text"
            text, self._held = (begun if self._was_thought else self._held), ""
            return Piece(text, reasoning)
        return Piece("", reasoning)

    def end(self) -> Piece:
        """The text has ended; returns what was held back."""
        held, self._held = self._held, ""
        if self._state == "thought":
            return Piece("", held)
        return Piece(held.lstrip() if self._was_thought else held, "")


def _overlap(text: str, tag: str) -> int:
    """How many characters at the end of ``text`` may begin ``tag``."""
    most = min(len(text), len(tag) - 1)
    return next((size for size in range(most, 0, -1) if tag.startswith(text[-size:])), 0)


class _Joiner:
    """Joins surrogate pairs that arrive in two pieces; a half of one becomes U+FFFD."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, piece: str) -> str:
        text = self._held + piece
        self._held = ""
        if _HIGH.search(text):
            text, self._held = text[:-1], text[-1]
        return _whole_unicode(text)

    def end(self) -> str:
        held, self._held = self._held, ""
        return _whole_unicode(held)


def _whole_unicode(text: str) -> str:
    if _SURROGATE.search(text) is None:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _content(content: Any) -> tuple[str, str]:
    """Return the text and the reasoning of a ``content``: text, or a list of parts."""
    if content is None or isinstance(content, str):
        return content or "", ""
    if not isinstance(content, list):
        raise _nonsense("a content that is not text", content)
    text, reasoning = "", ""
    for part in content:
        if not isinstance(part, dict):
            raise _nonsense("a part of a content is not an object", part)
        if part.get("type") in ("thinking", "reasoning"):
            inner = part.get("thinking") or part.get("text")
            reasoning += _content(inner)[0] if isinstance(inner, str | list) else ""
        elif isinstance(part.get("text"), str):
            text += part["text"]
    return text, reasoning


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


def load(data: bytes) -> Any:
    """Read one JSON document; surrogates in strings may be halves.

    Raises:
        ModelError: It is not JSON.
    """
    try:
        return orjson.loads(data)
    except ValueError:
        pass  # the slower reader takes halves of surrogate pairs, and bytes that are not UTF-8
    try:
        return json.loads(data.decode("utf-8-sig", "replace"))
    except (ValueError, RecursionError) as error:
        told = f"{type(error).__name__}: {error}" if isinstance(error, ValueError) else "nested"
        raise ModelError(
            f"the answer of the model's endpoint makes no sense: expected JSON, found "
            f"{describe_body(data)} ({shorten(told, MAX_WORDS)})"
        ) from None


def _nonsense(problem: str, found: Any) -> ModelError:
    """An answer of another shape than a chat completion or embeddings."""
    words = words_in(found)
    shown = words or json.dumps(found, default=str)[:MAX_WORDS]
    return ModelError(
        f"the answer of the model's endpoint makes no sense: {problem}: {shorten(shown, 200)}"
    )


def _reported_or(problem: str, document: Any) -> ModelError:
    """The error that a body reports, or that it has another shape."""
    return reported(document) if words_in(document) else _nonsense(problem, document)


# --- errors -------------------------------------------------------------------------------------


def refused(status: int, headers: Mapping[str, str], body: bytes) -> ModelError:
    """The error of an HTTP status other than 2xx, with the endpoint's words.

    `ModelRefused` for statuses below 500 that another attempt does not change.
    """
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        target = shorten(headers.get("location") or "elsewhere", MAX_WORDS)
        return ModelRefused(
            f"the model's endpoint answered {status}: it redirects to {target}; redirects are not "
            "followed, so that the key goes nowhere else: set llm_url to the new address",
            status=status,
        )
    message = f"the model's endpoint answered {status}: {words_of(body) or _phrase(status)}"
    return _error(message, status, retry_after(headers))


def reported(document: Any) -> ModelError:
    """The error that a body with status 200 reports."""
    error = document.get("error") if isinstance(document, dict) else None
    places = [place for place in (error, document) if isinstance(place, dict)]
    codes = [place.get(key) for place in places for key in ("code", "status", "type")]
    status = next((found for code in codes if (found := _status(code)) is not None), None)
    told = f" {status}" if status is not None else ""
    words = words_in(document) or "an error without a reason"
    return _error(f"the model's endpoint reports{told}: {words}", status, None)


def _error(message: str, status: int | None, wait: float | None) -> ModelError:
    if status is not None and status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in PASSING:
        return ModelRefused(message, status=status)
    return ModelError(message, status=status, retry_after=wait)


def _status(code: Any) -> int | None:
    if isinstance(code, str) and code.lower() in _FINAL_CODES:
        return HTTPStatus.BAD_REQUEST.value
    if isinstance(code, str) and _STATUS.fullmatch(code):
        return int(code)
    is_status = isinstance(code, int) and code in _STATUSES
    return code if is_status else None


def _phrase(status: int) -> str:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        return "an empty body"
    return f"{phrase} (an empty body)"


def words_of(body: bytes) -> str:
    """Return the reason that an error's body gives, on one line, at most `MAX_WORDS` characters.

    The body may be JSON of any shape, a page of HTML, or text.
    """
    text = body.removeprefix(b"\xef\xbb\xbf").strip()
    if text[:1] in (b"{", b"[", b'"'):
        try:
            document = load(text)
        except ModelError:
            pass
        else:
            return words_in(document) or _clean(json.dumps(document, default=str))
    return _page_words(body)


def describe_body(body: bytes) -> str:
    """Say what kind of body this is, with its first words."""
    if not body.strip():
        return "an empty body"
    start = body[:256].lstrip().lower()
    kind = "HTML" if start.startswith(b"<") else "text"
    return f"{kind} ({shorten(_page_words(body), 200)})"


def _page_words(body: bytes) -> str:
    text = body[: 4 * MAX_PAGE].decode(errors="replace")[:MAX_PAGE]
    if "<" in text:
        text = unescape(_TAG.sub(" ", _shown(text).replace("-->", " ")))
    return _clean(text)


def _shown(text: str) -> str:
    """Return a page without its scripts, styles and comments, in linear time."""
    for opening, closing in _HIDDEN.items():
        low, parts, place = text.lower(), [], 0
        while (start := low.find(opening, place)) >= 0:
            parts.append(text[place:start])
            end = low.find(closing, start)
            place = len(text) if end < 0 else end
        text = " ".join([*parts, text[place:]])
    return text


def _clean(text: str) -> str:
    shown = "".join(char if char.isprintable() else " " for char in _whole_unicode(text))
    return shorten(shown, MAX_WORDS)


def words_in(document: Any) -> str:
    """Return the reason that is in an error's JSON; empty if there is none."""
    return _clean("; ".join(dict.fromkeys(_found_words(document, MAX_DEPTH))))


def _found_words(value: Any, depth: int) -> Iterable[str]:
    if isinstance(value, str):
        return [value] if value.strip() else []
    if depth == 0:
        return []
    if isinstance(value, list):
        return [word for one in value[:MAX_LISTED] for word in _found_words(one, depth - 1)]
    if not isinstance(value, dict):
        return []
    found = next((w for key in _WORDS if (w := list(_found_words(value.get(key), depth - 1)))), [])
    place = value.get("loc") or value.get("param")
    if found and isinstance(place, list):
        return [f"{'.'.join(map(str, place[:10]))}: {word}" for word in found]
    if found and isinstance(place, str) and place not in found[0]:
        found = [f"{found[0]} (param {place})", *found[1:]]
    metadata = value.get("metadata")
    raw = metadata.get("raw") if isinstance(metadata, dict) else None
    return [*found, words_of(raw.encode(errors="replace"))] if isinstance(raw, str) else found


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Read how many seconds the endpoint asks to wait; None if it does not say.

    ``retry-after-ms`` in milliseconds, or ``Retry-After`` (RFC 9110, section 10.2.3): seconds,
    fractions allowed, or a date. At most `MAX_RETRY_AFTER`.
    """
    milliseconds = _seconds(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return min(milliseconds / 1000, MAX_RETRY_AFTER)
    value = headers.get("retry-after")
    seconds = _seconds(value)
    if seconds is None and value is not None:
        try:
            date = parsedate_to_datetime(value)
            date = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
            seconds = max((date - (now or datetime.now(UTC))).total_seconds(), 0.0)
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
    return None if seconds is None else min(seconds, MAX_RETRY_AFTER)


def _seconds(value: str | None) -> float | None:
    try:
        seconds = float(value) if value is not None else math.nan
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


# --- vectors ------------------------------------------------------------------------------------


def read_vectors(body: bytes, count: int) -> list[list[float]]:
    """Return ``count`` vectors from the answer of an embedding endpoint, in the order of the texts.

    Entries may lack ``index`` (then their order counts), be nested in a list of one, or be base64
    of 32-bit numbers; the document may be the list itself.

    Raises:
        ModelError: They are not ``count`` vectors of finite numbers of one dimension.
    """
    document = load(body)
    if isinstance(document, dict) and document.get("error"):
        raise reported(document)
    data = document.get("data") if isinstance(document, dict) else document
    if not isinstance(data, list):
        raise _reported_or("no list of vectors", document)
    if len(data) != count:
        raise ModelError(
            f"the embedding endpoint sent {len(data)} vectors for {count} texts; expected one each"
        )
    placed: dict[int, list[float]] = {}
    for number, entry in enumerate(data):
        index = entry.get("index", number) if isinstance(entry, dict) else number
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
            raise _nonsense("a vector with an index out of range", index)
        placed[index] = _vector(entry.get("embedding") if isinstance(entry, dict) else entry)
    if len(placed) != count:
        raise ModelError("the embedding endpoint sent two vectors with the same index")
    vectors = [placed[place] for place in range(count)]
    sizes = {len(vector) for vector in vectors}
    if len(sizes) > 1:
        raise ModelError(
            f"the embedding endpoint sent vectors of {sorted(sizes)[:3]} numbers, which cannot be "
            "compared; expected one dimension"
        )
    return vectors


def _vector(value: Any) -> list[float]:
    if isinstance(value, str):
        try:
            packed = base64.b64decode(value, validate=True)
            value = list(struct.unpack(f"<{len(packed) // 4}f", packed))
        except (binascii.Error, struct.error, ValueError):
            raise ModelError("the embedding endpoint sent a vector that is not base64") from None
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    if not isinstance(value, list) or not value or not _are_numbers(value):
        raise ModelError(
            "the embedding endpoint sent vectors that cannot be compared; expected lists of finite "
            "numbers"
        )
    return [*map(float, value)]


def _are_numbers(value: Sequence[Any]) -> bool:
    if not {*map(type, value)} <= {int, float}:
        return False
    # the sum is not a number if one of them is not, which the comparisons would not tell
    return min(value) >= -FLOAT32 and max(value) <= FLOAT32 and math.isfinite(sum(value))


# --- fences -------------------------------------------------------------------------------------


def json_text(text: str) -> str:
    """Return the JSON in the answer of a model that was asked for JSON.

    It may stand in a code fence or between sentences. A text without JSON is returned as it is.
    """
    text = text.strip()
    candidates = [text]
    for opening in _FENCE_OPEN.finditer(text):
        inner, fence, _ = text[opening.end() :].partition("```")
        candidates.append(inner if fence else text[opening.end() :])
        if len(candidates) > MAX_LISTED:
            break
    starts = [place for place in (text.find("{"), text.find("[")) if place >= 0]
    for candidate in candidates:
        try:
            orjson.loads(candidate)
        except ValueError:
            continue
        return candidate.strip()
    for start in starts:
        try:
            _, end = json.JSONDecoder().raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        return text[start:end]
    return text


class Unfenced:
    """Takes a Markdown text out of a code fence around all of it, piece by piece.

    Only a fence on the first line counts, without a language or with ``markdown``; fences inside
    the text keep their place.
    """

    def __init__(self) -> None:
        self._state: Literal["start", "inside", "plain"] = "start"
        self._held = ""
        self._mid_line = False
        self._nested = False

    def feed(self, piece: str) -> str:
        """Take a piece; returns what of the text is known."""
        self._held += piece
        if self._state == "start":
            begun = self._held.lstrip()
            if "```".startswith(begun[:3]) and "\n" not in begun:
                return ""  # empty, or the first line of a fence that is not complete
            first, _, rest = begun.partition("\n")
            if first[:3] == "```" and first[3:].strip().lower() in ("", "markdown", "md"):
                self._state, self._held = "inside", rest
            else:
                self._state = "plain"
        shown = ""
        while self._held and self._state == "inside":
            line, end, rest = self._held.partition("\n")
            if not self._mid_line:
                if not end and "```".startswith(line.lstrip()[:3]):
                    return shown  # it may become a fence
                if self._closes(line):
                    self._state, self._held = "plain", rest
                    break
            shown, self._held = shown + line + end, rest
            self._mid_line = not end
        if self._state == "plain":
            shown, self._held = shown + self._held, ""
        return shown

    def end(self) -> str:
        """The text has ended; returns what was held back."""
        held, self._held = self._held, ""
        return "" if self._state == "inside" and self._closes(held) else held

    def _closes(self, line: str) -> bool:
        """Whether the line ends the fence around the text; keeps track of fences inside."""
        mark = line.strip()
        if not mark.startswith("```"):
            return False
        if self._nested:
            self._nested = mark != "```"
            return False
        self._nested = mark != "```"
        return not self._nested
