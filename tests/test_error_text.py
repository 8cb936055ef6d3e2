"""Error texts describe an error in full and no credential."""

from __future__ import annotations

import pytest

from agentsrv.error_text import MAX_TEXT, describe, redact

SECRET = "s3cret-Value"
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc-_DEF"

LEAKS = {
    "bearer": f"refused: Bearer {SECRET}",
    "illegal header value": f"Illegal header value b'Bearer {SECRET}\\n'",
    "key of two lines": f"Illegal header value b'Bearer first\\n{SECRET}'",
    "basic": "refused: Basic dXNlcjpzM2NyZXQtVmFsdWU=",
    "header line": f"POST / HTTP/1.1\r\nAuthorization: {SECRET}\r\nHost: a",
    "proxy header": f"Proxy-Authorization: Basic {SECRET}",
    "digest header": f'Authorization: Digest username="u", response={SECRET}',
    "header dictionary": f"{{'Authorization': 'Bearer {SECRET}', 'a': 'b'}}",
    "header pairs": f"[(b'authorization', b'Bearer {SECRET}')]",
    "cookie": f"Cookie: a=b; session={SECRET}",
    "url": f"cannot open postgresql://user:{SECRET}@host/db",
    "url without user": f"redis://:{SECRET}@host:6379/0",
    "url, encoded password": f"postgresql://user:%40%2F{SECRET}%3A@host/db",
    "url, raw separators": f"postgresql://user:a@b/{SECRET}@host/db",
    "url, encoded": f"?target=postgresql%3A%2F%2Fuser%3A{SECRET}%40host%2Fdb",
    "query": f"GET /v1?a=1&api_key={SECRET}&b=2",
    "environment": f"OPENAI_API_KEY={SECRET}",
    "keyword": f"Client(api_key='{SECRET}', timeout=3)",
    "json": f'{{"client_secret": "{SECRET}", "a": 1}}',
    "escaped json": f'{{\\"password\\": \\"{SECRET}\\"}}',
    "yaml": f"password: {SECRET}",
    "connection string": f"host=a password={SECRET} dbname=b",
    "openai": f"Incorrect API key provided: sk-proj-{SECRET}.",
    "own key": f"agentsrv_3f2a9c0d_{SECRET}",
    "github": "ghp_s3cretValues3cretValue",
    "jwt": f"token {TOKEN} is expired",
    "pem": f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----",
}

KEPT = (
    "",
    "Bearer token is missing",
    "Authorization: expected Bearer token",
    "a basic question about Basic usage",
    "Basic authentication failed",
    "password: expected a string",
    "params.token: expected a string",
    "connect to http://127.0.0.1:8080/user@example",
    "max_tokens=512, token=None",
    "task-force, risk-free, sk-learn",
    "postgresql://user@host/db",
)


@pytest.mark.parametrize("text", LEAKS.values(), ids=LEAKS)
def test_no_credential_is_described(text: str) -> None:
    """Whichever part of an error quotes it: message, note, cause or inner error."""
    inner = RuntimeError(text)
    outer = ValueError("outer")
    outer.__cause__ = inner
    noted = ValueError("noted")
    noted.add_note(text)
    for error in (inner, outer, noted, ExceptionGroup("group", [inner])):
        described = describe(error)
        assert "***" in described
        for secret in (SECRET, "s3cretValue", "dXNlcjpzM2NyZXQtVmFsdWU", TOKEN):
            assert secret not in described


@pytest.mark.parametrize("text", KEPT)
def test_sentences_about_credentials_are_kept(text: str) -> None:
    """Redaction looks for credentials, not for words."""
    assert redact(text) == text


@pytest.mark.parametrize("text", LEAKS.values(), ids=LEAKS)
def test_redacting_twice_is_redacting_once(text: str) -> None:
    """A text may pass several places that redact."""
    assert redact(redact(text)) == redact(text)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def raised(error: BaseException, cause: BaseException) -> BaseException:
    """`error`, raised from `cause`."""
    error.__cause__ = cause
    return error


def noted(error: BaseException, note: str) -> BaseException:
    """`error` with a note."""
    error.add_note(note)
    return error


LOOP = ValueError("a")
LOOP.__cause__ = raised(KeyError("b"), LOOP)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("message"), "ValueError: message"),
        (ValueError(), "ValueError"),
        (Unprintable(), "Unprintable"),
        (ValueError("half \ud83d"), "ValueError: half ?"),
        (noted(ValueError("a"), "in b"), "ValueError: a\nin b"),
        (raised(ValueError("a"), KeyError("b")), "ValueError: a (caused by KeyError: 'b')"),
        (raised(ValueError("a: b"), OSError("b")), "ValueError: a: b"),
        (LOOP, "ValueError: a (caused by KeyError: 'b')"),
        (
            ExceptionGroup("g", [ValueError("a"), ExceptionGroup("h", [KeyError("b")])]),
            "ExceptionGroup: g (2 sub-exceptions): ValueError: a; KeyError: 'b'",
        ),
        (
            BaseExceptionGroup("g", [SystemExit(1)]),
            "BaseExceptionGroup: g (1 sub-exception): SystemExit: 1",
        ),
    ],
)
def test_a_description_names_the_type_the_message_and_what_led_to_it(
    error: BaseException, text: str
) -> None:
    """Each part appears once."""
    assert describe(error) == text


def test_a_description_is_bounded() -> None:
    """Long messages and large groups are cut."""
    many = ExceptionGroup("g", [ValueError("x" * 500)] * 50)
    for error in (ValueError("x" * 10**6), many):
        text = describe(error)
        assert len(text) == MAX_TEXT
        assert text.endswith("…")
    few = ExceptionGroup("g", [ValueError(str(number)) for number in range(12)])
    assert describe(few).endswith("ValueError: 9; and 2 more")
