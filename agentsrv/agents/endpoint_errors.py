"""Errors of an OpenAI-compatible endpoint, with the reason that it gave; lenient JSON parsing.

The module has no I/O: it takes bytes or decoded JSON and returns a `ModelError` to raise. Endpoints
report errors with an HTTP status (`refused`), in a body with status 200 (`reported`), or send
something that is not an answer (`nonsense`). The status or the code decides the class: a
`ModelRefusedError` if another attempt would fail in the same way, otherwise a `ModelError`.

The reason is searched in every known field of the JSON, at several levels, and in the text of HTML
pages. Endpoints may repeat parts of the request, so credentials in it are replaced.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from html import unescape
from http import HTTPStatus
from typing import Any, Final

import orjson

from agentsrv.error_text import redact
from agentsrv.errors import ModelError, ModelRefusedError
from agentsrv.knowledge.text import shorten
from agentsrv.models.text import joined

MAX_ERROR: Final = 64 << 10  # bytes that are read of an error's body
MAX_PAGE: Final = 8 << 10  # characters of a page in which the reason is searched
MAX_WORDS: Final = 500  # characters of a reason in an error
MAX_RETRY_AFTER: Final = 86_400.0  # seconds
MAX_DEPTH: Final = 4  # levels of an error's JSON in which the reason is searched
MAX_LISTED: Final = 5  # errors of a list that are shown

RETRYABLE_STATUSES: Final = frozenset({408, 409, 425, 429})
"""Statuses below 500 after which another attempt may succeed."""
_FINAL_CODES: Final = frozenset(
    "invalid_request_error authentication_error permission_error not_found_error invalid_api_key"
    " model_not_found context_length_exceeded unsupported_parameter unsupported_value"
    " insufficient_quota billing_hard_limit_reached account_deactivated".split()
)
"""Codes and types of errors that another attempt would repeat, whatever the status is."""
_WORDS: Final = (
    "message", "error", "detail", "details", "msg", "error_message", "error_description",
    "errors", "reason", "description", "title",
)  # fmt: skip
_HIDDEN: Final = {"<script": "</script", "<style": "</style", "<!--": "-->"}
"""Elements whose content is not visible; `_TAG` removes the closing tags."""
_CHARSET: Final = re.compile(r"""charset\s*=\s*["']?([\w.:-]{1,40})""", re.IGNORECASE | re.ASCII)
_STATUS: Final = re.compile("[45][0-9][0-9]")
_STATUSES: Final = range(400, 600)
_TAG: Final = re.compile(r"<[^<>]*>")


def load(data: bytes) -> Any:
    """Parse one JSON document; strings may contain unpaired surrogates.

    Raises:
        ModelError: It is not JSON.
    """
    try:
        return orjson.loads(data)
    except ValueError:
        pass  # json accepts unpaired surrogates, and bytes that are not UTF-8 after decoding
    try:
        return json.loads(data.decode("utf-8-sig", "replace"))
    except (ValueError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}" if isinstance(error, ValueError) else "nested"
        raise ModelError(
            f"the answer of the model's endpoint is invalid: expected JSON, found "
            f"{describe_body(data)} ({shorten(reason, MAX_WORDS)})"
        ) from None


def nonsense(problem: str, found: Any) -> ModelError:
    """Return the error for an answer that is neither a chat completion nor embeddings."""
    words = words_in(found)
    shown = words or redact(json.dumps(found, default=str))
    return ModelError(
        f"the answer of the model's endpoint is invalid: {problem}: {shorten(shown, 200)}"
    )


def reported_or(problem: str, document: Any) -> ModelError:
    """Return the error that a body reports, or else that it is invalid."""
    return reported(document) if words_in(document) else nonsense(problem, document)


def refused(status: int, headers: Mapping[str, str], body: bytes) -> ModelError:
    """Return the error for an HTTP status other than 2xx, with the endpoint's reason.

    `ModelRefusedError` for statuses below 500 after which another attempt would fail as well.
    """
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        target = shorten(headers.get("location") or "elsewhere", MAX_WORDS)
        return ModelRefusedError(
            f"the model's endpoint answered {status}: it redirects to {target}; redirects are not "
            "followed, because they could send the key to another host: set llm_url to the new "
            "address",
            status=status,
        )
    charset = _CHARSET.search(headers.get("content-type", ""))
    words = words_of(body if charset is None else _as_utf_8(body, charset[1]))
    message = f"the model's endpoint answered {status}: {words or _phrase(status)}"
    if status in RETRYABLE_STATUSES and _has_final_code(body):
        return ModelRefusedError(message, status=status)
    return _error(message, status, retry_after(headers))


def _as_utf_8(body: bytes, charset: str) -> bytes:
    try:
        return body.decode(charset, "replace").encode(errors="replace")
    except (LookupError, ValueError):  # an unknown codec, or one that decodes to bytes
        return body


def _has_final_code(body: bytes) -> bool:
    """Whether an error's body has a code or type of `_FINAL_CODES`."""
    try:
        document = load(body)
    except ModelError:
        return False
    error = document.get("error") if isinstance(document, dict) else None
    places = [place for place in (error, document) if isinstance(place, dict)]
    codes = [place.get(key) for place in places for key in ("code", "type")]
    return any(isinstance(code, str) and code.lower() in _FINAL_CODES for code in codes)


def reported(document: Any) -> ModelError:
    """Return the error that a body with status 200 reports."""
    error = document.get("error") if isinstance(document, dict) else None
    places = [place for place in (error, document) if isinstance(place, dict)]
    codes = [place.get(key) for place in places for key in ("code", "status", "type")]
    status = next((found for code in codes if (found := _status(code)) is not None), None)
    code = f" {status}" if status is not None else ""
    words = words_in(document) or "an error without a reason"
    return _error(f"the model's endpoint reports{code}: {words}", status, None)


def _error(message: str, status: int | None, wait: float | None) -> ModelError:
    is_client_error = status is not None and status < HTTPStatus.INTERNAL_SERVER_ERROR
    if is_client_error and status not in RETRYABLE_STATUSES:
        return ModelRefusedError(message, status=status)
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
    """Return the reason in an error's body as one line of at most `MAX_WORDS` characters.

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
    """Return the kind of a body, such as HTML, with its first words."""
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
    """Remove scripts, styles and comments from a page, in linear time."""
    for opening, closing in _HIDDEN.items():
        low, parts, place = text.lower(), [], 0
        while (start := low.find(opening, place)) >= 0:
            parts.append(text[place:start])
            end = low.find(closing, start)
            place = len(text) if end < 0 else end
        text = " ".join([*parts, text[place:]])
    return text


def _clean(text: str) -> str:
    shown = "".join(char if char.isprintable() else " " for char in joined(text))
    return shorten(redact(shown), MAX_WORDS)


def words_in(document: Any) -> str:
    """Return the reason in an error's JSON; empty if there is none."""
    return _clean("; ".join(dict.fromkeys(_found_words(document, MAX_DEPTH))))


def _found_words(value: Any, depth: int) -> Iterable[str]:
    if isinstance(value, str):
        return [value] if value.strip() else []
    if depth == 0:
        return []
    if isinstance(value, list):
        return [word for item in value[:MAX_LISTED] for word in _found_words(item, depth - 1)]
    if not isinstance(value, dict):
        return []
    found = next((w for key in _WORDS if (w := list(_found_words(value.get(key), depth - 1)))), [])
    sentence = value.get("error_description")  # OAuth: `error` is a code, this is the reason
    if isinstance(sentence, str) and sentence.strip() and sentence not in found:
        found = [*found, sentence]
    place = value.get("loc") or value.get("param")
    if found and isinstance(place, list):
        return [f"{'.'.join(map(str, place[:10]))}: {word}" for word in found]
    if found and isinstance(place, str) and place not in found[0]:
        found = [f"{found[0]} (param {place})", *found[1:]]
    metadata = value.get("metadata")
    raw = metadata.get("raw") if isinstance(metadata, dict) else None
    return [*found, words_of(raw.encode(errors="replace"))] if isinstance(raw, str) else found


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Return the seconds that the endpoint asks to wait; ``None`` without a valid header.

    The header is ``retry-after-ms``, in milliseconds, or ``Retry-After`` (RFC 9110, section
    10.2.3): seconds, with fractions, or a date. At most `MAX_RETRY_AFTER`.
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
