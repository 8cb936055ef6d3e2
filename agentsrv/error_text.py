"""Error texts for logs, events and clients: one description, one redaction, one length limit.

Every text of an error that leaves the process, to a client, a store, a log or a terminal, is made
here or passes `redact`:

    `describe`          an exception as one text: type, message, notes, inner errors, causes
    `format_traceback`  the same with its stack
    `as_fields`         a refusal as the fields of a reply
    `redact`            any other text, such as a line of the log

`redact` replaces credentials, which `credentials` recognises, and the answers to secret questions,
which the caller names. It keeps at most ``MAX_REDACTED`` characters of a text. So that no
credential is cut in two, it reads further, and leaves out the end of what it has read.

An exception is an object of its author: its ``__str__``, its attributes and its groups may raise
anything, ``SystemExit`` too. `safely` reads them.
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
MAX_REDACTED: Final = 16_000  # characters of a text that are looked at

_MAX_CAUSES: Final = 5
_MAX_INNER: Final = 10  # errors of a group that are named
_MAX_FRAMES: Final = 20  # of a stack, the innermost
_MAX_FRAME: Final = 500  # characters
_MAX_LOOKS: Final = 10_000  # errors and groups in a group that are looked at
_MAX_PRINTED: Final = 300  # errors and groups in a group whose traceback is printed
_FIELDS: Final = ("retry_after", "details", "example")


def describe(error: BaseException, secrets: Collection[str] = ()) -> str:
    """Describe an error in at most ``MAX_TEXT`` characters, without credentials and ``secrets``.

    ``ValueError: message``; of a group also its inner errors, nested ones flattened; of an error
    with explicit causes (``raise … from …``) also those whose message it does not repeat. The
    text can be encoded as UTF-8, also where a message has unpaired surrogates. An error whose
    ``str()`` fails is described by its type. Raises nothing.
    """
    text = _described(error, secrets)
    seen = {id(error)}
    cause = _cause(error)
    for _ in range(_MAX_CAUSES):
        if cause is None or id(cause) in seen or len(text) > MAX_TEXT:
            break
        seen.add(id(cause))
        told = _message(cause, secrets)
        if not told or told not in text:
            text += f" (caused by {_described(cause, secrets)})"
        cause = _cause(cause)
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"


def format_traceback(error: BaseException, secrets: Collection[str] = ()) -> str:
    """Format an error with its stack, as the interpreter does, without credentials.

    At most ``MAX_TRACEBACK`` characters, which can be encoded as UTF-8: the innermost frames, and
    of the errors that led to it those that came last. Raises nothing.
    """
    blocks: list[str] = []
    size = 0
    for one, relation in _chain(error):
        block = _block(one, secrets) + relation
        size += len(block)
        if blocks and size > MAX_TRACEBACK:
            break
        blocks.append(block)
    return "".join(reversed(blocks))[-MAX_TRACEBACK:]


def as_fields(error: AgentsrvError) -> dict[str, Any]:
    """What a client is told of a refusal: ``code``, ``message``, ``retryable``, and what is known.

    The message and the reasons of ``details`` have no credentials.
    """
    fields: dict[str, Any] = {
        "code": error.code,
        "message": redact(error.message),
        "retryable": error.retryable,
    }
    fields |= {name: value for name in _FIELDS if (value := getattr(error, name)) is not None}
    if "details" in fields:
        fields["details"] = [
            {name: redact(text) if isinstance(text, str) else text for name, text in one.items()}
            for one in fields["details"]
        ]
    return fields


def safely(read: Callable[[], T], otherwise: T) -> T:
    """Return what ``read`` returns; ``otherwise`` if code of an author in it raises, whatever."""
    try:
        return read()
    except BaseException:  # noqa: BLE001 - sys.exit() in __str__ must not end the server
        return otherwise


_BEFORE_PASSWORD: Final = re.compile(r"(?:(?:[\w+.-]+:)?/+)?[^:/@]*:?")


def redact(text: str, secrets: Collection[str] = (), most: int = MAX_REDACTED) -> str:
    """Replace ``secrets`` and credentials in ``text`` by ``***``; return other text unchanged.

    Secrets are found as they are and as Python, JSON, URLs and base64 write them, the longest
    first, because one may contain another. Of a text longer than ``most`` characters, the end is
    left out. The work is in proportion to what is read.
    """
    forms = {form for secret in secrets for form in _forms(secret)}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, HIDDEN)
    if len(text) <= most:
        return hide(text)
    # A credential that is cut is not recognised, and its beginning is at the end of what is read.
    return f"{hide(text[: most + REACH])[:-REACH]}… ({len(text)} characters)"


def redact_url(url: str) -> str:
    """``url`` without what may be its password, also where it is no URL that can be read.

    In ``user:password@host`` and ``postgresql:/user:password@host`` the scheme, or a slash of it,
    is missing, so that `redact` recognises no URL.
    """
    head, at, tail = url.rpartition("@")
    shown = _BEFORE_PASSWORD.match(head)
    if at and shown is not None and shown.end() < len(head):
        url = f"{shown[0]}{HIDDEN}@{tail}"
    return redact(url)


def leaves(error: BaseException) -> list[BaseException]:
    """The errors of a group, nested groups flattened; the error itself if it is not a group.

    A group whose errors cannot be read counts as an error. Of many only the first are returned.
    """
    found = [each for each, is_group in islice(_walk(error), _MAX_LOOKS) if not is_group]
    return found or [error]


def can_be_printed(error: BaseException) -> bool:
    """Whether `traceback` can format an error: it fails, or does not end, for some groups.

    Those are deep, or contain themselves.
    """
    return len(list(islice(_walk(error), _MAX_PRINTED + 1))) <= _MAX_PRINTED


def _walk(error: BaseException) -> Iterator[tuple[BaseException, bool]]:
    """The errors of a group and the groups in it, and which are groups; may be endless."""
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
    """How a secret may be written."""
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
    """An error and those that led to it, the last first, each with the words after it."""
    relation = ""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen and len(seen) <= _MAX_CAUSES:
        yield one, relation
        seen.add(id(one))
        cause = _cause(one)
        if cause is not None:
            relation = "\nThe above exception was the direct cause of the following exception:\n\n"
            one = cause
        else:
            relation = "\nDuring handling of the above exception, another exception occurred:\n\n"
            one = _context(one)


def _context(error: BaseException) -> BaseException | None:
    return safely(lambda: None if error.__suppress_context__ else error.__context__, None)


def _block(error: BaseException, secrets: Collection[str]) -> str:
    """One error with its stack; of a group, the inner errors with theirs after it."""
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
    error: BaseException, secrets: Collection[str], most: int = MAX_TRACEBACK // 2
) -> str:
    """The type and the message of an error; of a `SyntaxError` also its place."""
    text = type(error).__name__
    if can_be_printed(error):
        text = safely(lambda: "".join(traceback.format_exception_only(error)), text)
    return f"{_encodable(redact(text.rstrip(), secrets, most))}\n"


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
    return str.__str__(str(value))  # and not of a subclass of an author


def _encodable(text: str) -> str:
    return text.encode(errors="replace").decode()
