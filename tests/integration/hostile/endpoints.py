"""Answers of endpoints of language models, as data: one entry a line, with what must come of it.

An entry is asked for a stream and for a whole answer. ``text`` is the text of both; ``error`` are
words of a `ModelError`; ``final`` says that the error is not retried; ``requests`` counts the
requests of one call. ``only`` restricts an entry to one of the two ways of asking.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

Request = dict[str, Any]
Body = bytes | Callable[[Request], bytes]


@dataclass(frozen=True)
class Case:
    """One answer of an endpoint: a whole HTTP response, and what must come of it."""

    answer: Body
    text: str | None = None
    error: str = ""
    final: bool = False
    requests: int = 1
    only: Literal["stream", "complete"] | None = None
    options: tuple[tuple[str, Any], ...] = ()

    def respond(self, request: Request) -> bytes:
        """The response to ``request``."""
        return self.answer(request) if callable(self.answer) else self.answer


def http(
    body: bytes | str, status: int = 200, kind: str = "application/json", **headers: str
) -> bytes:
    """A response that ends with the connection."""
    data = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status} Status", f"content-type: {kind}", "connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + data


def js(document: Any, status: int = 200, **headers: str) -> bytes:
    """A response with JSON."""
    return http(json.dumps(document), status, **headers)


def whole(message: Any, finish: Any = "stop", **more: Any) -> bytes:
    """A chat completion."""
    return js(
        {"id": "c", "choices": [{"index": 0, "message": message, "finish_reason": finish}], **more}
    )


def chunk(delta: Any, finish: Any = None) -> Any:
    """A chunk of a stream."""
    return {"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def events(*documents: Any, end: str = "data: [DONE]\n\n", line: str = "\n") -> bytes:
    """A stream of server-sent events."""
    lines = [d if isinstance(d, str) else f"data: {json.dumps(d)}\n\n" for d in documents]
    return http("".join([*lines, end]).replace("\n", line), kind="text/event-stream")


def said(
    *pieces: str, finish: Any = "stop", end: str = "data: [DONE]\n\n", line: str = "\n"
) -> bytes:
    """A stream of these pieces."""
    return events(*(chunk({"content": p}) for p in pieces), chunk({}, finish), end=end, line=line)


def without(*options: str, words: str = "{} is not supported", status: int = 400) -> Body:
    """An endpoint that refuses each of these options."""

    def answer(request: Request) -> bytes:
        for option in options:
            if option in request:
                return js({"error": {"message": words.format(option)}}, status)
        return said("Hello")

    return answer


def chunked(*parts: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    """A response in chunked encoding."""
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    return head + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + end


def data(document: Any) -> bytes:
    """One event."""
    return f"data: {json.dumps(document)}\n\n".encode()


def squeezed(body: bytes, encoding: str = "gzip") -> bytes:
    """A response that is compressed although nobody asked for it."""
    return http(gzip.compress(body), content_encoding=encoding)


HELLO: Final = said("Hel", "lo")
OK: Final = json.dumps({"choices": [{"message": {"content": "Hello"}}]})
PART: Final = data(chunk({"content": "Hel"}))
PAGE: Final = "<!doctype html><html><head><title>502 Bad Gateway</title><style>p{}</style></head><body><h1>nginx says no</h1></body></html>"
NESTED: Final = "[" * 100_000
NO_CHOICE: Final[Any] = {"index": 0, "finish_reason": None, "content_filter_results": {}}

CASES: Final[dict[str, Case]] = {
    # whole texts, however they are sent
    "a stream": Case(HELLO, "Hello"),
    "a document where a stream was asked for": Case(whole({"content": "Hello"}), "Hello"),
    "CRLF": Case(said("Hel", "lo", line="\r\n"), "Hello"),
    "CR": Case(said("Hel", "lo", line="\r"), "Hello"),
    "a byte order mark": Case(http(b"\xef\xbb\xbf" + OK.encode()), "Hello"),
    "no DONE": Case(said("Hello", end=""), "Hello"),
    "comments and empty lines": Case(events(": wait\n\n\n: wait\n\n", chunk({"content": "Hello"}, "stop")), "Hello"),
    "no empty lines between events": Case(http("".join(f"data: {json.dumps(c)}\n" for c in (chunk({"content": "Hel"}), chunk({"content": "lo"}, "stop"))) + "data: [DONE]\n", kind="text/event-stream"), "Hello"),
    "a choice without a delta": Case(events(chunk({"content": "Hello"}, "stop"), {"choices": [NO_CHOICE]}), "Hello"),
    "a null delta": Case(events(chunk(None), chunk({"content": "Hello"}), chunk(None, "stop")), "Hello"),
    "null choices": Case(events({"id": "c", "choices": None, "usage": None}, chunk({"content": "Hello"}, "stop")), "Hello"),
    "the first choice by text": Case(js({"choices": [{"index": "0", "message": {"content": "Hello"}, "finish_reason": "stop"}]}), "Hello"),
    "a second choice": Case(events({"choices": [{"index": 1, "delta": {"content": "no"}}]}, chunk({"content": "Hello"}, "stop")), "Hello"),
    "usage of other types": Case(whole({"content": "Hello"}, usage={"prompt_tokens": "many", "completion_tokens": -1}), "Hello"),
    "usage that is a list": Case(whole({"content": "Hello"}, usage=[1]), "Hello"),
    "content in parts": Case(whole({"content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}), "Hello"),
    "an unknown finish reason": Case(said("Hello", finish="eos_token"), "Hello"),
    "no finish reason in a document": Case(whole({"content": "Hello"}, None), "Hello"),
    "half a surrogate pair in each chunk": Case(http('data: {"choices":[{"delta":{"content":"a\\ud83d"}}]}\n\ndata: {"choices":[{"delta":{"content":"\\ude00b"},"finish_reason":"stop"}]}\n\n'), "a\U0001f600b"),
    "a lone surrogate": Case(http('{"choices":[{"message":{"content":"a\\ud83d!"},"finish_reason":"stop"}]}'), "a\ufffd!"),
    "bytes that are not UTF-8": Case(http(b'{"choices":[{"message":{"content":"a\xff"},"finish_reason":"stop"}]}'), "a\ufffd"),
    "compressed": Case(squeezed(OK.encode()), "Hello"),
    "an ending that is repeated": Case(events(chunk({"content": "Hello"}, "stop"), chunk({}, "stop"), {"choices": [], "usage": {"prompt_tokens": 1}}), "Hello"),
    # reasoning
    "a thought": Case(said("<think>let me", " see</think>", "\n\nHello"), "Hello"),
    "a thought whose tags are split": Case(said("<th", "ink>hm</th", "ink", ">Hel", "lo"), "Hello"),
    "two thoughts": Case(said("<think>a</think>\n<think>b</think>\nHello"), "Hello"),
    "an empty thought": Case(said("<think>", "</think>", "Hello"), "Hello"),
    "a thought of another tag": Case(said("[THINK]hm[/THINK]Hello"), "Hello"),
    "a thought of a tag with a prefix": Case(said("<seed:th", "ink>hm</seed:think>", "Hello"), "Hello"),
    "a thought between triangles": Case(said("\u25c1think\u25b7hm\u25c1/thi", "nk\u25b7Hello"), "Hello"),
    "a thought whose beginning is the template's": Case(whole({"content": "so I see</think>\n\nHello"}), "Hello"),
    "a thought whose beginning is the template's, in a stream": Case(said("so I see</th", "ink>\n\nHel", "lo"), "Hello", only="complete"),
    "the same in one chunk": Case(said("so I see</think>Hello"), "Hello"),
    "a tag that the text speaks of": Case(said("The tag <think> begins a thought."), "The tag <think> begins a thought."),
    "a text that begins like a tag": Case(said("<thin", "g> is a tag"), "<thing> is a tag"),
    "reasoning in a field": Case(events(chunk({"reasoning_content": "hm", "content": None}), chunk({"reasoning": "hm"}), chunk({"content": "Hello"}, "stop")), "Hello"),
    "reasoning in a field of a document": Case(whole({"reasoning_content": "hm", "content": "Hello"}), "Hello"),
    "reasoning in parts": Case(whole({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "Hello"}]}), "Hello"),
    "a thought without an end": Case(said("<think>let me see"), error="only reasoning"),
    "a thought that was cut off": Case(said("<think>let me see", finish="length"), error="cut off at the token limit", final=True),
    # whole, and not a text
    "length": Case(said("Hello", finish="length"), error="cut off at the token limit .* the text so far: Hello", final=True),
    "length, by another name": Case(said("Hello", finish="MAX_TOKENS"), error="cut off at the token limit", final=True),
    "content filter": Case(said("Hello", finish="content_filter"), error="content filter", final=True),
    "safety": Case(whole({"content": ""}, "SAFETY"), error="content filter", final=True),
    "finish error": Case(said("Hello", finish="error"), error="broke the answer off"),
    "abort": Case(said("Hello", finish="abort"), error="broke the answer off"),
    "tool calls": Case(whole({"content": None, "tool_calls": [{"id": "1", "function": {"name": "add", "arguments": "{}"}}]}, "tool_calls"), error="calls tools .add."),
    "tool calls in a stream": Case(events(chunk({"tool_calls": [{"index": 0, "function": {"name": "a"}}]}), chunk({"tool_calls": [{"index": 0, "function": {"name": "dd"}}]}, "tool_calls")), error="calls tools .add."),
    "empty": Case(said(""), error="without a text"),
    "white space": Case(said(" ", "\n"), error="without a text"),
    "an empty message": Case(whole({}), error="without a text"),
    "a refusal": Case(events(chunk({"refusal": "I can"}), chunk({"refusal": "not help"}), chunk({}, "stop")), error="refuses: I cannot help", final=True),
    "a refusal of a document": Case(whole({"content": None, "refusal": "I cannot help"}), error="refuses: I cannot help", final=True),
    "a refusal in parts": Case(whole({"content": [{"type": "refusal", "refusal": "I cannot help"}]}), error="refuses: I cannot help", final=True),
    "a refusal that is an object": Case(whole({"content": None, "refusal": {"reason": "I cannot help"}}), error="refuses: I cannot help", final=True),
    "a function call": Case(whole({"content": None, "function_call": {"name": "add", "arguments": "{}"}}, "function_call"), error="calls tools .add."),
    # errors in HTTP
    "401": Case(js({"error": {"message": "bad key"}}, 401), error="answered 401: bad key", final=True),
    "403": Case(js({"message": "not you"}, 403), error="answered 403: not you", final=True),
    "404 as text": Case(js({"error": "pull the model first"}, 404), error="pull the model first", final=True),
    "400 as a list": Case(js([{"error": {"message": "bad request"}}], 400), error="answered 400: bad request", final=True),
    "422 with detail": Case(js({"detail": [{"loc": ["body", "messages", 0], "msg": "too short"}]}, 422), error="messages.0: too short", final=True),
    "400 with detail as text": Case(js({"detail": "no such thing"}, 400), error="no such thing", final=True),
    "400 as a JSON string": Case(js("just no", 400), error="just no", final=True),
    "400 as plain text": Case(http("just no", 400, "text/plain"), error="answered 400: just no", final=True),
    "400 without a body": Case(http("", 400), error="answered 400: Bad Request .an empty body", final=True),
    "400 from a provider behind a router": Case(js({"error": {"message": "Provider returned error", "metadata": {"raw": '{"error":"out of credits"}'}}}, 400), error="Provider returned error; out of credits", final=True),
    "400 of unknown fields": Case(js({"status": {"x": 1}}, 400), error='answered 400: ."status"', final=True),
    "400 with half a document": Case(http('{"error": {"mess', 400), error='answered 400: ."error"', final=True),
    "400 of nonsense": Case(http(NESTED, 400), error="answered 400", final=True),
    "400 with a long reason": Case(js({"error": "no " * 100_000}, 400), error="answered 400: .*no no no", final=True),
    "400 with escape sequences": Case(js({"error": "\x1b]52;c;x\x07no"}, 400), error="answered 400: ]52;c;x no", final=True),
    "a page of a proxy": Case(http(PAGE, 502, "text/html"), error="answered 502: 502 Bad Gateway nginx says no"),
    "a page that never ends its tags": Case(http("<script " * 10_000, 502, "text/html"), error="answered 502"),
    "500": Case(js({"error": {"message": "boom"}}, 500), error="answered 500: boom"),
    "503 without a body": Case(http("", 503), error="answered 503: Service Unavailable"),
    "529": Case(js({"error": "overloaded"}, 529), error="answered 529: overloaded"),
    "408": Case(js({"error": "late"}, 408), error="answered 408: late"),
    "409": Case(js({"error": "busy"}, 409), error="answered 409: busy"),
    "425": Case(js({"error": "early"}, 425), error="answered 425: early"),
    "429 without credit": Case(js({"error": {"message": "no credit", "type": "insufficient_quota"}}, 429), error="answered 429: no credit", final=True),
    "an error of OAuth": Case(js({"error": "invalid_grant", "error_description": "token expired"}, 401), error="invalid_grant; token expired", final=True),
    "400 in another charset": Case(http("cl\xe9 refus\xe9e".encode("latin-1"), 400, "text/plain; charset=ISO-8859-1"), error="cl\xe9 refus\xe9e", final=True),
    "400 in UTF-16": Case(http(json.dumps({"error": "no"}).encode("utf-16"), 400, "application/json; charset=utf-16"), error="answered 400: no$", final=True),
    "400 in an unknown charset": Case(http("no", 400, "text/plain; charset=klingon"), error="answered 400: no$", final=True),
    "400 in a charset of bytes": Case(http("no", 400, "text/plain; charset=base64"), error="answered 400: no$", final=True),
    "429": Case(js({"error": "slow down"}, 429), error="answered 429: slow down"),
    "a redirect to another host": Case(http("", 307, location="http://elsewhere.example/v1"), error="redirects to http://elsewhere.example/v1", final=True),
    "204": Case(b"HTTP/1.1 204 No Content\r\n\r\n", error="an empty body where JSON"),
    "a status line of nonsense": Case(b"HTTP/1.1 two OK\r\n\r\n", error="broke off"),
    "no HTTP": Case(b"SSH-2.0-OpenSSH_9.2\r\n", error="broke off"),
    "a header without an end": Case(b"HTTP/1.1 200 OK\r\nx: " + b"a" * 300_000, error="broke off"),
    "nothing": Case(b"", error="broke off"),
    # errors in a body with status 200
    "an error in a 200": Case(js({"error": {"message": "upstream is busy", "code": 429}}), error="reports 429: upstream is busy"),
    "an error in a 200 without a code": Case(js({"error": {"message": "upstream is busy"}}), error="reports: upstream is busy"),
    "a final error in a 200": Case(js({"error": {"message": "no such model", "code": 404}}), error="reports 404: no such model", final=True),
    "a final error in a 200 by its type": Case(js({"error": {"message": "bad", "type": "invalid_request_error"}}), error="reports 400: bad", final=True),
    "an error object": Case(js({"object": "error", "message": "too long", "code": 400}), error="reports 400: too long", final=True),
    "detail in a 200": Case(js({"detail": "not ready"}), error="reports: not ready"),
    "an error in a stream": Case(events(chunk({"content": "Hel"}), {"error": {"message": "out of memory"}}), error="reports: out of memory"),
    "an error event": Case(events(chunk({"content": "Hel"}), 'event: error\ndata: {"message": "gone"}\n\n'), error="reports: gone"),
    "an error in a stream as text": Case(events({"error": "gone"}), error="reports: gone"),
    "a login page": Case(http("<html>log in</html>", kind="text/html"), error="HTML .log in. where JSON was expected"),
    "a page as a stream": Case(http("<html>log in</html>", kind="text/event-stream"), error="HTML .log in. where JSON"),
    "plain text": Case(http("Ollama is running", kind="text/plain"), error="text .Ollama is running. where JSON"),
    "an empty body": Case(http(""), error="an empty body where JSON"),
    "white space as a body": Case(http(" \n" * 500), error="an empty body where JSON"),
    # broken
    "no end": Case(events(chunk({"content": "Hel"}), end=""), error="ended before the model had finished"),
    "DONE without a finish reason": Case(events(chunk({"content": "Hel"})), error="no finish_reason"),
    "cut inside an event": Case(http(PART + b'data: {"choices": [{"ind'), error="endpoint is invalid"),
    "cut inside a document": Case(http('{"choices": [{"mess'), error="endpoint is invalid"),
    "chunked and cut": Case(chunked(PART, end=b""), error="broke off"),
    "chunked with a wrong size": Case(chunked(PART, end=b"zz\r\n\r\n"), error="broke off"),
    "shorter than its length": Case(b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n" + OK.encode(), error="broke off"),
    "compressed by an unknown encoding": Case(squeezed(OK.encode(), "br"), error="compressed its answer by 'br'"),
    "compressed and broken": Case(http("nonsense", content_encoding="gzip"), error="is broken"),
    # of another shape
    "null": Case(http("null"), error="where JSON"),
    "a list": Case(js([]), error="a JSON object was expected"),
    "a number as an event": Case(events("data: 7\n\n"), error="a JSON object was expected"),
    "null as an event": Case(events("data: null\n\n"), error="a JSON object was expected"),
    "choices that are a number": Case(js({"choices": 7}), error="choices are not a list"),
    "no choices": Case(js({"object": "chat.completion", "choices": []}), error="no choices"),
    "choices of numbers": Case(js({"choices": [7]}), error="a choice is not an object"),
    "a choice without a message": Case(js({"choices": [{"index": 0}]}), error="without a message"),
    "a message that is text": Case(js({"choices": [{"message": "Hello"}]}), error="without a message"),
    "a delta that is a list": Case(events(chunk([1])), error="without a message"),
    "content that is a number": Case(whole({"content": 7}), error="content that is not text"),
    "content that is an object": Case(events(chunk({"content": {"a": 1}})), error="content that is not text"),
    "content of numbers": Case(whole({"content": [7]}), error="part of a content"),
    "a finish reason that is a number": Case(whole({"content": "Hello"}, 7), error="finish_reason that is not text"),
    "tool calls that are text": Case(whole({"tool_calls": "add"}), error="tool_calls are not a list"),
    "tool calls of numbers": Case(whole({"tool_calls": [7]}), error="a tool call is not an object"),
    "a tool call without a name": Case(whole({"tool_calls": [{"function": {}}]}, "tool_calls"), error="without a name"),
    "deep nesting": Case(http('{"choices":' + NESTED), error="endpoint is invalid"),
    "an integer of many digits": Case(http('{"choices":' + "9" * 100_000 + "}"), error="endpoint is invalid|not a list"),
    "lines of another protocol": Case(http('{"message":{"content":"Hello"},"done":false}\n{"done":true}\n'), error="endpoint is invalid"),
    "NaN": Case(http('{"choices": [{"message": {"content": NaN}}]}'), error="content that is not text"),
    # too much
    "a document without an end": Case(http(b'{"a":"' + b"x" * (5 << 20)), error="more than 4,194,304 bytes at once"),
    "a line without an end": Case(http(b"data: " + b"x" * (5 << 20)), error="more than 4,194,304 bytes at once"),
    "data lines without an end": Case(http(b"data: xxxxxxxxxx\n" * 500_000), error="event of more than"),
    "events without text": Case(http(b'data: {"choices":[]}\n\n' * 20_000), error="10,000 events in a row without text"),
    "comments without an end": Case(http(b":\n" * 20_000), error="10,000 events in a row without text"),
    "a bomb": Case(squeezed(b'{"a":"' + b"x" * (64 << 20)), error="more than 4,194,304 bytes at once"),
    "a bomb as an error": Case(http(gzip.compress(b"x" * (64 << 20)), 500, content_encoding="gzip"), error="answered 500: xxx"),
    "an error without an end": Case(http(b"no " * (5 << 20), 500), error="answered 500: no no"),
    # options that are refused
    "no max_completion_tokens": Case(lambda r: js({"detail": [{"loc": ["body", "max_completion_tokens"], "msg": "not permitted"}]}, 422) if "max_completion_tokens" in r else said("Hello"), "Hello", requests=2),
    "no token limit": Case(without("max_completion_tokens", "max_tokens"), "Hello", requests=3),
    "no stream_options": Case(without("stream_options"), "Hello", requests=2, only="stream"),
    "no usage in streams": Case(without("stream_options", words="include_usage unknown"), "Hello", requests=2, only="stream"),
    "no response_format": Case(without("response_format"), "Hello", requests=2, only="complete", options=(("response_format", {"type": "json_object"}),)),
    "no schema": Case(without("response_format", words="json_schema is unknown", status=500), "Hello", requests=2, only="complete", options=(("response_format", {}),)),
    "no temperature": Case(without("temperature"), "Hello", requests=2, options=(("temperature", 0.5),)),
    "nothing optional": Case(without("stream_options", "temperature", "max_completion_tokens", "max_tokens"), "Hello", requests=5, only="stream", options=(("temperature", 0.5),)),
    "refused in a 200": Case(lambda r: js({"error": {"message": "no max_completion_tokens", "code": 400}}) if "max_completion_tokens" in r else said("Hello"), "Hello", requests=2),
    "a value that is refused": Case(js({"error": {"message": "max_completion_tokens is too large: 100"}}, 400), error="too large", final=True),
    "a context that is too small": Case(js({"error": {"message": "maximum context length is 9 tokens; you requested max_completion_tokens of 100", "code": "context_length_exceeded"}}, 400), error="maximum context length", final=True),
    "an option that is always refused": Case(js({"error": "max_completion_tokens, max_tokens"}, 400), error="answered 400", final=True, requests=3),
}  # fmt: skip
