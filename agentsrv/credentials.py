"""Recognition of credentials in text: passwords, tokens and keys, by their context or their form.

Theory of operation. Error messages of HTTP clients, database drivers and JWT libraries quote the
rejected header, URL or parameter. `hide` replaces the credential and keeps the sentence:

    by name      ``password=…``, ``"api_key": "…"``, ``X-Auth-Token: …``, ``--token …``
    by header    ``Authorization: …``, ``Cookie: …``, also folded headers and in dictionaries
    by scheme    ``Bearer …``, ``Basic …``
    by URL       ``scheme://user:…@host``, also percent-encoded
    by form      JSON Web Tokens, private keys in PEM, keys with well-known prefixes

A name is matched as a plain word without its prefix (``PGPASSWORD``). `_VALUE` reads the text after
the name, and Python code decides whether it is a credential or the rest of a sentence, so that
``password: expected a string`` is kept. A value that is in `_PROSE` is not a credential; a
value that only begins with such a word is.

Cost: each search is one pass over the text. Its repetitions are bounded, or consume the text that
they match even if the match ends at the end of the text, so no part is scanned again from each of
its characters. A search is skipped if none of its words occurs in the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from agentsrv.patterns import lazy_pattern

HIDDEN: Final = "***"
REACH: Final = 1000
"""Length of a credential with its context, in characters, from which it is always recognised."""

_NAMES: Final = (
    "api[ _-]?key(?: provided)?|access[_-]?key|account[_-]?key|private[_-]?key|secret(?!ar)"
    "|passw(?:or)?d|passphrase|pwd|token(?!i[sz])|credentials?|signature|session[_-]?id|session[_-]?key|jwt"
    "|x-amz-[a-z]{1,20}|(?<=[_-])pass(?![a-z])|(?<![a-z])(?:auth|sig)(?![a-z])"
)
_HEADERS: Final = (
    "(?:proxy-)?authorization|(?:set-)?cookie|x-api-key|x-auth-token|(?<![a-z_-])api-key"
)
_FIELD: Final = lazy_pattern(
    rf"(?P<header>{_HEADERS})|(?P<name>{_NAMES})(?P<rest>[\w-]{{0,20}})", re.ASCII
)
_SEPARATOR: Final = lazy_pattern(
    r"""
    (?P<quote>\\{0,7}["'])?
    (?:\s{0,9}(?P<sign>=>|:=|[=:,>]|%3[da])\s{0,9} | (?P<gap>[ \t]{1,9}))
    """,
    re.VERBOSE,
)
_VALUE: Final = lazy_pattern(
    r"""
    [a-z]?(?P<quote>\\{0,7}["'])(?P<quoted>[\s\S]*?)(?:(?<!\\)(?P=quote)|\Z)
    | (?P<list>[\[({][^\])}]*(?:[\])}]|\Z))
    | (?P<bare>(?:[^\s'"&;\\]|\\(?![nrt'"\\]))+)
    """,
    re.VERBOSE | re.IGNORECASE,
)
_CONTENT: Final = lazy_pattern("(?P<bare>[^<]+)")  # the text of an XML element
_REST_OF_HEADER: Final = lazy_pattern(r"(?:[^\r\n'\\]|\\(?![rn'])|\r?\n[ \t]+)+")
_SCHEME: Final = lazy_pattern(r"([a-z][\w-]{0,30})(?:\s{1,9}|\Z)", re.ASCII)
_MANY_WORDS: Final = frozenset("digest hawk oauth signature mac hmac aws4-hmac-sha256".split())
_SCHEMES: Final = _MANY_WORDS.union(
    "bearer basic token apikey api-key key negotiate ntlm splunk bot".split()
)

_PROSE: Final = frozenset(
    """
    a absent access again an and are as at auth authentication authorization be bearer before but by
    cannot challenge client code contains could credential credentials did does empty error expected
    expired expires failed false field for format forbidden found from given had has have header
    headers here if in incorrect instead invalid is it its jwt key keys length like limit malformed
    may method mismatch missing must name needed needs never no none not null of on one only option
    options or parameter params password prefix realm refused rejected required requires revoked
    scheme schemes secret server set setting settings should string takes that the their then this
    to token tokens too true type undefined unknown unset unsupported usage used user username value
    values was were when which will with without wrong you your
    """.split()
)
"""Words of sentences about credentials, and values that mean that no credential is set."""
_CLOSING: Final = ")]}>,.:!?`"  # after a word
_NO_CREDENTIAL: Final = lazy_pattern(
    r"s(?![\w-])|(?:[\w-]*[_-])?(?:file|path|name|type|url|uri|field|hint|policy|length|count|limit"
    r"|ttl|expiry|expires|error|required|env)(?![\w-])"
)
"""Suffixes of names whose value is not a credential: ``max_tokens``, ``password_file``."""
_SENTENCE: Final = frozenset(
    """
    cannot expected expires field input invalid is length may missing must needs not only required
    requires should string too value was
    """.split()
)
"""First words of a quoted sentence in place of a value; a passphrase may begin with others."""
_NEAR: Final = 40  # characters before a name that are examined
_OPTION: Final = lazy_pattern(r"(?<!\S)--[a-z_-]*\Z", re.IGNORECASE)  # the name is its last part
_MADE_UP: Final = r"(?=\D*\d)[^\s'\"]{8,}"  # not a word in a language
_COUNT: Final = lazy_pattern(r"[\d,.]{1,9}")
_PLACEHOLDER: Final = lazy_pattern(r"[A-Z][A-Z_]*|[-<\[…].*|\.\.\.|\*+")


def hide(text: str) -> str:
    """Replace the credentials in ``text`` by ``***``; return other text unchanged."""
    low = _lower(text)
    for words, search in _SEARCHES:
        if any(word in low for word in words):
            text = search(text)
            low = _lower(text)
    return text


def _lower(text: str) -> str:
    """Return ``text`` in lower case with the same length: U+0130 alone would become longer."""
    return text.replace("\u0130", "I").lower()


class _Found(NamedTuple):
    """The span of a credential, and its replacement."""

    start: int
    end: int
    shown: str = HIDDEN


def _fields(text: str) -> str:
    """Hide the values of headers, parameters, options and fields that are recognised by name."""
    return _replaced(text, _values(text))


def _values(text: str) -> Iterator[_Found]:
    low, done = _lower(text), 0
    for field in _FIELD.finditer(low):
        separator = _SEPARATOR.match(low, field.end())
        if field.start() < done or separator is None or not _can_separate(low, field, separator):
            continue
        if field["header"] is None:
            if _NO_CREDENTIAL.match(field["rest"]):
                continue
            found = _value_of_name(text, field, separator)
        else:
            found = _value_of_header(text, low, field, separator.end())
        if found is not None:
            done = found.end
            yield found


def _value_of_name(text: str, field: re.Match[str], separator: re.Match[str]) -> _Found | None:
    sign, at = separator["sign"], separator.end()
    may_be_prose = sign == ":" and separator["quote"] is None
    if may_be_prose and text[at : at + 1] in {"[", "(", "{"}:
        return None
    value = (_CONTENT if sign == ">" else _VALUE).match(text, at)
    if value is None:
        return None
    before = text[max(0, field.start() - _NEAR) : field.start()]
    if value["bare"] is None:  # a quoted word of prose is kept: token 'a1b2c3d4' is refused
        is_named = sign is not None or _OPTION.search(before) is not None
        is_made_up = re.fullmatch(_MADE_UP, value["quoted"] or "") is not None
        return _enclosed(value) if is_named or is_made_up else None
    word = value["bare"].rstrip(_CLOSING)
    is_number = field["name"] == "token" and _COUNT.fullmatch(word) is not None
    if not word or is_number or word.lower() in _PROSE:
        return None
    if sign is None:  # an option of a command line
        is_credential = _PLACEHOLDER.fullmatch(word) is None
    elif may_be_prose:
        is_credential = _looks_made_up(word) or _is_line(text, field.start(), value.end())
    else:
        is_credential = True
    return _Found(at, at + len(word)) if is_credential else None


def _value_of_header(text: str, low: str, field: re.Match[str], at: int) -> _Found | None:
    value = _VALUE.match(text, at)
    if value is None or value["bare"] is None:
        return None if value is None else _enclosed(value)
    scheme = _SCHEME.match(low, at)
    has_many_words = field["header"].endswith("cookie")
    if scheme is not None and not has_many_words and scheme[1] in _SCHEMES:
        at, has_many_words = scheme.end(), scheme[1] in _MANY_WORDS
        value = _VALUE.match(text, at)
        if value is None or value["bare"] is None:
            return None
    word = value["bare"].rstrip(_CLOSING)
    if not word or word.lower() in _PROSE:
        return None
    rest = _REST_OF_HEADER.match(text, at) if has_many_words else None
    return _Found(at, at + len(word) if rest is None else rest.end())


def _can_separate(low: str, field: re.Match[str], separator: re.Match[str]) -> bool:
    """Whether the characters between name and value can separate the two."""
    before = low[max(0, field.start() - _NEAR) : field.start()]
    if separator["sign"] is None:  # an option, or a word in quotes
        is_quoted = low[separator.end() : separator.end() + 1] in {"'", '"'}
        is_named = is_quoted or _OPTION.search(before) is not None
        return is_named and field["header"] is None and separator["quote"] is None
    if separator["sign"] == ">":  # an element of XML
        return re.search(r"<[\w:.-]*\Z", before) is not None
    if separator["sign"] == ",":  # a pair, or two arguments of a command line
        opening = r"\(" if field["header"] is None else r"[\[(]"
        pair = rf"""(?:{opening}\s?[a-z]?\\*["'][\w-]*|["']--[a-z_-]*)\Z"""
        return separator["quote"] is not None and re.search(pair, before) is not None
    return True


def _enclosed(value: re.Match[str]) -> _Found | None:
    """A value in quotes or brackets."""
    if value["list"] is not None:
        inner = value["list"][1:].rstrip("])}")
        is_empty = not inner.strip() or inner == HIDDEN
        return None if is_empty else _Found(value.start() + 1, value.start() + 1 + len(inner))
    words = value["quoted"].lower().split(maxsplit=1)
    prose = _PROSE if len(words) == 1 else _SENTENCE
    if not re.search(r"\w", value["quoted"]) or words[0].rstrip(_CLOSING) in prose:
        return None
    return _Found(*value.span("quoted"))


def _looks_made_up(word: str) -> bool:
    """Whether a word contains a digit or a character that is not a letter."""
    return len(word) >= 4 and not word.replace("-", "").isalpha()  # noqa: PLR2004


def _is_line(text: str, start: int, end: int) -> bool:
    """Whether a name that begins before ``start`` and a value up to ``end`` fill a line."""
    name = text[max(text.rfind("\n", 0, start) + 1, start - 40, 0) : start]
    is_first = re.fullmatch(r"[ \t-]*[\w.-]*", name) is not None
    return is_first and text[end : end + 1] in {"", "\n", "\r"}


def _replaced(text: str, found: Iterable[_Found]) -> str:
    parts: list[str] = []
    done = 0
    for start, end, shown in found:
        parts += text[done:start], shown
        done = end
    return "".join([*parts, text[done:]])


# --- by scheme, URL and form --------------------------------------------------------------------

_QUOTED_SCHEME: Final = lazy_pattern(
    r"""(["'])(bearer|basic|digest|negotiate|token|apikey)\s{1,9}([^"']+)(?:\1|\Z)""",
    re.IGNORECASE,
)
_BEARER: Final = lazy_pattern(r"""\bbearer(?:\s{1,9}|\.)([^\s'",;\\)>\]}]+)""", re.IGNORECASE)
_BASIC: Final = lazy_pattern(r"\b(?:basic|Basic|BASIC)\s{1,9}([\w+/-]{8,}={0,2})")
_USER_OF_URL: Final = lazy_pattern(
    r"""(://[^\s/:@'"]{0,256}:)(?!\d{1,5}[/?#]|PASSWORD@)(?:[^\s'"<>@]{0,512}@){1,4}"""
)
_TOKEN_OF_URL: Final = lazy_pattern(r"""(://)(?=\w*\d)[\w-]{20,256}@""", re.ASCII)
_ENCODED_URL: Final = lazy_pattern(
    r"""(%3a%2f%2f(?:(?!%3a|%40)[^\s/]){0,256}%3a)(?:(?!%40)[^\s'"&]){1,256}%40""", re.IGNORECASE
)
_PRIVATE_KEY: Final = lazy_pattern(
    r"(-----BEGIN [A-Z0-9 ]{0,20}PRIVATE KEY[A-Z ]{0,10}-----)[\s\S]*?"
    r"(-----END [A-Z0-9 ]{0,40}-----|\Z)"
)
_WEB_TOKEN: Final = lazy_pattern(r"\beyJ[\w-]{8,}(?:\.[\w-]*){0,4}")
_KEYS: Final = lazy_pattern(
    r"""\b(?:
    (agentsrv_[0-9a-f]{8}_)[\w-]{4,}
    | ((?:sk|rk)[-_])(?!learn\b|SK\b)[\w*-]{4,}
    | (pk_(?:live|test)_)\w{4,}
    | (gh[pousr]_|hf_|npm_|gsk_|r8_)[A-Za-z0-9]{12,}
    | (github_pat_|glpat-|glsa_|xox[abeoprs]-|xapp-|pypi-Ag|ya29\.|shp(?:at|ss)_|whsec_|nvapi-
      |xai-|dop_v1_)[\w-]{12,}
    | (AKIA|ASIA)[A-Z0-9]{12,}
    | (AIza|SG\.)[\w.-]{20,}
    | (1//0)[\w-]{20,}
    | (AGE-SECRET-KEY-1)[A-Z0-9]{12,}
    | (\d{8,10}:AA)[\w-]{30,}
    )""",
    re.VERBOSE | re.ASCII,
)
_HOOK: Final = lazy_pattern(r"(hooks\.slack\.com/services/)[\w/]{8,}")
_INPUT: Final = lazy_pattern(  # pydantic's report of a field's value
    rf"^([^\s\n]{{0,200}}?(?:{_NAMES})[^\n]{{0,200}}\n  [^\n]{{0,500}}?\binput_value=)"
    r"[^\n]+?(, input_type=\w+)",
    re.IGNORECASE | re.MULTILINE,
)
_CURL: Final = lazy_pattern(
    r"""((?<!\S)(?:-u|--user|--proxy-user)\s{1,9}['"]?[^\s:'"]{0,100}:)[^\s'"]+"""
)


def _schemes(text: str) -> str:
    text = _QUOTED_SCHEME.sub(_without_quoted, text)
    text = _BEARER.sub(_without_word, text)
    return _BASIC.sub(_without_base64, text)


def _without_quoted(found: re.Match[str]) -> str:
    first = found[3].split(maxsplit=1)[:1] or [""]
    if first[0].rstrip(_CLOSING + "=").lower() in _PROSE:
        return found[0]
    start, end = (place - found.start() for place in found.span(3))
    return f"{found[0][:start]}{HIDDEN}{found[0][end:]}"


def _without_word(found: re.Match[str]) -> str:
    word = found[1].rstrip(_CLOSING)
    if not word or word.rstrip("=").lower() in _PROSE or _PLACEHOLDER.fullmatch(word):
        return found[0]
    start = found.start(1) - found.start()
    return f"{found[0][:start]}{HIDDEN}{found[1][len(word) :]}"


def _without_base64(found: re.Match[str]) -> str:
    word = found[1]
    is_word = word.isalpha() and (word.islower() or word.istitle() or word.isupper())
    if is_word or (word.replace("-", "").isalpha() and "-" in word):
        return found[0]
    return f"{found[0][: found.start(1) - found.start()]}{HIDDEN}"


def _inputs(text: str) -> str:
    return _INPUT.sub(rf"\1{HIDDEN}\2", text)


def _urls(text: str) -> str:
    text = _USER_OF_URL.sub(rf"\1{HIDDEN}@", text)
    text = _TOKEN_OF_URL.sub(rf"\1{HIDDEN}@", text)
    return _ENCODED_URL.sub(rf"\1{HIDDEN}%40", text)


def _forms(text: str) -> str:
    text = _WEB_TOKEN.sub(HIDDEN, text)
    text = _KEYS.sub(lambda found: f"{found[found.lastindex or 0]}{HIDDEN}", text)
    text = _HOOK.sub(rf"\1{HIDDEN}", text)
    return _CURL.sub(rf"\1{HIDDEN}", text)


_SEARCHES: Final[tuple[tuple[tuple[str, ...], Callable[[str], str]], ...]] = (
    (("private key",), lambda text: _PRIVATE_KEY.sub(rf"\1{HIDDEN}\2", text)),
    (("bearer", "basic", "digest", "negotiate", "token", "apikey"), _schemes),
    (
        (
            "authorization", "cookie", "key", "secret", "passw", "passphrase", "pwd", "token",
            "credential", "signature", "session", "jwt", "x-amz-", "pass", "auth", "sig",
        ),
        _fields,
    ),
    (("input_value=",), _inputs),
    (("://", "%3a%2f%2f"), _urls),
    (
        ("_", "-", "eyj", "akia", "asia", "ya29", "aiza", "sg.", "//0", ":aa", "hooks.slack"),
        _forms,
    ),
)  # fmt: skip
"""The searches in their order, each with the lower-case words of which one must be in the text."""
