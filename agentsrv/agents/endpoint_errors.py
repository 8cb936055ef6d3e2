"""Errors of an OpenAI-compatible endpoint, with its own words; and JSON that it sends.

This module is pure: it takes bytes or decoded JSON and returns a `ModelError` to raise.
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
MAX_PAGE: Final = 8 << 10  # characters of a page in which its words are looked for
MAX_WORDS: Final = 500  # characters of an endpoint's own words in an error
MAX_RETRY_AFTER: Final = 86_400.0  # seconds
MAX_DEPTH: Final = 4  # levels of an error in which its words are looked for
MAX_LISTED: Final = 5  # errors of a list that are shown

PASSING: Final = frozenset({408, 409, 425, 429})
"""The statuses below 500 after which another attempt may succeed."""
_FINAL_CODES: Final = frozenset(
    "invalid_request_error authentication_error permission_error not_found_error invalid_api_key"
    " model_not_found context_length_exceeded unsupported_parameter unsupported_value"
    " insufficient_quota billing_hard_limit_reached account_deactivated".split()
)
"""Codes and types of errors that another attempt does not change, whatever the status is."""
_WORDS: Final = (
    "message", "error", "detail", "details", "msg", "error_message", "error_description",
    "errors", "reason", "description", "title",
)  # fmt: skip
_HIDDEN: Final = {"<script": "</script", "<style": "</style", "<!--": "-->"}
"""Elements whose content is not shown; the closing tags are left to `_TAG`."""
_CHARSET: Final = re.compile(r"""charset\s*=\s*["']?([\w.:-]{1,40})""", re.IGNORECASE | re.ASCII)
_STATUS: Final = re.compile("[45][0-9][0-9]")
_STATUSES: Final = range(400, 600)
_TAG: Final = re.compile(r"<[^<>]*>")


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


def nonsense(problem: str, found: Any) -> ModelError:
    """An answer of another shape than a chat completion or embeddings."""
    words = words_in(found)
    shown = words or redact(json.dumps(found, default=str))
    return ModelError(
        f"the answer of the model's endpoint makes no sense: {problem}: {shorten(shown, 200)}"
    )


def reported_or(problem: str, document: Any) -> ModelError:
    """The error that a body reports, or that it has another shape."""
    return reported(document) if words_in(document) else nonsense(problem, document)


def refused(status: int, headers: Mapping[str, str], body: bytes) -> ModelError:
    """The error of an HTTP status other than 2xx, with the endpoint's words.

    `ModelRefusedError` for statuses below 500 that another attempt does not change.
    """
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        target = shorten(headers.get("location") or "elsewhere", MAX_WORDS)
        return ModelRefusedError(
            f"the model's endpoint answered {status}: it redirects to {target}; redirects are not "
            "followed, so that the key goes nowhere else: set llm_url to the new address",
            status=status,
        )
    charset = _CHARSET.search(headers.get("content-type", ""))
    words = words_of(body if charset is None else _as_utf_8(body, charset[1]))
    message = f"the model's endpoint answered {status}: {words or _phrase(status)}"
    if status in PASSING and _has_final_code(body):
        return ModelRefusedError(message, status=status)
    return _error(message, status, retry_after(headers))


def _as_utf_8(body: bytes, charset: str) -> bytes:
    try:
        return body.decode(charset, "replace").encode(errors="replace")
    except (LookupError, ValueError):  # an unknown codec, or not one of texts
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
    shown = "".join(char if char.isprintable() else " " for char in joined(text))
    return shorten(redact(shown), MAX_WORDS)


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
    sentence = value.get("error_description")  # of OAuth, whose `error` is a code
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
