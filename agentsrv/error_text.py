"""Error texts for logs, events and clients: one description, one redaction, one length limit.

`describe` turns an exception into one text: its type, its message and notes, the inner errors of
a group, and its explicit causes where they add something. Every text passes `redact`, which
replaces credentials by ``***``: error messages of HTTP clients, database drivers and JWT
libraries quote the header, URL or token that they refuse.

Redaction works on the text alone. It recognises credentials by their context (a header, a URL, a
parameter's name) or by their form (the prefixes of well-known keys, JWTs, private keys). Nested
repetitions are bounded, and a message is cut before the patterns see it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Final

MAX_TEXT: Final = 2000  # characters of a description
MAX_REDACTED: Final = 8000  # characters of a text of which the credentials are replaced
REDACTED: Final = "***"

_MAX_MESSAGE: Final = 8000  # characters of one message that are looked at
_MAX_CAUSES: Final = 5
_MAX_INNER: Final = 10  # errors of a group that are named


def describe(error: BaseException, secrets: Collection[str] = ()) -> str:
    """Describe an error in at most ``MAX_TEXT`` characters, without credentials and ``secrets``.

    ``ValueError: message``; of a group also its inner errors, nested ones flattened; of an error
    with explicit causes (``raise … from …``) also those whose message it does not repeat. The
    text can be encoded as UTF-8, also where a message has unpaired surrogates. An error whose
    ``str()`` fails is described by its type.
    """
    text = _described(error)
    seen = {id(error)}
    cause = error.__cause__
    for _ in range(_MAX_CAUSES):
        if cause is None or id(cause) in seen:
            break
        seen.add(id(cause))
        if _message(cause) not in text:
            text += f" (caused by {_described(cause)})"
        cause = cause.__cause__
    text = redact(text, secrets)
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"


def redact(text: str, secrets: Collection[str] = ()) -> str:
    """Replace ``secrets`` and credentials in ``text`` by ``***``; return other text unchanged.

    A secret may contain another one, so the longest are replaced first. The patterns take time in
    proportion to the text, some 10 µs for each character at worst, and this runs in the event loop:
    of a text longer than ``MAX_REDACTED`` only its two ends are kept.
    """
    if len(text) > MAX_REDACTED:
        half = MAX_REDACTED // 2
        text = f"{text[:half]}\n[… {len(text) - MAX_REDACTED} characters …]\n{text[-half:]}"
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, REDACTED)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors of a group, nested groups flattened; the error itself if it is no group."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def _described(error: BaseException) -> str:
    """One error without its causes."""
    message = _message(error)
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    if isinstance(error, BaseExceptionGroup):
        inner = [_described(leaf) for leaf in leaves(error)]
        more = len(inner) - _MAX_INNER
        text += f": {'; '.join(inner[:_MAX_INNER])}"
        if more > 0:
            text += f"; and {more} more"
    return text


def _message(error: BaseException) -> str:
    """The message and notes of an error, as text that can be encoded."""
    try:
        lines = [str(error), *map(str, getattr(error, "__notes__", ()))]
        text = "\n".join(line[:_MAX_MESSAGE] for line in lines if line)
        return text[:_MAX_MESSAGE].encode(errors="replace").decode()
    except Exception:  # noqa: BLE001 - the author's own __str__ failed
        return ""


_NAME: Final = (
    r"(?:[\w.-]{0,40}(?:api[_-]?key|access[_-]?key|account[_-]?key|private[_-]?key|secret"
    r"|passw(?:or)?d|passphrase|pwd)[\w-]{0,20}"
    r"|(?:[\w.-]{0,40}[_-])?token|sig|signature|x-amz-[\w-]{1,20})"
)
_HEADER: Final = r"(?:proxy-)?authorization|(?:set-)?cookie|x-api-key|x-auth-token|api-key"
_SCHEME: Final = r"bearer|basic|digest|negotiate|token|apikey|api-key"
_WORD: Final = (  # of a sentence about credentials, not a credential
    r"(?!(?:tokens?|auth|authentication|authorization|schemes?|keys?|headers?|realm|expected|found"
    r"|missing|required|invalid|unknown|must|not|is|was|the|none|null|\*\*\*)\b)"
)
_QUOTE: Final = r"\\?['\"]"
_VALUE: Final = r"[^\s'\"&,;)\]}\\]"
_SPACE: Final = r"\s{0,9}"

_PATTERNS: Final[tuple[tuple[re.Pattern[str], str], ...]] = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        # A private key in PEM, also one whose line ends are escaped or whose end is cut off.
        (
            (
                r"(-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----)[\s\S]{0,8000}?"
                r"(-----END [A-Z ]{0,20}KEY-----|\Z)"
            ),
            rf"\1{REDACTED}\2",
        ),
        # A header in a dictionary or a list of pairs: 'Authorization': 'Bearer …'.
        (
            rf"({_QUOTE}(?:{_HEADER}){_QUOTE}{_SPACE}[:,]{_SPACE}b?)({_QUOTE}).*?\2",
            rf"\1\2{REDACTED}\2",
        ),
        # A quoted header value, as HTTP libraries quote one that they refuse: b'Bearer …\n'.
        (rf"(['\"])({_SCHEME})\s{{1,9}}{_WORD}[^'\"]+\1", rf"\1\2 {REDACTED}\1"),
        # A header as a line.
        (
            (
                rf"\b((?:set-)?cookie{_SPACE}[:=]|(?:proxy-)?authorization{_SPACE}[:=]{_SPACE}digest)"
                rf"\s{{1,9}}{_WORD}[^\r\n']+"
            ),
            rf"\1 {REDACTED}",
        ),
        (
            rf"\b((?:{_HEADER}){_SPACE}[:=]{_SPACE})((?:{_SCHEME})\s{{1,9}})?{_WORD}{_VALUE}+",
            rf"\1\2{REDACTED}",
        ),
        # A scheme and its token. "Basic" is also a word: what follows must look like base64.
        (rf"\b(bearer)\s{{1,9}}{_WORD}[^\s'\",;\\)>\]}}]+", rf"\1 {REDACTED}"),
        (
            (
                r"\b(basic)\s{1,9}(?-i:(?![A-Z]?[a-z]+\b(?![+/=]))(?=[a-z/+]{0,200}[A-Z0-9=]))"
                r"[\w+/-]{8,}={0,2}"
            ),
            rf"\1 {REDACTED}",
        ),
        # The password of a URL, also of one that is percent-encoded as a whole.
        (
            r"\b([a-z][a-z0-9+.-]{0,20}://[^\s/:@'\"]{0,256}:)(?!\d{1,5}[/?#])[^\s'\"<>]{1,512}@",
            rf"\1{REDACTED}@",
        ),
        (
            (
                r"\b([a-z][a-z0-9+.-]{0,20}%3a%2f%2f(?:(?!%3a|%40)[^\s/]){0,256}%3a)"
                r"(?:(?!%40)[^\s'\"&]){1,512}%40"
            ),
            rf"\1{REDACTED}%40",
        ),
        # A parameter: api_key=…, "password": "…". After a colon without quotes only a value with
        # a digit: `password: expected a string` is a sentence.
        (
            rf"\b({_NAME}(?:{_QUOTE})?{_SPACE}[=:,]{_SPACE}b?)({_QUOTE}){_WORD}[^'\"]+?\2",
            rf"\1\2{REDACTED}\2",
        ),
        (
            rf"\b({_NAME}\s{{0,3}}=\s{{0,3}})(?!none\b|null\b|\d{{1,6}}\b){_VALUE}+",
            rf"\1{REDACTED}",
        ),
        (rf"\b({_NAME}:\s{{0,3}})(?=[^\s'\"]{{0,40}}\d){_VALUE}{{8,}}", rf"\1{REDACTED}"),
        # Keys that can be recognised by their form.
        (r"\beyJ[\w-]{5,}\.[\w-]{4,}(?:\.[\w-]*)?", REDACTED),
        (r"\b(agentsrv_[0-9a-f]{8}_)[\w-]{8,}", rf"\1{REDACTED}"),
        (r"\b((?:sk|rk|pk)[-_])(?!learn\b)[\w*-]{4,}", rf"\1{REDACTED}"),
        (
            (
                r"\b(gh[pousr]_|github_pat_|glpat-|xox[abeoprs]-|hf_|npm_|pypi-|AKIA|ASIA|AIza|ya29\.)"
                r"[\w-]{12,}"
            ),
            rf"\1{REDACTED}",
        ),
    )
)
