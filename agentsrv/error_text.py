"""Error texts for logs, events and clients: one description, one redaction, one length limit.

Every text of an error that leaves the process, to a client, a store, a log or a terminal, is made
here or passes `redact`:

    `describe`          an exception as one text: type, message, notes, inner errors, causes
    `format_traceback`  the same with its stack
    `as_fields`         a refusal as the fields of a reply
    `redact`            any other text, such as a line of the log

`redact` replaces credentials, which `credentials` recognises, and the answers to secret questions,
which the caller passes. It keeps at most ``MAX_REDACTED`` characters of a text. A credential that
is cut in two would not be recognised, so `redact` reads further than it keeps and drops the end.

An exception is an object of its author: its ``__str__``, its attributes and its groups may raise
anything, even ``SystemExit``. `safely` reads them.
"""

from __future__ import annotations

import base64
import json
import re
import traceback
from collections.abc import Callable, Collection, Iterator
from itertools import islice
from typing import Any, Final, TypeVar
from urllib.parse import quote, quote_plus

from agentsrv.credentials import HIDDEN, REACH, hide
from agentsrv.errors import AgentsrvError

T = TypeVar("T")

MAX_TEXT: Final = 2000  # characters of a description
MAX_TRACEBACK: Final = 12_000  # characters of a traceback
MAX_REDACTED: Final = 16_000  # characters of a text that are kept

_MAX_CAUSES: Final = 5
_MAX_INNER: Final = 10  # errors of a group that are described
_MAX_FRAMES: Final = 20  # of a stack, the innermost
_MAX_FRAME: Final = 500  # characters
_MAX_WALKED: Final = 10_000  # errors and groups in a group that are visited
_MAX_PRINTED: Final = 300  # errors and groups in a group that `traceback` may format
_FIELDS: Final = ("retry_after", "details", "example")


def describe(error: BaseException, secrets: Collection[str] = ()) -> str:
    """Describe an error in at most ``MAX_TEXT`` characters, without credentials and ``secrets``.

    The form is ``ValueError: message``. The inner errors of a group follow, nested groups
    flattened, and the explicit causes (``raise … from …``) whose message it does not repeat.
    Unpaired surrogates are replaced, so the text can be encoded as UTF-8. An error whose ``str()``
    fails is described by its type. Raises nothing.
    """
    text = _described(error, secrets)
    seen = {id(error)}
    cause = _cause(error)
    for _ in range(_MAX_CAUSES):
        if cause is None or id(cause) in seen or len(text) > MAX_TEXT:
            break
        seen.add(id(cause))
        message = _message(cause, secrets)
        if not message or message not in text:
            text += f" (caused by {_described(cause, secrets)})"
        cause = _cause(cause)
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"


def format_traceback(error: BaseException, secrets: Collection[str] = ()) -> str:
    """Format an error with its stack, as the interpreter does, without credentials.

    The text has at most ``MAX_TRACEBACK`` characters and can be encoded as UTF-8. It contains the
    innermost frames, and of a chain of errors the last ones. Raises nothing.
    """
    blocks: list[str] = []
    size = 0
    for link, relation in _chain(error):
        block = _block(link, secrets) + relation
        size += len(block)
        if blocks and size > MAX_TRACEBACK:
            break
        blocks.append(block)
    return "".join(reversed(blocks))[-MAX_TRACEBACK:]


def as_fields(error: AgentsrvError) -> dict[str, Any]:
    """Return an error as a reply's fields: ``code``, ``message``, ``retryable`` and the optional.

    Credentials in the message and in the reasons of ``details`` are replaced.
    """
    fields: dict[str, Any] = {
        "code": error.code,
        "message": redact(error.message),
        "retryable": error.retryable,
    }
    fields |= {name: value for name in _FIELDS if (value := getattr(error, name)) is not None}
    if "details" in fields:
        fields["details"] = [
            {name: redact(text) if isinstance(text, str) else text for name, text in detail.items()}
            for detail in fields["details"]
        ]
    return fields


def safely(read: Callable[[], T], otherwise: T) -> T:
    """Return ``read()``, or ``otherwise`` if it raises anything; for reads that run author code."""
    try:
        return read()
    except BaseException:  # noqa: BLE001 - sys.exit() in __str__ must not end the server
        return otherwise


_BEFORE_PASSWORD: Final = re.compile(r"(?:(?:[\w+.-]+:)?/+)?[^:/@]*:?")


def redact(text: str, secrets: Collection[str] = (), max_length: int = MAX_REDACTED) -> str:
    """Replace ``secrets`` and credentials in ``text`` by ``***``; return other text unchanged.

    Secrets are found verbatim and as Python, JSON, URLs and base64 write them, the longest first,
    because one may contain another. Text after the first ``max_length`` characters is dropped. The
    work is proportional to the characters that are read.
    """
    forms = {form for secret in secrets for form in _forms(secret)}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, HIDDEN)
    if len(text) <= max_length:
        return hide(text)
    # A credential that is cut is not recognised: read REACH characters more, and drop as many.
    return f"{hide(text[: max_length + REACH])[:-REACH]}… ({len(text)} characters)"


def redact_url(url: str) -> str:
    """Replace the part of ``url`` that may be its password, even if the URL is malformed.

    In ``user:password@host`` and ``postgresql:/user:password@host`` the scheme, or one of its
    slashes, is missing, and `redact` alone would not recognise a URL.
    """
    head, at, tail = url.rpartition("@")
    shown = _BEFORE_PASSWORD.match(head)
    if at and shown is not None and shown.end() < len(head):
        url = f"{shown[0]}{HIDDEN}@{tail}"
    return redact(url)


def leaves(error: BaseException) -> list[BaseException]:
    """Return the errors of a group, nested groups flattened; the error itself if it is no group.

    A group whose errors cannot be read counts as an error. At most ``_MAX_WALKED`` are visited.
    """
    found = [each for each, is_group in islice(_walk(error), _MAX_WALKED) if not is_group]
    return found or [error]


def can_be_printed(error: BaseException) -> bool:
    """Whether `traceback` can format an error.

    It fails for groups that are nested deeply, and does not end for groups that contain themselves.
    """
    return len(list(islice(_walk(error), _MAX_PRINTED + 1))) <= _MAX_PRINTED


def _walk(error: BaseException) -> Iterator[tuple[BaseException, bool]]:
    """Yield the errors and groups in an error, each with whether it is a group; may be endless."""
    waiting = [error]  # no recursion: groups may be nested deeper than Python's stack
    while waiting:
        found = waiting.pop()
        inner = _inner(found)
        waiting += reversed(inner)
        yield found, bool(inner)


def _inner(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return []
    return safely(lambda: [e for e in error.exceptions if isinstance(e, BaseException)], [])


def _cause(error: BaseException) -> BaseException | None:
    return safely(lambda: error.__cause__, None)


def _forms(secret: str) -> Iterator[str]:
    """Yield the ways in which a secret may be written."""
    yield secret
    yield repr(secret)[1:-1]
    yield json.dumps(secret)[1:-1]
    yield json.dumps(secret, ensure_ascii=False)[1:-1]
    data = secret.encode(errors="surrogatepass")
    for encoded in (quote(data), quote(data, safe=""), quote_plus(data)):
        yield encoded
        yield encoded.lower() if "%" in encoded else encoded
    yield base64.b64encode(data).decode().rstrip("=")
    yield base64.urlsafe_b64encode(data).decode().rstrip("=")


def _chain(error: BaseException) -> Iterator[tuple[BaseException, str]]:
    """Yield an error and those that led to it, the last first, each with the text after it."""
    relation = ""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen and len(seen) <= _MAX_CAUSES:
        yield link, relation
        seen.add(id(link))
        cause = _cause(link)
        if cause is not None:
            relation = "\nThe above exception was the direct cause of the following exception:\n\n"
            link = cause
        else:
            relation = "\nDuring handling of the above exception, another exception occurred:\n\n"
            link = _context(link)


def _context(error: BaseException) -> BaseException | None:
    return safely(lambda: None if error.__suppress_context__ else error.__context__, None)


def _block(error: BaseException, secrets: Collection[str]) -> str:
    """One error with its stack; the inner errors of a group follow with theirs."""
    text = _stack(error, secrets) + _last_lines(error, secrets)
    if _inner(error):
        inner = leaves(error)
        for number, leaf in enumerate(inner[:_MAX_INNER], 1):
            block = _stack(leaf, secrets) + _last_lines(leaf, secrets, MAX_TEXT // 2)
            text += f"  +---------------- {number} ----------------\n"
            text += "".join(f"    | {line}\n" for line in block.splitlines())
        if len(inner) > _MAX_INNER:
            text += f"  and {len(inner) - _MAX_INNER} more\n"
    return text


def _stack(error: BaseException, secrets: Collection[str]) -> str:
    trace = safely(lambda: error.__traceback__, None)
    if trace is None:
        return ""
    stack = traceback.extract_tb(trace, limit=-_MAX_FRAMES)
    shown = [f"{redact(part.rstrip(), secrets)[:_MAX_FRAME]}\n" for part in stack.format()]
    return "".join(["Traceback (most recent call last):\n", *shown])


def _last_lines(
    error: BaseException, secrets: Collection[str], max_length: int = MAX_TRACEBACK // 2
) -> str:
    """The type and the message of an error; for a `SyntaxError` also the position."""
    text = type(error).__name__
    if can_be_printed(error):
        text = safely(lambda: "".join(traceback.format_exception_only(error)), text)
    return f"{_encodable(redact(text.rstrip(), secrets, max_length))}\n"


def _described(error: BaseException, secrets: Collection[str]) -> str:
    """One error without its causes."""
    text = _named(error, secrets)
    if _inner(error):
        inner = leaves(error)
        for number, leaf in enumerate(inner[:_MAX_INNER]):
            text += f"{'; ' if number else ': '}{_named(leaf, secrets)}"
            if len(text) > MAX_TEXT:
                break
        if len(inner) > _MAX_INNER:
            text += f"; and {len(inner) - _MAX_INNER} more"
    return text


def _named(error: BaseException, secrets: Collection[str]) -> str:
    """The type and the message of one error."""
    message = _message(error, secrets)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _message(error: BaseException, secrets: Collection[str]) -> str:
    """The message and notes of an error, as text that can be encoded, without credentials."""
    notes: list[str] = []
    notes = safely(lambda: [_text(note) for note in getattr(error, "__notes__", ())], notes)
    lines = [safely(lambda: _text(error), ""), *notes]
    text = "\n".join(line for line in lines if line)
    return _encodable(redact(text, secrets, MAX_TEXT))


def _text(value: object) -> str:
    return str.__str__(str(value))  # an author's subclass of str may override __str__


def _encodable(text: str) -> str:
    return text.encode(errors="replace").decode()
