"""Error texts describe an error in full and no credential."""

from __future__ import annotations

import pytest

from agentsrv.error_text import (
    MAX_REDACTED,
    MAX_TEXT,
    MAX_TRACEBACK,
    as_fields,
    describe,
    format_traceback,
    redact,
    redact_url,
)
from agentsrv.errors import InvalidCommandError

SECRET = "s3cret-Value"
LEAK = f"GET /?api_key={SECRET}"


def test_no_credential_is_described() -> None:
    """Whichever part of an error quotes it: message, note, cause, context or inner error."""
    inner = RuntimeError(LEAK)
    outer, later, noted = ValueError("outer"), ValueError("later"), ValueError("noted")
    outer.__cause__, later.__context__ = inner, inner
    noted.add_note(LEAK)
    for error in (inner, outer, noted, ExceptionGroup("group", [inner])):
        assert "api_key=***" in describe(error)
        assert SECRET not in describe(error)
    for error in (inner, outer, later, noted, ExceptionGroup("group", [inner])):
        assert "api_key=***" in format_traceback(error)
        assert SECRET not in format_traceback(error)


@pytest.mark.parametrize(
    "form",
    ["it's \"open\" sésame/1", "'it\\'s \"open\" sésame/1'", '"it\'s \\"open\\" s\\u00e9same/1"',
     '"it\'s \\"open\\" sésame/1"', "it%27s%20%22open%22%20s%C3%A9same/1",
     "it%27s%20%22open%22%20s%c3%a9same%2f1", "it%27s+%22open%22+s%C3%A9same%2F1",
     "aXQncyAib3BlbiIgc8Opc2FtZS8x"],
)  # fmt: skip
def test_a_secret_is_found_in_each_form(form: str) -> None:
    """As it is, and as Python, JSON, URLs and base64 write it."""
    secrets = {'it\'s "open" sésame/1', "open"}
    assert redact(f"refused: {form}.", secrets).replace("'", "").replace('"', "") == "refused: ***."


def test_a_secret_that_a_cut_divides_is_hidden() -> None:
    """Secrets are replaced before anything is cut."""
    secret = "open sesame " * 50
    for place in (0, 1, 100, 500, 599):
        shown = redact("x" * (MAX_REDACTED - place) + secret + "x" * 5000, {secret})
        assert "sesame" not in shown


def fail(depth: int) -> None:
    """Raise an error that quotes a credential, from deep down."""
    if depth:
        fail(depth - 1)
    raise ValueError(f"{LEAK} {'x' * 400_000}")


def caught(depth: int) -> ValueError:
    """The error of `fail`."""
    with pytest.raises(ValueError, match="api_key") as found:
        fail(depth)
    return found.value


def test_a_traceback_is_bounded() -> None:
    """The innermost frames and the last errors are kept."""
    error = caught(200)
    chained: BaseException = error
    for number in range(100):
        chained = raised(KeyError(number), chained)
    many = ExceptionGroup("g", [error] * 50)
    for one in (error, raised(KeyError(), error), chained, many):
        text = format_traceback(one)
        assert len(text) <= MAX_TRACEBACK
        assert SECRET not in text
    assert "in fail\n" in format_traceback(error)
    assert "direct cause" in format_traceback(chained)
    assert format_traceback(chained).splitlines()[-1] == "KeyError: 99"


def test_the_fields_of_a_refusal_have_no_credentials() -> None:
    """Neither the message nor the reasons."""
    details = [{"field": "params", "reason": LEAK}]
    error = InvalidCommandError(LEAK, details=details, retry_after=1.0)
    assert as_fields(error) == {
        "code": "invalid_command",
        "message": "GET /?api_key=***",
        "retryable": False,
        "retry_after": 1.0,
        "details": [{"field": "params", "reason": "GET /?api_key=***"}],
    }


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


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ann:s3cret@host/db", "postgresql://ann:***@host/db"),
        ("postgresql:/ann:s3cret@host/db", "postgresql:/ann:***@host/db"),
        ("//ann:s3cret@host/db", "//ann:***@host/db"),
        ("ann:s3cret@host/db", "ann:***@host/db"),
        ("ann:s3cret/with@all:of@host/db", "ann:***@host/db"),
        (":s3cret@host", ":***@host"),
        ("ws//ann:s3cret@host", "ws***@host"),
        ("host/db?password=s3cret", "host/db?password=***"),
        ("postgresql://ann@host/db", "postgresql://ann@host/db"),
        ("sqlite:///a.db", "sqlite:///a.db"),
        ("", ""),
    ],
)
def test_a_url_is_shown_without_its_password_also_where_it_is_misspelt(url, shown):
    """Errors quote settings that are no URLs."""
    assert redact_url(url) == shown
